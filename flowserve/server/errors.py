"""From an exception to what a client sees: one table, two dialects.

The native door answers with RFC 9457 problem details, the OpenAI door with OpenAI's error body. FastAPI's and
Starlette's own errors pass through here too, so that no third shape leaves the server. A body never shows
a stack, a story or a prompt.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from http import HTTPStatus
from typing import Any

from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import Scope

from flowserve import errors as e
from flowserve.ids import Seconds
from flowserve.server.wire import dumps


class BadRequest(e.RequestError):
    """What only a door can find wrong with a request; says its status and code itself."""

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
        retry_after_s: Seconds | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.param = param
        """OpenAI door: the field that is wrong."""
        self.headers = dict(headers or {})
        self.retry_after_s = retry_after_s


@dataclass(frozen=True, slots=True)
class Row:
    """How one kind of error is told. `code` is stable: clients may switch on it."""

    status: int
    code: str
    title: str
    retry: bool = False
    """The same request may work a moment later, and sending it again does no harm."""
    hidden: bool = False
    """The message is for the log, not for clients."""


TABLE: tuple[tuple[type[BaseException], Row], ...] = (  # first match wins: subclasses before their parents
    (e.GraphError, Row(422, "graph_invalid", "The workflow is declared wrong")),
    (e.InputError, Row(422, "input_invalid", "The input does not fit")),
    (e.UnknownName, Row(404, "not_found", "There is nothing of that name")),
    (e.ContextTooLong, Row(422, "context_too_long", "Prompt and answer do not fit the model")),
    (e.TooLarge, Row(413, "too_large", "Something is over its limit")),
    (e.Unavailable, Row(503, "engine_lost", "No engine can take the call now", retry=True)),
    (e.DeadlineHopeless, Row(503, "deadline_hopeless", "It would end long after its deadline")),
    (e.TenantLimited, Row(429, "tenant_rate", "You have what you may have", retry=True)),
    (e.Overloaded, Row(429, "overloaded", "No room now", retry=True)),
    (e.RequestError, Row(422, "request_invalid", "The request is wrong")),
    (e.RunCancelled, Row(409, "run_cancelled", "The run was cancelled")),
    (e.RunTimedOut, Row(504, "run_timed_out", "The run passed its deadline")),
    (e.BudgetExhausted, Row(422, "budget_exhausted", "The run has spent what it may")),
    (e.RunFailed, Row(500, "run_failed", "A node failed for good")),
    (e.EngineLost, Row(503, "engine_lost", "No engine can take the call now", retry=True)),
    (e.Unsupported, Row(422, "unsupported", "The engine cannot do what the call needs")),
    (e.OutputInvalid, Row(502, "output_invalid", "The model's text does not fit the declared output")),
    (e.EngineError, Row(502, "engine_failed", "An engine failed")),
    (e.ToolError, Row(502, "tool_failed", "A tool failed")),
    (e.ValueInvalid, Row(500, "value_invalid", "A value inside the run does not fit")),
    (e.RetrievalError, Row(502, "retrieval_failed", "Retrieval failed")),
    (e.StoreAway, Row(503, "store_away", "A store of records does not answer", hidden=True)),
    (e.StoreError, Row(500, "store_failed", "A record could not be written or trusted", hidden=True)),
    (e.ConfigError, Row(500, "config_invalid", "The server is set up wrong", hidden=True)),
    (e.FlowServeError, Row(500, "failed", "Something failed", hidden=True)),
    (BaseException, Row(500, "internal", "The server itself is wrong", hidden=True)),
)

STATUS_CODES: dict[int, tuple[str, str]] = {
    400: ("bad_request", "The request cannot be read"),
    401: ("unauthorized", "An API key is needed"),
    403: ("forbidden", "Not allowed"),
    404: ("not_found", "There is nothing here"),
    405: ("method_not_allowed", "This resource does not do that"),
    408: ("request_timeout", "The request did not arrive in time"),
    409: ("conflict", "The resource is in another state"),
    413: ("body_too_large", "The body is too large"),
    415: ("unsupported_media_type", "The body has the wrong type"),
    422: ("request_invalid", "The request is wrong"),
    429: ("overloaded", "No room now"),
    431: ("headers_too_large", "The headers are too large"),
    500: ("internal", "The server itself is wrong"),
    503: ("unavailable", "Not available now"),
}
"""Titles of what is known by status alone."""

DOOR_CODES: dict[str, tuple[int, str]] = {
    "invalid_json": (400, "The body is not JSON"),
    "invalid_utf8": (400, "The body is not UTF-8"),
    "body_timeout": (408, "The body did not arrive in time"),
    "not_yours": (409, "The name is taken by a workflow that somebody else brought"),
    "thread_busy": (409, "The thread has a run that goes on"),
    "thread_exists": (409, "There is a thread of that name"),
    "too_many_workflows": (409, "No more specs are taken"),
    "unsupported_encoding": (415, "The body is compressed"),
    "unsupported_charset": (415, "The body is not declared as UTF-8"),
    "duplicate_key": (422, "An object has a key twice"),
    "integer_out_of_range": (422, "An integer is not exact in JSON"),
    "lone_surrogate": (422, "A text has half a character"),
    "name_mismatch": (422, "The spec has another name than its path"),
    "nul_character": (422, "A text has a NUL character"),
    "number_not_finite": (422, "A number is not finite"),
    "too_deep": (422, "The body is nested too deeply"),
    "too_many_keys": (422, "The body has too many keys"),
    "too_many_values": (422, "The body has too many values"),
    "too_many_streams": (429, "The run has enough readers"),
    "closing": (503, "The server is shutting down"),
    "not_ready": (503, "No engine is up"),
    "too_many_requests_at_work": (503, "The server is full"),
    "wait_ended": (503, "The wait ended before the run"),
}
"""What doors refuse by themselves with `BadRequest`; the rest of its codes are those of the status."""


@dataclass(frozen=True, slots=True)
class Fault:
    """An error as both dialects need it."""

    status: int
    code: str
    title: str
    detail: str
    retry: bool = False
    retry_after_s: Seconds | None = None
    param: str | None = None
    problems: tuple[tuple[str, str], ...] = ()
    """(where, what): `where` is a JSON pointer into the body, or `query/name`, `path/name`, `header/name`."""
    run: str | None = None
    node: str | None = None
    headers: tuple[tuple[str, str], ...] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)
    """Further members of a problem, with numbers that programs may use."""


def fault_of(error: BaseException) -> Fault:
    """What to tell a client about `error`. Total: any exception has an answer."""
    if isinstance(error, BadRequest):
        title = STATUS_CODES.get(error.status, ("", HTTPStatus(error.status).phrase))[1]
        return Fault(
            error.status,
            error.code,
            title,
            str(error),
            retry=error.retry_after_s is not None,
            retry_after_s=error.retry_after_s,
            param=error.param,
            headers=tuple(error.headers.items()),
        )
    if isinstance(error, RequestValidationError):
        return _validation_fault(error)
    if isinstance(error, HTTPException):
        code, title = STATUS_CODES.get(error.status_code, ("http_error", HTTPStatus(error.status_code).phrase))
        detail = title if error.status_code in (404, 405) else str(error.detail)
        return Fault(error.status_code, code, title, detail, headers=tuple((error.headers or {}).items()))
    if isinstance(error, e.RunFailed) and isinstance(error.__cause__, e.FlowServeError):
        return _run_fault(error, fault_of(error.__cause__))
    row = next(row for kind, row in TABLE if isinstance(error, kind))
    fault = Fault(row.status, row.code, row.title, row.title if row.hidden else str(error), retry=row.retry)
    if isinstance(error, e.TenantLimited):
        room = {"limit": error.limit, "needed": error.needed, "left": error.left}
        rate = _RATES.get(error.code)
        headers = rate_headers({rate: (error.limit, error.left, error.retry_after_s)} if rate is not None else {})
        fault = replace(fault, code=error.code, retry_after_s=error.retry_after_s, facts=room)
        fault = replace(fault, headers=tuple(headers.items()))
    elif isinstance(error, e.Overloaded):
        fault = replace(fault, retry_after_s=error.retry_after_s)
    elif isinstance(error, e.EngineLost):
        fault = replace(fault, retry_after_s=1.0)
    elif isinstance(error, e.InputError):
        fault = replace(fault, problems=error.problems)
    elif isinstance(error, e.GraphError):
        fault = replace(fault, problems=tuple((problem.where, str(problem)) for problem in error.problems))
    elif isinstance(error, e.BudgetExhausted):
        facts: dict[str, Any] = {
            "budget": error.budget,
            "limit": error.limit,
            "spent": error.spent,
            "nodes": error.nodes,
        }
        fault = replace(fault, run=error.run, node=error.node, facts=facts)
    elif isinstance(error, e.RunError):
        fault = replace(fault, run=error.run or None, node=error.node)
    return fault


def _run_fault(error: e.RunFailed, cause: Fault) -> Fault:
    """A failed run is told by its cause, but what was wrong with a call inside is never 'not found' for the client."""
    status = cause.status if cause.status >= 429 or cause.code == "context_too_long" else 422
    detail = cause.detail if cause.status == 500 else str(error)
    return replace(cause, status=status, detail=detail, run=error.run or None, node=error.node)


def _validation_fault(error: RequestValidationError) -> Fault:
    problems: dict[str, str] = {}
    missing_body = False
    for item in error.errors()[:50]:
        if item.get("type") == "none_required":
            continue  # the branch of an optional value that nobody meant
        place, *path = item.get("loc", ("body",))
        missing_body |= place == "body" and not path
        if place == "body":
            path = _sent(path, error.body, missing=item.get("type") == "missing")
        else:
            path = path[:1]
        pointer = "".join(f"/{str(part).replace('~', '~0').replace('/', '~1')}" for part in path)
        where = pointer if place == "body" else f"{place}{pointer}"
        problems.setdefault(where, _WORDS.get(str(item.get("type"))) or str(item.get("msg", "invalid")))
    found = tuple(problems.items())
    shown = "; ".join(f"{where or 'body'}: {what}" for where, what in found[:3])
    more = f"; and {len(found) - 3} more" if len(found) > 3 else ""
    param = found[0][0].lstrip("/").replace("/", ".") if found and not missing_body else None
    return Fault(422, "request_invalid", STATUS_CODES[422][1], shown + more, problems=found, param=param or None)


_WORDS = {"missing": "is required", "extra_forbidden": "there is no such field"}
"""Ours, where pydantic's are about its models."""


def _sent(path: Sequence[str | int], body: Any, missing: bool) -> list[str | int]:
    """The steps of `path` that lead through what the client sent. Pydantic puts names of a union's branches between."""
    steps: list[str | int] = []
    for i, part in enumerate(path):
        inside, body = _child(body, part)
        if inside or (missing and i == len(path) - 1):
            steps.append(part)
    return steps


def _child(value: Any, part: str | int) -> tuple[bool, Any]:
    """Whether `value` has a `part`, and what that is (else `value` itself)."""
    if isinstance(value, dict) and part in value:
        return True, value[part]
    if isinstance(value, list) and isinstance(part, int) and part < len(value):
        return True, value[part]
    return False, value


OPENAI_PREFIXES = ("/v1/chat/", "/v1/completions", "/v1/embeddings", "/v1/models", "/v1/responses")


def speaks_openai(scope: Scope) -> bool:
    """Whether errors of this request are told in OpenAI's dialect. Goes by the routed path, never by the Host header."""
    path = str(scope.get("path", ""))
    return path.startswith(OPENAI_PREFIXES)


def problem_body(fault: Fault, request_id: str) -> dict[str, Any]:
    """RFC 9457 problem details."""
    body: dict[str, Any] = {
        "type": f"/docs#{fault.code}",
        "title": fault.title,
        "status": fault.status,
        "detail": fault.detail,
        "code": fault.code,
        "request_id": request_id,
    }
    if fault.run is not None:
        body["instance"] = f"/v1/runs/{fault.run}"
        body["run_id"] = fault.run
    if fault.node is not None:
        body["node"] = fault.node
    body.update(fault.facts)
    if fault.problems:
        body["errors"] = [{"pointer": where, "message": what} for where, what in fault.problems]
    return body


_OPENAI_TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}
_OPENAI_CODES = {
    "tenant_live": "rate_limit_exceeded",
    "tenant_queue": "rate_limit_exceeded",
    "tenant_rate": "rate_limit_exceeded",
    "tenant_tokens": "rate_limit_exceeded",
    "tenant_hour_tokens": "insufficient_quota",
    "tenant_day_tokens": "insufficient_quota",
    "tenant_hour_money": "insufficient_quota",
    "tenant_day_money": "insufficient_quota",
    "context_too_long": "context_length_exceeded",
    "overloaded": "rate_limit_exceeded",
    "unauthorized": "invalid_api_key",
}


_RATES = {"tenant_rate": "requests", "tenant_tokens": "tokens"}
"""Code of a limit -> what OpenAI's headers call it."""


def rate_headers(standing: Mapping[str, tuple[float, float, Seconds]]) -> dict[str, str]:
    """OpenAI's `x-ratelimit-*` of each rate: per minute, left, and when there is room (of an error) or all of it is back."""
    found: dict[str, str] = {}
    for name, (limit, left, reset_s) in standing.items():
        found[f"x-ratelimit-limit-{name}"] = f"{math.floor(limit)}"
        found[f"x-ratelimit-remaining-{name}"] = f"{max(0, math.floor(left))}"
        found[f"x-ratelimit-reset-{name}"] = f"{reset_s:.3f}s"
    return found


def openai_status(fault: Fault) -> int:
    """OpenAI's API answers 400 where the native door says 422."""
    return 400 if fault.status == 422 else fault.status


def openai_body(fault: Fault) -> dict[str, Any]:
    """OpenAI's error body."""
    kind = "server_error" if fault.status >= 500 else _OPENAI_TYPES.get(fault.status, "invalid_request_error")
    code = _OPENAI_CODES.get(fault.code, fault.code)
    return {"error": {"message": fault.detail, "type": kind, "param": fault.param, "code": code}}


def error_headers(fault: Fault) -> dict[str, str]:
    """Headers that go with an error on every door. The OpenAI client obeys the two about trying again."""
    headers = {**dict(fault.headers), "cache-control": "no-store", "x-should-retry": "true" if fault.retry else "false"}
    if fault.retry_after_s is not None:
        headers["retry-after"] = str(max(1, math.ceil(fault.retry_after_s)))
    return headers


def response_of(fault: Fault, scope: Scope) -> Response:
    """The whole answer, in the dialect of the door that was asked."""
    if speaks_openai(scope):
        return Response(
            dumps(openai_body(fault)), openai_status(fault), error_headers(fault), media_type="application/json"
        )
    body = problem_body(fault, str(scope.get("state", {}).get("request_id", "")))
    return Response(dumps(body), fault.status, error_headers(fault), media_type="application/problem+json")


def declared(statuses: Sequence[int], openai: bool = False) -> dict[int | str, dict[str, Any]]:
    """`responses=` of a route: what it may answer besides success, in its door's dialect. Some any route may answer."""
    media, schema = ("application/json", "OpenAIError") if openai else ("application/problem+json", "Problem")
    content = {media: {"schema": {"$ref": f"#/components/schemas/{schema}"}}}
    found: dict[int | str, dict[str, Any]] = {}
    for status in sorted({*statuses, 431, 500, 503}):
        entry: dict[str, Any] = {
            "description": STATUS_CODES.get(status, ("", HTTPStatus(status).phrase))[1],
            "content": content,
        }
        if status in (429, 503):
            entry["headers"] = {
                "Retry-After": {
                    "description": "Seconds until it makes sense to try again.",
                    "schema": {"type": "integer"},
                }
            }
        if status == 405:
            entry["headers"] = {"Allow": {"description": "What it does.", "schema": {"type": "string"}}}
        found[status] = entry
    return found
