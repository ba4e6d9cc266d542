"""Tools of an MCP server as tool nodes: asked for once, when the workflow is declared; called over streamable HTTP.

A node has the schema that the server tells, so that a model sees it as it is; a workflow that calls it is checked against the names
and the plain types in it. Every call is a connection of its own: nothing is held that could be lost between calls.
(Model Context Protocol 2025-06-18, "Tools".)
"""

import asyncio
import threading
from collections.abc import Callable, Coroutine, Sequence
from functools import cached_property
from typing import Any, TypeVar

import mcp
from mcp.types import Tool

from flowserve.errors import ConfigError, Problem, ToolError
from flowserve.graphs.plan import Retry, ToolSpec
from flowserve.graphs.signature import Parameter, Signature
from flowserve.graphs.tool import ToolNode
from flowserve.ids import Seconds

T = TypeVar("T")
TYPES: dict[str, Any] = {
    "string": str,
    "integer": int,
    "number": float,
    "boolean": bool,
    "array": list[Any],
    "object": dict[str, Any],
}
"""JSON Schema's `type` -> what a workflow passes. What has none, or several, takes anything."""


class MCPTool(ToolNode[..., Any]):
    """A tool of a server. Gives a mapping where the server declares a form of its results, else text."""

    def __init__(self, server: Any, told: Tool, timeout_s: Seconds, **options: Any) -> None:
        self.told = told
        self._server, self._timeout_s = server, timeout_s

        async def call(**arguments: Any) -> Any:
            return await self._call(arguments)

        call.__name__, call.__doc__ = told.name, told.description or ""
        read_only = told.annotations is not None and bool(told.annotations.read_only_hint)
        super().__init__(call, effects=not read_only, **options)

    @cached_property
    def signature(self) -> Signature:
        required = self.told.input_schema.get("required", ())
        params = tuple(
            Parameter(name, _type_of(schema, name in required), name in required)
            for name, schema in sorted(self._properties.items(), key=lambda item: item[0] not in required)
        )
        returns = str if self.told.output_schema is None else dict[str, Any]
        return Signature(self.tool_name, params, returns, self.told.description or "")

    @cached_property
    def _read(self) -> tuple[ToolSpec, tuple[Problem, ...]]:
        schema = {"type": "object", **self.told.input_schema}
        returns = self.told.output_schema or {"type": "string"}
        return ToolSpec(self.tool_name, self.told.description or "", schema, dict(returns), self.effects), ()

    @property
    def _properties(self) -> dict[str, Any]:
        found: dict[str, Any] = self.told.input_schema.get("properties", {})
        return found

    async def _call(self, arguments: dict[str, Any]) -> Any:
        required = self.told.input_schema.get("required", ())
        given = {name: value for name, value in arguments.items() if value is not None or name in required}
        try:
            async with mcp.Client(self._server, read_timeout_seconds=self._timeout_s) as client:
                result = await client.call_tool(self.told.name, given)
        except Exception as error:
            raise ToolError(f"MCP tool '{self.told.name}' at {_where(self._server)}: {_first(error)}") from error
        text = "\n".join(part.text for part in result.content if part.type == "text")
        if result.is_error:
            raise ToolError(f"MCP tool '{self.told.name}': {text or 'failed and did not say why'}")
        return text if self.told.output_schema is None else result.structured_content


def tools(
    server: Any,
    only: Sequence[str] | None = None,
    *,
    timeout_s: Seconds = 30.0,
    retry: int | Retry = 0,
    timeout: Seconds | None = None,
    cache: bool = False,
) -> list[MCPTool]:
    """The tools of a server, in its order; or those of `only`, in that order.

    server: URL of streamable HTTP, or what else `mcp.Client` takes. timeout_s: of each exchange with it. retry, timeout, cache: as those
    of `fs.tool`. Tools that the server says are read-only have no effects. Raises ConfigError where it cannot be asked, or has no such tool.
    """
    try:
        told = _run(lambda: _listed(server, timeout_s))
    except Exception as error:
        raise ConfigError(
            f"expected an MCP server at {_where(server)} when the workflow is declared; asking for its tools failed: {_first(error)}"
        ) from error
    by_name = {tool.name: tool for tool in told}
    for name in only or ():
        if name not in by_name:
            raise ConfigError(f"the MCP server at {_where(server)} has no tool '{name}'; it has: {', '.join(by_name)}")
    chosen = told if only is None else [by_name[name] for name in only]
    return [MCPTool(server, tool, timeout_s, name=None, retry=retry, timeout=timeout, cache=cache) for tool in chosen]


async def _listed(server: Any, timeout_s: Seconds) -> list[Tool]:
    async with mcp.Client(server, read_timeout_seconds=timeout_s) as client:
        found: list[Tool] = []
        page = await client.list_tools()
        found += page.tools
        while page.next_cursor:
            page = await client.list_tools(cursor=page.next_cursor)
            found += page.tools
        return found


def _run(make: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Outside of a loop directly, else in a thread that has one of its own: workflows may be declared in either place."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(make())
    ended: list[T] = []
    failed: list[BaseException] = []

    def run() -> None:
        try:
            ended.append(asyncio.run(make()))
        except BaseException as error:  # noqa: BLE001 - raised again by the caller's thread
            failed.append(error)

    thread = threading.Thread(target=run, name="mcp-tools")
    thread.start()
    thread.join()
    if failed:
        raise failed[0]
    return ended[0]


def _type_of(schema: Any, required: bool) -> Any:
    kind = TYPES.get(str(schema.get("type")), Any) if isinstance(schema, dict) else Any
    return kind if required or kind is Any else kind | None


def _where(server: Any) -> str:
    return server if isinstance(server, str) else type(server).__name__


def _first(error: BaseException) -> str:
    """Of a group of errors, what the first one says."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return f"{type(error).__name__}: {error}"
