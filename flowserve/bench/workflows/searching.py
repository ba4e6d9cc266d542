"""Retrieval for the programs beside FlowServe: the service that FlowServe has, over the same folder, in this process.

Its threads embed and search, and queries that come together are embedded together: no less than users of a vector store have.
"""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from contextvars import ContextVar
from pathlib import Path

from flowserve.retrieval.documents import Document
from flowserve.retrieval.service import Retrieval

INDEX = "bench"
INDEXES = "indexes"
"""Folder below that of the comparison."""
EMBEDDER = "minilm"
_SERVICE: ContextVar[Retrieval] = ContextVar("service")


async def search(query: str, k: int) -> list[str]:
    """Texts of passages, best first."""
    return [doc.text for doc in await _SERVICE.get().search(INDEX, query, k)]


@asynccontextmanager
async def searchable(passages: Sequence[str], folder: Path, embedder: str = EMBEDDER) -> AsyncIterator[None]:
    """Inside the block, `search` finds `passages`, and so does whoever opens the indexes below `folder`."""
    service = Retrieval(folder / INDEXES, embedder=embedder)
    token = _SERVICE.set(service)
    try:
        if passages:
            await service.ingest(INDEX, [Document(f"p{n}", passage) for n, passage in enumerate(passages)])
        yield
    finally:
        _SERVICE.reset(token)
        await service.close()
