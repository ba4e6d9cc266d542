"""The async façade of a folder of indexes, and the only file of this folder with threads.

Three kinds of threads, all bounded: one that embeds (queries in micro-batches, ingestion in slices between them), one
that ingests and deletes (so this process writes one index at a time), and a few that search. What they compute is in
the pure files beside this one; what lies on disk is `store`'s.
"""

import asyncio
import re
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Protocol, TypeVar, runtime_checkable

import numpy as np

from flowserve.errors import ConfigError, InputError, Overloaded, RetrievalError, TooLarge, UnknownName
from flowserve.graphs.types import Doc
from flowserve.ids import Tokens
from flowserve.retrieval import ingest
from flowserve.retrieval.batch import Batcher
from flowserve.retrieval.documents import Document, Passage
from flowserve.retrieval.exact import ExactIndex
from flowserve.retrieval.faiss_index import FaissIndex
from flowserve.retrieval.flat_batch import FlatBatch
from flowserve.retrieval.lookup import DenseLookup, Lookup
from flowserve.retrieval.protocols import Embedder, Ids, IndexInfo, Progress, VectorIndex, Vectors
from flowserve.retrieval.registry import embedder_named
from flowserve.retrieval.snapshot import Snapshot, empty
from flowserve.retrieval.split import Splitting
from flowserve.retrieval.store import IndexStore, Manifest

NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,63}")
"""No separators, no leading dot: a name is one folder, never a path."""
MAX_K = 1000
MAX_TEXT_CHARS = 100_000
"""Of one query or one text to embed; a passage is far shorter."""
MAX_ID_CHARS = 512
BATCH = 32
"""Texts that are embedded in one call: large enough to fill the model, small enough that a query does not wait long."""

T = TypeVar("T")
MakeIndex = Callable[[int], VectorIndex]
"""Dimension -> an empty index."""


@runtime_checkable
class Bounded(Protocol):
    """An embedder that cuts texts that are too long."""

    @property
    def max_tokens(self) -> Tokens: ...


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
class Opened:
    """An index in memory. Immutable: a commit makes a new one."""

    signature: bytes
    snapshot: Snapshot
    index: VectorIndex


@dataclass(frozen=True, slots=True)
class _Flight:
    """What makes two searches the same one. `commits` keeps a search from joining one that began before a commit."""

    index: str
    query: str
    k: int
    commits: int


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
        index: MakeIndex | None = None,
        limits: Limits | None = None,
    ) -> None:
        self._folder = Path(folder)
        self._embedder = embedder_named(embedder) if isinstance(embedder, str) else embedder
        self._splitting = splitting or Splitting()
        self._make_index = index or _default_index()
        self._limits = limits or Limits()
        self._opened: dict[str, Opened] = {}
        self._opening = threading.Lock()
        self._commits = 0
        self._flights: dict[_Flight, asyncio.Task[list[Doc]]] = {}
        self._batcher: tuple[asyncio.AbstractEventLoop, Batcher] | None = None
        self._writes = 0
        self._closed = threading.Event()
        self._embedding = ThreadPoolExecutor(1, "flowserve-embed")
        self._writing = ThreadPoolExecutor(1, "flowserve-ingest")
        self._searching = ThreadPoolExecutor(self._limits.search_threads, "flowserve-search")

    def __repr__(self) -> str:
        return f"Retrieval({str(self._folder)!r}, {self._embedder!r}, open={sorted(self._opened)})"

    @property
    def embedder(self) -> Embedder:
        """What new indexes are made with. Loaded by its first use."""
        return self._embedder

    async def search(self, index: str, query: str, k: int) -> list[Doc]:
        self._check_open()
        _check_name(index)
        _check_text("query", query)
        if not query.strip():
            raise InputError("the query is empty; expected some words to look for")
        if isinstance(k, bool) or not isinstance(k, int) or not 1 <= k <= MAX_K:
            raise InputError(f"k must be a whole number between 1 and {MAX_K}, got {k!r}")
        flight = _Flight(index, query, k, self._commits)
        task = self._flights.get(flight)
        if task is None or task.get_loop() is not asyncio.get_running_loop():
            if len(self._flights) >= self._limits.waiting_queries:
                raise Overloaded(f"{len(self._flights)} searches are waiting already", retry_after_s=1.0)
            task = self._flights[flight] = asyncio.create_task(self._search(index, query, k))
            task.add_done_callback(lambda done: self._landed(flight, done))
        # Shielded: the first caller may leave while others wait for the same hits.
        try:
            docs = await asyncio.shield(task)
        except asyncio.CancelledError:
            if task.cancelled() and self._closed.is_set():
                raise RetrievalError("retrieval was closed during this search") from None
            raise
        return [Doc(doc.text, doc.id, doc.document, doc.score, dict(doc.metadata)) for doc in docs]

    async def lookup(self, index: str) -> Lookup:
        self._check_open()
        _check_name(index)
        opened = await self._in(self._searching, lambda: self._open(index))
        exact = isinstance(opened.index, ExactIndex | FaissIndex)
        find = FlatBatch(opened.snapshot.vectors).search if exact else opened.index.search

        async def search(queries: Vectors, k: int) -> tuple[Vectors, Ids]:
            return await self._in(self._searching, lambda: find(queries, k))

        async def embed(text: str) -> Vectors:
            vector: Vectors = (await self.embed([text]))[0]
            return vector

        return DenseLookup(opened.snapshot.vectors, search, embed, opened.snapshot.passages.__getitem__)

    async def ingest(self, index: str, documents: Sequence[Document], progress: Progress | None = None) -> IndexInfo:
        _check_name(index)
        report = progress or (lambda what, done, total: None)
        left = threading.Event()
        return await self._write(lambda: self._ingest(index, list(documents), report, left), left)

    async def delete(self, index: str, documents: Sequence[str]) -> int:
        _check_name(index)
        return await self._write(lambda: self._delete(index, list(documents)), threading.Event())

    async def embed(self, texts: Sequence[str]) -> Vectors:
        self._check_open()
        for text in texts:
            _check_text("text", text)
        batcher = self._current_batcher()
        if len(batcher) + len(texts) > 2 * self._limits.waiting_queries:
            raise Overloaded(f"{len(batcher)} texts are waiting to be embedded already", retry_after_s=1.0)
        if not texts:
            return np.zeros((0, await self._in(self._embedding, lambda: self._embedder.dimension)), np.float32)
        return np.stack(await asyncio.gather(*(batcher.embed(text) for text in texts)))

    async def passages(self, index: str) -> Sequence[Passage]:
        """All passages of an index, in the order of their ids."""
        self._check_open()
        _check_name(index)
        return (await self._in(self._searching, lambda: self._open(index))).snapshot.passages

    def info(self, index: str) -> IndexInfo:
        _check_name(index)
        manifest = self._store(index).manifest()
        if manifest is None:
            raise UnknownName("index", index, self.names())
        return _info(index, manifest)

    def names(self) -> list[str]:
        if not self._folder.is_dir():
            return []
        names = (path.name for path in self._folder.iterdir() if NAME.fullmatch(path.name) and path.is_dir())
        return sorted(name for name in names if self._store(name).exists())

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
        self._opened.clear()

    # On the event loop

    async def _search(self, index: str, query: str, k: int) -> list[Doc]:
        opened = await self._in(self._searching, lambda: self._open(index))
        if not opened.snapshot.passages:
            return []
        vector = await self._current_batcher().embed(query)
        return await self._in(self._searching, lambda: _look_up(opened, vector[None], k))

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

    def _current_batcher(self) -> Batcher:
        loop = asyncio.get_running_loop()
        if self._batcher is None or self._batcher[0] is not loop:
            self._batcher = (
                loop,
                Batcher(lambda texts: loop.run_in_executor(self._embedding, self._embed, texts), BATCH),
            )
        return self._batcher[1]

    def _check_open(self) -> None:
        if self._closed.is_set():
            raise RetrievalError("retrieval is closed")

    # On threads

    def _store(self, index: str) -> IndexStore:
        return IndexStore(self._folder / index)

    def _open(self, index: str) -> Opened:
        """The committed generation, from memory if it is still the same. Another process may have committed."""
        store = self._store(index)
        opened = self._opened.get(index)
        if opened is None or opened.signature != store.signature():
            with self._opening:
                opened = self._opened.get(index)
                if opened is None or opened.signature != store.signature():
                    found = store.read()
                    if found is None:
                        self._opened.pop(index, None)
                        raise UnknownName("index", index, self.names())
                    opened = self._hold(index, *found)
        self._check_embedder(index, opened.snapshot)
        return opened

    def _hold(self, index: str, signature: bytes, snapshot: Snapshot) -> Opened:
        vectors = self._make_index(snapshot.dimension)
        vectors.add(np.arange(len(snapshot.passages), dtype=np.int64), snapshot.vectors)
        self._opened.pop(index, None)
        while len(self._opened) >= self._limits.open_indexes:
            del self._opened[next(iter(self._opened))]
        opened = self._opened[index] = Opened(signature, snapshot, vectors)
        return opened

    def _check_embedder(self, index: str, snapshot: Snapshot) -> None:
        ours = (self._embedder.name, self._embedder.dimension)
        if (snapshot.embedder, snapshot.dimension) != ours:
            raise RetrievalError(
                f"index '{index}' was built with embedder '{snapshot.embedder}' ({snapshot.dimension} dimensions), this "
                f"service embeds with '{ours[0]}' ({ours[1]} dimensions): their vectors cannot be compared. Use "
                f"'{snapshot.embedder}', or ingest the documents into an index of another name"
            )

    def _ingest(self, index: str, documents: list[Document], report: Progress, left: threading.Event) -> IndexInfo:
        _check_documents(documents)
        self._check_splitting()
        store = self._store(index)
        with store.writing():
            found = store.read()
            old = found[1] if found is not None else empty(self._embedder.name, self._embedder.dimension)
            self._check_embedder(index, old)
            change = ingest.plan(old, documents, self._splitting, self._embedder.count_tokens, report)
            if found is None or change.digests:
                vectors = self._embed_all(change.texts, old.dimension, report, left)
                report("write", 0, 1)
                self._commit(index, store, ingest.apply(old, change, vectors))
                report("write", 1, 1)
        return self.info(index)

    def _delete(self, index: str, documents: list[str]) -> int:
        store = self._store(index)
        if not store.exists():
            raise UnknownName("index", index, self.names())
        with store.writing():
            found = store.read()
            if found is None:
                raise UnknownName("index", index, self.names())
            gone = found[1].documents.keys() & set(documents)
            if gone:
                self._commit(index, store, ingest.delete(found[1], gone))
        return len(gone)

    def _commit(self, index: str, store: IndexStore, snapshot: Snapshot) -> None:
        signature = store.commit(snapshot)
        self._commits += 1
        with self._opening:
            self._hold(index, signature, snapshot)

    def _embed_all(self, texts: Sequence[str], dimension: int, report: Progress, left: threading.Event) -> Vectors:
        """In slices on the embedding thread, so that queries get in between; texts of like length go together."""
        vectors = np.zeros((len(texts), dimension), np.float32)
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

    def _check_splitting(self) -> None:
        if isinstance(self._embedder, Bounded) and self._splitting.limit_tokens > self._embedder.max_tokens:
            raise ConfigError(
                f"passages of {self._splitting.limit_tokens} tokens would be cut by embedder '{self._embedder.name}', "
                f"which reads {self._embedder.max_tokens}; choose limit_tokens up to that"
            )


def _look_up(opened: Opened, vector: Vectors, k: int) -> list[Doc]:
    scores, rows = opened.index.search(vector, k)
    passages = opened.snapshot.passages
    found = ((passages[row], round(float(score), 6)) for score, row in zip(scores[0], rows[0].tolist(), strict=True))
    return [Doc(p.text, p.id, p.document, score, p.metadata) for p, score in found]


def _info(index: str, manifest: Manifest) -> IndexInfo:
    return IndexInfo(index, manifest.documents, manifest.passages, manifest.embedder, manifest.generation)


def _default_index() -> MakeIndex:
    """FAISS where it is installed; the numpy index gives the same answers, slower."""
    return FaissIndex if find_spec("faiss") is not None else ExactIndex


def _check_name(index: str) -> None:
    if not isinstance(index, str) or NAME.fullmatch(index) is None:
        raise InputError(
            f"not a name for an index: {index!r:.80}; expected 1 to 64 of A-Z a-z 0-9 . _ - without a leading dot"
        )


def _check_documents(documents: Sequence[Document]) -> None:
    seen: set[str] = set()
    for document in documents:
        if not document.id or len(document.id) > MAX_ID_CHARS or not document.id.isprintable():
            raise InputError(f"not an id for a document: {document.id!r:.80}; expected 1 to {MAX_ID_CHARS} characters")
        if document.id in seen:
            raise InputError(f"document '{document.id}' is given twice; expected each id once")
        seen.add(document.id)
        _check_unicode(f"document '{document.id}'", document.text)


def _check_text(what: str, text: str) -> None:
    if len(text) > MAX_TEXT_CHARS:
        raise TooLarge(f"the {what} has {len(text):,} characters; the limit is {MAX_TEXT_CHARS:,}")
    _check_unicode(what, text)


def _check_unicode(what: str, text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError(
            f"{what} holds half a surrogate pair at character {error.start}; expected Unicode text"
        ) from None
