"""What happens to every request before it reaches a route, as plain ASGI.

`RequestIds` is outermost: whatever leaves has an id. `Errors` turns an exception that nobody handled into a 500 of the right shape. `HeaderLimit` and
`Room` bound how large a request may be before its body, and how many are at work.
"""

import logging
import re
import secrets

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from flowserve.ids import Bytes
from flowserve.server.errors import BadRequest, fault_of, response_of

logger = logging.getLogger("flowserve.server")

_SANE_ID = re.compile(r"[A-Za-z0-9._:/+=@-]{1,128}")


def new_request_id() -> str:
    return f"req_{secrets.token_hex(12)}"


def request_id(scope: Scope) -> str:
    """The client's own `X-Request-Id` when it is sane, else a new one."""
    for name, value in scope["headers"]:
        if name == b"x-request-id":
            text: str = value.decode("latin-1")
            if _SANE_ID.fullmatch(text):
                return text
    return new_request_id()


class RequestIds:
    """Gives every request an id, in `scope["state"]["request_id"]` and on the response."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        name = request_id(scope)
        scope.setdefault("state", {})["request_id"] = name

        async def tagged(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(raw=message.setdefault("headers", []))
                headers["x-request-id"] = name
                headers["x-content-type-options"] = "nosniff"
            await send(message)

        await self._app(scope, receive, tagged)


class Errors:
    """Answers 500 for an exception that no handler knew. After the response has begun the connection is cut instead:
    a stream must not look complete when it is not."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = False

        async def watched(message: Message) -> None:
            nonlocal started
            started = started or message["type"] == "http.response.start"
            await send(message)

        try:
            await self._app(scope, receive, watched)
        except Exception as error:
            if started:
                raise
            logger.exception("request %s failed", scope["state"]["request_id"])
            await response_of(fault_of(error), scope)(scope, receive, send)


class HeaderLimit:
    """Refuses a request whose path, query and headers are larger together than they may be."""

    def __init__(self, app: ASGIApp, max_bytes: Bytes) -> None:
        self._app = app
        self._max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            size = len(scope.get("raw_path") or b"") + len(scope["query_string"])
            size += sum(len(name) + len(value) + 4 for name, value in scope["headers"])
            if size > self._max_bytes:
                message = f"expected at most {self._max_bytes} bytes of path, query and headers; got {size}"
                large = BadRequest(431, "headers_too_large", message)
                await response_of(fault_of(large), scope)(scope, receive, send)
                return
        await self._app(scope, receive, send)


class Room:
    """Bounds the requests at work. Operators' own questions always get in."""

    ALWAYS = frozenset({"/health", "/ready", "/metrics", "/version"})

    def __init__(self, app: ASGIApp, max_requests: int) -> None:
        self._app = app
        self._max = max_requests
        self._now = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in self.ALWAYS:
            await self._app(scope, receive, send)
            return
        if self._now >= self._max:
            full = BadRequest(
                503,
                "too_many_requests_at_work",
                f"{self._max} requests are at work, which is the limit",
                retry_after_s=1.0,
            )
            await response_of(fault_of(full), scope)(scope, receive, send)
            return
        self._now += 1
        try:
            await self._app(scope, receive, send)
        finally:
            self._now -= 1
