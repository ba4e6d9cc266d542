"""Messages over a stream socket: frames of a length and a MessagePack list, in asyncio's protocol style."""

import asyncio
import struct
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

_LENGTH = struct.Struct("!I")


class Frames(asyncio.Protocol):
    """One end of a connection that receives messages of `kind`.

    `receive` is called with each frame's messages, in order. `ended` is called once, when the other end is gone.
    """

    def __init__(self, kind: Any, receive: Callable[[list[Any]], None], ended: Callable[[], None]) -> None:
        self._decoder = msgspec.msgpack.Decoder(list[kind])
        self._encoder = msgspec.msgpack.Encoder()
        self._receive = receive
        self._ended = ended
        self._buffer = bytearray()
        self._transport: Any = None

    def send(self, messages: Sequence[Any]) -> None:
        """One frame; dropped when the connection is gone."""
        if self._transport is None or self._transport.is_closing():
            return
        frame = bytearray(_LENGTH.size)
        self._encoder.encode_into(messages, frame, _LENGTH.size)
        _LENGTH.pack_into(frame, 0, len(frame) - _LENGTH.size)
        self._transport.write(frame)

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        at, size = 0, len(self._buffer)
        while size - at >= _LENGTH.size:
            end = at + _LENGTH.size + _LENGTH.unpack_from(self._buffer, at)[0]
            if end > size:
                break
            self._receive(self._decoder.decode(memoryview(self._buffer)[at + _LENGTH.size : end].tobytes()))
            at = end
        del self._buffer[:at]

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._ended()
