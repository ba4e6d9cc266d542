"""Server-sent events that cannot freeze the loop, hang on a dead reader or look complete when they are not.

A stream is two tasks: the *pump* takes frames from a source and fills a bounded outbox, the *response* sends
what has gathered, in one piece. The pump gives the loop back every few frames even when its source never waits;
a reader that has gone or stands still ends both; silence is filled with comments; and a stream whose source fails
ends with an error event and a cut connection instead of a clean end.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from flowserve.ids import Bytes, Seconds
from flowserve.server.wire import dumps

logger = logging.getLogger("flowserve.server")

YIELD_EVERY = 32
"""Frames after which the pump gives the loop back."""
HEADERS = {"cache-control": "no-cache, no-transform", "x-accel-buffering": "no"}
"""Proxies must neither keep nor change nor gather a stream."""
KEEP_ALIVE = b": keep-alive\n\n"


def frame(data: bytes, event: str | None = None, seq: int | None = None) -> bytes:
    """One event. `data` is a single line, as `wire.dumps` makes it."""
    head = b"" if seq is None else b"id: %d\n" % seq
    if event is not None:
        head += b"event: %s\n" % event.encode()
    return b"%sdata: %s\n\n" % (head, data)


def error_frame(body: Any) -> bytes:
    """How a stream says that it failed."""
    return frame(dumps(body), "error")


class StreamBroken(Exception):
    """A stream failed after its head was sent; raised so that the server cuts the connection."""


async def gone(receive: Receive) -> None:
    """Until the client has left. The body must have been read, or not be wanted."""
    while (await receive())["type"] != "http.disconnect":
        pass


class Stops:
    """Tells everything that waits on behalf of clients that the server is closing."""

    def __init__(self) -> None:
        self.closing = False
        """No new runs are taken."""
        self._streams: set[EventStream] = set()
        self._now: asyncio.Future[None] | None = None

    @property
    def now(self) -> asyncio.Future[None]:
        """Done when waiting must end. Belongs to the loop that first asks."""
        if self._now is None:
            self._now = asyncio.get_running_loop().create_future()
        return self._now

    @property
    def streams(self) -> int:
        """Streams that are open."""
        return len(self._streams)

    def add(self, stream: "EventStream") -> None:
        self._streams.add(stream)

    def discard(self, stream: "EventStream") -> None:
        self._streams.discard(stream)

    def end_waits(self) -> None:
        """End every stream and every long wait."""
        self.closing = True
        if not self.now.done():
            self.now.set_result(None)
        for stream in self._streams:
            stream.stop()


@dataclass(slots=True)
class StreamLimits:
    """See `ServerSettings` for what they mean."""

    keep_alive_s: Seconds = 15.0
    write_idle_s: Seconds = 30.0
    backlog_bytes: Bytes = 256 * 1024


@dataclass(slots=True)
class _Outbox:
    """Frames that are encoded and not yet sent. `wake` is set when the response has something to look at."""

    limit: Bytes
    frames: list[bytes] = field(default_factory=list)
    size: Bytes = 0
    wake: asyncio.Event = field(default_factory=asyncio.Event)
    room: asyncio.Event = field(default_factory=asyncio.Event)
    closed: bool = False
    error: Exception | None = None

    async def put(self, data: bytes) -> None:
        self.frames.append(data)
        self.size += len(data)
        self.wake.set()
        if self.size > self.limit:
            self.room.clear()
            await self.room.wait()

    def take(self) -> bytes:
        data = b"".join(self.frames)
        self.frames.clear()
        self.size = 0
        self.room.set()
        return data


class EventStream(Response):
    """A `text/event-stream` answer made of the frames of a source.

    `on_gone` is called once when the client left or stood still before the source ended. `on_error` makes the last
    frame of a source that raised. `on_stop` is the last frame when the server closes.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        source: AsyncGenerator[bytes, None],
        *,
        stops: Stops,
        limits: StreamLimits,
        on_gone: Callable[[], None],
        on_error: Callable[[Exception], bytes],
        on_stop: bytes,
        on_end: Callable[[], None] = lambda: None,
        headers: Mapping[str, str] | None = None,
        prelude: bytes = b"",
    ) -> None:
        self.status_code = 200
        self.background = None
        self.body = b""
        self.init_headers({**HEADERS, **(headers or {})})
        self._source = source
        self._stops = stops
        self._limits = limits
        self._on_gone = on_gone
        self._on_error = on_error
        self._on_stop = on_stop
        self._on_end = on_end
        self._prelude = prelude
        self._out = _Outbox(limits.backlog_bytes)
        self._gone = False
        self._stopped = False

    def init_headers(self, headers: Mapping[str, str] | None = None) -> None:
        """As `Response`, without a content length."""
        given = {"content-type": "text/event-stream; charset=utf-8", **(headers or {})}
        self.raw_headers = [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in given.items()]

    def stop(self) -> None:
        """End the stream now with `on_stop`."""
        self._stopped = True
        self._out.wake.set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._stops.add(self)
        tasks = [asyncio.create_task(self._pump()), asyncio.create_task(self._watch(receive))]
        try:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            if self._prelude:
                await self._write(send, self._prelude)
            await self._respond(send)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            self._on_end()
            self._stops.discard(self)

    async def _respond(self, send: Send) -> None:
        out = self._out
        while True:
            data = out.take()
            if self._gone:
                self._on_gone()
                return
            if data:
                await self._write(send, data)
            elif out.error is not None:
                await self._write(send, self._on_error(out.error))
                raise StreamBroken(str(out.error)) from out.error
            elif out.closed:
                await send({"type": "http.response.body", "body": b"", "more_body": False})
                return
            elif self._stopped or self._stops.now.done():
                self._on_gone()
                await self._write(send, self._on_stop)
                await send({"type": "http.response.body", "body": b"", "more_body": False})
                return
            else:
                await self._quiet(send)

    async def _quiet(self, send: Send) -> None:
        """Wait for something to do; say that we are alive when it takes long."""
        self._out.wake.clear()
        try:
            async with asyncio.timeout(self._limits.keep_alive_s):
                await self._out.wake.wait()
        except TimeoutError:
            await self._write(send, KEEP_ALIVE)

    async def _write(self, send: Send, data: bytes) -> None:
        message: Message = {"type": "http.response.body", "body": data, "more_body": True}
        try:
            async with asyncio.timeout(self._limits.write_idle_s):
                await send(message)
        except TimeoutError:
            self._on_gone()
            raise StreamBroken(f"the reader took nothing for {self._limits.write_idle_s:g} s") from None

    async def _pump(self) -> None:
        count = 0
        try:
            async with aclosing(self._source) as source:
                async for data in source:
                    await self._out.put(data)
                    count += 1
                    if count % YIELD_EVERY == 0:
                        await asyncio.sleep(0)
        except Exception as error:  # noqa: BLE001 - whatever it is, the reader is told and the connection cut
            self._out.error = error
        self._out.closed = True
        self._out.wake.set()

    async def _watch(self, receive: Receive) -> None:
        await gone(receive)
        self._gone = True
        self._out.room.set()
        self._out.wake.set()
