"""What a score is and which hits are best: by this every kind of index is measured, and every hit is placed.

Scores are taken in float64 and rounded: embedding a query alone or in a batch changes its last bits, and so does every
library's order of summation. Without rounding, equal passages would change places from call to call.
"""

import numpy as np
from numpy.typing import NDArray

from flowserve.retrieval.protocols import Ids, Vectors

SCORE_DECIMALS = 6
MARGIN = 1e-5
"""More than float32 and rounding can move the cosine of two unit vectors: what is nearer than that has to be rescored."""


def rounded_scores(queries: Vectors, vectors: Vectors) -> NDArray[np.float64]:
    """(queries, vectors) cosines."""
    products: NDArray[np.float64] = queries.astype(np.float64) @ vectors.astype(np.float64).T
    return np.round(products, SCORE_DECIMALS) + 0.0  # no -0.0


def best(scores: NDArray[np.float64], ids: Ids, k: int) -> tuple[Vectors, Ids]:
    """The `k` highest of each row, best first, equal scores by lower id."""
    order = np.lexsort((ids, -scores), axis=-1)[:, :k]
    return np.take_along_axis(scores, order, 1).astype(np.float32), np.take_along_axis(ids, order, 1)
