"""An OpenAI server over bare sockets, which can be wrong in every way.

By default it is a small vLLM: it tells its model, echoes prompts, and answers each call with `ids`, one event per
token. A test puts its own function into `mock.reply` to answer the streamed calls; it gets the request and the wire.
"""

import asyncio
import json
import socket
import struct
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

DONE = "[DONE]"


@dataclass(frozen=True, slots=True)
class Request:
    method: str
    path: str
    headers: dict[str, str]
    """Names in lower case."""
    raw: bytes

    @property
    def body(self) -> dict[str, Any]:
        parsed: dict[str, Any] = json.loads(self.raw)
        return parsed


class Wire:
    """What a test can do to one answer."""

    def __init__(self, writer: asyncio.StreamWriter) -> None:
        self._writer = writer
        self.chunked = False
        self.ended = False

    async def head(self, status: int = 200, content_type: str = "text/event-stream", **headers: str) -> None:
        """Status line and headers; without a length the body is chunked."""
        lines = [f"HTTP/1.1 {status} X", f"content-type: {content_type}"]
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        self.chunked = "content_length" not in headers
        if self.chunked:
            lines.append("transfer-encoding: chunked")
        await self.raw("\r\n".join([*lines, "", ""]).encode())

    async def raw(self, data: bytes) -> None:
        self._writer.write(data)
        await self._writer.drain()

    async def send(self, data: bytes) -> None:
        """A part of the body."""
        await self.raw(b"%x\r\n%s\r\n" % (len(data), data) if self.chunked else data)

    async def event(self, payload: Any) -> None:
        text = payload if isinstance(payload, str) else json.dumps(payload)
        await self.send(f"data: {text}\n\n".encode())

    async def end(self) -> None:
        """The body is complete."""
        self.ended = True
        if self.chunked:
            await self.raw(b"0\r\n\r\n")

    async def whole(self, status: int, body: Any, **headers: str) -> None:
        """An answer at once."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        await self.head(status, "application/json", content_length=str(len(data)), **headers)
        await self.send(data)
        self.ended = True

    async def close(self) -> None:
        """Hang up."""
        self._writer.close()

    async def reset(self) -> None:
        """Hang up rudely (RST)."""
        sock: socket.socket = self._writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._writer.transport.abort()

    async def stall(self) -> None:
        """Say nothing until the client leaves or the server stops."""
        await asyncio.Event().wait()


Reply = Callable[[Request, Wire], Awaitable[None]]


def chunk(ids: Sequence[int] = (), finish: str | None = None, index: int = 0, **more: Any) -> dict[str, Any]:
    """A chunk as vLLM writes them."""
    choice = {"index": index, "text": "?", "logprobs": None, "finish_reason": finish, "token_ids": list(ids), **more}
    return {"id": "cmpl-1", "object": "text_completion", "created": 1, "model": "tiny", "choices": [choice]}


def usage(prompt: int, completion: int, cached: int = 0) -> dict[str, Any]:
    details = {"cached_tokens": cached}
    counts = {"prompt_tokens": prompt, "completion_tokens": completion, "prompt_tokens_details": details}
    return {"choices": [], "usage": counts}


@dataclass
class Mock:
    """`async with Mock(...) as mock`."""

    decode: Callable[[Sequence[int]], str]
    root: str
    ids: list[int] = field(default_factory=lambda: [40, 41, 42, 43, 44])
    models: list[dict[str, Any]] | None = None
    pages: dict[str, tuple[int, Any]] = field(default_factory=dict)
    """Answers to GETs, by path; what is not there is 404."""
    reply: Reply | None = None
    requests: list[Request] = field(default_factory=list)
    hangups: int = 0
    """Streams that the client broke off."""
    connections: int = 0
    port: int = 0

    def __post_init__(self) -> None:
        card = {"id": "tiny", "owned_by": "vllm", "root": self.root, "max_model_len": 512}
        self.pages = {
            "/v1/models": (200, {"object": "list", "data": self.models or [card]}),
            "/version": (200, {"version": "0.32.0"}),
            "/health": (200, ""),
        } | self.pages
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def streamed(self) -> list[Request]:
        """The calls, without the trials of the start."""
        return [request for request in self.requests if request.method == "POST" and request.body.get("stream")]

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.stop()

    async def stop(self) -> None:
        """Nobody listens any more, and all connections are gone."""
        assert self._server is not None
        self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        begun: bytes | None = b""
        try:
            while begun is not None and (request := await _read(reader, begun)) is not None:
                self.requests.append(request)
                begun = await self._serve(request, reader, writer)
        except (asyncio.CancelledError, ConnectionError):
            pass
        finally:
            writer.close()
            self._tasks.discard(task)

    async def _serve(
        self, request: Request, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> bytes | None:
        """The beginning of the next request; None: the connection is not used any more."""
        wire = Wire(writer)
        answering = asyncio.ensure_future(self._answer(request, wire))
        next_byte = asyncio.ensure_future(reader.read(1))
        try:
            await asyncio.wait((answering, next_byte), return_when=asyncio.FIRST_COMPLETED)
            if not answering.done():
                self.hangups += 1
                return None
            await answering
            if not wire.ended:
                return None
            return (next_byte.result() or None) if next_byte.done() else b""
        finally:
            for waiting in (answering, next_byte):
                waiting.cancel()
                waiting.add_done_callback(_seen)
            await asyncio.wait((answering, next_byte))

    async def _answer(self, request: Request, wire: Wire) -> None:
        if request.method == "GET":
            status, body = self.pages.get(request.path, (404, {"detail": "Not Found"}))
            await wire.whole(status, body.encode() if isinstance(body, str) else body)
        elif not request.body.get("stream"):
            await self._trial(request, wire)
        else:
            await (self.reply or self.write)(request, wire)

    async def _trial(self, request: Request, wire: Wire) -> None:
        """The start's questions: does it tell ids, does it read ours alike, does it bound thinking?"""
        body = request.body
        if "thinking_token_budget" in body:
            await wire.whole(400, {"error": {"message": "reasoning_config is not configured", "code": 400}})
        elif body.get("echo"):
            await wire.whole(200, {"choices": [{"index": 0, "text": self.decode(body["prompt"]) + "?"}]})
        else:
            await wire.whole(200, {"choices": [{"index": 0, "text": "?", "token_ids": self.ids[:1]}]})

    async def write(self, request: Request, wire: Wire) -> None:
        """A right answer."""
        body = request.body
        ids = self.ids[: body["max_tokens"]]
        finish = "stop" if len(ids) < body["max_tokens"] else "length"
        await wire.head()
        for at, token in enumerate(ids):
            await wire.event(chunk([token], finish if at == len(ids) - 1 else None))
        await wire.event(usage(len(body["prompt"]), len(ids)))
        await wire.event(DONE)
        await wire.end()


def _seen(task: "asyncio.Future[Any]") -> None:
    """Its error, if any, is the client's leaving."""
    if not task.cancelled():
        task.exception()


async def _read(reader: asyncio.StreamReader, begun: bytes) -> Request | None:
    try:
        head = begun + await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError:
        return None
    first, *lines = head.decode().split("\r\n")
    method, path, _ = first.split(" ")
    pairs = [line.split(": ", 1) for line in lines if line]
    headers = {name.lower(): value for name, value in pairs}
    raw = await reader.readexactly(int(headers.get("content-length", 0)))
    return Request(method, path, headers, raw)
