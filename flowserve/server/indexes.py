"""Native door, indexes: put documents in, look for passages."""

import asyncio
import logging
from typing import Annotated

from fastapi import APIRouter, Path
from starlette.responses import Response

from flowserve.errors import StoreError, UnknownName
from flowserve.retrieval.protocols import IndexInfo, RetrievalService
from flowserve.server import schemas as s
from flowserve.server.convert import documents_of, hit_out, index_out
from flowserve.server.door import Door
from flowserve.server.errors import declared
from flowserve.server.routes import GuardedRoute, Tenant
from flowserve.server.wire import JSON

logger = logging.getLogger("flowserve.server")

IndexName = Annotated[str, Path(pattern=s.NAME, description="Letters, digits, `_`, `-` and `.`.")]


class Indexes:
    """Endpoints of indexes, which tenants share unless the server was told otherwise."""

    def __init__(self, door: Door) -> None:
        self._door = door

    async def page(self, tenant: Tenant) -> Response:
        """All indexes that can be read."""
        service = self._door.runtime.retrieval
        infos = await asyncio.to_thread(_infos, service, tenant) if service is not None else []
        return JSON({"object": "list", "data": [index_out(info) for info in infos]})

    async def ingest(self, name: IndexName, body: s.IngestRequest, tenant: Tenant) -> Response:
        """Add or replace documents. They are split, embedded and on disk when this answers; the index is made if need be."""
        return JSON(
            index_out(await self._door.retrieval().ingest(name, documents_of(body), kind=body.kind, tenant=tenant))
        )

    async def look_up(self, name: IndexName, body: s.DocumentIds, tenant: Tenant) -> Response:
        """Documents by id, as they were put in."""
        found = await self._door.retrieval().documents(name, body.ids, tenant)
        return JSON({"documents": [{"id": each.id, "text": each.text, "metadata": each.metadata} for each in found]})

    async def delete(self, name: IndexName, body: s.DocumentIds, tenant: Tenant) -> Response:
        """Remove documents by id. They are gone from searches and from disk when this answers."""
        return JSON({"deleted": await self._door.retrieval().delete(name, body.ids, tenant)})

    async def search(self, name: IndexName, body: s.SearchRequest, tenant: Tenant) -> Response:
        """The passages that are nearest to a query, best first."""
        hits = await self._door.retrieval().search(name, body.query, body.k, body.where, tenant, body.rerank)
        return JSON({"hits": [hit_out(hit) for hit in hits]})


def _infos(service: RetrievalService, tenant: str) -> list[IndexInfo]:
    """One that cannot be trusted is for the log: it does not hide the others."""
    found = []
    for name in service.names(tenant):
        try:
            found.append(service.info(name, tenant))
        except (StoreError, UnknownName) as error:
            logger.error("index %s is left out of the list: %s", name, error)
    return found


def router(door: Door) -> APIRouter:
    """Routes of indexes."""
    indexes = Indexes(door)
    routes = APIRouter(route_class=GuardedRoute, tags=["indexes"])
    routes.add_api_route(
        "/v1/indexes",
        indexes.page,
        methods=["GET"],
        operation_id="listIndexes",
        summary="List indexes",
        responses={200: {"model": s.IndexList, "description": "All of them."}, **declared((401, 422, 502))},
    )
    body = (400, 401, 404, 408, 413, 415, 422, 429, 500, 502)
    routes.add_api_route(
        "/v1/indexes/{name}/documents",
        indexes.ingest,
        methods=["POST"],
        operation_id="ingestDocuments",
        summary="Add documents",
        responses={200: {"model": s.IndexOut, "description": "The index afterwards."}, **declared(body)},
    )
    routes.add_api_route(
        "/v1/indexes/{name}/documents:get",
        indexes.look_up,
        methods=["POST"],
        operation_id="getDocuments",
        summary="Get documents",
        responses={200: {"model": s.DocumentsOut, "description": "Those that are there."}, **declared(body)},
    )
    routes.add_api_route(
        "/v1/indexes/{name}/documents:delete",
        indexes.delete,
        methods=["POST"],
        operation_id="deleteDocuments",
        summary="Delete documents",
        responses={200: {"model": s.DeletedOut, "description": "How many there were."}, **declared(body)},
    )
    routes.add_api_route(
        "/v1/indexes/{name}/search",
        indexes.search,
        methods=["POST"],
        operation_id="searchIndex",
        summary="Search an index",
        responses={200: {"model": s.SearchOut, "description": "Hits, best first."}, **declared(body)},
    )
    return routes
