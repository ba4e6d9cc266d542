"""Every vector is looked at: the kind `exact`, and the measure of the others.

Queries that come together share one multiplication with each block of vectors, which lie in the snapshot itself: nothing
is built, nothing is copied.
"""

from collections.abc import Iterator, Sequence

import numpy as np

from flowserve.retrieval.protocols import Ids, Query, Ranking
from flowserve.retrieval.ranking import NOTHING, blocks, merge, scan
from flowserve.retrieval.snapshot import Snapshot


class FlatIndex:
    """One generation's vectors as they are."""

    wants_vector = True

    def __init__(self, snapshot: Snapshot) -> None:
        self._vectors = snapshot.vectors

    def __repr__(self) -> str:
        return f"FlatIndex({len(self._vectors)} vectors of {self._vectors.shape[1]})"

    def search(self, queries: Sequence[Query], k: int, rows: Ids | None = None) -> list[Ranking]:
        return scan(np.stack([query.unit for query in queries]), self._among(rows), self._vectors, k)

    def stages(self, query: Query, k: int, rows: Ids | None = None) -> Iterator[Ranking]:
        """After each of a few blocks of rows."""
        among = self._among(rows)
        ranking = NOTHING
        for start, stop in blocks(len(among)):
            [found] = scan(query.unit[None], among[start:stop], self._vectors, k)
            ranking = merge(ranking, found, k)
            yield ranking

    def _among(self, rows: Ids | None) -> Ids | range:
        return range(len(self._vectors)) if rows is None else rows
