"""The engine model: against a slow oracle, and small cases by hand."""

from random import Random
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flowserve.errors import ConfigError
from flowserve.sim.costs import StepCosts
from flowserve.sim.engine import EngineModel, EngineSpec, Request

UNIT = StepCosts(1.0, 0.01, 0.1, 0.0)
BINARY = StepCosts(2**-7, 2**-15, 2**-15, 2**-24)
"""Times are exact sums, so that ties are ties in both models."""

News = list[tuple[float, Any, str]]


def run(model: EngineModel, arrivals: list[tuple[float, Request]], aborts: list[tuple[float, Any]] = []) -> News:  # noqa: B006
    """Let requests arrive and be aborted at their times; what comes of it."""
    news: News = []
    by_owner = {request.owner: request for _, request in arrivals}
    todo = [(at, 0, i, request) for i, (at, request) in enumerate(arrivals)]
    todo += [(at, 1, i, by_owner[owner]) for i, (at, owner) in enumerate(aborts)]
    todo.sort(key=lambda item: item[:3])
    while todo or model.has_work:
        at = todo[0][0] if todo else float("inf")
        if model.next_at < at:
            now = model.next_at
            news += [(now, request.owner, what) for request, what in model.finish()]
        else:
            now = at
            if model.next_at == now:
                news += [(now, request.owner, what) for request, what in model.finish()]
        while todo and todo[0][0] <= now:
            _, abort, _, request = todo.pop(0)
            (model.abort if abort else model.add)(request, now)
        model.plan(now)
    return news


def exact(seconds: float) -> float:
    return round(seconds * 2**20) / 2**20


def random_case(rnd: Random) -> tuple[EngineSpec, list[tuple[float, dict[str, Any]]], list[tuple[float, int]]]:
    block = rnd.choice([4, 16])
    spec = EngineSpec(
        costs=BINARY,
        max_num_seqs=rnd.choice([1, 3, 8]),
        max_num_batched_tokens=rnd.choice([8, 40, 512]),
        kv_tokens=rnd.choice([256, 512, 4096]),
        block_tokens=block,
        prefix_tokens=block * rnd.choice([1, 2]),
        prefix_caching=rnd.random() < 0.8,
        priority=rnd.random() < 0.5,
    )
    arrivals: list[tuple[float, dict[str, Any]]] = []
    now = 0.0
    for owner in range(rnd.randint(1, 14)):
        now += exact(rnd.choice([0.0, 1 / 128, 0.1, 1.0]) * rnd.random())
        prompt, target = rnd.choice([1, 5, 30, 100]) + rnd.randint(0, 9), rnd.choice([1, 4, 40, 100])
        chunks = (prompt + target) // spec.prefix_tokens
        same = rnd.randint(0, chunks)
        chain = (*(1000 * rnd.randint(1, 2) + i for i in range(same)), *(9000 + 100 * owner + i for i in range(chunks - same)))
        facts = {"owner": owner, "prompt": prompt, "target": target, "chain": chain, "priority": rnd.randint(0, 2)}
        arrivals.append((now, facts))
    aborts = sorted((at + exact(rnd.random()), facts["owner"]) for at, facts in arrivals if rnd.random() < 0.15)
    return spec, arrivals, aborts


@settings(max_examples=400, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_spans_give_what_single_steps_give(slow: ModuleType, seed: int) -> None:
    spec, arrivals, aborts = random_case(Random(seed))
    model, oracle = EngineModel(spec), slow.SlowEngine(spec)
    news = run(model, [(at, Request(**facts)) for at, facts in arrivals], aborts)
    expected = oracle.run([(at, slow.Slow(**facts)) for at, facts in arrivals], aborts)
    aborted = dict((owner, at) for at, owner in aborts)
    said = [item for item in news if item[0] < aborted.get(item[1], float("inf"))]
    wanted = [item for item in expected if item[0] < aborted.get(item[1], float("inf"))]
    assert sorted(said) == sorted(wanted)
    assert model.preemptions == oracle.preemptions
    assert model.busy_s == pytest.approx(oracle.busy_s)
    assert model.cache.available == model.cache.size
