"""Between MCP and the core, once in each direction: plans as tools, results and errors as JSON-RPC. No I/O.

Shapes: Model Context Protocol 2025-06-18, "Tools", "Progress", and JSON-RPC 2.0, section 5.
"""

from typing import Any

from flowserve.graphs.plan import Plan
from flowserve.server.errors import Fault
from flowserve.server.wire import dumps

VERSIONS = ("2025-11-25", "2025-06-18", "2025-03-26")
"""Of the protocol, newest first; a client that asks for another is offered the first."""
INVALID_REQUEST, METHOD_NOT_FOUND, INVALID_PARAMS, INTERNAL = -32600, -32601, -32602, -32603


def tool_of(plan: Plan) -> dict[str, Any]:
    """A workflow as a tool. MCP wants objects on both sides, so another output stands under `result`."""
    return {
        "name": plan.name,
        "description": plan.description or f"Runs the workflow '{plan.name}'.",
        "inputSchema": {"type": "object", **plan.input},
        "outputSchema": _output_schema(plan),
    }


def _output_schema(plan: Plan) -> dict[str, Any]:
    if _is_object(plan):
        return dict(plan.output)
    inner = dict(plan.output)
    shared = {"$defs": inner.pop("$defs")} if "$defs" in inner else {}  # references begin at the root
    return {"type": "object", "properties": {"result": inner}, "required": ["result"], **shared}


def _is_object(plan: Plan) -> bool:
    return plan.output.get("type") == "object"


def result_of(plan: Plan, value: Any) -> dict[str, Any]:
    """The result of `tools/call`: structured for programs, the same as text for models."""
    text = value if isinstance(value, str) else dumps(value).decode()
    structured = value if _is_object(plan) else {"result": value}
    return {"content": [{"type": "text", "text": text}], "structuredContent": structured, "isError": False}


def failed_of(fault: Fault) -> dict[str, Any]:
    """A call that was understood and failed: the model reads why and may try otherwise."""
    problems = "".join(f"\n{where or 'input'}: {what}" for where, what in fault.problems)
    told: dict[str, Any] = {"code": fault.code, "status": fault.status, "run": fault.run}
    content = [{"type": "text", "text": f"{fault.code}: {fault.detail}{problems}"}]
    return {"content": content, "isError": True, "_meta": {"flowserve/error": told}}


def answer(id: Any, result: dict[str, Any]) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "id": id, "result": result}


def refusal(id: Any, code: int, message: str) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "id": id, "error": {"code": code, "message": message}}


def progress(token: str | int, done: int, message: str) -> dict[str, Any]:
    """`done`: nodes that have ended. How many there will be is not known where a graph has maps and loops."""
    params = {"progressToken": token, "progress": done, "message": message}
    return {"jsonrpc": "2.0", "method": "notifications/progress", "params": params}
