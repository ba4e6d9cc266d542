"""Prefixes of prompts as numbers, and what engines say of their caches in the same numbers.

A prefix of k chunks has a number that stands for all tokens up to there: a keyed hash of the number before it and the
chunk's tokens. The key is the runtime's own, so the scheduler's log tells nothing of the text. Tenants and adapters begin
with numbers of their own: they share no state, so they share no prefix.
"""

import secrets
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import blake2b

from flowserve.core.events import Passage
from flowserve.engines.base import KVNews, KVStored, Origin, Segment
from flowserve.ids import Tokens


class PrefixNumbers:
    """Makes the numbers. `chunk_tokens` tokens at a time; what does not fill the last chunk has none."""

    def __init__(self, chunk_tokens: Tokens) -> None:
        self.chunk_tokens = chunk_tokens
        self._key = secrets.token_bytes(32)

    def root(self, tenant: str, adapter: str = "") -> int:
        """The number of the empty prefix."""
        return self._hash(f"{len(tenant)} {tenant}{adapter}".encode("utf-8", "surrogatepass"))

    def next(self, number: int, chunk: Sequence[int]) -> int:
        """The number of the prefix that goes on with `chunk`."""
        return self._hash(number.to_bytes(8, "big") + array("q", chunk).tobytes())

    def of(self, root: int, ids: Sequence[int]) -> tuple[int, ...]:
        """Numbers of all prefixes of `ids`, the shortest first."""
        numbers, number, size = [], root, self.chunk_tokens
        for start in range(0, len(ids) - size + 1, size):
            number = self.next(number, ids[start : start + size])
            numbers.append(number)
        return tuple(numbers)

    def passages(self, root: int, segments: Iterable[Segment]) -> tuple[Passage, ...]:
        """The chunks of a prompt, by numbers that are the same wherever they stand."""
        found, start = [], 0
        for segment in segments:
            if segment.origin is Origin.CHUNK:
                found.append(Passage(self.next(root, segment.ids), start, len(segment.ids)))
            start += len(segment.ids)
        return tuple(found)

    def _hash(self, data: bytes) -> int:
        return int.from_bytes(blake2b(data, digest_size=8, key=self._key).digest(), "big")


@dataclass(frozen=True, slots=True)
class _Block:
    """What a block of an engine's cache ends."""

    number: int
    """Of the longest prefix of whole chunks up to its end."""
    rest: tuple[int, ...]
    """Tokens behind that."""
    completes: tuple[int, ...]
    """Prefixes that end in it."""


class CacheReader:
    """Turns one engine's cache events into numbers. An engine's blocks may be longer or shorter than our chunks."""

    def __init__(self, numbers: PrefixNumbers) -> None:
        self._numbers = numbers
        self._blocks: dict[bytes, _Block] = {}

    def read(self, news: KVNews) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """(numbers stored, numbers removed). Blocks behind an unknown one are ignored: nobody knows what they follow."""
        if news.cleared:
            self._blocks.clear()
        removed = tuple(self._removed(news.removed))
        return tuple(number for stored in news.stored for number in self._stored(stored)), removed

    def _removed(self, names: Iterable[bytes]) -> Iterable[int]:
        for name in names:
            block = self._blocks.pop(name, None)
            if block is not None:
                yield from block.completes

    def _stored(self, stored: KVStored) -> Iterable[int]:
        before = None if stored.parent is None else self._blocks.get(stored.parent)
        if stored.parent is not None and before is None:
            return
        number = self._numbers.root(stored.tenant) if before is None else before.number
        rest = () if before is None else before.rest
        size = stored.block_tokens
        for i, name in enumerate(stored.blocks):
            rest = (*rest, *stored.token_ids[i * size : (i + 1) * size])
            completes = []
            while len(rest) >= self._numbers.chunk_tokens:
                number = self._numbers.next(number, rest[: self._numbers.chunk_tokens])
                rest = rest[self._numbers.chunk_tokens :]
                completes.append(number)
            self._blocks[name] = _Block(number, rest, tuple(completes))
            yield from completes
