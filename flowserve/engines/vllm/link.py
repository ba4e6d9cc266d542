"""An engine's connection to its host: a replica process at the end of a socket, or an object on the same loop.

Both carry the same messages. An engine makes a new one at each start. `receive` gets every message in order; `ended` is
called once, with the reason, when the host is gone without having been told to go.
"""

import asyncio
import importlib
import os
import re
import shutil
import socket
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from flowserve.engines.vllm import wire
from flowserve.engines.vllm.frames import Frames
from flowserve.engines.vllm.settings import VLLMSettings, packed
from flowserve.engines.vllm.spawning import NURSERY, ReplicaProcess, Request, environment_of
from flowserve.errors import ConfigError, EngineError
from flowserve.ids import Seconds

Receive = Callable[[Any], None]
Ended = Callable[[str], None]

HEARD_S: Seconds = 2.0
"""A replica that has not even heard within so long that it is to stop stands still."""
LONGEST = 50
"""Characters of a temporary directory's path that leave room for vLLM's names below it."""
_ERROR = re.compile(r"(?:\)|\]|^)\s*([A-Za-z_.]*(?:Error|Exception): .+)$", re.MULTILINE)
"""The last line of a traceback, behind vLLM's prefixes."""


class Link(Protocol):
    """See the module."""

    @property
    def pid(self) -> int | None:
        """Of the replica process, when there is one."""
        ...

    async def open(self) -> None:
        """Begin the host and tell it to start, which it answers with Ready or Failed. Raises EngineError,
        ConfigError."""
        ...

    def send(self, message: wire.ToHost) -> None: ...

    def last_words(self) -> str:
        """The first error that vLLM printed, or ""."""
        ...

    def kill(self) -> None:
        """At once, with all that it began. `close` is still to come."""
        ...

    async def close(self) -> None:
        """In good order if that does not take too long. Afterwards nothing is left of it."""
        ...


class ChildLink:
    """To a replica process, forked from the nursery."""

    def __init__(self, settings: VLLMSettings, receive: Receive, ended: Ended, say: Callable[[str], None]) -> None:
        self._settings = settings
        self._receive = receive
        self._ended = ended
        self._say = say
        self._folder = _private_folder()
        self._log = Path(settings.log) if settings.log else self._folder / "log"
        self._log_start = self._log.stat().st_size if self._log.exists() else 0
        """Where the words begin that may be about what is wrong now."""
        self._frames = Frames(wire.ToServer, self._receive_all, self._died)
        self._process: ReplicaProcess | None = None
        self._closing = False
        self._ready = False
        self._heard = asyncio.Event()

    @property
    def pid(self) -> int | None:
        return None if self._process is None else self._process.pid

    async def open(self) -> None:
        if not hasattr(os, "pidfd_open"):
            raise ConfigError("VLLMSettings.mode: 'child' needs Linux; use 'inline'")
        self._say("forking a replica" if NURSERY.warm else "importing vLLM, once for all replicas")
        ours, theirs = socket.socketpair()
        try:
            self._process = ReplicaProcess(await asyncio.to_thread(self._fork, theirs))
            await asyncio.get_running_loop().create_unix_connection(lambda: self._frames, sock=ours)
        except BaseException:
            ours.close()  # a replica that comes too late ends by this
            raise
        self._process.gone.add_done_callback(lambda _: self._died())
        try:
            self._frames.send([started(self._settings, self._folder)])
        except TypeError as error:
            raise ConfigError(
                f"VLLMSettings.args: expected values that can be sent to another process; {error}. "
                "Use mode='inline' for others"
            ) from error

    def send(self, message: wire.ToHost) -> None:
        self._frames.send([message])

    def last_words(self) -> str:
        try:
            with self._log.open("rb") as log:
                log.seek(self._log_start)
                text = log.read(1 << 20).decode(errors="replace")
        except OSError:
            return ""
        found = _ERROR.search(text)
        return found[1] if found else ""

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()

    async def close(self) -> None:
        self._closing = True
        self.send(wire.Stop())
        if self._process is not None:
            if self._ready and not await self._is_heard(self._process):
                self._process.kill()
            await self._process.stop(self._settings.stop_s)
        self._frames.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    async def _is_heard(self, process: ReplicaProcess) -> bool:
        process.gone.add_done_callback(lambda _: self._heard.set())
        try:
            await asyncio.wait_for(self._heard.wait(), HEARD_S)
        except TimeoutError:
            return False
        return True

    def _fork(self, theirs: socket.socket) -> int:
        environment = environment_of(self._settings.environment)
        with theirs, self._log.open("ab") as log:
            request = Request(self._settings.id, str(self._folder), environment)
            return NURSERY.fork(request, theirs.fileno(), log.fileno())

    def _receive_all(self, messages: list[Any]) -> None:
        for message in messages:
            if isinstance(message, wire.Stopping):
                self._heard.set()
                continue
            if isinstance(message, wire.Ready):
                self._ready = True
                self._log_start = self._log.stat().st_size
            self._receive(message)

    def _died(self) -> None:
        if not self._closing:
            self._closing = True
            self._ended(f"its replica process {self.pid} ended")


class InlineLink:
    """To a host on this loop."""

    def __init__(self, settings: VLLMSettings, receive: Receive) -> None:
        self._settings = settings
        self._receive = receive
        self._folder = _private_folder()
        self._host: Any = None

    @property
    def pid(self) -> int | None:
        return None

    async def open(self) -> None:
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
        try:
            hosting = await asyncio.to_thread(importlib.import_module, "flowserve.engines.vllm.host")
        except ImportError as error:
            raise EngineError(f"vLLM cannot be imported: {error}") from error
        self._host = hosting.Host(started(self._settings, self._folder), self._receive, alone=False)
        await self._host.start()

    def send(self, message: wire.ToHost) -> None:
        self._host.take(message)

    def last_words(self) -> str:
        return ""

    def kill(self) -> None:
        """vLLM has noticed that EngineCore is gone, which is the only way to lose this host, and ends the rest."""

    async def close(self) -> None:
        if self._host is not None:
            await self._host.stop(self._settings.stop_s)
        shutil.rmtree(self._folder, ignore_errors=True)


def _private_folder() -> Path:
    """For sockets, whose paths may have 107 characters: not below a long TMPDIR."""
    usual = tempfile.gettempdir()
    return Path(tempfile.mkdtemp(prefix="flowserve-", dir=usual if len(usual) <= LONGEST else "/tmp"))


def started(settings: VLLMSettings, folder: Path) -> wire.Start:
    """The first message of a connection."""
    return wire.Start(
        model=settings.model,
        args=dict(settings.args),
        loras=dict(settings.loras),
        cores=settings.cores,
        kv_bytes=settings.kv_bytes,
        scheduler=settings.scheduler,
        kv_events=settings.kv_events,
        reuse=None if settings.reuse is None else packed(settings.reuse),
        session_share=settings.session_share,
        secret=settings.secret,
        stop_s=settings.stop_s,
        folder=str(folder),
    )
