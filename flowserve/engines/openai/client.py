"""The HTTP door to one server: connections, secrets and limits, and the only place where aiohttp is called.

aiohttp because a stream of 64 events costs it 140 to 190 microseconds of CPU and httpx 850 to 1,250 (3.14 and 0.28,
over loopback, a core each). No cookies, no redirects, no proxy from the environment. Both ends of a connection have
TCP_NODELAY: aiohttp sets it. There is no limit of connections: how many calls run is the scheduler's to say, and a
probe must not wait behind them.
"""

import asyncio
import contextlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, Self

import aiohttp

from flowserve.engines.base import Call
from flowserve.engines.openai import failures
from flowserve.engines.openai.sse import MAX_EVENT_BYTES, SSE
from flowserve.errors import EngineLost
from flowserve.ids import Bytes, Seconds

KEEPALIVE_S: Seconds = 3.0
"""An idle connection is kept for so long: less than uvicorn, which servers stand on, keeps it (5 s)."""
MAX_ANSWER: Bytes = 16 << 20
"""Of an answer that is not a stream."""
DRAIN_S: Seconds = 0.1
"""The end of a stream that has said [DONE] is waited for so long, so that its connection can be used again."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole answer."""

    status: int
    body: bytes
    retry_after: str | None

    @property
    def json(self) -> Any:
        """None for what is not JSON."""
        try:
            return json.loads(self.body)
        except (ValueError, RecursionError):
            return None


class Client:
    """`where` names the server in errors. The key is in no attribute that anything prints."""

    def __init__(self, url: str, where: str, connect_s: Seconds, api_key: str = "") -> None:
        self.where = where
        self.known: tuple[str, ...] = ()
        """The server's models, for errors."""
        self._connect_s = connect_s
        self._url = url
        tracing = aiohttp.TraceConfig()
        tracing.on_connection_reuseconn.append(_note_reuse)
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEPALIVE_S),
            cookie_jar=aiohttp.DummyCookieJar(),
            headers={"User-Agent": "flowserve"} | ({"Authorization": f"Bearer {api_key}"} if api_key else {}),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=connect_s),
            trust_env=False,
            auto_decompress=False,
            trace_configs=[tracing],
        )

    async def close(self) -> None:
        await self._session.close()

    async def get(self, path: str, timeout_s: Seconds) -> Answer:
        """Raises EngineLost when there is no answer in time."""
        try:
            async with asyncio.timeout(timeout_s):
                async with self._session.get(self._url + path, headers=_PLAIN, allow_redirects=False) as response:
                    return await self._whole(response)
        except aiohttp.ClientError as error:
            raise failures.lost(error, self.where, self._connect_s) from error
        except TimeoutError as error:
            raise EngineLost(f"{self.where}: no answer to GET {path} after {timeout_s:g} s") from error
        except OSError as error:
            raise failures.lost(error, self.where, self._connect_s) from error

    async def post(self, path: str, body: Mapping[str, Any], headers: Mapping[str, str] | None = None) -> Answer:
        """A call that is not streamed; as long as it takes."""
        try:
            response = await self._post(path, body, {**_JSON, **(headers or {})})
            async with response:
                return await self._whole(response)
        except (aiohttp.ClientError, OSError) as error:
            raise failures.lost(error, self.where, self._connect_s) from error

    async def stream(self, path: str, body: Mapping[str, Any], headers: Mapping[str, str], call: Call) -> "Stream":
        """Send `call` and return when its answer begins. Raises RequestError and EngineError."""
        try:
            response = await self._post(path, body, {**_EVENTS, **headers})
            if response.status == 200 and response.content_type == "text/event-stream":
                return Stream(response, self.where, self._connect_s)
            async with response:
                answer = await self._whole(response)
        except (aiohttp.ClientError, OSError) as error:
            raise failures.lost(error, self.where, self._connect_s) from error
        if answer.status == 200:
            raise failures.protocol(self.where, f"expected text/event-stream; got {response.content_type}")
        said = failures.read_told(answer.status, answer.body)
        raise failures.refused(said, self.where, call, self.known, answer.retry_after)

    async def _post(self, path: str, body: Mapping[str, Any], headers: Mapping[str, str]) -> aiohttp.ClientResponse:
        data = json.dumps(body, separators=(",", ":")).encode()
        trace = SimpleNamespace(reused=False)
        try:
            return await self._send(path, data, headers, trace)
        except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError):
            if not trace.reused:
                raise
            # A kept connection that breaks before any answer was, as a rule, closed while it was idle.
            return await self._send(path, data, headers, SimpleNamespace(reused=False))

    async def _send(
        self, path: str, data: bytes, headers: Mapping[str, str], trace: SimpleNamespace
    ) -> aiohttp.ClientResponse:
        url = self._url + path
        return await self._session.post(url, data=data, headers=headers, allow_redirects=False, trace_request_ctx=trace)

    async def _whole(self, response: aiohttp.ClientResponse) -> Answer:
        pieces = bytearray()
        async for piece in response.content.iter_any():
            pieces += piece
            if len(pieces) > MAX_ANSWER:
                raise failures.protocol(
                    self.where, f"expected an answer of at most {MAX_ANSWER} bytes; got a longer one"
                )
        return Answer(response.status, bytes(pieces), response.headers.get("Retry-After"))


class Stream:
    """The events of one answer. Leaving it breaks off, which servers take for an abort, unless the stream has ended."""

    def __init__(self, response: aiohttp.ClientResponse, where: str, connect_s: Seconds) -> None:
        self._response = response
        self._where = where
        self._connect_s = connect_s
        self._events = SSE(MAX_EVENT_BYTES)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._response.close()

    async def read(self) -> list[bytes] | None:
        """Payloads that came since the last time, perhaps none; None: the server has closed the stream."""
        try:
            data = await self._response.content.readany()
        except (aiohttp.ClientError, OSError) as error:
            raise failures.lost(error, self._where, self._connect_s) from error
        if data:
            return self._events.feed(data)
        return self._events.end() or None

    async def drain(self) -> None:
        """Nothing more is wanted of a stream that has said its last word: let its connection be used again."""
        with contextlib.suppress(TimeoutError, aiohttp.ClientError, OSError):
            async with asyncio.timeout(DRAIN_S):
                while await self._response.content.readany():
                    pass


_PLAIN = {"Accept": "application/json", "Accept-Encoding": "identity"}
_JSON = {"Content-Type": "application/json", **_PLAIN}
_EVENTS = {**_JSON, "Accept": "text/event-stream"}


async def _note_reuse(session: aiohttp.ClientSession, context: SimpleNamespace, params: object) -> None:
    if context.trace_request_ctx is not None:
        context.trace_request_ctx.reused = True
