"""Rankings and how they are taken: candidates by float32, places by rounded float64, ties by the lower row.

Every kind of index scores by `top`, so a passage has the same score in all of them, and lists of disjoint rows `merge`
to what one look at all those rows would give.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from flowserve.retrieval.exact import MARGIN, best, rounded_scores
from flowserve.retrieval.protocols import Ids, Ranking, Vectors

SCAN_ROWS = 1 << 16
"""Vectors that are scored at once: bounds the memory of a scan."""
TOGETHER = 4
"""Queries that are worth a multiplication of matrices."""
MANY_ROWS = 4096
"""Vectors that are."""
UNDIVIDED = 9000
"""Numbers of a matrix that OpenBLAS multiplies with a vector in one thread: less than its 9,216."""
FEW_BLOCKS = 8
"""Of so few such products, a sum without BLAS is quicker."""
STAGES = 8
"""Of a search that goes through its rows in blocks."""

NOTHING: Ranking = (np.zeros(0, np.float32), np.zeros(0, np.int64))


def dots(vectors: Vectors, query: Vectors) -> NDArray[np.float32]:
    """(rows,) cosines in float32, by this thread alone: searches have threads of their own.

    BLAS divides a large product among threads that wait for each other; on a busy machine one of 0.4 ms took 30. So it is
    given products of too few numbers to divide.
    """
    size = max(1, UNDIVIDED // vectors.shape[1])
    few = len(vectors) < FEW_BLOCKS * size  # as a cluster's: one call is quicker than three
    whole = 0 if few else len(vectors) // size * size
    near = np.empty(len(vectors), np.float32)
    if whole:
        near[:whole] = np.matmul(vectors[:whole].reshape(-1, size, vectors.shape[1]), query).ravel()
    near[whole:] = np.einsum("nd,d->n", vectors[whole:], query)
    return near


def top(query: Vectors, near: NDArray[np.float32], rows: Ids, vectors: Vectors, k: int) -> Ranking:
    """The k best of `rows`, exactly. query: (dimension,); near: (rows,) their cosines in float32."""
    if len(rows) > k:
        floor = np.partition(near, len(near) - k)[len(near) - k] - MARGIN
        rows = rows[near >= floor]
    return rescored(query, rows, vectors, k)


def rescored(query: Vectors, rows: Ids, vectors: Vectors, k: int) -> Ranking:
    """The k best of `rows`, all of which are scored in float64."""
    scores, found = best(rounded_scores(query[None], vectors[rows]), rows[None], k)
    return scores[0], found[0]


def merge(one: Ranking, other: Ranking, k: int) -> Ranking:
    """The k best of two rankings without a row in common."""
    scores = np.concatenate([one[0], other[0]]).astype(np.float64)
    merged, rows = best(scores[None], np.concatenate([one[1], other[1]])[None], k)
    return merged[0], rows[0]


def scan(queries: Vectors, rows: Ids | range, vectors: Vectors, k: int) -> list[Ranking]:
    """The k best of `rows` for each of (queries, dimension), by looking at every one of them.

    A range is read where it lies; other rows are copied a block at a time.
    """
    rankings = [NOTHING] * len(queries)
    for start in range(0, len(rows), SCAN_ROWS):
        block = rows[start : start + SCAN_ROWS]
        held = vectors[block.start : block.stop] if isinstance(block, range) else vectors[block]
        if len(queries) >= TOGETHER and len(held) >= MANY_ROWS:
            near = queries @ held.T
        else:
            near = np.stack([dots(held, query) for query in queries])
        places = np.arange(block.start, block.stop, dtype=np.int64) if isinstance(block, range) else block
        found = [top(query, own, places, vectors, k) for query, own in zip(queries, near, strict=True)]
        rankings = [merge(one, other, k) for one, other in zip(rankings, found, strict=True)] if start else found
    return rankings


def blocks(num_rows: int) -> Iterator[tuple[int, int]]:
    """Begin and end of `STAGES` blocks of about equal size, fewer where there are fewer rows."""
    size = -(-num_rows // STAGES) or 1
    for start in range(0, num_rows, size):
        yield start, min(start + size, num_rows)
