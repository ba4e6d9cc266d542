"""The async façade of a folder of indexes, and the only file of this folder with threads.

Three kinds of threads, all bounded: one that embeds (queries in micro-batches, ingestion in slices between them), one
that ingests and deletes (so this process writes one index at a time), and a few that search. What they compute is in
the pure files beside this one; what lies on disk is `store`'s.
"""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np

from flowserve.errors import ConfigError, InputError, Overloaded, RetrievalError
from flowserve.graphs.types import Doc
from flowserve.retrieval.batch import Batcher
from flowserve.retrieval.checks import check_name, check_query, check_rerank, check_text, checked_filter
from flowserve.retrieval.documents import Document, Passage
from flowserve.retrieval.flat_batch import FlatBatch
from flowserve.retrieval.library import Library
from flowserve.retrieval.lookup import DenseLookup, Lookup
from flowserve.retrieval.opened import Filter, Look, look_together
from flowserve.retrieval.owners import folder_of, key_of
from flowserve.retrieval.protocols import (
    Embedder,
    Ids,
    IndexInfo,
    Progress,
    Query,
    Ranking,
    Searcher,
    Vectors,
    Where,
)
from flowserve.retrieval.registry import embedder_named
from flowserve.retrieval.rerank import EmbeddingReranker, Reranker
from flowserve.retrieval.snapshot import Snapshot
from flowserve.retrieval.spec import parse
from flowserve.retrieval.split import Splitting, joined

BATCH = 32
"""Texts that are embedded in one call: large enough to fill the model, small enough that a query does not wait long."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Limits:
    """How much is done and held at a time. What may not wait any more is refused with Overloaded."""

    search_threads: int = 2
    waiting_queries: int = 1024
    waiting_writes: int = 16
    open_indexes: int = 16
    """Kept in memory; beyond that the one opened longest ago is dropped and read again when it is asked for."""

    def __post_init__(self) -> None:
        for name in ("search_threads", "waiting_queries", "waiting_writes", "open_indexes"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}")


@dataclass(frozen=True, slots=True)
class _Flight:
    """What makes two searches the same one. `commits` keeps a search from joining one that began before a commit."""

    index: str
    query: str
    k: int
    wanted: Filter
    rerank: int
    commits: int


@dataclass(frozen=True, slots=True)
class _Desk:
    """Where what comes on one event loop waits to be batched."""

    loop: asyncio.AbstractEventLoop
    embedding: Batcher[str, Vectors]
    """Text -> (dimension,)."""
    searching: dict[str, Batcher[Look, Ranking]]
    """By index: a slow one does not hold up the others."""


class Retrieval:
    """A `RetrievalService` over `folder`, which is created by the first ingestion.

    `embedder` is an object or a name for `embedder_named`. Use it from one event loop at a time; `close` when done.
    """

    def __init__(
        self,
        folder: Path | str,
        embedder: Embedder | str = "minilm",
        *,
        splitting: Splitting | None = None,
        limits: Limits | None = None,
        private: bool = False,
        reranker: Reranker | None = None,
    ) -> None:
        """`private`: tenants have indexes of their own. `reranker` None: by the vectors of the index."""
        self._private = private
        self._reranker = reranker or EmbeddingReranker()
        self._embedder = embedder_named(embedder) if isinstance(embedder, str) else embedder
        self._limits = limits or Limits()
        self._library = Library(Path(folder), self._embedder, splitting or Splitting(), self._limits.open_indexes)
        self._flights: dict[_Flight, asyncio.Task[list[Doc]]] = {}
        self._desk: _Desk | None = None
        self._num_staged = 0
        self._writes = 0
        self._closed = threading.Event()
        self._embedding = ThreadPoolExecutor(1, "flowserve-embed")
        self._writing = ThreadPoolExecutor(1, "flowserve-ingest")
        self._searching = ThreadPoolExecutor(self._limits.search_threads, "flowserve-search")

    def __repr__(self) -> str:
        return f"Retrieval({self._library!r})"

    @property
    def embedder(self) -> Embedder:
        """What new indexes are made with. Loaded by its first use."""
        return self._embedder

    async def search(
        self,
        index: str,
        query: str,
        k: int,
        where: Where | None = None,
        tenant: str = "",
        rerank: int = 0,
    ) -> list[Doc]:
        self._check_open()
        check_name(index)
        check_query(query, k)
        check_rerank(rerank)
        flight = _Flight(
            self._readable(index, tenant), query, k, checked_filter(where), rerank, self._library.num_commits
        )
        task = self._flights.get(flight)
        if task is None or task.get_loop() is not asyncio.get_running_loop():
            self._check_room()
            task = self._flights[flight] = asyncio.create_task(self._search(flight))
            task.add_done_callback(lambda done: self._landed(flight, done))
        # Shielded: the first caller may leave while others wait for the same hits.
        try:
            docs = await asyncio.shield(task)
        except asyncio.CancelledError:
            if task.cancelled() and self._closed.is_set():
                raise RetrievalError("retrieval was closed during this search") from None
            raise
        return [Doc(doc.text, doc.id, doc.document, doc.score, dict(doc.metadata)) for doc in docs]

    async def lookup(self, index: str, tenant: str = "") -> Lookup:
        self._check_open()
        check_name(index)
        key = self._readable(index, tenant)
        opened = await self._in(self._searching, lambda: self._library.open(key))
        snapshot, searcher = opened.snapshot, opened.searcher
        if snapshot.spec.kind not in ("exact", "ivf", "hnsw", "pq"):
            raise RetrievalError(
                f"index '{index}' is of kind '{snapshot.spec.kind}'; what is looked up while an answer is written needs one that "
                "goes by vectors alone: ingest the documents into an index of kind exact, ivf, hnsw or pq"
            )
        find = FlatBatch(snapshot.vectors).search if snapshot.spec.kind == "exact" else partial(_rows, searcher)

        async def search(queries: Vectors, k: int) -> tuple[Vectors, Ids]:
            return await self._in(self._searching, lambda: find(queries, k))

        async def embed(text: str) -> Vectors:
            vector: Vectors = (await self.embed([text]))[0]
            return vector

        return DenseLookup(snapshot.vectors, search, embed, snapshot.passages.__getitem__)

    async def stages(
        self, index: str, query: str, k: int, where: Where | None = None, tenant: str = ""
    ) -> AsyncIterator[list[Doc]]:
        self._check_open()
        check_name(index)
        check_query(query, k)
        wanted = checked_filter(where)
        self._check_room()
        self._num_staged += 1
        try:
            look = await self._look(self._readable(index, tenant), query, k, wanted)
            rankings = await self._in(self._searching, look.stages)
            while (ranking := await self._in(self._searching, lambda: next(rankings, None))) is not None:
                yield look.opened.docs(ranking)
        except asyncio.CancelledError:
            if self._closed.is_set():
                raise RetrievalError("retrieval was closed during this search") from None
            raise
        finally:
            self._num_staged -= 1

    async def ingest(
        self,
        index: str,
        documents: Sequence[Document],
        progress: Progress | None = None,
        kind: str | None = None,
        tenant: str = "",
    ) -> IndexInfo:
        check_name(index)
        key = self._own(index, tenant)
        spec = None if kind is None else parse(kind)
        report = progress or (lambda what, done, total: None)
        left, given = threading.Event(), list(documents)
        embed = partial(self._embed_all, left)
        return await self._write(lambda: self._library.ingest(key, given, spec, embed, report), left)

    async def delete(self, index: str, documents: Sequence[str], tenant: str = "") -> int:
        check_name(index)
        key = self._own(index, tenant)
        if self._readable(index, tenant) != key:
            raise InputError(f"index '{index}' is shared; a tenant can delete from indexes of its own only")
        return await self._write(partial(self._library.delete, key, list(documents)), threading.Event())

    async def embed(self, texts: Sequence[str]) -> Vectors:
        self._check_open()
        for text in texts:
            check_text("text", text)
        batcher = self._current_desk().embedding
        if len(batcher) + len(texts) > 2 * self._limits.waiting_queries:
            raise Overloaded(f"{len(batcher)} texts are waiting to be embedded already", retry_after_s=1.0)
        if not texts:
            return np.zeros((0, await self._in(self._embedding, lambda: self._embedder.dimension)), np.float32)
        return np.stack(await asyncio.gather(*(batcher.do(text) for text in texts)))

    async def passages(self, index: str) -> Sequence[Passage]:
        """All passages of an index, in the order of their ids."""
        self._check_open()
        check_name(index)
        return (await self._in(self._searching, lambda: self._library.open(index))).snapshot.passages

    async def documents(self, index: str, ids: Sequence[str], tenant: str = "") -> list[Document]:
        self._check_open()
        check_name(index)
        key = self._readable(index, tenant)
        return await self._in(self._searching, lambda: _documents(self._library.open(key).snapshot, ids))

    def info(self, index: str, tenant: str = "") -> IndexInfo:
        check_name(index)
        return self._library.info(self._readable(index, tenant))

    def names(self, tenant: str = "") -> list[str]:
        own = self._library.names(folder_of(tenant)) if self._private else []
        return sorted({*self._library.names(), *own})

    async def close(self) -> None:
        """Stop what waits, let threads end what they are in the middle of. Calling it again does nothing."""
        if self._closed.is_set():
            return
        self._closed.set()
        for task in list(self._flights.values()):
            task.cancel()
        pools = (self._searching, self._writing, self._embedding)  # writing waits for embedding, so it ends first

        def shut() -> None:
            for pool in pools:
                pool.shutdown(wait=True, cancel_futures=True)

        await asyncio.to_thread(shut)
        self._library.forget()

    # On the event loop

    async def _search(self, flight: _Flight) -> list[Doc]:
        num_candidates = max(flight.k, flight.rerank)
        wants_vector = flight.rerank > 0 and self._reranker.wants_vector
        look = await self._look(flight.index, flight.query, num_candidates, flight.wanted, wants_vector)
        ranking = await self._ranking(flight.index, look)
        if flight.rerank:
            rerank = partial(look.opened.reranked, self._reranker, look.query, ranking, flight.k)
            ranking = await self._in(self._embedding, rerank)
        return look.opened.docs(ranking)

    async def _ranking(self, index: str, look: Look) -> Ranking:
        """What is found, together with other searches of the index that wait."""
        desk = self._current_desk()
        batcher = desk.searching.get(index)
        if batcher is None:
            batcher = desk.searching[index] = Batcher(
                lambda looks: desk.loop.run_in_executor(self._searching, look_together, looks),
                BATCH,
                "searching",
                self._limits.search_threads,
            )
        try:
            return await batcher.do(look)
        finally:
            if batcher.idle:
                desk.searching.pop(index, None)

    async def _look(self, index: str, query: str, k: int, wanted: Filter, wants_vector: bool = False) -> Look:
        """The generation that is committed now, and the query as it wants it."""
        opened = await self._in(self._searching, lambda: self._library.open(index))
        wants_vector = wants_vector or opened.searcher.wants_vector
        vector = await self._current_desk().embedding.do(query) if wants_vector and opened.snapshot.passages else None
        return Look(opened, Query(query, vector), k, wanted)

    def _own(self, index: str, tenant: str) -> str:
        """The key of the index that `tenant` may change."""
        return key_of(index, tenant if self._private else "")

    def _readable(self, index: str, tenant: str) -> str:
        """The key of the tenant's own index, or of the shared one where it has none but that exists."""
        own = self._own(index, tenant)
        return own if own == index or self._library.exists(own) or not self._library.exists(index) else index

    def _check_room(self) -> None:
        waiting = len(self._flights) + self._num_staged
        if waiting >= self._limits.waiting_queries:
            raise Overloaded(f"{waiting} searches are waiting already", retry_after_s=1.0)

    def _landed(self, flight: _Flight, done: "asyncio.Task[list[Doc]]") -> None:
        if self._flights.get(flight) is done:
            del self._flights[flight]
        if not done.cancelled():
            done.exception()  # every caller may have left; then nobody else looks at it

    async def _write(self, work: Callable[[], T], left: threading.Event) -> T:
        """Run `work` on the writing thread. A caller that leaves sets `left`; what is committed by then stays."""
        self._check_open()
        if self._writes >= self._limits.waiting_writes:
            raise Overloaded(f"{self._writes} ingestions are waiting already", retry_after_s=5.0)
        self._writes += 1
        try:
            return await self._in(self._writing, work)
        except asyncio.CancelledError:
            left.set()
            if self._closed.is_set():
                raise RetrievalError("retrieval was closed before this was written") from None
            raise
        finally:
            self._writes -= 1

    async def _in(self, pool: ThreadPoolExecutor, work: Callable[[], T]) -> T:
        try:
            return await asyncio.get_running_loop().run_in_executor(pool, work)
        except RuntimeError:
            self._check_open()  # the pool was shut down in between
            raise

    def _current_desk(self) -> _Desk:
        loop = asyncio.get_running_loop()
        if self._desk is None or self._desk.loop is not loop:
            self._desk = _Desk(
                loop,
                Batcher(
                    lambda texts: loop.run_in_executor(self._embedding, lambda: list(self._embed(texts))),
                    BATCH,
                    "embedding",
                ),
                {},
            )
        return self._desk

    def _check_open(self) -> None:
        if self._closed.is_set():
            raise RetrievalError("retrieval is closed")

    # On threads

    def _embed_all(self, left: threading.Event, texts: Sequence[str], report: Progress) -> Vectors:
        """In slices on the embedding thread, so that queries get in between; texts of like length go together."""
        vectors = np.zeros((len(texts), self._embedder.dimension), np.float32)
        order = sorted(range(len(texts)), key=lambda row: -len(texts[row]))  # a batch is as slow as its longest
        for start in range(0, len(texts), BATCH):
            if left.is_set() or self._closed.is_set():
                raise RetrievalError("ingestion was stopped before it was written; nothing has changed")
            rows = order[start : start + BATCH]
            vectors[rows] = self._embedding.submit(self._embed, [texts[row] for row in rows]).result()
            report("embed", min(start + BATCH, len(texts)), len(texts))
        return vectors

    def _embed(self, texts: Sequence[str]) -> Vectors:
        """Runs on the embedding thread only; checks what the embedder promises."""
        vectors = self._embedder.embed(texts)
        expected = (len(texts), self._embedder.dimension)
        if vectors.shape != expected:
            raise RetrievalError(
                f"embedder '{self._embedder.name}' returned shape {vectors.shape}, expected {expected}"
            )
        lengths = np.linalg.norm(vectors, axis=1)
        if not (np.abs(lengths - 1) < 1e-3).all():  # also false for NaN
            raise RetrievalError(f"embedder '{self._embedder.name}' returned vectors that are not of unit length")
        return vectors


def _documents(snapshot: Snapshot, ids: Sequence[str]) -> list[Document]:
    passages: dict[str, list[Passage]] = {id: [] for id in ids if id in snapshot.documents}
    for passage in snapshot.passages:
        if passage.document in passages:
            passages[passage.document].append(passage)
    found = []
    for id, parts in passages.items():
        parts.sort(key=lambda part: part.start)
        found.append(Document(id, joined(parts), dict(parts[0].metadata) if parts else {}))
    return found


def _rows(searcher: Searcher, queries: Vectors, k: int) -> tuple[Vectors, Ids]:
    """Scores and rows, both (queries, k); where fewer are found, rows end in -1."""
    scores, rows = np.full((len(queries), k), -np.inf, np.float32), np.full((len(queries), k), -1, np.int64)
    for place, (found_scores, found) in enumerate(searcher.search([Query("", query) for query in queries], k)):
        scores[place, : len(found)], rows[place, : len(found)] = found_scores, found
    return scores, rows
