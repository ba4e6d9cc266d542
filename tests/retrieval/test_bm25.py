"""BM25 against the formula written out, and blocks against one look."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowserve.errors import ConfigError
from flowserve.retrieval.bm25 import Bm25Index, words

texts = st.lists(st.lists(st.sampled_from("abcde"), max_size=8).map(" ".join), max_size=20)
queries = st.lists(st.sampled_from("abcdef"), max_size=5).map(" ".join)


def by_the_formula(all_texts: list[str], query: str, row: int) -> float:
    lengths = [len(words(text)) for text in all_texts]
    average = sum(lengths) / len(lengths)
    score = 0.0
    for word in words(query):
        having = sum(word in words(text) for text in all_texts)
        times = words(all_texts[row]).count(word)
        if times:
            idf = math.log(1 + (len(all_texts) - having + 0.5) / (having + 0.5))
            score += idf * times * 2.2 / (times + 1.2 * (0.25 + 0.75 * lengths[row] / average))
    return score


@given(texts, queries)
def test_scores_follow_the_formula_and_every_text_with_a_word_is_found(all_texts: list[str], query: str) -> None:
    scores, rows = Bm25Index(all_texts).search(query, len(all_texts) + 1)
    expected = {row: by_the_formula(all_texts, query, row) for row in range(len(all_texts))}
    found = dict(zip(rows.tolist(), scores.tolist(), strict=True))
    assert found == pytest.approx({row: score for row, score in expected.items() if score > 0}, abs=1e-5)
    assert scores.tolist() == sorted(scores.tolist(), reverse=True)


@given(texts, queries, st.integers(1, 6), st.integers(1, 7))
def test_the_last_block_leaves_what_one_search_finds(all_texts: list[str], query: str, k: int, block: int) -> None:
    index = Bm25Index(all_texts)
    scores, rows = index.search(query, k)
    stages = list(index.stages(query, k, block))
    assert len(stages) == -(-len(all_texts) // block)
    if stages:
        assert (stages[-1][0].tolist(), stages[-1][1].tolist()) == (scores.tolist(), rows.tolist())


def test_case_does_not_matter_and_equal_texts_come_by_row() -> None:
    assert Bm25Index(["Tea time", "nothing", "tea TIME"]).search("TEA", 5)[1].tolist() == [0, 2]


@pytest.mark.parametrize("bad", [{"k1": -1.0}, {"b": 1.5}])
def test_parameters_outside_the_formula_are_refused(bad: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="k1"):
        Bm25Index([], **bad)
