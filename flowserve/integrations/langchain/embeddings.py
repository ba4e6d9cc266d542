"""`FlowServeEmbeddings`: the embedder of a server's indexes, over its OpenAI door."""

from collections.abc import Sequence

from langchain_core.embeddings import Embeddings

from flowserve.integrations.server import Server

MOST_TEXTS = 512
"""Of one request; the server batches them further."""


class FlowServeEmbeddings(Embeddings):
    """Vectors of unit length, by the embedder that the server's indexes use.

    model: its name, as `/v1/models` lists it. base_url, api_key: as of `ChatFlowServe`. Texts must not be empty.
    """

    def __init__(self, model: str, *, base_url: str | None = None, api_key: str | None = None) -> None:
        self.model = model
        self._server = Server(base_url, api_key)

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        create = self._server.client.embeddings.create
        return [each.embedding for part in _parts(texts) for each in create(model=self.model, input=part).data]

    async def aembed_documents(self, texts: list[str]) -> list[list[float]]:
        create = self._server.async_client.embeddings.create
        answers = [await create(model=self.model, input=part) for part in _parts(texts)]
        return [each.embedding for answer in answers for each in answer.data]

    def embed_query(self, text: str) -> list[float]:
        return self.embed_documents([text])[0]

    async def aembed_query(self, text: str) -> list[float]:
        return (await self.aembed_documents([text]))[0]


def _parts(texts: Sequence[str]) -> list[list[str]]:
    return [list(texts[at : at + MOST_TEXTS]) for at in range(0, len(texts), MOST_TEXTS)]
