"""The OpenAPI document: complete, true, and searched for what it does not say."""

import asyncio
import queue
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import GenerationMode
from schemathesis.specs.openapi.checks import positive_data_acceptance

import flowserve as fs
from flowserve.engines.fake import FakeEngine
from flowserve.retrieval.service import Retrieval
from flowserve.runtime.runner import Runtime
from flowserve.server.app import create_app
from flowserve.server.auth import Keyring
from flowserve.server.listen import listener
from flowserve.server.operations import docs_page
from flowserve.server.settings import ServerSettings

KEY = "a-key-for-this-test-only"
SETTINGS = ServerSettings(port=0, keys=Keyring.parse(KEY))
EXAMPLES = 12
"""Per operation and mode."""


@fs.llm()
def say(text: str) -> str:
    fs.prompt("{{ text }}")


@fs.workflow()
def echo(text: str) -> str:
    return say(text)


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("indexes")
    runtime = Runtime([FakeEngine()], retrieval=Retrieval(Path(folder), embedder="hash"))
    runtime.register(echo.program)
    return create_app(runtime, SETTINGS)


def operations(document: dict[str, Any]) -> list[tuple[str, str, dict[str, Any]]]:
    return [(path, method, item) for path, methods in document["paths"].items() for method, item in methods.items()]


def test_every_operation_has_an_id_a_summary_and_its_errors(app: Any) -> None:
    document = app.openapi()
    ids = [item["operationId"] for _, _, item in operations(document)]
    assert len(ids) == len(set(ids))
    assert all(re.fullmatch(r"[a-z][A-Za-z]+", name) for name in ids)
    for path, _, item in operations(document):
        assert item["summary"], path
        if path.startswith("/v1"):
            assert "401" in item["responses"], path
            assert item["security"], path


def test_a_server_without_keys_does_not_ask_for_them(app: Any) -> None:
    document = create_app(app.state.door.runtime).openapi()
    assert "securitySchemes" not in document["components"]
    assert all("security" not in item and "401" not in item["responses"] for _, _, item in operations(document))


def test_errors_are_declared_in_the_dialect_of_their_door(app: Any) -> None:
    for path, _, item in operations(app.openapi()):
        for status, response in item["responses"].items():
            if status < "400":
                continue
            openai = path.startswith(("/v1/chat", "/v1/completions", "/v1/embeddings", "/v1/models", "/v1/responses"))
            media = "application/json" if openai else "application/problem+json"
            shape = "OpenAIError" if openai else "Problem"
            assert response["content"] == {media: {"schema": {"$ref": f"#/components/schemas/{shape}"}}}, (path, status)
    assert "HTTPValidationError" not in str(app.openapi())


def test_streams_are_declared_as_streams(app: Any) -> None:
    paths = app.openapi()["paths"]
    for path, method in (
        ("/v1/workflows/{name}/runs", "post"),
        ("/v1/runs/{run_id}/events", "get"),
        ("/v1/chat/completions", "post"),
        ("/v1/completions", "post"),
        ("/v1/responses", "post"),
        ("/v1/responses/{response_id}", "get"),
    ):
        assert "text/event-stream" in paths[path][method]["responses"]["200"]["content"]
    assert list(paths["/v1/runs/{run_id}/events"]["get"]["responses"]["200"]["content"]) == ["text/event-stream"]


def test_bodies_have_examples_that_their_own_schema_accepts(app: Any) -> None:
    import jsonschema

    document = app.openapi()
    shown = 0
    for schema in document["components"]["schemas"].values():
        for example in schema.get("examples", ()):
            jsonschema.Draft202012Validator({**schema, "components": document["components"]}).validate(example)
            shown += 1
    assert shown >= 5


def test_the_page_needs_nothing_from_the_network() -> None:
    assert not re.search(r"(src|href)=\"(https?:)?//", docs_page())
    assert "https://" not in docs_page()


# --- schemathesis -------------------------------------------------------------------------------------------------


@contextmanager
def listening(app: Any) -> Iterator[str]:
    """The application in a thread with an event loop of its own; the URL of its port."""
    ready: queue.Queue[tuple[str, asyncio.AbstractEventLoop, Any]] = queue.Queue()

    async def main() -> None:
        door = app.state.door
        await door.runtime.start()
        server = listener(app, SETTINGS)
        task = asyncio.create_task(server.serve())
        await server.listening.wait()
        ready.put((server.url, asyncio.get_running_loop(), server))
        await task
        await door.runtime.aclose()

    thread = threading.Thread(target=asyncio.run, args=(main(),))
    thread.start()
    url, loop, server = ready.get(timeout=30)
    try:
        yield url
    finally:
        loop.call_soon_threadsafe(server.stop, True)
        thread.join(30)


@pytest.fixture(scope="module")
def url(app: Any) -> Iterator[str]:
    with listening(app) as where:
        yield where


PLAIN = ["health", "ready", "version", "metrics", "listWorkflows", "listIndexes", "listModels", "listEngines"]
"""Take nothing that could be wrong."""
OPERATIONS = [
    *("getWorkflow", "getSchema", "getGraph", "putWorkflow", "checkWorkflow"),
    *("createRun", "listRuns", "getRun", "streamRun", "getResult", "cancelRun", "forgetRun"),
    *("ingestDocuments", "getDocuments", "deleteDocuments", "searchIndex", "drainEngine", "resumeEngine"),
    *("putProgram", "getProgram", "endSession"),
    *("createChatCompletion", "createCompletion", "createEmbedding", "getModel"),
    *("createResponse", "getResponse", "cancelResponse", "deleteResponse", "listInputItems"),
]
FREE = {
    "putWorkflow", "checkWorkflow", "createRun", "ingestDocuments", "putProgram",
    "createChatCompletion", "createCompletion", "createEmbedding", "createResponse",
}  # fmt: skip
"""Take free JSON (in which integers beyond 2^53 are refused) or have rules that a schema cannot say: here what the
schema allows may still be refused, cleanly."""
SEARCHES = [
    *((name, GenerationMode.POSITIVE) for name in PLAIN + OPERATIONS),
    *((name, GenerationMode.NEGATIVE) for name in OPERATIONS),
]


def test_no_operation_is_left_out_of_the_search(app: Any) -> None:
    assert sorted(item["operationId"] for _, _, item in operations(app.openapi())) == sorted(PLAIN + OPERATIONS)


@pytest.mark.parametrize(("name", "mode"), SEARCHES, ids=lambda value: getattr(value, "value", value))
def test_schemathesis_finds_nothing(app: Any, url: str, name: str, mode: GenerationMode) -> None:
    schema = schemathesis.openapi.from_dict(app.openapi())
    schema.config.generation.update(allow_x00=False)
    operation = schema.find_operation_by_id(name)
    known = (
        {"name": "echo"} if name == "createRun" else {"name": "notes"} if "Index" in name or "Documents" in name else {}
    )

    @settings(
        max_examples=EXAMPLES,
        derandomize=True,
        deadline=None,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large],
        database=None,
    )
    @given(case=operation.as_strategy(generation_mode=mode))
    def search(case: Any) -> None:
        if known and mode is GenerationMode.POSITIVE:
            case.path_parameters.update(known)  # else every run would be one of an unknown workflow
        case.call_and_validate(
            base_url=url,
            timeout=20,
            headers={"Authorization": f"Bearer {KEY}"},
            excluded_checks=[positive_data_acceptance] if name in FREE else [],
        )

    search()
