"""Hostile bodies at every door: a clean 4xx in the door's own dialect, nothing started, and the server goes on."""

import json
from typing import Any

import pytest

DOORS = {
    "/v1/workflows/echo/runs": '{"input": {"text": %s}}',
    "/v1/chat/completions": '{"model": "echo", "messages": [{"role": "user", "content": %s}]}',
    "/v1/completions": '{"model": "fake", "prompt": "x", "extra": %s}',
    "/v1/embeddings": '{"model": "hash", "input": "x", "extra": %s}',
    "/v1/indexes/notes/search": '{"query": "x", "extra": %s}',
    "/v1/indexes/notes/documents": '{"documents": [{"id": "a", "text": "b"}], "extra": %s}',
    "/v1/workflows:check": '{"name": %s}',
}
VALUES = {
    "number_not_finite": "NaN",
    "lone_surrogate": r'"\ud800"',
    "nul_character": r'"\u0000"',
    "integer_out_of_range": "9223372036854775808",
    "too_deep": "[" * 70 + "]" * 70,
    "too_many_keys": "[" + ",".join(['{"a":1}'] * 10_001) + "]",
    "too_many_values": "[" + "1," * 100_001 + "1]",
    "duplicate_key": '{"a": 1, "a": 2}',
    "invalid_json": "{]",
}


@pytest.mark.parametrize("code", VALUES)
async def test_a_hostile_value_is_refused_at_every_door(served: Any, code: str) -> None:
    for path, body in DOORS.items():
        content = (body % VALUES[code]).encode()
        response = await served.http.post(path, content=content, headers={"content-type": "application/json"})
        told = response.json()
        if path.startswith(("/v1/chat", "/v1/completions", "/v1/embeddings")):
            assert (response.status_code, told["error"]["code"]) == (400, code), path
        else:
            assert response.status_code == (400 if code == "invalid_json" else 422), path
            assert told["code"] == code, path
    assert served.runtime.runs() == []
    assert (await served.run("echo")).status_code == 200


@pytest.mark.parametrize(
    ("headers", "content", "status"),
    [
        ({"content-type": "application/json", "content-encoding": "gzip"}, b"\x1f\x8b\x08", 415),
        ({"content-type": "text/plain"}, b'{"input": {}}', 415),
        ({"content-type": "application/x-www-form-urlencoded"}, b"input=1", 415),
        ({}, b'{"input": {}}', 415),
        ({"content-type": "application/json; charset=utf-16"}, b'{"input": {}}', 415),
        ({"content-type": "application/json"}, b'{"input": "\xff"}', 400),
        ({"content-type": "application/json"}, b"", 422),
        ({"content-type": "application/json"}, b"[]", 422),
        ({"content-type": "application/json"}, b"null", 422),
        ({"content-type": "application/json"}, b'"text"', 422),
    ],
)
async def test_a_body_of_another_kind_is_refused_at_every_door(
    served: Any, headers: dict[str, str], content: bytes, status: int
) -> None:
    for path in DOORS:
        request = served.http.build_request("POST", path, content=content, headers=headers)
        response = await served.http.send(request)
        openai = path.startswith(("/v1/chat", "/v1/completions", "/v1/embeddings"))
        assert response.status_code == (400 if openai and status == 422 else status), path
        assert ("error" if openai else "code") in response.json()


async def test_a_big_body_within_the_limits_is_taken(served: Any) -> None:
    assert (await served.run("words", text="x" * 3_000_000)).json()["status"] == "completed"
    assert (await served.run("words", text="x" * 5_000_000)).status_code == 413


async def test_the_events_of_a_raw_call_can_be_read_at_the_native_door(served: Any) -> None:
    body = {"model": "fake", "messages": [{"role": "user", "content": "hi"}], "logprobs": True, "top_logprobs": 1}
    answer = await served.http.post("/v1/chat/completions", json=body)
    run = answer.headers["x-flowserve-run"]
    async with served.follow(f"/v1/runs/{run}/events") as events:
        seen = [event["data"] async for event in events if "data" in event]
    assert [event["type"] for event in seen][-1] == "run.completed"
    assert json.dumps(seen[-1]["data"]["result"])
    assert (await served.http.get(f"/v1/runs/{run}/result")).json()["workflow"] == "model:fake"
