"""The corpus is what it says it is, and the comparison runs whole, with equal tokens everywhere."""

from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

from flowserve.bench.speculation import compare, corpus, indexes
from flowserve.bench.speculation.picture import picture
from flowserve.errors import ConfigError
from flowserve.retrieval.bm25_lookup import Bm25Batch, postings_of


def test_the_vectors_are_those_of_the_texts() -> None:
    passages = corpus.make(40, 3)
    texts = [passages.text(row) for row in range(40)]
    assert np.abs(corpus.vectors_of(passages) - corpus.embedder().embed(texts)).max() < 1e-6


def test_the_postings_are_those_of_the_texts() -> None:
    passages = corpus.make(60, 4)
    query = {"bada": 1, "cece": 2, passages.text(7).split()[0]: 1}
    counted = Bm25Batch(postings_of([passages.text(row) for row in range(60)]))
    assert Bm25Batch(corpus.postings_of(passages)).search([query], 9) == counted.search([query], 9)


def test_passages_of_a_topic_are_alike() -> None:
    vectors = corpus.vectors_of(corpus.make(2 * corpus.PER_TOPIC, 5))
    near = np.sort(vectors @ vectors.T, axis=1)
    assert near[:, -20].mean() > near.mean() + 0.2


def test_every_retriever_and_mode_writes_the_same_tokens() -> None:
    pytest.importorskip("torch")
    pytest.importorskip("faiss")
    told: list[str] = []
    results = compare.run(compare.Options(400, 300, 1, 12, "4m", None), told.append)
    cases: list[dict[str, Any]] = results["cases"]
    assert [(case["retriever"], case["mode"]) for case in cases] == [
        (kind, way) for kind in indexes.RETRIEVERS for way in compare.WAYS
    ]
    for case in cases:
        assert {"retriever", "mode", "speedup", "token_identical", "accept_rate", "waste_tokens"} <= case.keys()
        assert case["token_identical"], case
        assert case["written_tokens"] == 12
    ElementTree.fromstring(picture(results["timelines"], "one & only"))
    assert list(compare.shown(cases)) == list(indexes.RETRIEVERS)


def test_unknown_names_are_refused() -> None:
    with pytest.raises(ConfigError, match="--retriever: expected one of exact, hnsw, bm25; got oracle"):
        compare.Options(1, 1, 1, 8, "4m", None, retrievers=("oracle",))
