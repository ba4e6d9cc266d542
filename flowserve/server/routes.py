"""The route class of every door: who asks is settled first, then the body is read strictly, then FastAPI takes over."""

from collections.abc import Callable, Coroutine
from typing import Annotated, Any

from fastapi import Depends, Request, Security
from fastapi.routing import APIRoute
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from starlette.responses import Response

from flowserve.server import strict_json
from flowserve.server.errors import OPENAI_PREFIXES, BadRequest
from flowserve.server.settings import ServerSettings

Handler = Callable[[Request], Coroutine[Any, Any, Response]]


class GuardedRoute(APIRoute):
    """A route that only a client with a key (or anybody, on a server without keys) gets into.

    The key is checked before a byte of the body is read. The body, where the route takes one, goes through
    `strict_json`; FastAPI finds it read and parsed.
    """

    def get_route_handler(self) -> Handler:
        handler = super().get_route_handler()
        takes_body = self.body_field is not None
        known = (
            None if self.path.startswith(OPENAI_PREFIXES) else {field.alias for field in self.dependant.query_params}
        )

        async def guarded(request: Request) -> Response:
            settings: ServerSettings = request.app.state.door.settings
            tenant = settings.keys.tenant_of(request.headers.get("authorization"))
            if tenant is None:
                raise BadRequest(
                    401,
                    "unauthorized",
                    "expected the header 'Authorization: Bearer KEY' with a key of this server",
                    headers={"www-authenticate": "Bearer"},
                )
            request.state.tenant = tenant
            if known is not None and request.scope["query_string"]:
                _check_query(request, known)
            if takes_body:
                await _load_body(request, settings)
            return await handler(request)

        return guarded


def _check_query(request: Request, known: set[str]) -> None:
    """A misspelt parameter is an error on the native door; OpenAI ignores what it does not know."""
    for name in request.query_params:
        if name not in known:
            listed = ", ".join(sorted(known)) or "none"
            raise BadRequest(
                422, "request_invalid", f"there is no query parameter '{name[:80]}' here; there are: {listed}"
            )


async def _load_body(request: Request, settings: ServerSettings) -> None:
    headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in request.scope["headers"]}
    body = await strict_json.read_body(request.stream(), headers, settings)
    request._body = body
    if body:
        strict_json.check_content_type(headers.get("content-type"))
        request._json = await strict_json.parse(body, settings)


_bearer = HTTPBearer(auto_error=False, description="A key of FLOWSERVE_API_KEYS; not needed on a server without keys.")


async def _tenant(
    request: Request, credentials: Annotated[HTTPAuthorizationCredentials | None, Security(_bearer)]
) -> str:
    tenant: str = request.state.tenant  # set by GuardedRoute; a route of another class fails here instead of letting in
    return tenant


Tenant = Annotated[str, Depends(_tenant)]
"""Whose request it is. Every endpoint that touches runs takes one."""
