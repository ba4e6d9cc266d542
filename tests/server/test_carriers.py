"""One program context from every carrier that is known."""

from typing import Any

import pytest

from flowserve.graphs.caller import Caller
from flowserve.server.carriers import baggage, caller_of, priority_of, session_of
from flowserve.server.openai_schemas import ChatRequest

FIRST = {"flowserve": {"session_id": "a"}, "session_id": "b", "vllm_xargs": {"session_id": "c"}}
HEADERS = {
    "x-session-id": "d",
    "x-dynamo-session-id": "e",
    "x-claude-code-session-id": "f",
    "thread-id": "g",
    "baggage": "flowserve.session=h,session.id=i",
}


def chat(**more: Any) -> ChatRequest:
    return ChatRequest.model_validate({"model": "m", "messages": [{"role": "user", "content": "x"}], **more})


def test_the_first_carrier_that_names_a_session_counts() -> None:
    body, headers = dict(FIRST), dict(HEADERS)
    found = []
    for carrier in [*FIRST, *HEADERS]:
        found.append(session_of(chat(**body), headers))
        body.pop(carrier, None)
        headers.pop(carrier, None)
    assert found == ["a", "b", "c", "d", "e", "f", "g", "h"]
    assert session_of(chat(), {}) is None
    assert session_of(chat(), {"baggage": "session.id=i"}) == "i"


@pytest.mark.parametrize(
    ("body", "headers", "priority"),
    [
        ({}, {}, 0),
        ({"flowserve": {"priority": 7}, "priority": 5}, {"x-vllm-priority": "3"}, 7),
        ({"priority": 5}, {"x-vllm-priority": "3"}, -3),  # vLLM: lower goes first, and its header beats its body
        ({"priority": -5, "nvext": {"agent_hints": {"priority": 9}}}, {}, 5),
        ({"nvext": {"agent_hints": {"priority": 9, "osl": 3}}}, {}, 9),  # Dynamo: higher goes first
        ({"nvext": {"agent_hints": {"priority": 1 << 30}}}, {}, 1_000),
        ({"priority": 1 << 30}, {}, -1_000),
        ({}, {"x-vllm-priority": "soon"}, 0),
    ],
)
def test_priorities_are_turned_into_our_direction(body: Any, headers: Any, priority: int) -> None:
    assert priority_of(chat(**body), headers) == priority


def test_what_the_body_says_of_the_caller_stands_and_baggage_fills_what_it_leaves_open() -> None:
    told = {"caller": {"node": "plan", "step": 0, "triggers": ["branch:to:plan"]}}
    carried = {"baggage": "flowserve.node=other,flowserve.step=9,flowserve.index=2;x=y,flowserve.program=my%20graph"}
    caller = Caller(program="my graph", node="plan", step=0, index=2, triggers=("branch:to:plan",))
    assert caller_of(chat(flowserve=told), carried) == caller
    assert caller_of(chat(), {"x-dynamo-parent-session-id": "p"}) == Caller(parent="p")
    assert caller_of(chat(), {}) is None


@pytest.mark.parametrize("header", ["", ",,", "a", "=b", "a=;b", f"a={'x' * 257}", "flowserve.step=-;", "%%%"])
def test_malformed_baggage_says_nothing(header: str) -> None:
    assert baggage(header) == {} or baggage(header) == {"flowserve.step": "-"}
    assert caller_of(chat(), {"baggage": header}) is None


async def test_a_run_tells_its_session_and_caller(served: Any) -> None:
    caller = {"program": "research", "node": "plan", "step": 1}
    body = {"model": "fake", "messages": [{"role": "user", "content": "hi"}], "flowserve": {"caller": caller}}
    answer = await served.http.post("/v1/chat/completions", json=body, headers={"X-Dynamo-Session-ID": "t1"})
    assert answer.status_code == 200
    run = (await served.http.get(f"/v1/runs/{answer.headers['x-flowserve-run']}")).json()
    assert (run["session_id"], run["caller"]) == ("t1", caller)


async def test_a_caller_of_the_wrong_shape_is_refused(served: Any) -> None:
    for caller in ({"nodes": "plan"}, {"step": -1}, {"node": ""}, {"triggers": "x"}):
        body = {"model": "fake", "messages": [{"role": "user", "content": "hi"}], "flowserve": {"caller": caller}}
        assert (await served.http.post("/v1/chat/completions", json=body)).status_code == 400, caller
