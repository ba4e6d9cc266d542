"""The MCP door: every workflow is a tool, at `/mcp`, over streamable HTTP (Model Context Protocol, "Transports").

The few methods that a server of tools needs are answered here, so bodies, keys and limits are those of every other
door, and the server needs no further package. A call whose client wants progress is answered by a stream.
"""

import logging
import secrets
from collections.abc import AsyncGenerator
from typing import Annotated, Any

from fastapi import APIRouter, Body, Request
from starlette.responses import Response

from flowserve.errors import FlowServeError, UnknownName
from flowserve.runtime.records import SubmitOptions
from flowserve.runtime.run import Run
from flowserve.server.door import Door
from flowserve.server.errors import fault_of
from flowserve.server.mcp import convert as c
from flowserve.server.operations import installed_version
from flowserve.server.routes import GuardedRoute, Tenant
from flowserve.server.runs import wants_stream
from flowserve.server.sse import EventStream, frame
from flowserve.server.wire import JSON, dumps

logger = logging.getLogger("flowserve.server")

SESSION = "mcp-session-id"
Key = tuple[str, str, str | int]
"""Tenant, session, request: what a cancellation names."""


class MCP:
    """The endpoint. Nothing is kept of a session but the calls at work."""

    def __init__(self, door: Door) -> None:
        self._door = door
        self._calls: dict[Key, Run] = {}

    async def post(self, message: Annotated[dict[str, Any], Body()], request: Request, tenant: Tenant) -> Response:
        """One JSON-RPC message."""
        method, id, params = message.get("method"), message.get("id"), message.get("params") or {}
        if isinstance(id, bool) or not isinstance(id, str | int | None) or not isinstance(params, dict):
            return JSON(
                c.refusal(
                    None, c.INVALID_REQUEST, "expected an 'id' that is text or a number and 'params' as an object"
                ),
                400,
            )
        if id is None:
            self._noticed(method, params, request, tenant)
            return Response(status_code=202)
        if method == "initialize":
            headers = {SESSION: secrets.token_hex(16)}
            return JSON(c.answer(id, _welcome(params)), headers=headers)
        if method == "ping":
            return JSON(c.answer(id, {}))
        if method == "tools/list":
            tools = [c.tool_of(program.plan) for program in self._door.programs(tenant).values()]
            return JSON(c.answer(id, {"tools": tools}))
        if method == "tools/call":
            return await self._call(id, params, request, tenant)
        return JSON(c.refusal(id, c.METHOD_NOT_FOUND, f"there is no method '{str(method)[:80]}' here"))

    def _noticed(self, method: Any, params: dict[str, Any], request: Request, tenant: str) -> None:
        """A notification. Of those only a cancellation means something here; one for a call that has ended is late."""
        named = params.get("requestId")
        if method == "notifications/cancelled" and isinstance(named, str | int):
            run = self._calls.get((tenant, request.headers.get(SESSION, ""), named))
            if run is not None:
                run.cancel()

    async def _call(self, id: str | int, params: dict[str, Any], request: Request, tenant: str) -> Response:
        name, inputs = params.get("name"), params.get("arguments") or {}
        if not isinstance(name, str) or not isinstance(inputs, dict):
            return JSON(c.refusal(id, c.INVALID_PARAMS, "expected 'name' as text and 'arguments' as an object"))
        session = request.headers.get(SESSION, "")
        token = (params.get("_meta") or {}).get("progressToken") if isinstance(params.get("_meta"), dict) else None
        streams = isinstance(token, str | int) and wants_stream(request)
        try:
            run = await self._door.submit(name, inputs, SubmitOptions(tenant=tenant, stream=streams))
        except UnknownName as error:
            return JSON(c.refusal(id, c.INVALID_PARAMS, str(error)))
        except FlowServeError as error:
            return JSON(c.answer(id, _failed(error)))
        key = (tenant, session, id)
        if session:  # without one, clients of a tenant could end each other's calls
            self._calls[key] = run
        if streams:
            return self._stream(run, id, token, key)
        try:
            if not await self._door.wait(run, request.receive):
                run.cancel()
            return JSON(c.answer(id, await _ending(run)))
        finally:
            self._ended(key, run)

    def _ended(self, key: Key, run: Run) -> None:
        if self._calls.get(key) is run:  # a client may have used the id again
            del self._calls[key]

    def _stream(self, run: Run, id: str | int, token: Any, key: Key) -> EventStream:
        """Leaving cancels: streams are not resumed here, so nobody could read the answer."""
        stopping = frame(dumps(c.refusal(id, c.INTERNAL, "the server is shutting down")), "message")
        return EventStream(
            _frames(run, id, token),
            stops=self._door.stops,
            limits=self._door.limits,
            on_gone=run.cancel,
            on_error=lambda error: frame(dumps(c.refusal(id, c.INTERNAL, fault_of(error).detail)), "message"),
            on_stop=stopping,
            on_end=lambda: self._ended(key, run),
        )


async def _frames(run: Run, id: str | int, token: str | int) -> AsyncGenerator[bytes, None]:
    done = 0
    async for event in run.events(0):
        if event.type == "node.completed":
            done += 1
            yield frame(dumps(c.progress(token, done, str(event.node))), "message")
    yield frame(dumps(c.answer(id, await _ending(run))), "message")


async def _ending(run: Run) -> dict[str, Any]:
    try:
        await run.result()
    except FlowServeError as error:
        return _failed(error)
    return c.result_of(run.program.plan, run.snapshot().result)


def _failed(error: FlowServeError) -> dict[str, Any]:
    fault = fault_of(error)
    if fault.status == 500:  # the client is told little; the operator all of it
        logger.error("an MCP call failed: %s: %s", type(error).__name__, error)
    return c.failed_of(fault)


def _welcome(params: dict[str, Any]) -> dict[str, Any]:
    asked = params.get("protocolVersion")
    return {
        "protocolVersion": asked if asked in c.VERSIONS else c.VERSIONS[0],
        "capabilities": {"tools": {"listChanged": False}},
        "serverInfo": {"name": "flowserve", "version": installed_version()},
    }


def router(door: Door) -> APIRouter:
    """The one route. It is no part of the OpenAPI document: MCP describes itself."""
    routes = APIRouter(route_class=GuardedRoute, tags=["mcp"])
    routes.add_api_route("/mcp", MCP(door).post, methods=["POST"], include_in_schema=False)
    return routes
