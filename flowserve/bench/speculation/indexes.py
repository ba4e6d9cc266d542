"""What generations look things up in: exact, HNSW and BM25 over the same passages, each with the time that its searches take."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any, TypeVar

import numpy as np

from flowserve.bench.speculation import corpus
from flowserve.bench.speculation.corpus import Corpus
from flowserve.ids import Seconds
from flowserve.retrieval.bm25_lookup import Bm25Batch, Bm25Lookup
from flowserve.retrieval.documents import Passage
from flowserve.retrieval.flat_batch import FlatBatch
from flowserve.retrieval.lookup import DenseLookup, Lookup, Scores
from flowserve.retrieval.protocols import Ids, Vectors

RETRIEVERS = ("exact", "hnsw", "bm25")
LINKS = 16
"""HNSW's M."""
BUDGET_BUILD, BUDGET_SEARCH = 40, 64
"""HNSW's efConstruction and efSearch. The latter is above every k, so the first hit does not depend on k."""

T = TypeVar("T")


def lookup_of(kind: str, passages: Corpus) -> Lookup:
    """Build an index; minutes for a million passages."""
    if kind == "bm25":
        return Bm25Lookup(Bm25Batch(corpus.postings_of(passages)), passages.passage, _aside)
    vectors = corpus.vectors_of(passages)
    find = FlatBatch(vectors).search if kind == "exact" else _hnsw(vectors)
    embed = corpus.embedder()

    async def search(queries: Vectors, k: int) -> tuple[Vectors, Ids]:
        return await _aside(lambda: find(queries, k))

    async def read(text: str) -> Vectors:
        vector: Vectors = embed.embed([text])[0]
        return vector

    return DenseLookup(vectors, search, read, passages.passage)


async def _aside(function: Callable[[], T]) -> T:
    return await asyncio.to_thread(function)


def _hnsw(vectors: Vectors) -> Callable[[Vectors, int], tuple[Vectors, Ids]]:
    import faiss

    index: Any = faiss.IndexHNSWFlat(vectors.shape[1], LINKS, faiss.METRIC_INNER_PRODUCT)
    index.hnsw.efConstruction, index.hnsw.efSearch = BUDGET_BUILD, BUDGET_SEARCH
    index.add(vectors)

    def search(queries: Vectors, k: int) -> tuple[Vectors, Ids]:
        found: tuple[Vectors, Ids] = index.search(np.ascontiguousarray(queries), k)
        return found

    return search


Span = tuple[str, Seconds, Seconds, int]
"""What was done, from when to when, and for how many queries or tokens."""


@dataclass(slots=True)
class Timed:
    """A Lookup that notes when it searches."""

    inner: Lookup
    spans: list[Span] = field(default_factory=list)

    async def read(self, text: str) -> Any:
        return await self.inner.read(text)

    async def search(self, queries: Sequence[Any], k: int) -> list[tuple[int, ...]]:
        began = perf_counter()
        found = await self.inner.search(queries, k)
        self.spans.append(("search", began, perf_counter(), len(queries)))
        return found

    def score(self, query: Any, rows: Sequence[int]) -> Scores:
        return self.inner.score(query, rows)

    def passage(self, row: int) -> Passage:
        return self.inner.passage(row)
