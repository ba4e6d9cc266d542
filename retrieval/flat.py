"""Every vector is looked at: the kind `exact`, and the measure of the others."""

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from flowserve.retrieval.protocols import Ids, Query, Ranking, VectorIndex
from flowserve.retrieval.ranking import NOTHING, blocks, merge, scan
from flowserve.retrieval.snapshot import Snapshot

MakeIndex = Callable[[int], VectorIndex]
"""Dimension -> an empty index."""


class FlatIndex:
    """One generation's vectors in a `VectorIndex`."""

    wants_vector = True

    def __init__(self, snapshot: Snapshot, make: MakeIndex) -> None:
        self._vectors = snapshot.vectors
        self._index = make(snapshot.dimension)
        self._index.add(np.arange(len(snapshot.vectors), dtype=np.int64), snapshot.vectors)

    def __repr__(self) -> str:
        return f"FlatIndex({self._index!r})"

    def search(self, queries: Sequence[Query], k: int, rows: Ids | None = None) -> list[Ranking]:
        if rows is not None:
            return [scan(query.unit, rows, self._vectors, k) for query in queries]
        scores, found = self._index.search(np.stack([query.unit for query in queries]), k)
        return list(zip(scores, found, strict=True))

    def stages(self, query: Query, k: int, rows: Ids | None = None) -> Iterator[Ranking]:
        """After each of a few blocks of rows."""
        every = np.arange(len(self._vectors), dtype=np.int64) if rows is None else rows
        ranking = NOTHING
        for start, stop in blocks(len(every)):
            ranking = merge(ranking, scan(query.unit, every[start:stop], self._vectors, k), k)
            yield ranking
