"""The application: doors, error handlers and middleware around a runtime.

The runtime is the caller's: started before, closed after.
"""

import logging
from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.utils import get_openapi
from starlette.exceptions import HTTPException
from starlette.responses import Response

from flowserve.errors import FlowServeError
from flowserve.graphs.dynamic import DynamicNode
from flowserve.graphs.tool import ToolNode
from flowserve.runtime.runner import Runtime
from flowserve.server import (
    indexes,
    openai_door,
    openai_responses,
    operations,
    pool,
    programs,
    runs,
    schemas,
    workflows,
)
from flowserve.server.door import Door
from flowserve.server.errors import fault_of, response_of
from flowserve.server.langgraph import door as langgraph_door
from flowserve.server.mcp import door as mcp_door
from flowserve.server.middleware import Errors, HeaderLimit, RequestIds, Room
from flowserve.server.settings import ServerSettings

logger = logging.getLogger("flowserve.server")

DESCRIPTION = """
FlowServe serves LLM workflows. The native door (`/v1/workflows`, `/v1/runs`, `/v1/indexes`) answers errors as RFC 9457
problem details; the OpenAI door (`/v1/chat/completions` and the rest) speaks OpenAI's dialect, and a workflow is a
model name there. Every response carries `x-request-id`.
"""


def create_app(
    runtime: Runtime,
    settings: ServerSettings | None = None,
    *,
    tools: Sequence[ToolNode[..., Any]] = (),
    dynamics: Sequence[DynamicNode[..., Any]] = (),
) -> FastAPI:
    """An ASGI application that serves `runtime`. `app.state.door` is what its doors share.

    `tools` and `dynamics` are what specs that clients bring may name.
    """
    settings = settings or ServerSettings()
    app = FastAPI(
        title="FlowServe",
        version=operations.installed_version(),
        description=DESCRIPTION.strip(),
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    door = app.state.door = Door(runtime, settings, tools, dynamics)
    doors = (
        runs,
        openai_door,
        openai_responses,
        mcp_door,
        langgraph_door,
        workflows,
        programs,
        indexes,
        pool,
        operations,
    )
    for module in doors:  # routes are tried in this order
        app.include_router(module.router(door))
    for kind in (FlowServeError, RequestValidationError, HTTPException):
        app.add_exception_handler(kind, _answer)
    app.add_middleware(Room, max_requests=settings.max_requests)  # each one goes around those before it
    app.add_middleware(HeaderLimit, max_bytes=settings.max_header_bytes)
    app.add_middleware(Errors)
    app.add_middleware(RequestIds)
    app.openapi = lambda: _document(app, bool(settings.keys))  # type: ignore[method-assign]
    return app


async def _answer(request: Request, error: Exception) -> Response:
    fault = fault_of(error)
    if fault.status == 500:  # the client is told little; the operator all of it
        logger.error("request %s failed: %s: %s", request.state.request_id, type(error).__name__, error)
    return response_of(fault, request.scope)


def _document(app: FastAPI, wants_key: bool) -> dict[str, Any]:
    """The OpenAPI document: FastAPI's, with the shapes of errors and events that no route mentions by type, and without
    keys where none is asked for."""
    if app.openapi_schema is None:
        document = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
        shapes = document.setdefault("components", {}).setdefault("schemas", {})
        for model in (schemas.Problem, schemas.OpenAIError, schemas.EventOut):
            schema = model.model_json_schema(ref_template="#/components/schemas/{model}")
            shapes.update(schema.pop("$defs", {}))
            shapes[model.__name__] = schema
        for path in document["paths"].values():
            for operation in path.values():
                _drop_validation_shape(operation["responses"])
                if not wants_key:
                    operation.pop("security", None)
                    operation["responses"].pop("401", None)
        if not wants_key:
            document["components"].pop("securitySchemes", None)
        shapes.pop("HTTPValidationError", None)
        shapes.pop("ValidationError", None)
        app.openapi_schema = document
    return app.openapi_schema


def _drop_validation_shape(responses: dict[str, Any]) -> None:
    """FastAPI declares its own 422 where a route declares none; no such body ever leaves."""
    schema = responses.get("422", {}).get("content", {}).get("application/json", {}).get("schema", {})
    if schema.get("$ref", "").endswith("/HTTPValidationError"):
        del responses["422"]
