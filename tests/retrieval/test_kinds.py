"""Every kind of index, through commits, against the exact one and against itself opened again."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flowserve.errors import InputError, StoreError
from flowserve.retrieval import hnsw, ivf, kinds, pq
from flowserve.retrieval.documents import Passage
from flowserve.retrieval.embed import HashEmbedder
from flowserve.retrieval.exact import best, rounded_scores
from flowserve.retrieval.protocols import Ids, Query, Ranking, Searcher
from flowserve.retrieval.snapshot import Snapshot, empty, origins
from flowserve.retrieval.spec import parse
from flowserve.retrieval.store import IndexStore

pytest.importorskip("faiss")

EMBEDDER = HashEmbedder(16)
WORDS = ["bread", "flour", "water", "salt", "oven", "crust", "yeast", "dough", "butter", "honey"]
KINDS = ("exact", "ivf:nprobe=2", "hnsw:m=4,ef_search=40", "pq:bits=4,refine=2", "bm25", "hybrid:depth=3")
EXACT_AT = {"exact": "exact", "ivf": "ivf:nprobe=1000", "hnsw": "hnsw:ef_search=4000", "pq": "pq:bits=4,refine=1000"}
"""Parameters with which a kind misses nothing."""


def texts_of(numbers: Sequence[int]) -> list[str]:
    """A text for each number, many of them equal."""
    return [" ".join(WORDS[digit] for digit in map(int, str(number))) for number in numbers]


def generation(old: Snapshot, kind: str, texts: Sequence[str]) -> Snapshot:
    """What a commit of these texts makes of `old`."""
    passages = tuple(Passage(f"{row:06}#0", f"{row:06}", text, 0, len(text)) for row, text in enumerate(texts))
    new = replace(old, generation=old.generation + 1, passages=passages, vectors=EMBEDDER.embed(texts))
    return kinds.evolved(old, replace(new, spec=parse(kind)))


def grown(kind: str, *contents: Sequence[int]) -> Snapshot:
    snapshot = empty(EMBEDDER.name, EMBEDDER.dimension)
    for numbers in contents:
        snapshot = generation(snapshot, kind, texts_of(numbers))
    return snapshot


def query(text: str) -> Query:
    return Query(text, EMBEDDER.embed([text])[0])


def plain(ranking: Ranking) -> list[tuple[float, int]]:
    return list(zip(ranking[0].tolist(), ranking[1].tolist(), strict=True))


def exactly(snapshot: Snapshot, asked: Query, k: int, rows: Ids | None = None) -> list[tuple[float, int]]:
    among = np.arange(len(snapshot.passages)) if rows is None else rows
    scores, found = best(rounded_scores(asked.unit[None], snapshot.vectors[among]), among[None], k)
    return plain((scores[0], found[0]))


contents = st.lists(st.lists(st.integers(0, 999), max_size=60), min_size=1, max_size=4)
some_kind = st.sampled_from(KINDS)


@pytest.fixture(autouse=True, scope="module")
def small():  # type: ignore[no-untyped-def]
    """Thresholds at which tests of this size reach every branch."""
    with patch.object(kinds, "FEW_ROWS", 5), patch.object(pq, "PER_CODE", 1):
        yield


@settings(deadline=None, max_examples=150)
@given(some_kind, contents, st.integers(0, 999), st.integers(1, 9), st.integers(0, 3))
def test_the_last_stage_is_what_search_finds_with_and_without_a_filter(
    kind: str, commits: list[list[int]], asked: int, k: int, every: int
) -> None:
    snapshot = grown(kind, *commits)
    rows = np.arange(0, len(snapshot.passages), every, dtype=np.int64) if every else None
    if not snapshot.passages:
        return
    searcher, wanted = kinds.searcher(snapshot), query(texts_of([asked])[0])
    [found] = searcher.search([wanted], k, rows)
    stages = [plain(stage) for stage in searcher.stages(wanted, k, rows)]
    assert stages[-1] == plain(found)
    assert len(found[1]) <= k and (rows is None or set(found[1].tolist()) <= set(rows.tolist()))
    assert plain(found) == sorted(plain(found), key=lambda hit: (-hit[0], hit[1]))


@settings(deadline=None, max_examples=60)
@given(some_kind, contents, st.lists(st.integers(0, 999), min_size=1, max_size=5), st.integers(1, 9))
def test_queries_find_together_what_they_find_alone(
    kind: str, commits: list[list[int]], asked: list[int], k: int
) -> None:
    snapshot = grown(kind, *commits)
    if not snapshot.passages:
        return
    searcher, queries = kinds.searcher(snapshot), [query(text) for text in texts_of(asked)]
    alone = [plain(searcher.search([one], k)[0]) for one in queries]
    assert [plain(found) for found in searcher.search(queries, k)] == alone


@settings(deadline=None, max_examples=100)
@given(st.sampled_from([*EXACT_AT.values()]), contents, st.integers(0, 999), st.integers(1, 9), st.integers(0, 3))
def test_a_kind_that_looks_everywhere_is_exact_after_any_commits(
    kind: str, commits: list[list[int]], asked: int, k: int, every: int
) -> None:
    snapshot = grown(kind, *commits)
    rows = np.arange(0, len(snapshot.passages), every, dtype=np.int64) if every else None
    if not snapshot.passages:
        return
    wanted = query(texts_of([asked])[0])
    assert plain(kinds.searcher(snapshot).search([wanted], k, rows)[0]) == exactly(snapshot, wanted, k, rows)


@pytest.mark.parametrize("kind", KINDS)
def test_an_index_that_is_opened_again_finds_the_same(kind: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    store, snapshot = IndexStore(tmp_path / "x"), empty(EMBEDDER.name, EMBEDDER.dimension)
    contents = rng.integers(0, 999, 300)
    with store.writing():
        for kept in (100, 180, 140, 300):
            snapshot = generation(snapshot, kind, texts_of(np.sort(contents[:kept]).tolist()))
            store.commit(snapshot)
    read = store.read()
    assert read is not None and read[1].spec == parse(kind)
    ours, again = kinds.searcher(snapshot), kinds.searcher(read[1])
    for asked in map(query, texts_of(rng.integers(0, 999, 20).tolist())):
        assert plain(ours.search([asked], 7)[0]) == plain(again.search([asked], 7)[0])


@pytest.mark.parametrize("kind, builder", [("ivf", ivf), ("pq:bits=4", pq), ("hnsw:m=4", hnsw)])
def test_a_small_change_learns_nothing_and_keeps_what_was_built(kind: str, builder: object) -> None:
    before = grown(kind, range(100, 400))
    after = generation(before, kind, texts_of(range(101, 402)))
    if builder is ivf:
        assert after.structure["centroids"] is before.structure["centroids"]
        assert after.structure["clusters"][:299].tolist() == before.structure["clusters"][1:].tolist()
    elif builder is pq:
        assert np.array_equal(after.structure["codebooks"], before.structure["codebooks"])
        assert np.array_equal(after.structure["codes"][:299], before.structure["codes"][1:])
    else:
        rows = after.structure["rows"]
        assert rows.tolist() == [-1, *range(299), 299, 300] and after.structure["gone"].shape == (1, 16)
        assert np.array_equal(after.structure["levels"][:300], before.structure["levels"])


@pytest.mark.parametrize("kind, name", [("ivf", "learned_from"), ("pq:bits=4", "learned_from")])
def test_twice_the_passages_are_learned_from_anew(kind: str, name: str) -> None:
    before = grown(kind, range(100, 300))
    assert generation(before, kind, texts_of(range(100, 500))).structure[name].tolist() == [200]
    assert generation(before, kind, texts_of(range(100, 501))).structure[name].tolist() == [401]


def test_a_graph_with_more_stepping_stones_than_passages_is_built_anew() -> None:
    before = grown("hnsw:m=4", range(100, 400))
    half = generation(before, "hnsw:m=4", texts_of(range(250, 400)))
    assert (half.structure["rows"] < 0).sum() == 150
    assert len(generation(half, "hnsw:m=4", texts_of(range(251, 400))).structure["rows"]) == 149


def test_nodes_that_come_one_by_one_have_different_levels() -> None:
    snapshot = grown("hnsw:m=2")
    snapshot = empty(EMBEDDER.name, EMBEDDER.dimension)
    for last in range(101, 200):
        snapshot = generation(snapshot, "hnsw:m=2", texts_of(range(100, last)))
    levels = np.bincount(snapshot.structure["levels"])
    assert len(levels) > 2 and levels[1] < 99


def test_words_of_a_changed_index_are_those_of_a_new_one() -> None:
    changed, new = grown("bm25", range(100, 300), range(50, 220), range(90, 400)), grown("bm25", range(90, 400))
    assert {name: array.tolist() for name, array in changed.structure.items()} == {
        name: array.tolist() for name, array in new.structure.items()
    }


def test_another_kind_starts_anew_and_another_search_parameter_does_not() -> None:
    before = grown("ivf:clusters=5", range(100, 200))
    texts = texts_of(range(100, 200))
    same = generation(before, "ivf:clusters=5,nprobe=3", texts)
    assert same.structure["centroids"] is before.structure["centroids"]
    assert generation(before, "ivf:clusters=6", texts).structure["centroids"].shape == (6, 16)
    assert set(generation(before, "bm25", texts).structure) == {"vocabulary", "starts", "words", "times"}
    assert generation(before, "exact", texts).structure == {}


@pytest.mark.parametrize(
    "name, value", [("neighbors", 10_000), ("neighbors", -2), ("levels", 0), ("levels", 9), ("entry", 10_000)]
)
def test_a_graph_whose_links_lead_out_of_it_is_refused(name: str, value: int) -> None:
    snapshot = grown("hnsw:m=4", range(100, 200))
    spoiled = snapshot.structure[name].copy()
    spoiled[0] = value
    with pytest.raises(StoreError, match="leads out of itself"):
        kinds.searcher(replace(snapshot, structure={**snapshot.structure, name: spoiled}))


def test_segments_that_do_not_divide_the_dimension_are_refused_before_there_are_passages() -> None:
    with pytest.raises(InputError, match="a divisor of the dimension 16, got 5"):
        grown("pq:segments=5", [])


def test_a_later_stage_never_has_a_worse_best_hit() -> None:
    for kind in ("exact", "ivf:clusters=20,nprobe=20", "bm25"):
        searcher: Searcher = kinds.searcher(grown(kind, range(100, 400)))
        tops = [stage[0][0] for stage in searcher.stages(query("bread oven"), 3) if len(stage[0])]
        assert len(tops) > 1 and tops == sorted(tops)


def test_origins_are_rows_with_the_same_text() -> None:
    one, two = grown("exact", [1, 2, 3]), grown("exact", [3, 4, 1, 1])
    assert origins(one, two).tolist() == [2, -1, 0, 0]
    assert origins(two, grown("exact", [1, 3, 1, 1])).tolist() == [2, 0, 3, 3]


def test_nodes_of_equal_texts_stay_when_others_change() -> None:
    before = grown("hnsw:m=4", [7] * 40)
    after = generation(before, "hnsw:m=4", texts_of([5, *[7] * 40]))
    assert after.structure["rows"].tolist() == [*range(1, 41), 0] and len(after.structure["gone"]) == 0
