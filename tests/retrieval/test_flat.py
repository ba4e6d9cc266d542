"""Scans against scores taken one by one."""

from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flowserve.retrieval import ranking
from flowserve.retrieval.exact import best, rounded_scores
from flowserve.retrieval.protocols import Ids, Vectors
from flowserve.retrieval.ranking import scan


def unit(rows: Vectors) -> Vectors:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def random_units(seed: int, number: int, dimension: int) -> Vectors:
    return unit(np.random.default_rng(seed).standard_normal((number, dimension), np.float32))


def assert_exact(queries: Vectors, rows: Ids | range, vectors: Vectors, k: int) -> None:
    among = np.array(rows, np.int64)
    for query, (scores, found) in zip(queries, scan(queries, rows, vectors, k), strict=True):
        expected, ids = best(rounded_scores(query[None], vectors[among]), among[None], k)
        assert (found.tolist(), scores.tolist()) == (ids[0].tolist(), expected[0].tolist())
        assert (found.dtype, scores.dtype) == (np.int64, np.float32)


@pytest.mark.parametrize("number, dimension, k", [(3000, 384, 10), (500, 16, 500), (50, 8, 100)])
@pytest.mark.parametrize("block", [64, 1 << 16])
@pytest.mark.parametrize("many", [1, 1 << 20], ids=["matrices", "dots"])
def test_a_scan_is_exact_on_random_data(number: int, dimension: int, k: int, block: int, many: int) -> None:
    vectors, queries = random_units(2, number, dimension), random_units(3, 40, dimension)
    with patch.object(ranking, "SCAN_ROWS", block), patch.object(ranking, "MANY_ROWS", many):
        assert_exact(queries, range(number), vectors, k)
        assert_exact(queries, np.arange(0, number, 3), vectors, k)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 60), st.integers(1, 30), st.integers(1, 70))
def test_a_scan_is_exact_with_many_ties(seed: int, number: int, k: int, block: int) -> None:
    rng = np.random.default_rng(seed)
    distinct = unit(rng.integers(-1, 2, (5, 4)).astype(np.float32) + 0.25)
    vectors = distinct[rng.integers(0, len(distinct), number)]
    queries = np.concatenate([distinct[:2], random_units(seed, 2, 4)])
    with patch.object(ranking, "SCAN_ROWS", block):
        assert_exact(queries, range(number), vectors, k)


def test_equal_scores_come_by_row_even_at_the_cut() -> None:
    [(scores, found)] = scan(unit(np.ones((1, 2), np.float32)), range(100), unit(np.ones((100, 2), np.float32)), 3)
    assert found.tolist() == [0, 1, 2] and scores.tolist() == [1.0, 1.0, 1.0]


@pytest.mark.parametrize("number, dimension", [(0, 4), (1, 384), (50, 384), (1000, 384), (10, 20_000), (9001, 1)])
def test_dots_are_the_products(number: int, dimension: int) -> None:
    vectors = np.random.default_rng(1).standard_normal((number, dimension), np.float32)
    query = np.ones(dimension, np.float32)
    assert ranking.dots(vectors, query) == pytest.approx(vectors.astype(np.float64).sum(axis=1), abs=1e-2)
