"""An OpenAI-compatible server that answers at once with canned text: what is left of a measurement is the layer above it.

    python -m flowserve.bench.mock_engine --port 8900 [--tokens 16] [--delay-ms 0]

Takes /v1/models, /health, /version, /metrics, /v1/completions and /v1/chat/completions, streamed or not; says that it is vLLM
and tells token ids, so that a client speaks to it as to vLLM. One process, raw asyncio.
"""

import argparse
import asyncio
import json
import time
from typing import Any

MODEL = "mock"


class Server(asyncio.Protocol):
    """One connection."""

    def __init__(self, tokens: int, delay_s: float) -> None:
        self._tokens = tokens
        self._delay_s = delay_s
        self._buffer = bytearray()
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        while True:
            end = self._buffer.find(b"\r\n\r\n")
            if end < 0:
                return
            head = bytes(self._buffer[:end])
            at = head.lower().find(b"content-length:")
            length = int(head[at + 15 :].split(b"\r\n", 1)[0]) if at >= 0 else 0
            if len(self._buffer) < end + 4 + length:
                return
            body = bytes(self._buffer[end + 4 : end + 4 + length])
            del self._buffer[: end + 4 + length]
            path = head.split(b" ", 2)[1].split(b"?")[0].decode()
            if self._delay_s and body:
                asyncio.get_running_loop().call_later(self._delay_s, self._answer, path, body)
            else:
                self._answer(path, body)

    def _answer(self, path: str, body: bytes) -> None:
        if self._transport is None or self._transport.is_closing():
            return
        if path in ("/v1/completions", "/v1/chat/completions"):
            asked = json.loads(body)
            if asked.get("stream"):
                self._stream(path, asked)
            else:
                self._json(answer(path, asked, self._tokens))
        elif path == "/v1/models":
            self._json({"object": "list", "data": [{"id": MODEL, "object": "model", "owned_by": "vllm",
                                                     "root": MODEL, "max_model_len": 8192}]})  # fmt: skip
        elif path == "/version":
            self._json({"version": "0.32.0"})
        elif path == "/metrics":
            self._write(b"vllm:num_requests_running 0\nvllm:num_requests_waiting 0\n", b"text/plain")
        elif path == "/health":
            self._write(b"", b"text/plain")
        else:
            self._write(b'{"error": {"message": "no such path"}}', b"application/json", b"404 Not Found")

    def _json(self, value: Any) -> None:
        self._write(json.dumps(value, separators=(",", ":")).encode(), b"application/json")

    def _write(self, body: bytes, kind: bytes, status: bytes = b"200 OK") -> None:
        assert self._transport is not None
        head = b"HTTP/1.1 %s\r\nContent-Type: %s\r\nContent-Length: %d\r\n\r\n" % (status, kind, len(body))
        self._transport.write(head + body)

    def _stream(self, path: str, asked: dict[str, Any]) -> None:
        assert self._transport is not None
        out = [b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"]
        for event in events(path, asked, self._tokens):
            data = b"data: " + (json.dumps(event, separators=(",", ":")).encode() if event else b"[DONE]") + b"\n\n"
            out.append(b"%x\r\n%s\r\n" % (len(data), data))
        self._transport.write(b"".join(out) + b"0\r\n\r\n")


def answer(path: str, asked: dict[str, Any], tokens: int) -> dict[str, Any]:
    """A whole answer of `tokens` tokens, or as many as were asked for."""
    count = min(tokens, asked.get("max_tokens") or asked.get("max_completion_tokens") or tokens)
    text = "x" * count
    chat = path.endswith("chat/completions")
    choice: dict[str, Any] = {"index": 0, "finish_reason": "length", "logprobs": None}
    choice |= {"message": {"role": "assistant", "content": text}} if chat else {"text": text}
    if asked.get("return_token_ids"):
        choice |= {"token_ids": [120] * count, "prompt_token_ids": None}
    usage = {"prompt_tokens": 8, "completion_tokens": count, "total_tokens": 8 + count}
    kind = "chat.completion" if chat else "text_completion"
    head = {"id": "x", "object": kind, "created": int(time.time()), "model": MODEL}
    return head | {"choices": [choice], "usage": usage}


def events(path: str, asked: dict[str, Any], tokens: int) -> list[dict[str, Any] | None]:
    """The same as events, a token each; None is the end."""
    count = min(tokens, asked.get("max_tokens") or asked.get("max_completion_tokens") or tokens)
    chat = path.endswith("chat/completions")
    kind = "chat.completion.chunk" if chat else "text_completion"
    head = {"id": "x", "object": kind, "created": int(time.time()), "model": MODEL}
    found: list[dict[str, Any] | None] = []
    for i in range(count):
        end = "length" if i == count - 1 else None
        choice: dict[str, Any] = {"index": 0, "finish_reason": end, "logprobs": None}
        choice |= {"delta": {"content": "x"}} if chat else {"text": "x"}
        if asked.get("return_token_ids"):
            choice["token_ids"] = [120]
        found.append(head | {"choices": [choice]})
    if (asked.get("stream_options") or {}).get("include_usage"):
        usage = {"prompt_tokens": 8, "completion_tokens": count, "total_tokens": 8 + count}
        found.append(head | {"choices": [], "usage": usage})
    return [*found, None]


async def serve(port: int, tokens: int, delay_s: float) -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Server(tokens, delay_s), "127.0.0.1", port)
    async with server:
        await server.serve_forever()


def main() -> None:
    parser = argparse.ArgumentParser(description="A canned OpenAI-compatible server for measurements.")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--tokens", type=int, default=16)
    parser.add_argument("--delay-ms", type=float, default=0.0)
    given = parser.parse_args()
    asyncio.run(serve(given.port, given.tokens, given.delay_ms / 1000))


if __name__ == "__main__":
    main()
