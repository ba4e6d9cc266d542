"""Replica processes, seen from the server process: how they are begun, watched, and ended with all that they began."""

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import IO

from flowserve.errors import EngineError

TERM_S = 2.0
"""What a process that was told to terminate gets before it is killed."""


@dataclass(frozen=True, slots=True)
class Request:
    """What a replica is to be."""

    name: str
    folder: str
    """A private one. The nursery removes it when the server process is gone and nobody else can."""
    environment: Mapping[str, str]


class Nursery:
    """The other end of nursery.py: one process, started when it is first needed, for all engines of this process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._link: socket.socket | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._owner = 0
        """Process that started it; another one, forked from that, starts its own."""
        self._log: IO[bytes] | None = None

    @property
    def warm(self) -> bool:
        """It was started, so the next replica is a matter of a second."""
        return self._link is not None

    def fork(self, request: Request, channel: int, log: int) -> int:
        """The process id of a new replica, with `channel` as its socket and `log` for what it prints. Blocks, while
        vLLM is imported for the first time for seconds. Raises EngineError."""
        line = json.dumps(asdict(request)).encode() + b"\n"
        with self._lock:
            for _ in range(2):  # it may have ended since the last time, for want of work
                link = self._link if self._link is not None and self._owner == os.getpid() else self._start()
                with contextlib.suppress(OSError):
                    socket.send_fds(link, [line], [channel, log])
                    answer = link.recv(64)
                    if answer:
                        return int(answer)
                link.close()
                self._link = None
        raise EngineError(f"the process that imports vLLM ended by itself: {self._last_line()}")

    def _start(self) -> socket.socket:
        ours, theirs = socket.socketpair()
        self._owner = os.getpid()
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 as long as the process
        with theirs:
            if self._process is not None:
                self._process.poll()
            self._process = subprocess.Popen(
                [sys.executable, "-m", "flowserve.engines.vllm.nursery", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                # A group of its own: Ctrl-C is for the server, which then closes its engines. Not a session: Linux gives each
                # session its share of a core (sched_autogroup), and the server then waits for seconds behind its own engines.
                process_group=0,
                stdout=self._log,
                stderr=self._log,
                env={**environment_of({}), "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
            )
        self._link = ours
        return ours

    def _last_line(self) -> str:
        assert self._log is not None, "started"
        self._log.seek(0)
        lines = self._log.read().decode(errors="replace").split("\n")
        return next((line for line in reversed(lines) if line), "it printed nothing")


def environment_of(more: Mapping[str, str]) -> dict[str, str]:
    """This process's, with `more`, and vLLM quiet unless somebody wishes otherwise."""
    return {"VLLM_LOGGING_LEVEL": "WARNING", **os.environ, **more}


NURSERY = Nursery()


class ReplicaProcess:
    """A replica that runs. `died` is called on the loop when it ends."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._pidfd = os.pidfd_open(pid)
        self._loop = asyncio.get_running_loop()
        self._gone = self._loop.create_future()
        self._loop.add_reader(self._pidfd, self._ended)

    @property
    def gone(self) -> "asyncio.Future[None]":
        return self._gone

    async def stop(self, seconds: float) -> None:
        """Wait for its end, for at most `seconds`; then help. Afterwards nothing is left of it or its children."""
        try:
            for limit, help_it in ((seconds, signal.SIGTERM), (TERM_S, signal.SIGKILL)):
                done, _ = await asyncio.wait([self._gone], timeout=limit)
                if done:
                    break
                self.kill(help_it)
            await self._gone
        finally:
            self.kill()

    def kill(self, how: signal.Signals = signal.SIGKILL) -> None:
        """It and what it started; stopped processes too."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, how)

    def _ended(self) -> None:
        self._loop.remove_reader(self._pidfd)
        os.close(self._pidfd)
        if not self._gone.done():
            self._gone.set_result(None)
