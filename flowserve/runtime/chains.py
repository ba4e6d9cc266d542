"""A model call that may end early, while it is at an engine: where it may be forked, what forks have answered, how it ends.

The scheduler says from which position on a trial is wanted (Fork) and when it is enough (Exit). A `Chain` finds the place in what
the engine writes, and keeps the answers, of which the scheduler knows the classes only. One streaming call writes the whole chain:
it is never cut into calls of a few tokens, which would be queued, sampled and tokenised anew each time.

A thinking budget is a limit like `max_tokens`: the engine keeps it where it can, and the chain counts itself in any case.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from enum import Enum, auto

from flowserve.core.stopping.signals import UNUSABLE
from flowserve.engines.base import Call, Engine, Output
from flowserve.graphs.plan import ExitSpec
from flowserve.ids import Tokens
from flowserve.reasoning.answers import Labels
from flowserve.runtime.breaks import Breaks
from flowserve.runtime.trials import NOTHING, Answered, continued

GRACE: Tokens = 16
"""Tokens by which a thinking budget may be passed at an engine that enforces it: its own mark takes a few."""


class Cut(Enum):
    """How a chain was ended before its own end."""

    ANSWER = auto()
    """By the answer of a trial, which is its end."""
    READOUT = auto()
    """The model is told to answer, and writes that."""


class Chain:
    """One model call; it stays when the call goes on elsewhere."""

    def __init__(self, exit: ExitSpec) -> None:
        self.exit = exit
        self.fork_at: Tokens | None = None
        """From where on the scheduler wants a trial; None: it wants none, or one is at work."""
        self.confident = True
        """That trial is to tell how sure it is."""
        self.trial: asyncio.Task[None] | None = None
        """The trial at work."""
        self.num_trials = 0
        self.cut: Cut | None = None
        self.stopped: str | None = None
        """The answer that its rule found sure enough, as a trial named it; None: no rule has ended it."""
        self.call: Call | None = None
        """The request that writes the chain; None: none is at an engine."""
        self._labels = Labels()
        self._said: dict[int, Answered] = {}
        self._breaks: Breaks | None = None
        self._budget: Tokens | None = None
        self._tries = False
        """Its engine can answer trials."""
        self._over = False
        """It has come to its own end."""
        self._answer = ""
        """What follows the chain, if a trial's answer is its end."""

    def begin(self, call: Call, engine: Engine) -> Call:
        """`call` goes to `engine`: the same call with what it needs to be watched. None of its settings that draw tokens change."""
        decode, think = engine.tokenizer.decode, self.exit.think
        self._breaks = Breaks(decode, self.exit.at, think[1] if think is not None else None)
        self._breaks.push(call.resumed)
        self.cut, self.stopped, self._over, self._tries = None, None, False, engine.capabilities.logprobs
        self._budget = self.exit.budget
        if self._budget is not None and engine.capabilities.thinking_budget and think is not None:
            call = replace(call, sampling=replace(call.sampling, thinking_budget=self._budget))
            self._budget += GRACE
        self.call = replace(call, stream=True)
        return self.call

    @property
    def is_open(self) -> bool:
        """It is being written, and nothing has ended it."""
        return self.call is not None and self.cut is None and not self._over

    def end(self) -> None:
        """The call has left its engine: so does its trial."""
        self.call = None
        if self.trial is not None:
            self.trial.cancel()
            self.trial = None

    def saw(self, output: Output) -> Tokens | None:
        """The call has written `output`. Where it is to be forked now; None: nowhere."""
        breaks = self._breaks
        if breaks is None or not self.is_open:
            return None
        self._over = output.finish is not None
        places = breaks.push(output.token_ids)
        if breaks.closed:
            return None
        if self._budget is not None and breaks.position >= self._budget and output.finish is None:
            self.cut = Cut.READOUT
            return None
        if self.fork_at is None or not self._tries or self._over:
            return None
        place = next((place for place in places if place >= self.fork_at), None)
        if place is not None:
            self.fork_at = None
        return place

    def label(self, answered: Answered) -> int:
        """The class of a trial's answer; what was said is kept."""
        label = self._labels[answered.answer]
        self._said[label] = answered
        return label

    def stop(self, label: int) -> None:
        """Enough: end the chain by the answer of class `label`."""
        said = NOTHING if label == UNUSABLE else self._said[label]
        self.stopped = said.answer
        if self.exit.deliver == "readout" or label == UNUSABLE:
            self.cut = Cut.READOUT
        else:
            self.cut, self._answer = Cut.ANSWER, said.said

    def answer(self) -> str:
        """The end of a chain that a trial's answer ends: as if the model had been told to answer there, and had."""
        return f"{self._closing()}{self.exit.trial}{self._answer}"

    def cue(self) -> str:
        """What makes the model write its answer."""
        return f"{self._closing()}\n\n" if self.exit.think is not None else self.exit.trial

    def _closing(self) -> str:
        return self.exit.think[1] if self.exit.think is not None else ""


def lacking(engine: Engine) -> str:
    """What `engine` lacks for trials; empty: nothing."""
    can = engine.capabilities
    return " and ".join(name for name, has in (("tokens", can.tokens), ("logprobs", can.logprobs)) if not has)


def readout_of(call: Call, engine: Engine, written: Sequence[int], cue: str) -> Call | None:
    """The call that answers after a chain that was cut. None: it has written all it may."""
    left = call.sampling.max_tokens - len(written)
    if left <= 0:
        return None
    return replace(
        call,
        id=f"{call.id}/readout",
        segments=continued(call, engine, written, cue),
        sampling=replace(call.sampling, max_tokens=left, thinking_budget=None),
        resumed=(),
        messages=None,
        meta=call.meta | {"node": f"{call.meta['node']}/readout"},
    )
