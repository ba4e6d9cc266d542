"""A runtime on the scripted engine behind a real uvicorn on a loopback port, in the test's own event loop."""

import asyncio
import contextlib
import json
import math
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest
from pydantic import BaseModel

import flowserve as fs
from flowserve.clock import Clock
from flowserve.config import RuntimeConfig
from flowserve.engines.fake import FailAfter, FakeEngine
from flowserve.errors import EngineError
from flowserve.retrieval.service import Retrieval
from flowserve.runtime.runner import Runtime
from flowserve.server.app import create_app
from flowserve.server.door import Door
from flowserve.server.listen import Listener, listener
from flowserve.server.settings import ServerSettings


class Verdict(BaseModel):
    text: str
    score: int


@fs.llm()
def say(text: str) -> str:
    fs.prompt("{{ text }}")


@fs.llm()
def judge(text: str) -> Verdict:
    fs.prompt("{{ text }}")


@fs.llm()
def hang(text: str) -> str:
    fs.prompt("{{ text }}")


@fs.llm()
def pour(text: str) -> str:
    fs.prompt("{{ text }}")


@fs.llm()
def die(text: str) -> str:
    fs.prompt("{{ text }}")


@fs.tool
def split(text: str) -> list[str]:
    """Words of a text."""
    return text.split()


@fs.tool
def refuse(text: str) -> str:
    """Never works."""
    raise ValueError(f"will not {text}")


@fs.workflow()
def echo(text: str) -> str:
    """Says what it is told."""
    return say(text)


@fs.workflow()
def verdict(text: str, strict: bool = False) -> Verdict:
    return judge(text)


@fs.workflow()
def words(text: str) -> list[str]:
    return split(text)


@fs.workflow()
def each(text: str) -> list[str]:
    return say.map(split(text))


@fs.workflow()
def stuck(text: str) -> str:
    return hang(text)


@fs.workflow()
def firehose(text: str) -> str:
    return pour(text)


@fs.workflow()
def refusing(text: str) -> str:
    return refuse(text)


@fs.workflow()
def dying(text: str) -> str:
    return die(text)


@fs.workflow()
def lookup(question: str) -> list[fs.Doc]:
    return fs.Index("notes").search(question, k=2)


WORKFLOWS: tuple[Any, ...] = (echo, verdict, words, each, stuck, firehose, refusing, dying, lookup)
REPLIES: dict[str, Any] = {
    "say": "one two three",
    "judge": Verdict(text="good", score=3),
    "pour": " ".join(f"w{i}" for i in range(5_000)),
    "die": FailAfter("half of", EngineError("the engine stumbled")),
}


async def read_events(response: httpx2.Response) -> AsyncIterator[dict[str, Any]]:
    """An independent reader of the format, strict about what comes between blank lines."""
    event: dict[str, Any] = {}
    async for line in response.aiter_lines():
        if line == "":
            if event:
                yield event
            event = {}
        elif line.startswith(":"):
            yield {"comment": line[1:].strip()}
        else:
            field, _, value = line.partition(": ")
            assert field in ("id", "event", "data", "retry"), line
            event[field] = json.loads(value) if field == "data" and value != "[DONE]" else value
    assert not event, f"the stream ended inside an event: {event}"


@dataclass
class Served:
    """A server that is listening, and what is behind it."""

    url: str
    http: httpx2.AsyncClient
    runtime: Runtime
    engine: FakeEngine
    door: Door
    server: Listener

    async def run(self, workflow: str, text: str = "hi", **body: Any) -> httpx2.Response:
        """Ask for a run; the input's one text parameter is `text`."""
        return await self.http.post(f"/v1/workflows/{workflow}/runs", json={"input": {"text": text}, **body})

    @asynccontextmanager
    async def follow(self, path: str, **given: Any) -> AsyncIterator[AsyncIterator[dict[str, Any]]]:
        """Server-sent events of a GET, as they come: {"id", "event", "data"}; comments as {"comment"}."""
        async with self.http.stream("GET", path, **given) as response:
            assert response.status_code == 200, await response.aread()
            yield read_events(response)

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A bare connection, for what an HTTP client would not do."""
        host, _, port = self.url.removeprefix("http://").rpartition(":")
        return await asyncio.open_connection(host, int(port))


Serve = Callable[..., AbstractAsyncContextManager[Served]]


@asynccontextmanager
async def serving(
    folder: Path,
    *,
    replies: Any = None,
    settings: ServerSettings | None = None,
    config: RuntimeConfig | None = None,
    clock: Clock | None = None,
    retrieval: bool = True,
    headers: dict[str, str] | None = None,
    **fake: Any,
) -> AsyncIterator[Served]:
    engine = FakeEngine(REPLIES if replies is None else replies, **{"delays": {"hang": math.inf}, **fake})
    service = Retrieval(folder, embedder="hash") if retrieval else None
    runtime = Runtime([engine], retrieval=service, config=config, clock=clock)
    for workflow in WORKFLOWS:
        runtime.register(workflow.program)
    await runtime.start()
    settings = settings or ServerSettings(port=0)
    app = create_app(runtime, settings)
    server = listener(app, settings)
    task = asyncio.create_task(server.serve())
    try:
        await server.listening.wait()
        async with httpx2.AsyncClient(base_url=server.url, timeout=20, headers=headers) as http:
            yield Served(server.url, http, runtime, engine, app.state.door, server)
    finally:
        server.stop(hurry=True)
        with contextlib.suppress(asyncio.CancelledError):
            await task
        await runtime.aclose()


@pytest.fixture
def serve(tmp_path: Path) -> Serve:
    """`async with serve(settings=...) as served:`"""

    def make(**given: Any) -> AbstractAsyncContextManager[Served]:
        return serving(tmp_path / "indexes", **given)

    return make


@pytest.fixture
async def served(serve: Serve) -> AsyncIterator[Served]:
    """A server as it is by default."""
    async with serve() as ready:
        yield ready
