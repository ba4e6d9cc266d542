"""One pass over memory finds what the oracle finds."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowserve.retrieval import flat_batch
from flowserve.retrieval.exact import best, rounded_scores
from flowserve.retrieval.flat_batch import FlatBatch
from flowserve.retrieval.protocols import Ids, Vectors


def unit(seed: int, count: int, coarse: bool) -> Vectors:
    chance = np.random.default_rng(seed)
    drawn = chance.integers(-1, 2, (count, 6)) if coarse else chance.standard_normal((count, 6))
    vectors: Vectors = drawn.astype(np.float32)
    vectors[~vectors.any(axis=1), 0] = 1
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors


def exact(vectors: Vectors, queries: Vectors, k: int) -> tuple[Vectors, Ids]:
    """Every query against every vector."""
    scores = rounded_scores(queries, vectors)
    rows = np.broadcast_to(np.arange(len(vectors), dtype=np.int64), scores.shape)
    return best(scores, rows, min(k, len(vectors)))


@pytest.mark.parametrize("block", [4, 1 << 15])
@given(st.integers(0, 2**32), st.integers(0, 60), st.integers(1, 9), st.integers(1, 12), st.booleans())
def test_a_batch_finds_what_the_oracle_finds_ties_included(
    block: int, seed: int, count: int, num: int, k: int, coarse: bool
) -> None:
    vectors, queries = unit(seed, count, coarse), unit(seed + 1, num, coarse)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(flat_batch, "BLOCK", block)
        scores, rows = FlatBatch(vectors).search(queries, k)
    expected_scores, expected_rows = exact(vectors, queries, k)
    assert np.array_equal(rows, expected_rows)
    assert np.array_equal(scores, expected_scores)
