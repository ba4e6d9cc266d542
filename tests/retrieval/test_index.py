import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flowserve.errors import RetrievalError
from flowserve.retrieval.exact import ExactIndex
from flowserve.retrieval.protocols import Ids, VectorIndex, Vectors

pytest.importorskip("faiss")
from flowserve.retrieval.faiss_index import FaissIndex


def unit(rows: Vectors) -> Vectors:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def ids(*values: int) -> Ids:
    return np.array(values, np.int64)


def random_units(seed: int, number: int, dimension: int) -> Vectors:
    return unit(np.random.default_rng(seed).standard_normal((number, dimension), np.float32))


def assert_equal_answers(ours: VectorIndex, oracle: VectorIndex, queries: Vectors, k: int) -> None:
    for got, expected in zip(ours.search(queries, k), oracle.search(queries, k), strict=True):
        assert np.array_equal(got, expected)
        assert got.dtype == expected.dtype


@pytest.mark.parametrize("number, dimension, k", [(3000, 384, 10), (500, 16, 500), (50, 8, 100)])
def test_faiss_and_numpy_give_the_same_answer_on_random_data(number: int, dimension: int, k: int) -> None:
    ours, oracle = FaissIndex(dimension), ExactIndex(dimension)
    order = np.random.default_rng(1).permutation(number).astype(np.int64)
    for index in (ours, oracle):
        index.add(order, random_units(2, number, dimension))
    assert_equal_answers(ours, oracle, random_units(3, 40, dimension), k)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 60), st.integers(1, 30), st.lists(st.integers(0, 60)))
def test_they_agree_with_many_ties_and_after_removals(seed: int, number: int, k: int, gone: list[int]) -> None:
    rng = np.random.default_rng(seed)
    distinct = unit(rng.integers(-1, 2, (5, 4)).astype(np.float32) + 0.25)
    vectors = distinct[rng.integers(0, len(distinct), number)]
    queries = np.concatenate([distinct[:2], random_units(seed, 2, 4)])
    ours, oracle = FaissIndex(4), ExactIndex(4)
    for index in (ours, oracle):
        index.add(np.arange(number, dtype=np.int64), vectors)
    assert ours.remove(ids(*gone)) == oracle.remove(ids(*gone)) == len(set(gone) & set(range(number)))
    assert len(ours) == len(oracle)
    assert_equal_answers(ours, oracle, queries, k)
    back = np.array(sorted(set(gone)), np.int64)
    for index in (ours, oracle):
        index.add(back, np.repeat(distinct[:1], len(back), axis=0))
    assert_equal_answers(ours, oracle, queries, k)


@pytest.mark.parametrize("make", [FaissIndex, ExactIndex])
def test_equal_scores_come_by_id_even_at_the_cut(make) -> None:  # type: ignore[no-untyped-def]
    index: VectorIndex = make(2)
    index.add(np.arange(99, -1, -1, dtype=np.int64), unit(np.ones((100, 2), np.float32)))
    scores, found = index.search(unit(np.ones((1, 2), np.float32)), 3)
    assert found.tolist() == [[0, 1, 2]] and scores.tolist() == [[1.0, 1.0, 1.0]]


@pytest.mark.parametrize("make", [FaissIndex, ExactIndex])
def test_an_empty_index_finds_nothing(make) -> None:  # type: ignore[no-untyped-def]
    scores, found = make(2).search(unit(np.ones((3, 2), np.float32)), 5)
    assert scores.shape == found.shape == (3, 0)


@pytest.mark.parametrize("make", [FaissIndex, ExactIndex])
@pytest.mark.parametrize(
    "added, vectors",
    [
        (ids(7), np.ones((1, 2), np.float32)),
        (ids(1, 1), np.ones((2, 2), np.float32)),
        (ids(1), np.ones((1, 3), np.float32)),
        (ids(1, 2), np.ones((1, 2), np.float32)),
        (ids(1), np.array([[np.nan, 0]], np.float32)),
    ],
    ids=["present", "twice", "dimension", "number", "nan"],
)
def test_bad_vectors_and_ids_are_refused(make, added: Ids, vectors: Vectors) -> None:  # type: ignore[no-untyped-def]
    index: VectorIndex = make(2)
    index.add(ids(7), unit(np.ones((1, 2), np.float32)))
    with pytest.raises(RetrievalError):
        index.add(added, vectors)
    assert len(index) == 1
