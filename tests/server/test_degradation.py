"""A degraded run over HTTP: its response, its events and the metrics name what was taken, and a request may forbid it."""

from typing import Any

import pytest

import flowserve as fs
from flowserve.clock import ManualClock
from flowserve.engines.base import Call
from flowserve.server import schemas as s

TAKEN = {"node": "say.optional", "what": "rounds", "from": 1, "to": 0, "harm": 0.5}


@fs.llm()
def think(text: str) -> str:
    fs.prompt("{{ text }}")


@fs.llm()
def say(text: str) -> str:
    fs.prompt("{{ text }}")


@fs.workflow()
def improved(text: str) -> str:
    return fs.optional(say, think(text), harm=0.5)


@pytest.fixture
async def served(serve: Any) -> Any:
    """Every call takes ten seconds, and runs of `improved` have been seen."""
    clock = ManualClock()

    def reply(call: Call) -> str:
        clock.advance(10.0)
        return str(call.meta["node"])

    async with serve(replies=reply, clock=clock) as ready:
        ready.runtime.register(improved.program)
        for _ in range(8):
            assert (await ready.run("improved")).json()["result"] == "say"
        yield ready


async def test_the_response_the_run_and_the_metrics_name_what_was_taken(served: Any) -> None:
    body = (await served.run("improved", timeout=15)).json()
    assert (body["result"], body["degraded"]) == ("think", [TAKEN])
    s.RunResult.model_validate(body)
    assert (await served.http.get(f"/v1/runs/{body['id']}")).json()["degraded"] == [TAKEN]
    async with served.follow(f"/v1/runs/{body['id']}/events") as events:
        told = [event["data"] async for event in events if "data" in event]
    [event] = [event for event in told if event["type"] == "node.degraded"]
    assert {"node": event["node"], **event["data"]} == TAKEN
    assert told[-1]["data"]["degraded"] == [TAKEN]
    metrics = (await served.http.get("/metrics")).text
    assert 'flowserve_degraded_total{what="rounds",workflow="improved"} 1.0' in metrics


async def test_a_request_may_forbid_it(served: Any) -> None:
    body = (await served.run("improved", timeout=15, degrade=False)).json()
    assert (body["result"], body["degraded"]) == ("say", [])
    refused = await served.run("improved", timeout=9, degrade=False)
    assert (refused.status_code, refused.json()["code"]) == (503, "deadline_hopeless")
    assert (await served.run("improved", timeout=9)).json()["degraded"] == [TAKEN], "which is what saves it"


async def test_a_workflow_under_the_openai_door_may_be_told_too(served: Any) -> None:
    def asked(**extra: Any) -> dict[str, Any]:
        messages = [{"role": "user", "content": "hi"}]
        return {"model": "improved", "messages": messages, "flowserve": {"timeout": 15, **extra}}

    async def answer(body: dict[str, Any]) -> str:
        response = await served.http.post("/v1/chat/completions", json=body)
        return str(response.json()["choices"][0]["message"]["content"])

    assert await answer(asked()) == "think"
    assert await answer(asked(degrade=False)) == "say"


async def test_what_is_neither_yes_nor_no_is_refused(served: Any) -> None:
    refused = await served.run("improved", degrade="maybe")
    assert refused.status_code == 422
    assert refused.json()["errors"][0]["pointer"] == "/degrade"
