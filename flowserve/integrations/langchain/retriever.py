"""`FlowServeRetriever`: the passages of a server's index that are nearest to a question."""

from typing import Any

from langchain_core.callbacks import AsyncCallbackManagerForRetrieverRun, CallbackManagerForRetrieverRun
from langchain_core.documents import Document
from langchain_core.retrievers import BaseRetriever
from pydantic import Field, PrivateAttr, SecretStr

from flowserve.integrations.index import Index
from flowserve.integrations.langchain.documents import decoded
from flowserve.integrations.server import Server, default_key, default_url


class FlowServeRetriever(BaseRetriever):
    """At most `k` passages, best first; each has its own id, `<document>#<number>`.

    An index that is not there is an error (openai.NotFoundError), since a misspelt name would otherwise answer with nothing.
    """

    index: str
    k: int = Field(default=4, ge=1, le=1_000)
    base_url: str = Field(default_factory=default_url)
    api_key: SecretStr = Field(default_factory=lambda: SecretStr(default_key()))
    _index: Index = PrivateAttr()

    def model_post_init(self, context: Any, /) -> None:
        super().model_post_init(context)
        self._index = Index(Server(self.base_url, self.api_key.get_secret_value()), self.index)

    def _get_relevant_documents(
        self, query: str, *, run_manager: CallbackManagerForRetrieverRun, k: int | None = None
    ) -> list[Document]:
        return [decoded(hit, hit["id"]) for hit in self._index.search(query, k or self.k)]

    async def _aget_relevant_documents(
        self, query: str, *, run_manager: AsyncCallbackManagerForRetrieverRun, k: int | None = None
    ) -> list[Document]:
        return [decoded(hit, hit["id"]) for hit in await self._index.asearch(query, k or self.k)]
