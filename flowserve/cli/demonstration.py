"""`flowserve demo`: what FlowServe does, in one command, on a machine that has nothing.

Ingests the sample documents, serves the quickstart on the embedded engine, asks one question through the
REST door and prints the answer as it streams, then stays up.
"""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp

from flowserve import demo as sample
from flowserve.assemble import Declared, Settings
from flowserve.cli.indexing import add
from flowserve.cli.serving import listening
from flowserve.cli.targets import say
from flowserve.demo.workflow import INDEX, rag
from flowserve.retrieval.load import load
from flowserve.server.settings import from_environ

FOLDER = Path(".demo/indexes")


def demo(model: str, port: int, once: bool, question: str | None) -> int:
    """0 when the question was answered."""
    settings = Settings(model=model, indexes=FOLDER)
    return asyncio.run(_demo(settings, port, once, question or sample.questions("two-hop")[0].question))


async def _demo(settings: Settings, port: int, once: bool, question: str) -> int:
    say("ingesting the sample documents")
    info = await add(load(sample.corpus_path()).documents, INDEX, settings)
    say(f"index {info.name}: {info.documents} documents, {info.passages} passages")
    async with listening(Declared((rag,)), settings, from_environ(port=port)) as (server, task):
        answered = await _ask(server.url, question)
        if once or not answered:
            return 0 if answered else 1
        _invite(server.url, question)
        await task
    return 0


async def _ask(url: str, question: str) -> bool:
    """Stream one run and print what a person wants to see of it."""
    print(f"\nquestion   {question}\nanswer     ", end="", flush=True)
    body = {"input": {"question": question}, "mode": "stream"}
    passages: list[dict[str, Any]] = []
    async with (
        aiohttp.ClientSession() as session,
        session.post(f"{url}/v1/workflows/{rag.name}/runs", json=body) as response,
    ):
        if response.status != 200:
            print(await response.text())
            return False
        async for event in server_sent_events(response.content):
            if event["type"] == "node.delta":
                print(event["data"]["text"], end="", flush=True)
            elif event["type"] == "node.completed" and isinstance(event["data"].get("output"), list):
                passages = event["data"]["output"]
            elif event["type"] == "run.completed":
                _explain(event["data"], passages)
                return True
            elif event["type"].startswith("run.") and "error" in event["data"]:
                print(event["data"]["error"]["message"])
    return False


async def server_sent_events(lines: aiohttp.StreamReader) -> AsyncIterator[dict[str, Any]]:
    """The JSON of each `data:` line."""
    async for line in lines:
        if line.startswith(b"data:"):
            yield json.loads(line[5:])


def _explain(data: dict[str, Any], passages: list[dict[str, Any]]) -> None:
    usage = data["usage"]
    print("\n\npassages it was given")
    for passage in passages:
        print(f"  {passage['score']:.2f}  {passage['document']}: {' '.join(passage['text'].split())}")
    reused = f", {usage['cached_tokens']} of them reused" if usage["cached_tokens"] else ""
    print(
        f"\n{usage['tokens_in']} tokens read{reused}, {usage['tokens_out']} written, {data['seconds']:.2f} s in all\n"
    )


def _invite(url: str, question: str) -> None:
    body = json.dumps({"input": {"question": question}})
    print(
        f"FlowServe is up at {url}. Its pages: {url}/docs\n\n"
        f"  curl -N {url}/v1/workflows/{rag.name}/runs -H 'Content-Type: application/json' \\\n"
        f"       -H 'Accept: text/event-stream' -d '{body}'\n\n"
        f"It is an OpenAI server too (base URL {url}/v1, model {rag.name}). Ctrl-C ends it.",
        flush=True,
    )
