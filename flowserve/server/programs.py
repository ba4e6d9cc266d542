"""Native door, programs that clients run themselves: declare one's graph, look at it, say that a session has ended."""

from typing import Annotated, Any

from fastapi import APIRouter, Path
from starlette.responses import Response

from flowserve.errors import UnknownName
from flowserve.server import schemas as s
from flowserve.server.declared import Program
from flowserve.server.door import Door
from flowserve.server.errors import BadRequest, declared
from flowserve.server.routes import GuardedRoute, Tenant
from flowserve.server.wire import JSON

ProgramName = Annotated[str, Path(pattern=s.NAME, description="As calls say it in `flowserve.caller.program`.")]


class Programs:
    """Endpoints of clients' programs."""

    def __init__(self, door: Door) -> None:
        self._door = door

    async def put(self, name: ProgramName, body: s.ProgramIn, tenant: Tenant) -> Response:
        """Declare a graph. Model calls that say their node are learned from by node, and counted; nothing is run."""
        nodes = set(body.nodes)
        for edge in body.edges:
            for end in (edge.source, edge.target):
                if end not in nodes:
                    raise BadRequest(
                        422, "request_invalid", f"an edge names '{end[:100]}', which is not among the nodes"
                    )
        after = {node: [edge.target for edge in body.edges if edge.source == node] for node in body.nodes}
        return JSON(_shown(self._door.declared.put(tenant, name, after)))

    async def get(self, name: ProgramName, tenant: Tenant) -> Response:
        """A declared program, with the model calls of each node."""
        program = self._door.declared.get(tenant, name)
        if program is None:
            raise UnknownName("program", name, self._door.declared.names(tenant))
        return JSON(_shown(program))

    async def end(self, body: s.SessionEnd, tenant: Tenant) -> Response:
        """No call of this session comes any more: what the scheduler keeps for the next one goes."""
        self._door.runtime.end_session(tenant, body.session_id)
        return JSON({"session_id": body.session_id})


def _shown(program: Program) -> dict[str, Any]:
    rows = [
        {"name": node, "next": list(after), "calls": program.calls.get(node, 0)}
        for node, after in program.after.items()
    ]
    return {"name": program.name, "nodes": rows}


def router(door: Door) -> APIRouter:
    """Routes of clients' programs."""
    programs = Programs(door)
    routes = APIRouter(route_class=GuardedRoute, tags=["programs"])
    shown: dict[int | str, dict[str, Any]] = {200: {"model": s.ProgramOut, "description": "The program as it stands."}}
    body = (400, 401, 408, 413, 415, 422)
    routes.add_api_route(
        "/v1/programs/{name}",
        programs.put,
        methods=["PUT"],
        operation_id="putProgram",
        summary="Declare a program",
        responses={**shown, **declared(body)},
    )
    routes.add_api_route(
        "/v1/programs/{name}",
        programs.get,
        methods=["GET"],
        operation_id="getProgram",
        summary="Look at a program",
        responses={**shown, **declared((401, 404, 422))},
    )
    routes.add_api_route(
        "/v1/sessions:end",
        programs.end,
        methods=["POST"],
        operation_id="endSession",
        summary="End a session",
        responses={200: {"model": s.SessionEnded, "description": "Which one."}, **declared(body)},
    )
    return routes
