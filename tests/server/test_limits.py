"""Limits of tenants and budgets of runs, as both doors tell them."""

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import pytest

from flowserve.config import Price, RuntimeConfig, TenantLimits
from flowserve.ids import RunId
from flowserve.runtime.limits import too_late
from flowserve.server.auth import Keyring
from flowserve.server.errors import fault_of
from flowserve.server.settings import ServerSettings

KEYS = {tenant: tenant * 16 for tenant in "abh"}
LIMITS = (
    ("a", TenantLimits(runs_per_minute=30.0, run_burst=1.0)),
    ("b", TenantLimits(live_runs=1)),
    ("h", TenantLimits(tokens_per_hour=1.0)),
)
CHAT = {"model": "echo", "messages": [{"role": "user", "content": "hi"}]}

Serve = Callable[..., AbstractAsyncContextManager[Any]]


def key(tenant: str) -> dict[str, str]:
    return {"authorization": f"Bearer {KEYS[tenant]}"}


@asynccontextmanager
async def limited(serve: Serve) -> AsyncIterator[Any]:
    keys = Keyring.parse(",".join(f"{tenant}:{text}" for tenant, text in KEYS.items()))
    async with serve(settings=ServerSettings(port=0, keys=keys), config=RuntimeConfig(tenant_limits=LIMITS)) as served:
        yield served


async def ask(served: Any, tenant: str, workflow: str = "echo", **body: Any) -> Any:
    path = f"/v1/workflows/{workflow}/runs"
    return await served.http.post(path, json={"input": {"text": "hi"}, **body}, headers=key(tenant))


async def test_a_tenant_over_its_rate_is_told_when_to_come_again_and_others_are_not_touched(serve: Serve) -> None:
    async with limited(serve) as served:
        assert (await ask(served, "a")).status_code == 200
        refused = await ask(served, "a")
        assert refused.status_code == 429 and refused.headers["retry-after"] == "2"
        body = refused.json()
        assert (body["code"], body["limit"], body["needed"]) == ("tenant_rate", 30.0, 1)
        assert 0 <= body["left"] < 1 and "30 runs per minute" in body["detail"]
        assert (await ask(served, "b")).status_code == 200
        metrics = await served.http.get("/metrics", headers=key("b"))
        assert 'flowserve_runs_refused_total{code="tenant_rate"} 1.0' in metrics.text


async def test_a_tenant_without_tokens_left_is_told_when_the_hour_is_over(serve: Serve) -> None:
    async with limited(serve) as served:
        assert (await ask(served, "h")).status_code == 200
        refused = await ask(served, "h")
        body = refused.json()
        assert (refused.status_code, body["code"], body["limit"]) == (429, "tenant_hour_tokens", 1.0)
        assert body["left"] < 0 and 3500 < int(refused.headers["retry-after"])
        chat = await served.http.post("/v1/chat/completions", json=CHAT, headers=key("h"))
        error = chat.json()["error"]
        assert (chat.status_code, error["code"]) == (429, "insufficient_quota")
        assert "1 tokens are what you may take in an hour" in error["message"]


async def test_a_tenant_with_all_its_runs_at_work_is_told_so(serve: Serve) -> None:
    async with limited(serve) as served:
        assert (await ask(served, "b", "stuck", mode="background")).status_code == 202
        refused = await ask(served, "b")
        assert (refused.status_code, refused.json()["code"]) == (429, "tenant_live")


async def test_the_openai_door_says_it_in_its_own_words_and_headers(serve: Serve) -> None:
    async with limited(serve) as served:
        first = await served.http.post("/v1/chat/completions", json=CHAT, headers=key("a"))
        assert first.headers["x-ratelimit-limit-requests"] == "30"
        assert first.headers["x-ratelimit-remaining-requests"] == "0"
        refused = await served.http.post("/v1/chat/completions", json=CHAT, headers=key("a"))
        error = refused.json()["error"]
        assert (refused.status_code, error["type"], error["code"]) == (429, "rate_limit_error", "rate_limit_exceeded")
        assert refused.headers["x-should-retry"] == "true" and refused.headers["retry-after"] == "2"
        assert refused.headers["x-ratelimit-remaining-requests"] == "0"
        assert float(refused.headers["x-ratelimit-reset-requests"].removesuffix("s")) <= 2.0
        free = await served.http.post("/v1/chat/completions", json=CHAT, headers=key("b"))
        assert not [name for name in free.headers if name.startswith("x-ratelimit")]


def test_a_run_that_ended_before_a_call_in_vain_is_told_as_one_that_was_refused() -> None:
    fault = fault_of(too_late(RunId("run_1"), "answer", 12.0))
    assert (fault.status, fault.code, fault.run, fault.node) == (503, "deadline_hopeless", "run_1", "answer")
    assert "from node answer on it is expected to take 12 s" in fault.detail


# --- budgets --------------------------------------------------------------------------------------------


async def test_a_run_that_would_pass_its_budget_ends_with_what_was_spent_by_whom(served: Any) -> None:
    answer = await served.run("echo", budget={"tokens": 1})
    body = answer.json()
    assert (answer.status_code, body["code"], body["budget"], body["limit"]) == (422, "budget_exhausted", "tokens", 1)
    assert body["node"] == "say" and "budget of 1 tokens is exhausted" in body["detail"]
    assert not served.engine.calls, "its prompt alone is more than that"
    run = (await served.http.get(f"/v1/runs/{body['run_id']}")).json()
    assert run["status"] == "failed" and run["usage"]["computed_tokens"] == 0


async def test_a_call_is_cancelled_at_its_engine_when_the_budget_is_passed(served: Any) -> None:
    answer = await served.run("firehose", budget={"tokens": 200})
    body = answer.json()
    assert body["code"] == "budget_exhausted" and body["nodes"]["pour"]["tokens"] == body["spent"] > 200
    assert body["spent"] < 1000, "of 5,000 words"
    assert len(served.engine.calls) == 1


async def test_a_budget_that_is_large_enough_changes_nothing_and_usage_tells_what_was_spent(serve: Serve) -> None:
    async with serve(config=RuntimeConfig(prices=(("*", Price(1e6, 0.0)),))) as served:
        answer = (await served.run("echo", budget={"tokens": 10_000, "money": 10_000.0})).json()
        assert answer["result"] == (await served.run("echo")).json()["result"]
        usage = answer["usage"]
        assert usage["computed_tokens"] == usage["tokens_in"] - usage["cached_tokens"] + usage["tokens_out"] > 0
        assert usage["money"] > 0 and usage["engine_seconds"] >= 0
        metrics = (await served.http.get("/metrics")).text
        assert 'flowserve_tokens_total{direction="computed",workflow="echo"}' in metrics
        assert 'flowserve_run_engine_seconds_total{workflow="echo"}' in metrics
        assert 'flowserve_run_money_total{workflow="echo"}' in metrics


async def test_money_without_a_price_is_refused_before_anything_starts(served: Any) -> None:
    answer = await served.run("echo", budget={"money": 1.0})
    assert (answer.status_code, answer.json()["code"]) == (422, "input_invalid")
    assert "there is no price for the default model" in answer.json()["detail"]


@pytest.mark.parametrize("budget", [{"tokens": 0}, {"seconds": -1}, {"money": "much"}, {"colour": 1}, 5])
async def test_a_budget_of_the_wrong_shape_is_refused(served: Any, budget: Any) -> None:
    answer = await served.run("echo", budget=budget)
    assert (answer.status_code, answer.json()["code"]) == (422, "request_invalid")


async def test_the_openai_door_takes_a_budget(served: Any) -> None:
    answer = await served.http.post("/v1/chat/completions", json={**CHAT, "flowserve": {"budget": {"tokens": 1}}})
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (400, "budget_exhausted")
