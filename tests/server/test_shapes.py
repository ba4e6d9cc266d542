"""What is sent is what the OpenAPI document says: answers, built as plain data, fit the declared models."""

import json
from typing import Any

import pytest
from pydantic import BaseModel

from flowserve.server import openai_responses_schemas as q
from flowserve.server import openai_schemas as o
from flowserve.server import schemas as s
from flowserve.server.wire import dumps


@pytest.mark.parametrize(
    ("path", "model"),
    [
        ("/health", s.HealthOut),
        ("/ready", s.ReadyOut),
        ("/version", s.VersionOut),
        ("/v1/workflows", s.WorkflowList),
        ("/v1/workflows/each", s.WorkflowOut),
        ("/v1/workflows/each/schema", s.SchemaOut),
        ("/v1/workflows/each/graph", s.GraphOut),
        ("/v1/runs", s.RunPage),
        ("/v1/runs/{run}", s.RunDetail),
        ("/v1/runs/{run}/result", s.RunResult),
        ("/v1/indexes", s.IndexList),
        ("/v1/models", o.ModelList),
        ("/v1/models/fake", o.ModelOut),
        ("/v1/nothing", s.Problem),
        ("/v1/models/nothing", s.OpenAIError),
    ],
)
async def test_what_is_got_has_its_declared_shape(served: Any, path: str, model: type[BaseModel]) -> None:
    await served.http.post("/v1/indexes/notes/documents", json={"documents": [{"id": "a", "text": "b"}]})
    run = (await served.run("each", text="a b")).json()
    response = await served.http.get(path.replace("{run}", run["id"]))
    model.model_validate(response.json())


@pytest.mark.parametrize(
    ("path", "body", "model"),
    [
        ("/v1/workflows/each/runs", {"input": {"text": "a b"}}, s.RunResult),
        ("/v1/workflows/each/runs", {"input": {"text": "a"}, "mode": "background"}, s.RunSummary),
        ("/v1/workflows/refusing/runs", {"input": {"text": "a"}}, s.Problem),
        ("/v1/workflows:check", {}, s.CheckOut),
        ("/v1/indexes/notes/documents", {"documents": [{"id": "a", "text": "b", "metadata": {"c": "d"}}]}, s.IndexOut),
        ("/v1/chat/completions", {"model": "fake", "logprobs": True, "top_logprobs": 1}, o.ChatCompletion),
        ("/v1/chat/completions", {"model": "echo"}, o.ChatCompletion),
        ("/v1/completions", {"model": "fake", "prompt": "x", "logprobs": 2}, o.TextCompletion),
        ("/v1/chat/completions", {"model": "none"}, s.OpenAIError),
        (
            "/v1/responses",
            {"model": "fake", "input": "x", "tools": [], "text": {"format": {"type": "text"}}},
            q.ResponseOut,
        ),
        ("/v1/responses", {"model": "stuck", "input": "x", "background": True}, q.ResponseOut),
        ("/v1/responses", {"model": "none", "input": "x"}, s.OpenAIError),
    ],
)
async def test_what_is_posted_is_answered_in_its_declared_shape(
    served: Any, path: str, body: dict[str, Any], model: type[BaseModel]
) -> None:
    if "chat" in path:
        body = {**body, "messages": [{"role": "user", "content": "hi"}]}
    model.model_validate((await served.http.post(path, json=body)).json())


async def test_every_event_of_a_stream_has_the_declared_shape(served: Any) -> None:
    run = (await served.run("each", text="a b")).json()
    async with served.follow(f"/v1/runs/{run['id']}/events") as events:
        seen = [s.EventOut.model_validate(event["data"]) async for event in events if "data" in event]
    assert len(seen) == run["last_seq"]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ({"a": float("nan"), "b": [float("inf")]}, '{"a":null,"b":[null]}'),
        ({"é": "\u0000"}, '{"é":"\\u0000"}'),
        ("\ud800", '"\\ud800"'),
        ({"\ud800": (1, {"x"})}, '{"\\ud800": [1, "{\'x\'}"]}'),
    ],
)
def test_whatever_a_tool_returns_leaves_as_json(value: Any, text: str) -> None:
    assert dumps(value) == text.encode()
    json.loads(dumps(value))


@pytest.mark.parametrize("number", [3, 3.0])
def test_a_whole_number_may_be_written_with_a_point(number: float) -> None:
    assert s.SearchRequest.model_validate({"query": "x", "k": number}).k == 3
    with pytest.raises(ValueError, match="k"):
        s.SearchRequest.model_validate({"query": "x", "k": number + 0.5})
