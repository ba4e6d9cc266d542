"""A replica process: a host of vLLM at one end of a socket. Forked by nursery.py, runs until it is told to stop or
nobody is at the other end any more."""

import asyncio
import os
import signal
import socket
from typing import Any

from flowserve.engines.vllm import wire
from flowserve.engines.vllm.frames import Frames
from flowserve.engines.vllm.host import Host
from flowserve.engines.vllm.lifelines import die_with


def serve(channel: int) -> None:
    """`channel`: the connected socket's descriptor."""
    import uvloop  # vLLM needs it too

    _guard_forks(channel)
    uvloop.run(_Replica(socket.socket(fileno=channel)).serve())


class _Replica:
    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._frames = Frames(wire.ToHost, self._receive, self._cut)
        self._host: Host | None = None
        self._told: asyncio.Queue[wire.Start | wire.Stop] = asyncio.Queue()
        self._outbox: list[wire.ToServer] = []
        self._closing: asyncio.Future[None] | None = None

    async def serve(self) -> None:
        loop = asyncio.get_running_loop()
        await loop.create_unix_connection(lambda: self._frames, sock=self._connection)
        loop.add_signal_handler(signal.SIGTERM, self._told.put_nowait, wire.Stop())
        start = await self._told.get()
        if isinstance(start, wire.Start):
            host = Host(start, self._tell, alone=True)
            if await host.start():
                self._host = host
                await self._told.get()
                self._frames.send([wire.Stopping()])
            await host.stop(start.stop_s)
        self._flush()
        self._closing = loop.create_future()
        self._frames.close()
        await self._closing

    def _receive(self, messages: list[Any]) -> None:
        for message in messages:
            if isinstance(message, wire.Start | wire.Stop):
                self._told.put_nowait(message)
            elif self._host is not None:
                self._host.take(message)

    def _tell(self, message: wire.ToServer) -> None:
        """All that is said in one turn of the loop goes into one frame."""
        if not self._outbox:
            asyncio.get_running_loop().call_soon(self._flush)
        self._outbox.append(message)

    def _flush(self) -> None:
        if self._outbox:
            messages, self._outbox = self._outbox, []
            self._frames.send(messages)

    def _cut(self) -> None:
        if self._closing is not None:
            self._closing.set_result(None)
        else:  # the server process is gone; so are we, and whatever vLLM began
            os.killpg(0, signal.SIGKILL)


def _guard_forks(channel: int) -> None:
    """What vLLM forks dies with its parent, does not hold the socket open (its end is how the server learns of ours),
    and keeps its signals to itself: the loop's wake-up descriptor is shared, and would tell us of a SIGTERM of
    EngineCore's."""
    replica = forking = os.getpid()

    def before() -> None:
        nonlocal forking
        forking = os.getpid()

    def in_child() -> None:
        die_with(forking)
        signal.set_wakeup_fd(-1)
        if forking == replica:
            os.close(channel)

    os.register_at_fork(before=before, after_in_child=in_child)
