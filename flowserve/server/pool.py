"""Native door, the pool of engines: how they are, draining one, having it back. For operators."""

from typing import Annotated, Any

from fastapi import APIRouter, Path
from starlette.responses import Response

from flowserve.server import schemas as s
from flowserve.server.auth import ANYBODY
from flowserve.server.door import Door
from flowserve.server.errors import BadRequest, declared
from flowserve.server.routes import GuardedRoute, Tenant
from flowserve.server.wire import JSON

OPERATORS = "operator"
"""The tenant whose keys may see and change the pool; on a server without keys everybody may."""

EngineName = Annotated[str, Path(pattern=s.NAME, description="Id of an engine, as the list gives it.")]


class Engines:
    """Endpoints of the pool."""

    def __init__(self, door: Door) -> None:
        self._door = door

    async def page(self, tenant: Tenant) -> Response:
        """All engines, with what the scheduler knows of them."""
        _only_operators(tenant)
        return JSON({"object": "list", "data": self._door.runtime.engines()})

    async def drain(self, engine: EngineName, body: s.DrainRequest, tenant: Tenant) -> Response:
        """Give it no more calls. What it has begun may end there; when it is empty, it is closed, or started anew."""
        _only_operators(tenant)
        self._door.runtime.drain(engine, body.replace)
        return JSON(self._row(engine))

    async def resume(self, engine: EngineName, tenant: Tenant) -> Response:
        """Take a drained engine back."""
        _only_operators(tenant)
        self._door.runtime.resume(engine)
        return JSON(self._row(engine))

    def _row(self, engine: str) -> dict[str, object]:
        return next(row for row in self._door.runtime.engines() if row["id"] == engine)


def _only_operators(tenant: str) -> None:
    if tenant not in (ANYBODY, OPERATORS):
        raise BadRequest(403, "forbidden", f"expected a key of the tenant '{OPERATORS}'")


def router(door: Door) -> APIRouter:
    """Routes of the pool."""
    engines = Engines(door)
    routes = APIRouter(route_class=GuardedRoute, tags=["operations"])
    routes.add_api_route(
        "/v1/pool",
        engines.page,
        methods=["GET"],
        operation_id="listEngines",
        summary="List engines",
        responses={200: {"model": s.EngineList, "description": "All of them."}, **declared((401, 403, 422))},
    )
    one: dict[int | str, dict[str, Any]] = {200: {"model": s.EngineOut, "description": "The engine as it stands now."}}
    routes.add_api_route(
        "/v1/pool/{engine}/drain",
        engines.drain,
        methods=["POST"],
        operation_id="drainEngine",
        summary="Drain an engine",
        responses={**one, **declared((400, 401, 403, 404, 408, 413, 415, 422))},
    )
    routes.add_api_route(
        "/v1/pool/{engine}/resume",
        engines.resume,
        methods=["POST"],
        operation_id="resumeEngine",
        summary="Have an engine back",
        responses={**one, **declared((401, 403, 404, 422))},
    )
    return routes
