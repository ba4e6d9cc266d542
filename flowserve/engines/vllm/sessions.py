"""What is kept between the calls of a session, and which call it serves. Decides; calls.py acts.

Two ways. A talk (talks.py) keeps KV to the token, for calls that can be in one. A pin (scheduler.py) keeps the full
blocks of a call that has ended, whatever it was; for all others, as agents' steps with constrained output are. Both
are hints within one budget. A call that comes back with what a session holds and more goes on from it; anything else
of that session ends it.
"""

import itertools
from collections.abc import Callable, Sequence

from flowserve.engines.salts import Salts
from flowserve.engines.vllm.runs import Run
from flowserve.engines.vllm.shelf import Held, Owner, Shelf
from flowserve.engines.vllm.talks import Talk, can_talk
from flowserve.engines.vllm.wire import Ask
from flowserve.ids import Seconds

WARM_S: Seconds = 30.0
"""How long what was computed ahead of time is kept for a call that does not say."""


class Sessions:
    """talks: vLLM can hold talks. reorders: a talk's priority can be changed. unpin: gives a pin back; None: nothing
    can be pinned."""

    def __init__(
        self, shelf: Shelf, salts: Salts, *, talks: bool, reorders: bool, unpin: Callable[[str], None] | None
    ) -> None:
        self._shelf = shelf
        self._salts = salts
        self.reorders = reorders
        self._can_talk = talks
        self._unpin = unpin
        self._talks: list[Talk] = []
        self._numbers = itertools.count()

    def talk_for(self, run: Run) -> Talk | None:
        """The talk that `run` shall be a turn of, perhaps still at work on what was computed ahead; None: it goes
        alone.

        The others of its session end.
        """
        owner = _owner(run.ask)
        fit = self._can_talk and can_talk(run.ask) and run.transfer is None
        found = self._continued(run, owner) if fit else None
        for talk in [talk for talk in self._talks if talk is not found and owner.session and talk.owner == owner]:
            if talk.held is not None:
                self._shelf.drop(talk.held)
        if found is None:
            room = self._shelf.takes(len(run.prompt), places=1)
            if not fit or not room or not (run.warm or (owner.session and run.ask.keep_s > 0)):
                return None
            found = Talk(f"talk-{next(self._numbers)}", owner, self._salts.of(owner.tenant), run.priority)
            self._talks.append(found)
        if found.held is not None:
            self._shelf.take(found.held)
            found.held = None
        found.claimed = True
        return found

    def unclaimed(self, talk: Talk) -> None:
        """The call that was to be its next turn does not come."""
        talk.claimed = False
        if talk.task is None:
            self.gone(talk)
        elif talk.run is None:
            talk.end()

    def turn_over(self, talk: Talk, run: Run) -> None:
        """`run`, the latest turn of `talk`, ended well: keep it or end it."""
        keep_s = run.ask.keep_s or (WARM_S if run.warm else 0.0)
        if talk.claimed:
            return
        if keep_s <= 0:
            talk.end()
            return
        talk.held = Held(talk.owner, len(talk.tokens), talk.end, places=1)
        self._shelf.put(talk.held, keep_s)

    def gone(self, talk: Talk) -> None:
        """vLLM does not know it any more."""
        talk.gone()
        if talk in self._talks:
            self._talks.remove(talk)
        if talk.held is not None:
            self._shelf.forget(talk.held)

    def pin_of(self, run: Run) -> str:
        """The key under which the blocks of a run that goes alone are pinned when it ends; "": they are not."""
        ask = run.ask
        wanted = ask.session and ask.keep_s > 0 and run.index == 0 and not run.warm
        return f"{ask.key}" if wanted and self._unpin is not None and self._shelf.takes(len(run.prompt)) else ""

    def pinned(self, run: Run, key: str) -> None:
        """A run ended well, so its blocks are pinned."""
        unpin = self._unpin
        assert unpin is not None, "it gave the key"
        held = Held(_owner(run.ask), len(run.prompt) + len(run.written), lambda: unpin(key))
        self._shelf.put(held, run.ask.keep_s)

    def unpinned(self, key: str) -> None:
        """A run that ended otherwise: nobody will come back for its blocks."""
        if self._unpin is not None:
            self._unpin(key)

    def take_pins(self, ask: Ask) -> Callable[[], None] | None:
        """The pins of its session end with a call; the returned function lets go of them, and is for when it has
        begun."""
        pins = [held for held in self._shelf.of(_owner(ask)) if not held.places] if ask.session else []
        for held in pins:
            self._shelf.take(held)
        return (lambda: _close(pins)) if pins else None

    def release(self, session: str) -> None:
        """Let go of everything that is kept for a session."""
        self._shelf.release(session)

    def pressed(self) -> None:
        """Calls wait or memory is scarce. Pins give way in the scheduler by themselves, talks do not."""
        self._shelf.free_places()

    def clear(self) -> None:
        self._shelf.clear()

    def _continued(self, run: Run, owner: Owner) -> Talk | None:
        """The one that holds most of the run's prompt: of its session, or of its tenant and nobody's session."""
        fitting = [
            talk
            for talk in self._talks
            if talk.owner in (owner, Owner(owner.tenant, owner.lora, ""))
            and not talk.claimed
            and (talk.held is not None or (talk.run is not None and talk.run.warm))
            and (talk.priority == run.priority or self.reorders)
            and talk.continued_by(run.prompt)
        ]
        return max(fitting, key=lambda talk: len(talk.tokens), default=None)


def _close(pins: Sequence[Held]) -> None:
    for held in pins:
        held.close()


def _owner(ask: Ask) -> Owner:
    return Owner(ask.tenant, ask.lora, ask.session)
