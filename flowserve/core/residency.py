"""Which prefixes an engine's cache is thought to hold.

A prefix is known by a number per `PoolConfig.prefix_tokens` tokens, each standing for everything up to there, so the
longest known prefix of a prompt is found by looking its numbers up in order. What is known comes from the engine's own
cache events where it sends them, and from what was dispatched there otherwise; then the oldest is forgotten when
the engine's memory would have to give it up.
"""

from collections.abc import Iterable, Iterator, Sequence

UNKNOWN_ROOM = 65_536
"""Prefix numbers remembered of an engine that does not say how much it holds."""


class Residency:
    """Numbers of prefixes, the least recently used first."""

    __slots__ = ("_known", "capacity")

    def __init__(self) -> None:
        self._known: dict[int, None] = {}
        self.capacity = UNKNOWN_ROOM

    def __len__(self) -> int:
        return len(self._known)

    def __contains__(self, number: int) -> bool:
        """Is the prefix that ends there known? What comes before it then is too, unless a cache gave that up first."""
        return number in self._known

    def longest(self, prefix: tuple[int, ...]) -> int:
        """How many of `prefix` are known, from the first on."""
        known = self._known
        for i, number in enumerate(prefix):
            if number not in known:
                return i
        return len(prefix)

    def oldest(self, count: int) -> Iterator[int]:
        """The first `count` that would be forgotten, in that order."""
        return (number for number, _ in zip(self._known, range(count), strict=False))

    def add(self, prefix: Sequence[int]) -> None:
        """They are there, and were just used. A cache gives up the end of a prefix before its beginning, so does this."""
        known = self._known
        for number in reversed(prefix):
            known.pop(number, None)
            known[number] = None
        while len(known) > self.capacity:
            del known[next(iter(known))]

    def remove(self, numbers: Iterable[int]) -> None:
        for number in numbers:
            self._known.pop(number, None)

    def clear(self) -> None:
        self._known.clear()
