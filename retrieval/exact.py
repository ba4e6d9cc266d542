"""The vector index in plain numpy: the oracle of `faiss_index`, and what serves where faiss is not installed.

Scores are taken in float64 and rounded: embedding a query alone or in a batch changes its last bits, and so does every
library's order of summation. Without rounding, equal passages would change places from call to call.
"""

import numpy as np
from numpy.typing import NDArray

from flowserve.errors import RetrievalError
from flowserve.retrieval.protocols import Ids, Vectors

SCORE_DECIMALS = 6
MARGIN = 1e-5
"""More than float32 and rounding can move the cosine of two unit vectors: what is nearer than that has to be rescored."""


class ExactIndex:
    """Every query against every vector."""

    def __init__(self, dimension: int) -> None:
        self._ids: Ids = np.zeros(0, np.int64)
        self._vectors: Vectors = np.zeros((0, dimension), np.float32)

    def __repr__(self) -> str:
        return f"ExactIndex({len(self)} vectors of {self._vectors.shape[1]})"

    def __len__(self) -> int:
        return len(self._ids)

    def add(self, ids: Ids, vectors: Vectors) -> None:
        check_new(ids, vectors, self._ids, self._vectors.shape[1])
        self._ids = np.concatenate([self._ids, ids])
        self._vectors = np.concatenate([self._vectors, vectors])

    def remove(self, ids: Ids) -> int:
        keep = ~np.isin(self._ids, ids)
        self._ids, self._vectors = self._ids[keep], self._vectors[keep]
        return int(len(keep) - keep.sum())

    def search(self, queries: Vectors, k: int) -> tuple[Vectors, Ids]:
        scores = rounded_scores(queries, self._vectors)
        return best(scores, np.broadcast_to(self._ids, scores.shape), min(k, len(self)))


def rounded_scores(queries: Vectors, vectors: Vectors) -> NDArray[np.float64]:
    """(queries, vectors) cosines."""
    products: NDArray[np.float64] = queries.astype(np.float64) @ vectors.astype(np.float64).T
    return np.round(products, SCORE_DECIMALS) + 0.0  # no -0.0


def best(scores: NDArray[np.float64], ids: Ids, k: int) -> tuple[Vectors, Ids]:
    """The `k` highest of each row, best first, equal scores by lower id."""
    order = np.lexsort((ids, -scores), axis=-1)[:, :k]
    return np.take_along_axis(scores, order, 1).astype(np.float32), np.take_along_axis(ids, order, 1)


def check_new(ids: Ids, vectors: Vectors, present: Ids, dimension: int) -> None:
    """Raise unless `vectors` are finite, of this dimension, and under new ids."""
    if vectors.ndim != 2 or vectors.shape != (len(ids), dimension):
        raise RetrievalError(f"expected vectors of shape ({len(ids)}, {dimension}), got {vectors.shape}")
    if not np.isfinite(vectors).all():
        raise RetrievalError("vectors must be finite; the embedder returned NaN or infinity")
    if len(np.unique(ids)) != len(ids) or np.isin(ids, present).any():
        raise RetrievalError("vector ids must be new and different")
