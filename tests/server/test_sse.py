"""Streams against readers and sources that misbehave, on plain ASGI without a network."""

import asyncio
from collections.abc import AsyncGenerator, MutableMapping
from typing import Any

import pytest

from flowserve.server.sse import EventStream, Stops, StreamBroken, StreamLimits, frame


class Client:
    """An ASGI client: collects what is sent, leaves or stands still when told to."""

    def __init__(self) -> None:
        self.messages: list[MutableMapping[str, Any]] = []
        self.sent = asyncio.Event()
        self.reading = asyncio.Event()
        self.reading.set()
        self._left = asyncio.Event()

    async def receive(self) -> dict[str, Any]:
        await self._left.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: MutableMapping[str, Any]) -> None:
        await self.reading.wait()
        self.messages.append(message)
        self.sent.set()

    def leave(self) -> None:
        self._left.set()

    @property
    def body(self) -> bytes:
        return b"".join(message.get("body", b"") for message in self.messages)

    @property
    def complete(self) -> bool:
        return self.messages[-1].get("more_body") is False

    async def until(self, text: bytes) -> None:
        async with asyncio.timeout(10):
            while text not in self.body:
                self.sent.clear()
                await self.sent.wait()


def stream(
    source: AsyncGenerator[bytes, None], gone: list[str], stops: Stops | None = None, **limits: Any
) -> EventStream:
    return EventStream(
        source,
        stops=stops or Stops(),
        limits=StreamLimits(**limits),
        on_gone=lambda: gone.append("gone"),
        on_error=lambda error: frame(str(error).encode(), "error"),
        on_stop=frame(b"{}", "reconnect"),
        on_end=lambda: gone.append("end"),
    )


async def endless() -> AsyncGenerator[bytes, None]:
    """Never suspends: what freezes a server that iterates it naively."""
    while True:
        yield b"data: x\n\n"


async def some(count: int) -> AsyncGenerator[bytes, None]:
    for i in range(count):
        yield frame(b"%d" % i, "n", i)


async def silence(after: bytes = b"") -> AsyncGenerator[bytes, None]:
    if after:
        yield after
    await asyncio.Event().wait()


async def failing() -> AsyncGenerator[bytes, None]:
    yield b"data: 1\n\n"
    raise ValueError("the source broke")


async def test_frames_arrive_once_in_order_and_the_stream_ends_cleanly() -> None:
    client, gone = Client(), list[str]()
    await stream(some(1000), gone)({}, client.receive, client.send)
    assert client.body == b"".join([frame(b"%d" % i, "n", i) for i in range(1000)])
    assert client.complete
    assert gone == ["end"]
    assert len(client.messages) < 100, "frames that are ready together are sent together"


async def test_a_source_that_never_waits_does_not_keep_others_from_running() -> None:
    client, gone = Client(), list[str]()
    pouring = asyncio.create_task(stream(endless(), gone)({}, client.receive, client.send))
    for _ in range(100):  # each turn of ours is one that a naive loop would not give
        await asyncio.sleep(0)
    assert client.body
    client.leave()
    await asyncio.wait_for(pouring, 10)
    assert gone == ["gone", "end"]
    assert not client.complete


async def test_a_reader_that_stands_still_holds_a_bounded_amount_and_is_cut_off() -> None:
    client, gone = Client(), list[str]()
    made = 0

    async def counting() -> AsyncGenerator[bytes, None]:
        nonlocal made
        async for data in endless():
            made += len(data)
            yield data

    answer = stream(counting(), gone, backlog_bytes=10_000, write_idle_s=0.05)
    pouring = asyncio.create_task(answer({}, client.receive, client.send))
    await client.until(b"data")
    client.reading.clear()
    before = made
    with pytest.raises(StreamBroken, match="took nothing"):
        await asyncio.wait_for(pouring, 10)
    assert made - before < 3 * 10_000
    assert gone == ["gone", "end"]


async def test_silence_is_filled_with_comments() -> None:
    client, gone = Client(), list[str]()
    waiting = asyncio.create_task(stream(silence(), gone, keep_alive_s=0.01)({}, client.receive, client.send))
    await client.until(b": keep-alive\n\n: keep-alive\n\n")
    client.leave()
    await asyncio.wait_for(waiting, 10)
    assert gone == ["gone", "end"]


async def test_a_source_that_fails_ends_in_an_error_event_and_without_a_clean_end() -> None:
    client, gone = Client(), list[str]()
    with pytest.raises(StreamBroken, match="the source broke"):
        await stream(failing(), gone)({}, client.receive, client.send)
    assert client.body == b"data: 1\n\n" + frame(b"the source broke", "error")
    assert not client.complete


async def test_a_server_that_closes_tells_streams_to_come_back() -> None:
    client, gone, stops = Client(), list[str](), Stops()
    first = frame(b"1")
    waiting = asyncio.create_task(stream(silence(first), gone, stops)({}, client.receive, client.send))
    await client.until(first)
    assert stops.streams == 1
    stops.end_waits()
    await asyncio.wait_for(waiting, 10)
    assert client.body == first + b"event: reconnect\ndata: {}\n\n"
    assert client.complete
    assert stops.streams == 0


async def test_the_source_is_closed_when_the_reader_leaves() -> None:
    client, closed = Client(), asyncio.Event()

    async def source() -> AsyncGenerator[bytes, None]:
        try:
            yield b"data: 1\n\n"
            await asyncio.Event().wait()
        finally:
            closed.set()

    waiting = asyncio.create_task(stream(source(), [])({}, client.receive, client.send))
    await client.until(b"data: 1")
    client.leave()
    await asyncio.wait_for(waiting, 10)
    assert closed.is_set()


def test_a_frame_carries_id_event_and_data() -> None:
    assert frame(b'{"a":1}', "node.delta", 7) == b'id: 7\nevent: node.delta\ndata: {"a":1}\n\n'
    assert frame(b"[DONE]") == b"data: [DONE]\n\n"
