"""The seams of retrieval: who embeds, who indexes, and what the runtime and the server call."""

from collections.abc import Callable, Sequence
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


class VectorIndex(Protocol):
    """Unit vectors under integer ids. Not thread-safe for writers; any number of readers may search at once."""

    def __len__(self) -> int: ...

    def add(self, ids: Ids, vectors: Vectors) -> None:
        """ids: (texts,), none of them present yet."""
        ...

    def remove(self, ids: Ids) -> int:
        """How many of `ids` were there."""
        ...

    def search(self, queries: Vectors, k: int) -> tuple[Vectors, Ids]:
        """Scores and ids, both (queries, min(k, len)): cosine to 6 decimals, best first, equal scores by lower id."""
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


Progress = Callable[[str, int, int], None]
"""Called with (what, done, total) from any thread."""


class RetrievalService(Protocol):
    """Async façade of a folder of indexes. Blocking work goes to threads inside; equal concurrent queries are batched."""

    @property
    def embedder(self) -> Embedder:
        """What new indexes are made with and `embed` uses."""
        ...

    async def search(self, index: str, query: str, k: int) -> list[Doc]:
        """At most `k` hits, best first, ties by passage id. Raises UnknownName, RetrievalError."""
        ...

    async def lookup(self, index: str) -> "Lookup":
        """What a generation looks things up in: the index as it is now, whatever is committed later. Raises UnknownName,
        RetrievalError."""
        ...

    async def ingest(self, index: str, documents: Sequence[Document], progress: Progress | None = None) -> IndexInfo:
        """Add or replace documents; durable when it returns. Creates the index."""
        ...

    async def delete(self, index: str, documents: Sequence[str]) -> int:
        """Remove documents by id; how many there were."""
        ...

    async def embed(self, texts: Sequence[str]) -> Vectors: ...

    def info(self, index: str) -> IndexInfo: ...

    def names(self) -> list[str]: ...

    async def close(self) -> None: ...
