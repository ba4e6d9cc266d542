"""The seams of retrieval: who embeds, who indexes, and what the runtime and the server call."""

from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from flowserve.graphs.types import Doc
from flowserve.retrieval.documents import Document

if TYPE_CHECKING:
    from flowserve.retrieval.lookup import Lookup

Vectors = NDArray[np.float32]
"""Axes (texts, dimension), rows of unit length."""


class Embedder(Protocol):
    """Text to vectors. Deterministic; thread-safe."""

    @property
    def name(self) -> str:
        """Written into an index; a different embedder refuses to open it."""
        ...

    @property
    def dimension(self) -> int: ...

    def embed(self, texts: Sequence[str]) -> Vectors:
        """(len(texts), dimension) float32, unit rows."""
        ...

    def count_tokens(self, text: str) -> int:
        """Length of `text` in this embedder's tokens; the splitter counts with it."""
        ...


Ids = NDArray[np.int64]


Ranking = tuple[Vectors, Ids]
"""Scores and rows, both (hits,): best first, equal scores by lower row."""


@dataclass(frozen=True, slots=True, eq=False)
class Query:
    """What is looked for."""

    text: str
    vector: Vectors | None
    """(dimension,), of unit length. None for a kind of index that goes by words alone."""

    @property
    def unit(self) -> Vectors:
        """The vector, of which the caller knows that it is there."""
        assert self.vector is not None
        return self.vector


class Searcher(Protocol):
    """One generation of an index, ready to be searched by any number of threads. It never changes.

    It is asked only where there is something to find. `rows` are those that may be found, ascending; None: all of them.
    """

    @property
    def wants_vector(self) -> bool:
        """Whether queries have to be embedded."""
        ...

    def search(self, queries: Sequence[Query], k: int, rows: Ids | None = None) -> list[Ranking]:
        """At most `k` hits for each query; the same whether queries come alone or together."""
        ...

    def stages(self, query: Query, k: int, rows: Ids | None = None) -> Iterator[Ranking]:
        """Provisional hits after each part of the work, at least once; the last is what `search` finds.

        Nothing is computed ahead of the caller, who may stop at any stage.
        """
        ...


@dataclass(frozen=True, slots=True)
class IndexInfo:
    """What `flowserve ingest` and the server show about an index."""

    name: str
    documents: int
    passages: int
    embedder: str
    generation: int
    """Grows with every committed change."""
    kind: str = "exact"
    """How it is searched, as `spec.parse` reads it."""


Where = Mapping[str, str]
"""Metadata that a passage must have, all of it."""

Progress = Callable[[str, int, int], None]
"""Called with (what, done, total) from any thread."""


class RetrievalService(Protocol):
    """Async façade of a folder of indexes. Blocking work goes to threads inside; equal concurrent queries are batched.

    Where tenants have indexes of their own, `tenant` says whose are meant; `""` means those that all may read, and a
    tenant's own hides a shared one of the same name. Where they have none, `tenant` is not looked at.
    """

    @property
    def embedder(self) -> Embedder:
        """What new indexes are made with and `embed` uses."""
        ...

    async def search(
        self,
        index: str,
        query: str,
        k: int,
        where: Where | None = None,
        tenant: str = "",
        rerank: int = 0,
    ) -> list[Doc]:
        """At most `k` hits, best first, ties by passage id. Raises UnknownName, RetrievalError.

        `rerank`: so many candidates (or k, if that is more) are put in order by the service's reranker, whose scores the
        hits then have; 0: they stay as the index ranks them.
        """
        ...

    async def lookup(self, index: str, tenant: str = "") -> "Lookup":
        """What a generation looks things up in: the index as it is now, whatever is committed later. Raises UnknownName,
        RetrievalError."""
        ...

    def stages(
        self, index: str, query: str, k: int, where: Where | None = None, tenant: str = ""
    ) -> AsyncIterator[list[Doc]]:
        """The same search told as it goes: provisional hits after each stage, at last what `search` returns."""
        ...

    async def ingest(
        self,
        index: str,
        documents: Sequence[Document],
        progress: Progress | None = None,
        kind: str | None = None,
        tenant: str = "",
    ) -> IndexInfo:
        """Add or replace documents; durable when it returns. Creates the index.

        `kind` as in `spec.parse`: what the index is from now on. None: what it is; `exact` if it is new.
        """
        ...

    async def delete(self, index: str, documents: Sequence[str], tenant: str = "") -> int:
        """Remove documents by id; how many there were."""
        ...

    async def documents(self, index: str, ids: Sequence[str], tenant: str = "") -> list[Document]:
        """Those of `ids` that are there, in that order, each once; text as `split.joined` says. Raises UnknownName."""
        ...

    async def embed(self, texts: Sequence[str]) -> Vectors: ...

    def info(self, index: str, tenant: str = "") -> IndexInfo: ...

    def names(self, tenant: str = "") -> list[str]:
        """Of the indexes that `tenant` may read."""
        ...

    async def close(self) -> None: ...
