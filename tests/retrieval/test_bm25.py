"""BM25 against the formula written out."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowserve.retrieval.bm25 import Bm25Index, evolve, words
from flowserve.retrieval.documents import Passage
from flowserve.retrieval.protocols import Query
from flowserve.retrieval.snapshot import empty, origins
from flowserve.retrieval.spec import parse

SPEC = parse("bm25")
texts = st.lists(st.lists(st.sampled_from("abcde"), max_size=8).map(" ".join), max_size=20)
queries = st.lists(st.sampled_from("abcdef"), max_size=5).map(" ".join)


def index_of(all_texts: list[str]) -> Bm25Index:
    old = empty("none", 1)
    passages = tuple(Passage(f"{row:03}#0", f"{row:03}", text, 0, len(text)) for row, text in enumerate(all_texts))
    new = replace(old, passages=passages, vectors=np.ones((len(passages), 1), np.float32))
    return Bm25Index(SPEC, evolve(SPEC, old, new, origins(old, new)))


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
    [(scores, rows)] = index_of(all_texts).search([Query(query, None)], len(all_texts) + 1)
    expected = {row: by_the_formula(all_texts, query, row) for row in range(len(all_texts))}
    found = dict(zip(rows.tolist(), scores.tolist(), strict=True))
    assert found == pytest.approx({row: score for row, score in expected.items() if score > 0}, abs=1e-5)
    assert scores.tolist() == sorted(scores.tolist(), reverse=True)


def test_case_does_not_matter_and_equal_texts_come_by_row() -> None:
    index = index_of(["Tea time", "nothing", "tea TIME"])
    assert index.search([Query("TEA", None)], 5)[0][1].tolist() == [0, 2]


def test_a_filter_hides_texts_and_leaves_the_scores_of_the_others() -> None:
    index, query = index_of(["tea", "tea tea", "milk"]), [Query("tea", None)]
    scores, rows = index.search(query, 5)[0]
    hidden, left = index.search(query, 5, np.array([0, 2]))[0]
    assert left.tolist() == [0] and hidden.tolist() == [scores[rows.tolist().index(0)]]
