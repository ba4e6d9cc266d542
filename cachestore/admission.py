"""What may come in: a chunk that is asked for the second time, or that somebody knows will be. Pure.

Most passages are asked for once; keeping those would push out the ones that come again (TinyLFU, and second sight in RAGCache's
successors). A ghost list remembers names only.
"""

from collections import OrderedDict

from flowserve.cachestore.tier import Key

GHOSTS = 65_536
"""Names remembered: four megabytes."""


class SecondSight:
    """Remembers what was asked for lately; `sights` times make it worth keeping."""

    def __init__(self, sights: int = 2, ghosts: int = GHOSTS) -> None:
        self._sights = sights
        self._ghosts = ghosts
        self._seen: OrderedDict[Key, int] = OrderedDict()

    def missed(self, key: Key) -> None:
        """It was asked for and is not there."""
        self._seen[key] = self._seen.pop(key, 0) + 1
        if len(self._seen) > self._ghosts:
            self._seen.popitem(last=False)

    def is_due(self, key: Key) -> bool:
        """Is it worth keeping?"""
        return self._seen.get(key, 0) >= self._sights

    def expect(self, key: Key) -> None:
        """It will be asked for, as an author, a plan or an ingestion says: it is due at once."""
        self._seen.pop(key, None)
        self._seen[key] = self._sights
