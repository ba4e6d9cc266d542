"""The route class of every door: who asks is settled first, then the body is read strictly, then FastAPI takes over."""

from collections.abc import Callable, Coroutine
from typing import Annotated, Any

from fastapi import Depends, Header, Request, Security
from fastapi.routing import APIRoute
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from pydantic import BaseModel, ValidationError
from starlette.responses import Response

from flowserve.server import strict_json
from flowserve.server.errors import OPENAI_PREFIXES, BadRequest
from flowserve.server.settings import ServerSettings

Handler = Callable[[Request], Coroutine[Any, Any, Response]]
MAX_SESSION = 256
"""Characters of a session's name in the header."""


class GuardedRoute(APIRoute):
    """A route that only a client with a key (or anybody, on a server without keys) gets into.

    The key is checked before a byte of the body is read. The body, where the route takes one, goes through
    `strict_json`; FastAPI finds it read and parsed.
    """

    def get_route_handler(self) -> Handler:
        handler = self.handler()
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

    def handler(self) -> Handler:
        """What answers once the client is known and the body read."""
        return super().get_route_handler()


class BodyRoute(GuardedRoute):
    """A route of an endpoint `(body, request, tenant, session)`, for doors that are asked often.

    FastAPI works out at every request what the signature has said at the first, a tenth of what a request costs. Here the
    four are filled in directly; whatever does not fit goes FastAPI's way, so errors are its own.
    """

    def handler(self) -> Handler:
        usual = super().handler()
        assert self.body_field is not None
        body_type: Any = self.body_field.field_info.annotation
        assert issubclass(body_type, BaseModel)
        endpoint = self.endpoint

        async def quick(request: Request) -> Response:
            try:
                body = body_type.model_validate(request._json)
            except (AttributeError, ValidationError):  # no body, or a wrong one
                return await usual(request)
            session = request.headers.get("x-session-id")
            if session is not None and len(session) > MAX_SESSION:
                return await usual(request)
            answer: Response = await endpoint(body, request, request.state.tenant, session)
            return answer

        return quick


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


SessionHeader = Annotated[
    str | None, Header(alias="X-Session-ID", max_length=MAX_SESSION, description="As `session_id`.")
]
Tenant = Annotated[str, Depends(_tenant)]
"""Whose request it is. Every endpoint that touches runs takes one."""
