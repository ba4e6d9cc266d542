"""The process that replicas are forked from. It has imported vLLM, which takes five seconds, and does nothing else.

    python -m flowserve.engines.vllm.nursery FD

Not multiprocessing's fork server: that one is shared with the user's own code, and imports the user's main module
into every child. Here a line of JSON with two file descriptors (the replica's socket and its log) asks for a replica,
and its process id is the answer; see spawning.py for the other end. Replicas are killed when this process ends, and
it ends when FD is closed at the other end, or when it has had no replica for a while.
"""

import contextlib
import gc
import importlib
import json
import os
import select
import shutil
import signal
import socket
import sys
import traceback
from collections.abc import Iterator
from typing import Any

from flowserve.engines.vllm.lifelines import adopt_orphans, die_with

LINGER_MS = 60_000
"""It holds 600 MB, so it ends after so long without a replica."""
PRELOADED = ("vllm.engine.arg_utils", "vllm.v1.engine.async_llm", "vllm.v1.engine.core")
PRELOADED_ON_CPU = (
    "vllm.v1.worker.cpu_worker",
    "vllm.v1.core.sched.scheduler",
    "vllm.model_executor.models.llama",
    "vllm.model_executor.layers.quantization.online.base",
)
"""What a worker imports at its start. On a GPU this is left to vLLM: nothing may touch the device before the fork."""


def main() -> None:
    link = socket.socket(fileno=int(sys.argv[1]))
    title("flowserve: vLLM's nursery")
    adopt_orphans()
    _preload()
    children: dict[int, str] = {}
    signal.signal(signal.SIGCHLD, lambda *_: _reap(children))
    for request, (channel, log) in _requests(link, children):
        parent, pid = os.getpid(), os.fork()
        if pid == 0:
            link.close()
            _become_replica(parent, channel, log, request)
        children[pid] = request["folder"]
        with contextlib.suppress(OSError):  # the child does it as well: who comes first is not known
            os.setpgid(pid, pid)
        os.close(channel)
        os.close(log)
        link.sendall(b"%d\n" % pid)
    _end(children)


def title(text: str) -> None:
    """What `ps` shows. Has to be set once before the environment is changed, or it never works, vLLM's own titles
    neither."""
    with contextlib.suppress(ImportError):
        importlib.import_module("setproctitle").setproctitle(text)


def _preload() -> None:
    for name in PRELOADED:
        importlib.import_module(name)
    if importlib.import_module("vllm.platforms").current_platform.is_cpu():
        for name in PRELOADED_ON_CPU:
            importlib.import_module(name)
    # Every collection in a child would look at all of this again: a second at each start, five times over.
    gc.collect()
    gc.freeze()


def _end(children: dict[int, str]) -> None:
    """The server process is gone: its replicas go too, and what it would have tidied up."""
    for pid, folder in list(children.items()):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)
        shutil.rmtree(folder, ignore_errors=True)


def _requests(link: socket.socket, children: dict[int, str]) -> Iterator[tuple[dict[str, Any], list[int]]]:
    waiting = select.poll()
    waiting.register(link, select.POLLIN)
    while True:
        if not waiting.poll(LINGER_MS):
            if not children:
                return
            continue
        line, descriptors, _, _ = socket.recv_fds(link, 1 << 20, 2)
        while line and not line.endswith(b"\n"):
            line += link.recv(1 << 20)
        if not line:
            return
        yield json.loads(line), list(descriptors)


def _reap(children: dict[int, str]) -> None:
    """Children, and those of dead children."""
    try:
        while (pid := os.waitpid(-1, os.WNOHANG)[0]) != 0:
            children.pop(pid, None)
    except ChildProcessError:
        children.clear()


def _become_replica(parent: int, channel: int, log: int, request: dict[str, Any]) -> None:
    """In the child. A process group of its own: it is killed with all that it starts."""
    title(f"flowserve: replica {request['name']}")
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.setpgid(0, 0)
    die_with(parent)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(log)
    os.environ.clear()
    os.environ.update(request["environment"])
    status = 1
    try:
        from flowserve.engines.vllm.replica import serve

        serve(channel)
        status = 0
    except BaseException:  # noqa: BLE001 the process ends, and this is its last word
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


if __name__ == "__main__":
    main()
