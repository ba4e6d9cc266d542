"""The KV memory of an engine: blocks, and a prefix cache over them that forgets the least recently used.

Prompts are known by chunks: numbers, each standing for everything up to its end. A chunk covers whole blocks, is shared by all
requests that hold it, and stays, idle, when nobody does, until its blocks are wanted. Blocks that are no whole known chunk are
private to one request.
"""

from collections.abc import Sequence


class KVCache:
    """`take` and `give` private blocks, `hold` and `drop` chunks, `share` turns private blocks into a chunk."""

    __slots__ = ("caching", "chunk_blocks", "free", "held", "idle", "removed", "size", "stored")

    def __init__(self, blocks: int, chunk_blocks: int, caching: bool = True) -> None:
        self.size = blocks
        self.chunk_blocks = chunk_blocks
        self.caching = caching
        self.free = blocks
        """Blocks that hold nothing."""
        self.held: dict[int, int] = {}
        """Chunk -> how many requests hold it."""
        self.idle: dict[int, None] = {}
        """Chunks that nobody holds, the least recently used first."""
        self.stored: list[int] = []
        """Chunks that came since somebody last asked."""
        self.removed: list[int] = []
        """Chunks that went."""

    @property
    def available(self) -> int:
        """Blocks that can be had."""
        return self.free + self.chunk_blocks * len(self.idle)

    @property
    def used_share(self) -> float:
        """Share of memory that requests hold."""
        return 1.0 - self.available / self.size

    def longest(self, chain: Sequence[int], most: int) -> int:
        """How many chunks of `chain` are there, from the first on; at most `most`."""
        found = 0
        for chunk in chain[:most] if self.caching else ():
            if chunk not in self.held and chunk not in self.idle:
                break
            found += 1
        return found

    def num_idle(self, chunks: Sequence[int]) -> int:
        """How many blocks `hold` would take from those available."""
        return self.chunk_blocks * sum(chunk in self.idle for chunk in chunks)

    def hold(self, chunks: Sequence[int]) -> None:
        """A request begins with these; they are there."""
        for chunk in chunks:
            self.idle.pop(chunk, None)
            self.held[chunk] = self.held.get(chunk, 0) + 1

    def take(self, blocks: int) -> None:
        """Private blocks; there are enough available."""
        while self.free < blocks:
            oldest = next(iter(self.idle))
            del self.idle[oldest]
            self.removed.append(oldest)
            self.free += self.chunk_blocks
        self.free -= blocks

    def give(self, blocks: int) -> None:
        self.free += blocks

    def share(self, chunk: int) -> bool:
        """Private blocks of a request become `chunk`, which it holds. False: it is known already, they stay private."""
        if not self.caching or chunk in self.held or chunk in self.idle:
            return False
        self.held[chunk] = 1
        self.stored.append(chunk)
        return True

    def drop(self, chunks: Sequence[int]) -> None:
        """A request ends with these. The end of a prefix will be given up before its beginning."""
        for chunk in reversed(chunks):
            self.held[chunk] -= 1
            if not self.held[chunk]:
                del self.held[chunk]
                self.idle[chunk] = None

    def news(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """(stored, removed) since the last time; what came and went, or went and came, is in neither."""
        there = [chunk for chunk in self.stored if chunk in self.held or chunk in self.idle]
        gone = [chunk for chunk in self.removed if chunk not in self.held and chunk not in self.idle]
        self.stored, self.removed = [], []
        return tuple(there), tuple(gone)
