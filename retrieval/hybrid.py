"""Meaning and words together: the rankings of `exact` and `bm25`, fused by reciprocal rank."""

from collections.abc import Iterator, Sequence

import numpy as np

from flowserve.retrieval.bm25 import Bm25Index
from flowserve.retrieval.exact import best
from flowserve.retrieval.flat import FlatIndex
from flowserve.retrieval.fusion import fuse
from flowserve.retrieval.protocols import Ids, Query, Ranking
from flowserve.retrieval.spec import IndexSpec


class HybridIndex:
    """Fuses the `depth` best of both (or k, if that is more). The score of a hit is its sum of reciprocal ranks."""

    wants_vector = True

    def __init__(self, spec: IndexSpec, dense: FlatIndex, words: Bm25Index) -> None:
        self._dense, self._words = dense, words
        self._depth, self._offset = spec.count("depth"), spec.count("offset")

    def __repr__(self) -> str:
        return f"HybridIndex({self._dense!r}, {self._words!r})"

    def search(self, queries: Sequence[Query], k: int, rows: Ids | None = None) -> list[Ranking]:
        depth = max(self._depth, k)
        both = zip(self._dense.search(queries, depth, rows), self._words.search(queries, depth, rows), strict=True)
        return [self._fused(dense, words, k) for dense, words in both]

    def stages(self, query: Query, k: int, rows: Ids | None = None) -> Iterator[Ranking]:
        """After each stage of words, which are quicker, and then of meaning."""
        depth = max(self._depth, k)
        nothing = (np.zeros(0, np.float32), np.zeros(0, np.int64))
        words: Ranking = nothing
        for words in self._words.stages(query, depth, rows):
            yield self._fused(nothing, words, k)
        for dense in self._dense.stages(query, depth, rows):
            yield self._fused(dense, words, k)

    def _fused(self, dense: Ranking, words: Ranking, k: int) -> Ranking:
        fused = fuse([dense[1].tolist(), words[1].tolist()], self._offset)
        rows = np.array([row for row, _ in fused], np.int64)
        sums = np.array([total for _, total in fused], np.float64)
        scores, found = best(sums[None], rows[None], k)
        return scores[0], found[0]
