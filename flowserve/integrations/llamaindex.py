"""LlamaIndex on FlowServe: model, embeddings and retriever, each a thin client of a server's doors.

Needs `llama-index-core` and `llama-index-llms-openai-like` (the extra `llamaindex`). Their pins clash with those of others, so this is
tested in an environment of its own (`.ci/frameworks`).
"""

from typing import Any

from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.bridge.pydantic import Field, PrivateAttr
from llama_index.core.retrievers import BaseRetriever
from llama_index.core.schema import NodeWithScore, QueryBundle, TextNode
from llama_index.llms.openai_like import OpenAILike

from flowserve.integrations.index import Index
from flowserve.integrations.server import Server, default_key, default_url


class FlowServeLLM(OpenAILike):
    """An engine's model, or a workflow by its name. Fields are those of `OpenAILike`; what differs are the defaults."""

    def __init__(self, model: str, api_base: str | None = None, api_key: str | None = None, **settings: Any) -> None:
        """Where address or key are not given, `FLOWSERVE_URL` and `FLOWSERVE_API_KEY` count."""
        settings.setdefault("is_chat_model", True)
        super().__init__(model=model, api_base=api_base or default_url(), api_key=api_key or default_key(), **settings)

    @classmethod
    def class_name(cls) -> str:
        return "FlowServeLLM"


class FlowServeEmbedding(BaseEmbedding):
    """Vectors of texts by the embedder of a server's indexes; `model_name` is its name, as `/v1/models` lists it."""

    api_base: str = Field(default_factory=default_url)
    api_key: str = Field(default_factory=default_key)
    _server: Server = PrivateAttr()

    def model_post_init(self, context: Any, /) -> None:
        super().model_post_init(context)
        self._server = Server(self.api_base, self.api_key)

    @classmethod
    def class_name(cls) -> str:
        return "FlowServeEmbedding"

    def _get_text_embeddings(self, texts: list[str]) -> list[list[float]]:
        told = self._server.client.embeddings.create(model=self.model_name, input=texts)
        return [each.embedding for each in told.data]

    async def _aget_text_embeddings(self, texts: list[str]) -> list[list[float]]:
        told = await self._server.async_client.embeddings.create(model=self.model_name, input=texts)
        return [each.embedding for each in told.data]

    def _get_text_embedding(self, text: str) -> list[float]:
        return self._get_text_embeddings([text])[0]

    async def _aget_text_embedding(self, text: str) -> list[float]:
        return (await self._aget_text_embeddings([text]))[0]

    def _get_query_embedding(self, query: str) -> list[float]:
        return self._get_text_embedding(query)

    async def _aget_query_embedding(self, query: str) -> list[float]:
        return await self._aget_text_embedding(query)


class FlowServeRetriever(BaseRetriever):
    """At most `k` passages of a server's index, best first. An index that is not there is an error (openai.NotFoundError)."""

    def __init__(
        self, index: str, k: int = 4, api_base: str | None = None, api_key: str | None = None, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.k = k
        self._index = Index(Server(api_base, api_key), index)

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        return [_node(hit) for hit in self._index.search(query_bundle.query_str, self.k)]

    async def _aretrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        return [_node(hit) for hit in await self._index.asearch(query_bundle.query_str, self.k)]


def _node(hit: dict[str, Any]) -> NodeWithScore:
    metadata = {**hit["metadata"], "document": hit["document"]}
    return NodeWithScore(node=TextNode(id_=hit["id"], text=hit["text"], metadata=metadata), score=hit["score"])
