"""What is kept for sessions between their calls, within a budget: the oldest goes first, and everything expires."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

from flowserve.ids import Seconds, Tokens


@dataclass(frozen=True, slots=True)
class Owner:
    """Whose KV it is: never another's, not even with the same tokens."""

    tenant: str
    lora: str
    session: str
    """ "": whoever of the tenant comes with these tokens first."""


@dataclass(eq=False, slots=True)
class Held:
    """Something on the shelf."""

    owner: Owner
    tokens: Tokens
    """KV memory that it takes."""
    close: Callable[[], None]
    """Gives that back. Called at most once, and not when it was taken from the shelf."""
    places: int = 0
    """Of the batch, which nobody else has meanwhile."""
    timer: asyncio.TimerHandle | None = field(default=None, repr=False)


class Shelf:
    """At most `max_tokens` and `max_places` of it, together."""

    def __init__(self, max_tokens: Tokens, max_places: int) -> None:
        self._max_tokens = max_tokens
        self._max_places = max_places
        self._held: list[Held] = []
        """Oldest first."""

    def takes(self, tokens: Tokens, places: int = 0) -> bool:
        """There would be room for so much if the rest went."""
        return tokens <= self._max_tokens and places <= self._max_places

    def put(self, held: Held, keep_s: Seconds) -> None:
        """Older things go until it fits; what does not fit at all is closed at once."""
        if not self.takes(held.tokens, held.places):
            held.close()
            return
        self._held.append(held)
        held.timer = asyncio.get_running_loop().call_later(keep_s, self.drop, held)
        while self._over():
            self.drop(self._held[0])

    def take(self, held: Held) -> None:
        """Off the shelf, not closed."""
        self._held.remove(held)
        if held.timer is not None:
            held.timer.cancel()

    def drop(self, held: Held) -> None:
        """Off the shelf and closed. What is not there is ignored."""
        if held in self._held:
            self.take(held)
            held.close()

    def forget(self, held: Held) -> None:
        """As `take`, for what may not be there."""
        if held in self._held:
            self.take(held)

    def of(self, owner: Owner) -> list[Held]:
        """What is there of its owner, oldest first."""
        return [held for held in self._held if held.owner == owner]

    def release(self, session: str) -> None:
        for held in [held for held in self._held if held.owner.session == session]:
            self.drop(held)

    def free_places(self) -> None:
        """Drop whatever others could use a place of the batch instead of."""
        for held in [held for held in self._held if held.places]:
            self.drop(held)

    def clear(self) -> None:
        for held in list(self._held):
            self.drop(held)

    def _over(self) -> bool:
        tokens = sum(held.tokens for held in self._held)
        places = sum(held.places for held in self._held)
        return tokens > self._max_tokens or places > self._max_places
