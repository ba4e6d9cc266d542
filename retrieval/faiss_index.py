"""The vector index in FAISS: an exact flat index. The only file that imports faiss; `hnsw` and `pq` ask it here.

FAISS finds the candidates in float32; their scores are then taken as `exact` takes them, so that both give the same
answer to the last digit, ties included. FAISS's own file format is not used anywhere: it trusts the sizes it reads.
"""

from typing import Any

import numpy as np

from flowserve.errors import ConfigError
from flowserve.retrieval.exact import MARGIN, best, check_new, rounded_scores
from flowserve.retrieval.protocols import Ids, Vectors

SPARE = 8
"""Candidates beyond k that are fetched at first."""


def faiss_module() -> Any:
    """The package. Raises ConfigError where it is not installed."""
    try:
        import faiss
    except ImportError as error:
        raise ConfigError("this index needs faiss: pip install 'flowserve[faiss]'") from error
    return faiss


class FaissIndex:
    """IndexFlatIP under our own ids. Raises ConfigError where faiss is not installed."""

    def __init__(self, dimension: int) -> None:
        self._faiss = faiss_module()
        self._index: Any = self._faiss.IndexIDMap2(self._faiss.IndexFlatIP(dimension))

    def __repr__(self) -> str:
        return f"FaissIndex({len(self)} vectors of {self._index.d})"

    def __len__(self) -> int:
        return int(self._index.ntotal)

    def add(self, ids: Ids, vectors: Vectors) -> None:
        present = self._faiss.vector_to_array(self._index.id_map)
        check_new(ids, vectors, present, self._index.d)
        self._index.add_with_ids(np.ascontiguousarray(vectors, np.float32), np.ascontiguousarray(ids, np.int64))

    def remove(self, ids: Ids) -> int:
        return int(self._index.remove_ids(np.ascontiguousarray(ids, np.int64)))

    def search(self, queries: Vectors, k: int) -> tuple[Vectors, Ids]:
        k = min(k, len(self))
        queries = np.ascontiguousarray(queries, np.float32)
        scores = np.zeros((len(queries), k), np.float32)
        ids = np.zeros((len(queries), k), np.int64)
        if k == 0 or len(queries) == 0:
            return scores, ids
        todo = np.arange(len(queries))
        fetch = min(k + SPARE, len(self))
        while len(todo):
            near, candidates = self._index.search(queries[todo], fetch)
            for row, found in zip(todo, candidates, strict=True):
                scores[row], ids[row] = self._rescore(queries[row], found, k)
            # A vector that was not fetched could still belong among the k if the last one fetched is as good as those.
            unsure = near[:, -1] >= scores[todo, -1] - MARGIN
            todo = todo[unsure] if fetch < len(self) else todo[:0]
            fetch = min(2 * fetch, len(self))
        return scores, ids

    def _rescore(self, query: Vectors, candidates: Ids, k: int) -> tuple[Vectors, Ids]:
        vectors = self._index.reconstruct_batch(candidates)
        scores, ids = best(rounded_scores(query[None], vectors), candidates[None], k)
        return scores[0], ids[0]
