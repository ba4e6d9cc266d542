"""One index of a server, over its native door: every request once as data, sent by either client."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any
from urllib.parse import quote

from openai import APIStatusError, NotFoundError

from flowserve.integrations.server import Server

MOST_DOCUMENTS = 1_000
"""Of one request, as the server allows."""
MOST_CHARS = 500_000
"""Of one request that puts documents in: a server takes 4 MiB by default, and a character is at most 6 bytes of JSON."""

Body = dict[str, Any]


class Index:
    """An index by name. It need not be there yet: the first ingestion makes it, and before that it holds nothing."""

    def __init__(self, server: Server, name: str) -> None:
        self.server = server
        self.name = name
        self._path = f"/indexes/{quote(name, safe='')}"

    def search(self, query: str, k: int) -> list[dict[str, Any]]:
        """Hits, best first: text, id (of the passage), document, score, metadata. Raises NotFoundError."""
        return _list("hits", self._post("/search", {"query": query, "k": k}))

    async def asearch(self, query: str, k: int) -> list[dict[str, Any]]:
        return _list("hits", await self._apost("/search", {"query": query, "k": k}))

    def put(self, documents: Sequence[Body]) -> None:
        """Add or replace; found by searches when it returns."""
        for part in _batches(documents):
            self._post("/documents", {"documents": part})

    async def aput(self, documents: Sequence[Body]) -> None:
        for part in _batches(documents):
            await self._apost("/documents", {"documents": part})

    def get(self, ids: Sequence[str]) -> list[dict[str, Any]]:
        """Those that are there, in the order of `ids`: id, text, metadata. Raises NotFoundError for an index that is not."""
        return [
            each for part in _parts(ids) for each in _list("documents", self._post("/documents:get", {"ids": part}))
        ]

    async def aget(self, ids: Sequence[str]) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        for part in _parts(ids):
            found += _list("documents", await self._apost("/documents:get", {"ids": part}))
        return found

    def delete(self, ids: Sequence[str]) -> None:
        """Remove those of `ids` that are there. Raises NotFoundError for an index that is not."""
        for part in _parts(ids):
            self._post("/documents:delete", {"ids": part})

    async def adelete(self, ids: Sequence[str]) -> None:
        for part in _parts(ids):
            await self._apost("/documents:delete", {"ids": part})

    def _post(self, act: str, body: Body) -> Any:
        with _telling():
            return self.server.client.post(self._path + act, cast_to=object, body=body)

    async def _apost(self, act: str, body: Body) -> Any:
        with _telling():
            return await self.server.async_client.post(self._path + act, cast_to=object, body=body)


def is_missing(error: NotFoundError) -> bool:
    """Whether a 404 is a FlowServe server's word that there is no such index, not that there is no such path."""
    return _detail(error).startswith("there is no index ")


@contextmanager
def _telling() -> Iterator[None]:
    """OpenAI's client knows OpenAI's errors; what the native door says of one (RFC 9457) is noted on it."""
    try:
        yield
    except APIStatusError as error:
        error.add_note(f"the server says: {_detail(error) or 'nothing'}")
        raise


def _detail(error: APIStatusError) -> str:
    return str(error.body.get("detail", "")) if isinstance(error.body, Mapping) else ""


def _parts(items: Sequence[Any]) -> list[list[Any]]:
    return [list(items[at : at + MOST_DOCUMENTS]) for at in range(0, len(items), MOST_DOCUMENTS)]


def _batches(documents: Sequence[Body]) -> list[list[Body]]:
    """In order; a document that is larger than a request may be goes alone, for the server to say so."""
    batches: list[list[Body]] = []
    room = 0
    for document in documents:
        size = len(document["text"])
        if not batches or size > room or len(batches[-1]) == MOST_DOCUMENTS:
            batches.append([])
            room = MOST_CHARS
        batches[-1].append(document)
        room -= size
    return batches


def _list(key: str, answer: Any) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = answer[key]
    return found
