"""A folder of indexes: what is open, how it changes. Synchronous; `service` calls it from its threads.

Any number of threads may `open`; one at a time may `ingest` or `delete`.
"""

import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol, runtime_checkable

from flowserve.errors import ConfigError, RetrievalError, UnknownName
from flowserve.ids import Tokens
from flowserve.retrieval import ingest
from flowserve.retrieval.checks import NAME, check_documents
from flowserve.retrieval.documents import Document
from flowserve.retrieval.kinds import evolved
from flowserve.retrieval.opened import Opened
from flowserve.retrieval.owners import name_of
from flowserve.retrieval.protocols import Embedder, IndexInfo, Progress, Vectors
from flowserve.retrieval.snapshot import Snapshot, empty
from flowserve.retrieval.spec import IndexSpec
from flowserve.retrieval.split import Splitting
from flowserve.retrieval.store import IndexStore, Manifest

EmbedAll = Callable[[Sequence[str], Progress], Vectors]
"""Vectors of texts in order, (texts, dimension). Raises RetrievalError when nobody wants them any more."""


@runtime_checkable
class Bounded(Protocol):
    """An embedder that cuts texts that are too long."""

    @property
    def max_tokens(self) -> Tokens: ...


class Library:
    """Indexes by key (`owners`); at most `open_indexes` of them in memory."""

    def __init__(self, folder: Path, embedder: Embedder, splitting: Splitting, open_indexes: int) -> None:
        self._folder = folder
        self._embedder = embedder
        self._splitting = splitting
        self._open_indexes = open_indexes
        self._opened: dict[str, Opened] = {}
        self._opening = threading.Lock()
        self.num_commits = 0

    def __repr__(self) -> str:
        return f"Library({str(self._folder)!r}, {self._embedder!r}, open={sorted(self._opened)})"

    def info(self, index: str) -> IndexInfo:
        """Raises UnknownName, StoreError."""
        manifest = self._store(index).manifest()
        if manifest is None:
            raise self.unknown(index)
        return _info(name_of(index), manifest)

    def exists(self, index: str) -> bool:
        """Whether something was committed there, trustworthy or not."""
        return self._store(index).exists()

    def names(self, owner: str = "") -> list[str]:
        """Of all indexes in a tenant's folder (`owners.folder_of`), in order."""
        folder = self._folder / owner
        if not folder.is_dir():
            return []
        names = (path.name for path in folder.iterdir() if NAME.fullmatch(path.name) and path.is_dir())
        return sorted(name for name in names if IndexStore(folder / name).exists())

    def unknown(self, index: str) -> UnknownName:
        """Tells the names of the shared ones, and of those beside `index`."""
        owner = index.rpartition("/")[0]
        return UnknownName("index", name_of(index), sorted({*self.names(), *self.names(owner)}))

    def forget(self) -> None:
        """Hold nothing in memory any more."""
        self._opened.clear()

    def open(self, index: str) -> Opened:
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
                        raise self.unknown(index)
                    opened = self._hold(index, *found)
        self._check_embedder(index, opened.snapshot)
        return opened

    def ingest(
        self, index: str, documents: Sequence[Document], spec: IndexSpec | None, embed: EmbedAll, report: Progress
    ) -> IndexInfo:
        """Add or replace documents; the index is made if need be, and of `spec` from now on if that is not None.

        Raises InputError, RetrievalError, StoreError; then nothing has changed.
        """
        check_documents(documents)
        self._check_splitting()
        store = self._store(index)
        with store.writing():
            found = store.read()
            old = found[1] if found is not None else empty(self._embedder.name, self._embedder.dimension)
            self._check_embedder(index, old)
            change = ingest.plan(old, documents, self._splitting, self._embedder.count_tokens, report)
            if found is None or change.digests or spec not in (None, old.spec):
                vectors = embed(change.texts, report)
                new = ingest.apply(old, change, vectors)
                self._commit(index, store, old, new if spec is None else replace(new, spec=spec), report)
        return self.info(index)

    def delete(self, index: str, documents: Sequence[str]) -> int:
        """How many of `documents` were there. Raises UnknownName, StoreError."""
        store = self._store(index)
        if not store.exists():
            raise self.unknown(index)
        with store.writing():
            found = store.read()
            if found is None:
                raise self.unknown(index)
            gone = found[1].documents.keys() & set(documents)
            if gone:
                self._commit(index, store, found[1], ingest.delete(found[1], gone))
        return len(gone)

    def _store(self, index: str) -> IndexStore:
        return IndexStore(self._folder / index)

    def _hold(self, index: str, signature: bytes, snapshot: Snapshot) -> Opened:
        opened = Opened(signature, snapshot)
        self._opened.pop(index, None)
        while len(self._opened) >= self._open_indexes:
            del self._opened[next(iter(self._opened))]
        self._opened[index] = opened
        return opened

    def _commit(
        self, index: str, store: IndexStore, old: Snapshot, new: Snapshot, report: Progress = lambda *_: None
    ) -> None:
        report("build", 0, 1)
        snapshot = evolved(old, new)
        report("build", 1, 1)
        report("write", 0, 1)
        signature = store.commit(snapshot)
        report("write", 1, 1)
        self.num_commits += 1
        with self._opening:
            self._hold(index, signature, snapshot)

    def _check_embedder(self, index: str, snapshot: Snapshot) -> None:
        ours = (self._embedder.name, self._embedder.dimension)
        if (snapshot.embedder, snapshot.dimension) != ours:
            raise RetrievalError(
                f"index '{name_of(index)}' was built with embedder '{snapshot.embedder}' ({snapshot.dimension} dimensions), this "
                f"service embeds with '{ours[0]}' ({ours[1]} dimensions): their vectors cannot be compared. Use "
                f"'{snapshot.embedder}', or ingest the documents into an index of another name"
            )

    def _check_splitting(self) -> None:
        if isinstance(self._embedder, Bounded) and self._splitting.limit_tokens > self._embedder.max_tokens:
            raise ConfigError(
                f"passages of {self._splitting.limit_tokens} tokens would be cut by embedder '{self._embedder.name}', "
                f"which reads {self._embedder.max_tokens}; choose limit_tokens up to that"
            )


def _info(index: str, manifest: Manifest) -> IndexInfo:
    counts = (manifest.documents, manifest.passages)
    return IndexInfo(index, *counts, manifest.embedder, manifest.generation, manifest.kind)
