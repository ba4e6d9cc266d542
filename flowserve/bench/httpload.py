"""A load generator that costs little itself: HTTP/1.1 over raw asyncio connections, a request at a time on each.

Only loopback addresses are asked: this is for one's own servers. What is timed is from the request's first byte out to the
response's last byte in, and for streams also to the first byte of the first event.
"""

import asyncio
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from flowserve.errors import ConfigError
from flowserve.ids import Seconds

HEAD_END = b"\r\n\r\n"


@dataclass(slots=True)
class Answer:
    """What came back for one request."""

    status: int
    seconds: Seconds
    first_s: Seconds
    """To the first byte of the body."""
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Connection(asyncio.Protocol):
    """One connection, reused. A response ends by its length or its last chunk."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._answer: asyncio.Future[Answer] | None = None
        self._buffer = bytearray()
        self._body = bytearray()
        self._began = self._first = 0.0
        self._length: int | None = None
        self._status = 0
        self._in_body = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(ConnectionError("the server closed the connection"))

    def send(self, request: bytes) -> "asyncio.Future[Answer]":
        """Write a whole request; the future is its answer. Raises ConnectionError when the server has hung up."""
        assert self._transport is not None and (self._answer is None or self._answer.done())
        if self._transport.is_closing():
            raise ConnectionError("the server closed the connection")
        self._answer = asyncio.get_running_loop().create_future()
        self._buffer.clear()
        self._body = bytearray()
        self._in_body = False
        self._first = 0.0
        self._began = time.perf_counter()
        self._transport.write(request)
        return self._answer

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        if not self._in_body and not self._read_head():
            return
        if self._length is not None:
            if len(self._buffer) >= self._length:
                self._body += self._buffer[: self._length]
                self._done()
        else:
            self._read_chunks()

    def _read_head(self) -> bool:
        end = self._buffer.find(HEAD_END)
        if end < 0:
            return False
        head = bytes(self._buffer[:end]).lower()
        del self._buffer[: end + 4]
        self._status = int(head[9:12])
        at = head.find(b"content-length:")
        self._length = int(head[at + 15 : (head + b"\r\n").find(b"\r\n", at)]) if at >= 0 else None
        self._in_body = True
        self._first = time.perf_counter() if self._length is not None else 0.0
        return True

    def _read_chunks(self) -> None:
        while True:
            line = self._buffer.find(b"\r\n")
            if line < 0:
                return
            size = int(bytes(self._buffer[:line]).split(b";")[0] or b"0", 16)
            if len(self._buffer) < line + 4 + size:
                return
            if size == 0:
                self._done()
                return
            if not self._first:
                self._first = time.perf_counter()
            self._body += self._buffer[line + 2 : line + 2 + size]
            del self._buffer[: line + 4 + size]

    def _done(self) -> None:
        assert self._answer is not None
        now = time.perf_counter()
        first = (self._first or now) - self._began
        if not self._answer.done():
            self._answer.set_result(Answer(self._status, now - self._began, first, bytes(self._body)))


def request_bytes(url: str, body: Any, method: str = "POST", headers: Sequence[tuple[str, str]] = ()) -> bytes:
    """A request with a JSON body, as bytes."""
    parts = urlsplit(url)
    data = b"" if body is None else json.dumps(body, separators=(",", ":")).encode()
    lines = [
        f"{method} {parts.path or '/'} HTTP/1.1",
        f"Host: {parts.netloc}",
        "Content-Type: application/json",
        f"Content-Length: {len(data)}",
        *(f"{name}: {value}" for name, value in headers),
    ]
    return "\r\n".join(lines).encode() + HEAD_END + data


async def connect(url: str) -> Connection:
    """Raises ConfigError off loopback, OSError where nobody listens."""
    parts = urlsplit(url)
    if parts.hostname not in ("127.0.0.1", "localhost", "::1") or parts.port is None:
        raise ConfigError(f"expected a server on this machine, http://127.0.0.1:PORT; got {url}")
    loop = asyncio.get_running_loop()
    _, connection = await loop.create_connection(Connection, parts.hostname, parts.port)
    return connection


@dataclass(slots=True)
class Load:
    """What a load measured."""

    answers: list[Answer] = field(default_factory=list)
    seconds: Seconds = 0.0
    errors: int = 0
    first_error: str = ""

    @property
    def rate(self) -> float:
        """Good answers per second."""
        return len(self.answers) / self.seconds if self.seconds else 0.0

    def add(self, answer: Answer) -> None:
        if answer.status == 200:
            self.answers.append(answer)
        else:
            self.errors += 1
            self.first_error = self.first_error or f"{answer.status} {answer.body[:500].decode(errors='replace')}"


async def closed(requests: Sequence[tuple[str, bytes]], concurrency: int) -> Load:
    """All `requests` (url, bytes) in order, `concurrency` at a time."""
    load, turn = Load(), iter(requests)
    began = time.perf_counter()

    async def client() -> None:
        connections: dict[str, Connection] = {}
        try:
            for url, data in turn:
                if url not in connections:
                    connections[url] = await connect(url)
                load.add(await connections[url].send(data))
        finally:
            for connection in connections.values():
                connection.close()

    await asyncio.gather(*(client() for _ in range(concurrency)))
    load.seconds = time.perf_counter() - began
    return load


async def paced(url: str, data: bytes, rate: float, seconds: Seconds, connections: int = 64) -> Load:
    """One request every 1/rate seconds, whether others are answered or not; lateness of the generator counts against nobody:
    each request is timed from when it is sent."""
    load, free = Load(), asyncio.Queue[Connection]()
    made = [await connect(url) for _ in range(connections)]
    for connection in made:
        free.put_nowait(connection)
    tasks: set[asyncio.Task[None]] = set()

    async def one(connection: Connection) -> None:
        load.add(await connection.send(data))
        free.put_nowait(connection)

    began = time.perf_counter()
    for number in range(round(rate * seconds)):
        wait = began + number / rate - time.perf_counter()
        if wait > 0:
            await asyncio.sleep(wait)
        task = asyncio.create_task(one(await free.get()))
        tasks.add(task)
        task.add_done_callback(tasks.discard)
    await asyncio.gather(*tasks)
    load.seconds = time.perf_counter() - began
    for connection in made:
        connection.close()
    return load


async def until_ready(url: str, alive: Callable[[], bool], timeout_s: Seconds = 180.0) -> None:
    """Until GET `url` answers 200. Raises ConfigError when the server has ended or takes too long."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline and alive():
        try:
            connection = await connect(url)
            try:
                answer = await asyncio.wait_for(connection.send(request_bytes(url, None, "GET")), 5.0)
            finally:
                connection.close()
            if answer.status == 200:
                return
        except (OSError, TimeoutError):
            pass
        await asyncio.sleep(0.1)
    raise ConfigError(f"{url} did not answer within {timeout_s:.0f} s, or its server has ended")
