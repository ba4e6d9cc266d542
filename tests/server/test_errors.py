"""One table from exceptions to answers, in two dialects, and nothing beside them."""

import ast
import inspect
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from flowserve import errors as e
from flowserve.server.app import create_app
from flowserve.server.errors import TABLE, BadRequest, fault_of, openai_body, openai_status, problem_body, response_of
from flowserve.server.operations import docs_page

EXAMPLES: dict[type[e.FlowServeError], e.FlowServeError] = {
    e.GraphError: e.GraphError("w", [e.Problem("n", "a", "b", "c")]),
    e.UnknownName: e.UnknownName("workflow", "x", ["y"]),
    e.Overloaded: e.Overloaded("full", 2.5),
    e.Unavailable: e.Unavailable("nobody is there", 2.5),
    e.DeadlineHopeless: e.DeadlineHopeless("too late", 2.5, 30.0),
    e.TenantLimited: e.TenantLimited("enough", 2.5, "tenant_rate", 60.0, 1.0, 0.5),
    e.BudgetExhausted: e.BudgetExhausted("spent", "run_1", "answer", "tokens", 10.0, 11.0, {"answer": {"tokens": 11}}),
    e.InternalError: e.InternalError("broken", "the story of a run"),
}


def example(kind: type[e.FlowServeError]) -> e.FlowServeError:
    return EXAMPLES.get(kind) or kind("what happened")


KINDS = [kind for _, kind in inspect.getmembers(e, inspect.isclass) if issubclass(kind, e.FlowServeError)]


@pytest.mark.parametrize("kind", KINDS)
def test_every_error_has_an_answer_on_both_doors(kind: type[e.FlowServeError]) -> None:
    fault = fault_of(example(kind))
    assert 400 <= fault.status < 600
    body = problem_body(fault, "req_1")
    assert body["status"] == fault.status
    assert body["type"] == f"/docs#{fault.code}"
    openai = openai_body(fault)["error"]
    assert set(openai) == {"message", "type", "param", "code"}
    assert openai_status(fault) != 422


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (e.InputError("x"), 422, "input_invalid"),
        (e.UnknownName("run", "x"), 404, "not_found"),
        (e.ContextTooLong("x"), 422, "context_too_long"),
        (e.TooLarge("x"), 413, "too_large"),
        (e.Overloaded("x", 1), 429, "overloaded"),
        (e.Unavailable("x", 1), 503, "engine_lost"),
        (e.DeadlineHopeless("x", 1, 9), 503, "deadline_hopeless"),
        (e.RunCancelled("x"), 409, "run_cancelled"),
        (e.RunTimedOut("x"), 504, "run_timed_out"),
        (e.EngineLost("x"), 503, "engine_lost"),
        (e.EngineError("x"), 502, "engine_failed"),
        (e.ToolError("x"), 502, "tool_failed"),
        (ValueError("x"), 500, "internal"),
    ],
)
def test_statuses_are_as_documented(error: Exception, status: int, code: str) -> None:
    fault = fault_of(error)
    assert (fault.status, fault.code) == (status, code)


@pytest.mark.parametrize(
    "error", [EXAMPLES[e.InternalError], ValueError("secret path /x"), e.StoreError("/x"), e.ConfigError("/x")]
)
def test_what_concerns_only_us_is_not_told(error: Exception) -> None:
    fault = fault_of(error)
    assert "/x" not in fault.detail
    assert "story" not in fault.detail


@pytest.mark.parametrize(
    ("cause", "status"),
    [
        (e.EngineLost("x"), 503),
        (e.ToolError("x"), 502),
        (e.ContextTooLong("x"), 422),
        (e.UnknownName("tool", "x"), 422),
        (e.InternalError("x", "story"), 500),
        (None, 500),
    ],
)
def test_a_failed_run_is_told_by_its_cause_with_run_and_node(cause: e.FlowServeError | None, status: int) -> None:
    error = e.RunFailed("node n failed: x", "run_1", "n")
    error.__cause__ = cause
    fault = fault_of(error)
    assert (fault.status, fault.run, fault.node) == (status, "run_1", "n")
    assert "story" not in json.dumps(problem_body(fault, ""))


def test_headers_say_whether_and_when_to_try_again() -> None:
    scope = {"type": "http", "path": "/v1/runs", "state": {"request_id": "r"}}
    full = response_of(fault_of(e.Overloaded("x", 2.1)), scope)
    assert (full.headers["retry-after"], full.headers["x-should-retry"]) == ("3", "true")
    conflict = response_of(fault_of(e.RunCancelled("x")), scope)
    assert "retry-after" not in conflict.headers
    assert conflict.headers["x-should-retry"] == "false", "OpenAI's client repeats every 409 that does not say so"


def test_subclasses_stand_before_their_parents_in_the_table() -> None:
    seen: list[type[BaseException]] = []
    for kind, _ in TABLE:
        assert not any(issubclass(kind, earlier) for earlier in seen), kind
        seen.append(kind)


def test_every_code_has_a_place_in_the_documentation_page() -> None:
    page = docs_page()
    assert all(f'id="{row.code}"' in page for _, row in TABLE)


def test_what_doors_refuse_by_themselves_has_a_place_there_too() -> None:
    """`type` pointed at anchors that the page did not have."""
    page = docs_page()
    codes = dict(refusals())
    assert {"wait_ended", "not_yours", "duplicate_key", "too_many_streams"} <= codes.keys()
    for code, status in codes.items():
        assert f'<tr id="{code}"><td>{status}</td>' in page, code


def refusals() -> Iterator[tuple[str, int]]:
    """(code, status) of every BadRequest that the native door's source spells out."""
    for path in Path(inspect.getfile(create_app)).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "BadRequest":
                status, code = node.args[:2]
                if not path.name.startswith("openai_") and isinstance(code, ast.Constant):
                    assert isinstance(status, ast.Constant)
                    yield str(code.value), int(str(status.value))


def test_every_kind_of_error_has_a_row_of_its_own() -> None:
    """A value that did not fit inside a run was 'Something failed'."""
    rows = {kind for kind, _ in TABLE}
    families = {e.FlowServeError, e.RunError, e.InternalError}
    assert set(KINDS) - rows == families - rows


def test_a_value_that_does_not_fit_inside_a_run_is_told() -> None:
    error = e.RunFailed("node n failed: x", "run_1", "n")
    error.__cause__ = e.ValueInvalid("there is no field 'score'")
    fault = fault_of(error)
    assert (fault.status, fault.code, fault.detail) == (500, "value_invalid", "there is no field 'score'")


def test_a_run_that_is_not_there_does_not_claim_that_there_are_none() -> None:
    assert str(e.UnknownName("run", "run_1")) == "there is no run 'run_1'"
    assert str(e.UnknownName("index", "a", [])) == "there is no index 'a'; known: none"


@pytest.mark.parametrize(
    ("method", "path", "body", "problems"),
    [
        (
            "GET",
            "/v1/runs?status=x&limit=0",
            None,
            {
                "query/status": "Input should be 'queued', 'running', 'cancelling', 'completed', 'failed', 'cancelled' "
                "or 'timed_out'",
                "query/limit": "Input should be greater than or equal to 1",
            },
        ),
        ("POST", "/v1/workflows/echo/runs", {"inputs": {}}, {"/inputs": "there is no such field"}),
        ("POST", "/v1/indexes/a/search", {"k": 3}, {"/query": "is required"}),
        ("POST", "/v1/workflows/echo/runs", None, {"": "is required"}),
    ],
)
async def test_problems_point_into_what_was_sent_and_not_into_our_types(
    served: Any, method: str, path: str, body: Any, problems: dict[str, str]
) -> None:
    """They read `query/status/literal['queued',...]` and `query/status/none: Input should be None`."""
    answer = (await served.http.request(method, path, json=body)).json()
    assert {row["pointer"]: row["message"] for row in answer["errors"]} == problems


async def test_parts_of_a_message_are_pointed_at_without_the_names_of_union_branches(served: Any) -> None:
    content = [{"type": "image_url", "image_url": {"url": "http://x"}}]
    body = {"model": "echo", "messages": [{"role": "user", "content": content}]}
    error = (await served.http.post("/v1/chat/completions", json=body)).json()["error"]
    assert error["param"] == "messages.0.content"
    assert "/messages/0/content/0/type: Input should be 'text'" in error["message"]
    assert "list[" not in error["message"]


async def test_what_clients_are_not_told_is_in_the_log(
    served: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """An index that cannot be trusted was a bare 500, and nobody learned which file it was."""
    await served.http.post("/v1/indexes/shelf/documents", json={"documents": [{"id": "a", "text": "a b"}]})
    manifest = next(tmp_path.glob("indexes/shelf/MANIFEST.json"))
    manifest.write_text("{}")
    answer = await served.http.post("/v1/indexes/shelf/search", json={"query": "a"})
    assert (answer.status_code, answer.json()["code"]) == (500, "store_failed")
    assert "MANIFEST.json" not in answer.text
    assert "MANIFEST.json' cannot be trusted" in caplog.text


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nothing", 404),
        ("GET", "/v1/nothing", 404),
        ("GET", "/v1/runs/", 404),
        ("PATCH", "/v1/runs", 405),
        ("OPTIONS", "/v1/workflows", 405),
        ("GET", "/v1/workflows/echo/runs", 405),
        ("GET", "/v1/chat/completions", 405),
        ("GET", "/v1/models/none", 404),
        ("GET", "/v1/chat/nothing", 404),
        ("GET", "/v1/runs?limit=0", 422),
    ],
)
async def test_the_frameworks_own_errors_have_our_shape(served: Any, method: str, path: str, status: int) -> None:
    response = await served.http.request(method, path)
    assert response.status_code == status
    body = response.json()
    if path.startswith(("/v1/chat", "/v1/models")):
        assert set(body) == {"error"}
    else:
        assert response.headers["content-type"] == "application/problem+json"
        assert body["request_id"] == response.headers["x-request-id"]
    if status == 405:
        assert response.headers["allow"]


@pytest.mark.parametrize(("path", "kind"), [("/v1/workflows", "problem+json"), ("/v1/models", "json")])
async def test_a_bug_of_ours_is_a_500_of_the_right_shape(served: Any, path: str, kind: str) -> None:
    served.door.programs = None  # not callable: what a bug looks like from outside
    response = await served.http.get(path)
    assert response.status_code == 500
    assert response.headers["content-type"] == f"application/{kind}"
    assert "NoneType" not in response.text
    assert "x-request-id" in response.headers
    assert (await served.http.get("/health")).status_code == 200


async def test_a_sane_request_id_is_kept_and_another_is_replaced(served: Any) -> None:
    kept = await served.http.get("/health", headers={"x-request-id": "trace-1.a:b"})
    assert kept.headers["x-request-id"] == "trace-1.a:b"
    for strange in ("a b", "x" * 129, "<script>", ""):
        response = await served.http.get("/nothing", headers={"x-request-id": strange})
        assert response.headers["x-request-id"].startswith("req_")
        assert response.json()["request_id"] == response.headers["x-request-id"]


def test_a_door_error_says_its_status_itself() -> None:
    fault = fault_of(BadRequest(415, "unsupported_media_type", "expected JSON", param="x", retry_after_s=1))
    assert (fault.status, fault.code, fault.param, fault.retry) == (415, "unsupported_media_type", "x", True)


def test_an_app_can_be_made_without_settings() -> None:
    from flowserve.runtime.runner import Runtime

    assert create_app(Runtime()).state.door.settings.host == "127.0.0.1"
