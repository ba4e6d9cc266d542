"""Inverted lists against the exact index, and stages against one look."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flowserve.errors import ConfigError
from flowserve.retrieval.exact import ExactIndex
from flowserve.retrieval.ivf import IvfIndex
from flowserve.retrieval.protocols import Vectors

DIMENSION = 6


def unit(num: int, seed: int) -> Vectors:
    vectors = np.random.default_rng(seed).normal(size=(num, DIMENSION)).round(0) + 0.1  # rounded: many are equal
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def built(num: int, clusters: int, nprobe: int, seed: int) -> IvfIndex:
    index = IvfIndex(DIMENSION, num_clusters=clusters, nprobe=nprobe, seed=seed)
    ids, vectors = np.arange(num, dtype=np.int64), unit(num, seed)
    index.add(ids[: num // 2], vectors[: num // 2])
    index.add(ids[num // 2 :], vectors[num // 2 :])
    index.remove(ids[::5])
    return index


sizes = st.integers(0, 60)
small = st.integers(1, 9)
seeds = st.integers(0, 1000)


@settings(deadline=None)
@given(sizes, small, small, small, small, seeds)
def test_the_last_stage_is_what_one_search_finds(
    num: int, clusters: int, nprobe: int, k: int, per_stage: int, seed: int
) -> None:
    index, query = built(num, clusters, nprobe, seed), unit(1, seed + 1)
    scores, ids = index.search(query, k)
    stages = list(index.stages(query[0], k, per_stage))
    if not stages:
        assert len(index) == 0
        return
    found = ids[0] >= 0
    assert stages[-1][1].tolist() == ids[0][found].tolist()
    assert stages[-1][0].tolist() == scores[0][found].tolist()


@settings(deadline=None)
@given(sizes, small, small, seeds)
def test_looking_into_every_cluster_is_exact(num: int, clusters: int, k: int, seed: int) -> None:
    index, exact = built(num, clusters, clusters, seed), ExactIndex(DIMENSION)
    ids = np.arange(num, dtype=np.int64)
    exact.add(ids, unit(num, seed))
    exact.remove(ids[::5])
    queries = unit(3, seed + 1)
    for ours, theirs in zip(index.search(queries, k), exact.search(queries, k), strict=True):
        assert ours.tolist() == theirs.tolist()


def test_a_later_stage_never_has_a_worse_best_hit() -> None:
    index = built(200, 16, 16, 3)
    tops = [scores[0] for scores, _ in index.stages(unit(1, 4)[0], 3, 2) if len(scores)]
    assert len(tops) > 1 and tops == sorted(tops)


def test_one_cluster_is_looked_into_when_one_is_asked_for() -> None:
    index = built(200, 16, 1, 3)
    assert len(list(index.stages(unit(1, 4)[0], 3, 1))) == 1


@pytest.mark.parametrize("bad", [{"num_clusters": 0, "nprobe": 1}, {"num_clusters": 1, "nprobe": 0}])
def test_no_cluster_to_look_into_is_refused(bad: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match="at least 1"):
        IvfIndex(DIMENSION, **bad)
