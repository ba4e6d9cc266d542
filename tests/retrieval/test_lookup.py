"""Local caches rank as their index does, and batches as single queries."""

import asyncio
import random
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowserve.errors import ConfigError
from flowserve.retrieval import bm25_lookup
from flowserve.retrieval.bm25 import Bm25Index, evolve, words
from flowserve.retrieval.bm25_lookup import Bm25Batch, Bm25Lookup, postings_of
from flowserve.retrieval.documents import Passage
from flowserve.retrieval.exact import best, rounded_scores
from flowserve.retrieval.lookup import DenseLookup, LocalCache, Lookup
from flowserve.retrieval.protocols import Ids, Query, Vectors
from flowserve.retrieval.snapshot import empty, origins
from flowserve.retrieval.spec import parse


def texts(seed: int, count: int) -> list[str]:
    chance = random.Random(seed)
    return [" ".join(chance.choice("abcdefgh") for _ in range(chance.randint(0, 9))) for _ in range(count)]


def index_of(corpus: list[str]) -> Bm25Index:
    old = empty("none", 1, parse("bm25"))
    passages = tuple(Passage(f"{row:03}#0", f"{row:03}", text, 0, len(text)) for row, text in enumerate(corpus))
    new = replace(old, passages=passages, vectors=np.ones((len(passages), 1), np.float32))
    return Bm25Index(new.spec, evolve(new.spec, old, new, origins(old, new)))


def passage(row: int) -> Passage:
    return Passage(f"d#{row}", "d", f"text {row}", 0, 1)


def exact(vectors: Vectors, queries: Vectors, k: int) -> tuple[Vectors, Ids]:
    """Every query against every vector."""
    scores = rounded_scores(queries, vectors)
    rows = np.broadcast_to(np.arange(len(vectors), dtype=np.int64), scores.shape)
    return best(scores, rows, min(k, len(vectors)))


def dense(seed: int, count: int) -> DenseLookup:
    chance = np.random.default_rng(seed)
    vectors = chance.integers(-1, 2, (count, 4)).astype(np.float32)  # coarse: many ties
    vectors[~vectors.any(axis=1), 0] = 1
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)

    async def search(queries: Vectors, k: int) -> tuple[Vectors, Ids]:
        return exact(vectors, queries, k)

    async def embed(text: str) -> Vectors:
        found: Vectors = vectors[int(text)]
        return found

    return DenseLookup(vectors, search, embed, passage)


@given(st.integers(0, 2**32), st.integers(1, 5), st.integers(1, 40), st.integers(1, 6))
def test_a_batch_finds_what_each_query_finds_alone_and_bm25_says(seed: int, k: int, count: int, num: int) -> None:
    corpus, queries = texts(seed, count), texts(seed + 1, num)
    batch, oracle = Bm25Batch(postings_of(corpus)), index_of(corpus)
    found = batch.search([Counter(words(query)) for query in queries], k)
    assert found == [batch.search([Counter(words(query))], k)[0] for query in queries]
    assert found == [tuple(oracle.search([Query(query, None)], k)[0][1].tolist()) for query in queries]


def test_blocks_of_passages_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    batch, queries = Bm25Batch(postings_of(texts(1, 50))), [Counter("ab"), Counter("bcd")]
    whole = batch.search(queries, 7)
    monkeypatch.setattr(bm25_lookup, "BLOCK", 8)
    assert batch.search(queries, 7) == whole


@given(st.integers(0, 2**32), st.integers(1, 30))
def test_a_cache_that_holds_what_the_index_finds_guesses_it(seed: int, count: int) -> None:
    async def work() -> None:
        corpus = texts(seed, count)
        batch = Bm25Batch(postings_of(corpus))
        by_words = Bm25Lookup(batch, passage, lambda function: asyncio.to_thread(function))
        cases: list[tuple[Lookup, str]] = [(by_words, "a b c"), (dense(seed, count), "0")]
        for lookup, query in cases:
            read = await lookup.read(query)
            (found,) = await lookup.search([read], count)
            cache = LocalCache()
            assert cache.guess(lookup, read) is None
            cache.add([*found, *random.Random(seed).sample(range(count), count // 2)])
            assert cache.guess(lookup, read) == (found[0] if found else None)

    asyncio.run(work())


def test_scores_of_rows_are_those_of_the_search_to_the_last_bit() -> None:
    corpus = texts(3, 60)
    batch, query = Bm25Batch(postings_of(corpus)), Counter(words("a a b d h x"))
    scores = batch.score(query, range(60))
    ranked = sorted((row for row in range(60) if scores[row] > -np.inf), key=lambda row: (-scores[row], row))
    assert batch.search([query], 60) == [tuple(ranked)]


def test_the_cache_forgets_what_was_found_longest_ago() -> None:
    lookup, cache = dense(1, 9), LocalCache(3)
    cache.add([0, 1, 2])
    cache.add([5])
    assert repr(cache) == "LocalCache(3 of 3)"
    query = asyncio.run(lookup.read("2"))
    assert cache.guess(lookup, query) in (0, 1, 5)


def test_impossible_parameters_are_refused() -> None:
    with pytest.raises(ConfigError, match="expected k1 >= 0 and b between 0 and 1"):
        Bm25Batch(postings_of(["a"]), k1=-1)


def test_no_passages_and_no_known_words_find_nothing() -> None:
    assert Bm25Batch(postings_of([])).search([Counter("a")], 3) == [()]
    assert Bm25Batch(postings_of(["a"])).search([Counter("x")], 3) == [()]
    assert Bm25Batch(postings_of(["a"])).score(Counter("x"), [0]).tolist() == [-np.inf]
