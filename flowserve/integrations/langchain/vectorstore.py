"""`FlowServeVectorStore`: an index of a server as LangChain's vector store. The server splits, embeds and searches."""

from collections.abc import Callable, Sequence
from typing import Any, Self

from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from langchain_core.vectorstores import VectorStore
from openai import NotFoundError

from flowserve.integrations.index import Index, is_missing
from flowserve.integrations.langchain.documents import decoded, encoded
from flowserve.integrations.langchain.embeddings import FlowServeEmbeddings
from flowserve.integrations.server import Server

Scored = tuple[Document, float]


class FlowServeVectorStore(VectorStore):
    """Documents of one index of a server. The index is made by the first documents; until then the store is empty.

    Vectors are the server's: no `embedding` is taken, and searches by vector and maximal marginal relevance, which would need
    one, are not offered. A document that is too long for one passage is found by its passages: each hit has the passage's
    text and the id of its document, which `get_by_ids` gives whole.

    index: its name, 1 to 64 of A-Z a-z 0-9 . _ -. base_url, api_key: as of `ChatFlowServe`.
    """

    def __init__(self, index: str, *, base_url: str | None = None, api_key: str | None = None) -> None:
        self._index = Index(Server(base_url, api_key), index)

    @classmethod
    def from_texts(
        cls,
        texts: list[str],
        embedding: Embeddings | None = None,
        metadatas: list[dict[str, Any]] | None = None,
        *,
        ids: list[str] | None = None,
        index: str | None = None,
        base_url: str | None = None,
        api_key: str | None = None,
        **kwargs: Any,
    ) -> Self:
        """A store that holds `texts`. `index` is needed."""
        _refuse("from_texts", kwargs)
        if index is None:
            raise TypeError("FlowServeVectorStore.from_texts: expected index=..., the name of the index to put them in")
        if not isinstance(embedding, FlowServeEmbeddings | None):
            raise TypeError(
                f"FlowServeVectorStore embeds on the server and would not use this {type(embedding).__name__}: "
                "pass None, or choose the embedder where the server is started"
            )
        store = cls(index, base_url=base_url, api_key=api_key)
        store.add_texts(texts, metadatas, ids=ids)
        return store

    def add_documents(
        self, documents: list[Document], *, ids: Sequence[str | None] | None = None, **kwargs: Any
    ) -> list[str]:
        """Add or replace; returns their ids. Found by searches and on the server's disk when it returns."""
        _refuse("add_documents", kwargs)
        bodies = encoded(documents, ids)
        self._index.put(bodies)
        return [body["id"] for body in bodies]

    async def aadd_documents(
        self, documents: list[Document], *, ids: Sequence[str | None] | None = None, **kwargs: Any
    ) -> list[str]:
        _refuse("aadd_documents", kwargs)
        bodies = encoded(documents, ids)
        await self._index.aput(bodies)
        return [body["id"] for body in bodies]

    def get_by_ids(self, ids: Sequence[str], /) -> list[Document]:
        """Those that are there, in the order of `ids`."""
        try:
            return [decoded(item, item["id"]) for item in self._index.get(ids)]
        except NotFoundError as error:
            return _nothing(error)

    async def aget_by_ids(self, ids: Sequence[str], /) -> list[Document]:
        try:
            return [decoded(item, item["id"]) for item in await self._index.aget(ids)]
        except NotFoundError as error:
            return _nothing(error)

    def delete(self, ids: list[str] | None = None, **kwargs: Any) -> bool:
        """Remove those of `ids` that are there; all at once, without naming them, the server does not offer."""
        _refuse("delete", kwargs)
        try:
            self._index.delete(_named(ids))
        except NotFoundError as error:
            _nothing(error)
        return True

    async def adelete(self, ids: list[str] | None = None, **kwargs: Any) -> bool:
        _refuse("adelete", kwargs)
        try:
            await self._index.adelete(_named(ids))
        except NotFoundError as error:
            _nothing(error)
        return True

    def similarity_search_with_score(self, query: str, k: int = 4, **kwargs: Any) -> list[Scored]:
        """At most `k` passages with their scores, best first; the score is the index's own, higher is better."""
        _refuse("similarity_search", kwargs)
        try:
            return [_scored(hit) for hit in self._index.search(query, k)]
        except NotFoundError as error:
            return _nothing(error)

    async def asimilarity_search_with_score(self, query: str, k: int = 4, **kwargs: Any) -> list[Scored]:
        _refuse("asimilarity_search", kwargs)
        try:
            return [_scored(hit) for hit in await self._index.asearch(query, k)]
        except NotFoundError as error:
            return _nothing(error)

    def similarity_search(self, query: str, k: int = 4, **kwargs: Any) -> list[Document]:
        return [document for document, _ in self.similarity_search_with_score(query, k, **kwargs)]

    async def asimilarity_search(self, query: str, k: int = 4, **kwargs: Any) -> list[Document]:
        return [document for document, _ in await self.asimilarity_search_with_score(query, k, **kwargs)]

    def _select_relevance_score_fn(self) -> Callable[[float], float]:
        """Cosine as relevance between 0 and 1: what points away is as irrelevant as what stands across."""
        return lambda score: min(1.0, max(0.0, score))


def _scored(hit: dict[str, Any]) -> Scored:
    return decoded(hit, hit["document"]), hit["score"]


def _nothing(error: NotFoundError) -> list[Any]:
    if is_missing(error):
        return []
    raise error


def _named(ids: list[str] | None) -> list[str]:
    if ids is None:
        raise ValueError("FlowServeVectorStore.delete: expected the ids of documents, got none")
    return ids


def _refuse(method: str, unknown: dict[str, Any]) -> None:
    """What would change the answer and is not honoured is an error, not ignored."""
    if unknown:
        raise TypeError(f"FlowServeVectorStore.{method} does not take {', '.join(sorted(unknown))}")
