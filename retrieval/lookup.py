"""What one generation looks things up in, and the cache that guesses what it would find.

A cache that scores as its index does has one property that speculation lives on (RaLMSpec, arXiv 2401.14021, section 3): if the
passage that the index ranks first is in the cache, it is first there too. So scores and ties must be the index's to the last
digit: cosines as `exact` rounds them, BM25 with the statistics of the whole corpus.
"""

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from flowserve.retrieval.documents import Passage
from flowserve.retrieval.exact import rounded_scores
from flowserve.retrieval.protocols import Ids, Vectors

Scores = NDArray[np.float64]


class Lookup(Protocol):
    """One state of a corpus: what is committed meanwhile does not change it. Passages are rows, from 0."""

    async def read(self, text: str) -> Any:
        """A query as the other methods take it: its vector, or its words. Raises RetrievalError."""
        ...

    async def search(self, queries: Sequence[Any], k: int) -> list[tuple[int, ...]]:
        """At most `k` rows for each query, best first, ties by lower row. The first of them depends neither on `k` nor on the
        other queries. Raises RetrievalError."""
        ...

    def score(self, query: Any, rows: Sequence[int]) -> Scores:
        """(rows,) as `search` scores them; -inf for what it would not find at all. Quick: it is not waited for."""
        ...

    def passage(self, row: int) -> Passage: ...


class DenseLookup:
    """A vector index and its vectors."""

    def __init__(
        self,
        vectors: Vectors,
        search: Callable[[Vectors, int], Awaitable[tuple[Vectors, Ids]]],
        embed: Callable[[str], Awaitable[Vectors]],
        passage: Callable[[int], Passage],
    ) -> None:
        """vectors: (passages, dimension). `search` as VectorIndex has it, off the event loop; rows of -1 are no hits."""
        self._vectors, self._search, self._embed, self._passage = vectors, search, embed, passage

    async def read(self, text: str) -> Vectors:
        """(dimension,). Embedded alone and once, so that the cache and the index see the same bits."""
        return await self._embed(text)

    async def search(self, queries: Sequence[Vectors], k: int) -> list[tuple[int, ...]]:
        _, rows = await self._search(np.stack(queries), k)
        return [tuple(row for row in found if row >= 0) for found in rows.tolist()]

    def score(self, query: Vectors, rows: Sequence[int]) -> Scores:
        scores: Scores = rounded_scores(query[None], self._vectors[list(rows)])[0]
        return scores

    def passage(self, row: int) -> Passage:
        return self._passage(row)


class LocalCache:
    """Rows that were found of late, of one generation. The ones found longest ago go first."""

    def __init__(self, capacity: int = 512) -> None:
        self._capacity = capacity
        self._rows: dict[int, None] = {}

    def __repr__(self) -> str:
        return f"LocalCache({len(self._rows)} of {self._capacity})"

    def add(self, rows: Sequence[int]) -> None:
        """Remember `rows`, best first: the best are kept longest."""
        for row in reversed(rows):
            self._rows.pop(row, None)
            self._rows[row] = None
        while len(self._rows) > self._capacity:
            del self._rows[next(iter(self._rows))]

    def guess(self, lookup: Lookup, query: Any) -> int | None:
        """The best of them for `query`, the lower row of equals; None: nothing that the index would find."""
        rows = sorted(self._rows)
        if not rows:
            return None
        scores = lookup.score(query, rows)
        best = int(np.argmax(scores))
        return rows[best] if scores[best] > -np.inf else None
