"""What operators and browsers ask: alive, ready, metrics, version, the documentation page."""

from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from importlib.resources import files

from fastapi import APIRouter
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.responses import Response

from flowserve.server import schemas as s
from flowserve.server.door import Door
from flowserve.server.errors import DOOR_CODES, STATUS_CODES, TABLE, BadRequest, declared
from flowserve.server.routes import GuardedRoute, Tenant
from flowserve.server.wire import JSON

_PAGE_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; img-src data:"
)


class Operations:
    """Endpoints that do no work."""

    def __init__(self, door: Door) -> None:
        self._door = door

    async def health(self) -> Response:
        """The process answers. Says nothing about engines."""
        return JSON({"status": "ok"})

    async def ready(self) -> Response:
        """A run could start now: an engine is up and the server is not closing."""
        ready, why = self._door.runtime.ready()
        if self._door.stops.closing:
            ready, why = False, "the server is shutting down"
        if not ready:
            raise BadRequest(503, "not_ready", why, retry_after_s=1.0)
        return JSON({"status": "ready", "engines": len(self._door.runtime.engines())})

    async def metrics(self, tenant: Tenant) -> Response:
        """Prometheus' text format."""
        return Response(self._door.metrics.render(), headers={"content-type": CONTENT_TYPE_LATEST})

    async def version(self) -> Response:
        """Which FlowServe this is."""
        return JSON({"name": "flowserve", "version": installed_version()})

    async def docs(self) -> Response:
        """This page: all operations, each with a form to try it. Needs nothing from the network."""
        return Response(docs_page(), media_type="text/html", headers={"content-security-policy": _PAGE_POLICY})


@lru_cache(maxsize=1)
def installed_version() -> str:
    try:
        return version("flowserve")
    except PackageNotFoundError:
        return "0+unknown"


@lru_cache(maxsize=1)
def docs_page() -> str:
    """The page with the table of error codes filled in."""
    rows = {row.code: (row.status, row.title) for _, row in TABLE}
    rows = DOOR_CODES | rows
    rows.update({code: (status, title) for status, (code, title) in STATUS_CODES.items() if code not in rows})
    cells = "\n".join(
        f'<tr id="{code}"><td>{status}</td><td><code>{code}</code></td><td>{title}</td></tr>'
        for code, (status, title) in sorted(rows.items(), key=lambda item: (item[1][0], item[0]))
    )
    return files("flowserve.server").joinpath("docs.html").read_text("utf-8").replace("<!-- errors -->", cells)


def router(door: Door) -> APIRouter:
    """Open routes: whoever reaches the port may ask. Only metrics, which tell what is used, want a key."""
    operations = Operations(door)
    routes = APIRouter(tags=["operations"])
    guarded = APIRouter(route_class=GuardedRoute, tags=["operations"])
    routes.add_api_route(
        "/health",
        operations.health,
        methods=["GET"],
        operation_id="health",
        summary="Alive",
        responses={200: {"model": s.HealthOut, "description": "Alive."}, **declared(())},
    )
    routes.add_api_route(
        "/ready",
        operations.ready,
        methods=["GET"],
        operation_id="ready",
        summary="Ready",
        responses={200: {"model": s.ReadyOut, "description": "Ready."}, **declared((503,))},
    )
    routes.add_api_route(
        "/version",
        operations.version,
        methods=["GET"],
        operation_id="version",
        summary="Version",
        responses={200: {"model": s.VersionOut, "description": "The version."}, **declared(())},
    )
    routes.add_api_route("/docs", operations.docs, methods=["GET"], include_in_schema=False)
    guarded.add_api_route(
        "/metrics",
        operations.metrics,
        methods=["GET"],
        operation_id="metrics",
        summary="Metrics",
        response_class=Response,
        responses={
            200: {"description": "Prometheus' text format.", "content": {"text/plain": {"schema": {"type": "string"}}}},
            **declared((401, 422)),
        },
    )
    routes.include_router(guarded)
    return routes
