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
        chain = (
            *(1000 * rnd.randint(1, 2) + i for i in range(same)),
            *(9000 + 100 * owner + i for i in range(chunks - same)),
        )
        facts = {"owner": owner, "prompt": prompt, "target": target, "chain": chain, "priority": rnd.randint(0, 2)}
        facts["mark"] = rnd.choice([0, 1, 2, 30, 110])
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
    aborted = {owner: at for at, owner in aborts}
    said = [item for item in news if item[0] < aborted.get(item[1], float("inf"))]
    wanted = [item for item in expected if item[0] < aborted.get(item[1], float("inf"))]
    assert sorted(said) == sorted(wanted)
    assert model.preemptions == oracle.preemptions
    assert model.busy_s == pytest.approx(oracle.busy_s)
    assert model.cache.available == model.cache.size


# --- small cases, by hand ------------------------------------------------------------------------------------


def spec(**fields: Any) -> EngineSpec:
    given: dict[str, Any] = {"costs": UNIT, "kv_tokens": 1024, "max_num_batched_tokens": 100, "max_num_seqs": 4}
    return EngineSpec(**given | fields)


def call(owner: int, prompt: int, target: int, **fields: Any) -> Request:
    return Request(owner, prompt, target, **fields)


def test_a_call_alone_takes_its_prefill_and_a_step_per_further_token() -> None:
    news = run(EngineModel(spec()), [(5.0, call(1, 50, 3))])
    assert news == [(5.0 + 1.5, 1, "first"), (pytest.approx(5.0 + 1.5 + 2 * 1.1), 1, "last")]


def test_a_long_prompt_is_computed_in_steps_of_the_budget() -> None:
    [(at, _, what)] = run(EngineModel(spec()), [(0.0, call(1, 250, 1))])
    assert (at, what) == (pytest.approx(2.0 + 2.0 + 1.5), "last")


def test_a_call_that_comes_in_the_middle_of_a_step_begins_with_the_next() -> None:
    news = run(EngineModel(spec()), [(0.0, call(1, 50, 10)), (3.0, call(2, 20, 1))])
    assert news[:2] == [(1.5, 1, "first"), (pytest.approx(1.5 + 2 * 1.1 + 1.0 + 0.1 + 0.2), 2, "last")]


def test_calls_beyond_the_seats_wait_for_an_end() -> None:
    model = EngineModel(spec(max_num_seqs=1))
    news = run(model, [(0.0, call(1, 10, 3)), (0.0, call(2, 10, 1))])
    assert [(owner, what) for _, owner, what in news] == [(1, "first"), (1, "last"), (2, "last")]


@pytest.mark.parametrize(("priority", "order"), [(True, [1, 3, 2]), (False, [1, 2, 3])])
def test_waiting_calls_go_by_priority_where_the_engine_knows_it(priority: bool, order: list[int]) -> None:
    model = EngineModel(spec(max_num_seqs=1, priority=priority))
    calls = [call(1, 10, 1), call(2, 10, 1, priority=5), call(3, 10, 1, priority=1)]
    news = run(model, [(0.0, calls[0]), (0.5, calls[1]), (0.5, calls[2])])
    assert [owner for _, owner, _ in news] == order


def test_what_a_call_has_written_is_found_by_a_fork_from_a_mark_on() -> None:
    model = EngineModel(spec())
    news = run(model, [(0.0, call(1, 60, 100, chain=(7, 8), mark=70)), (120.0, call(2, 140, 1, chain=(7, 8)))])
    assert [what for _, owner, what in news if owner == 1] == ["first", "mark", "last"]
    assert news[1][0] == pytest.approx(1.6 + 69 * 1.1)
    assert model.cached_tokens == 128


def test_an_equal_prefix_is_not_computed_again() -> None:
    model = EngineModel(spec())
    chain = (7, 8)
    news = run(model, [(0.0, call(1, 140, 1, chain=chain)), (10.0, call(2, 140, 1, chain=chain))])
    assert news[1][0] == pytest.approx(10.0 + 1.0 + 0.12), "128 of 140 tokens are there"
    assert (model.cached_tokens, model.prefill_tokens) == (128, 152)


def test_at_least_one_token_of_a_prompt_is_computed() -> None:
    model = EngineModel(spec())
    run(model, [(0.0, call(1, 128, 1, chain=(7, 8))), (10.0, call(2, 128, 1, chain=(7, 8)))])
    assert model.cached_tokens == 64


def test_without_memory_the_latest_call_begins_again_with_what_it_has_written() -> None:
    model = EngineModel(spec(kv_tokens=128, prefix_caching=False, priority=False))
    news = run(model, [(0.0, call(1, 40, 40)), (0.0, call(2, 40, 40))])
    assert model.preemptions == 1
    assert [(owner, what) for _, owner, what in news] == [(1, "first"), (2, "first"), (1, "last"), (2, "last")]
    assert model.prefill_tokens > 80, "what was pushed out is computed again"
    assert model.decode_tokens == 80


def test_what_was_pushed_out_and_aborted_says_nothing_more() -> None:
    model = EngineModel(spec())
    request = call(1, 10, 50)
    model.add(request, 0.0)
    model.plan(0.0)
    assert [what for _, what in model.finish()] == ["first"]
    model.plan(1.1)
    model.preempt(request, 1.2)
    model.abort(request, 1.2)
    assert model.finish() == []
    model.plan(2.2)
    assert not model.has_work and model.cache.available == model.cache.size


def test_a_frozen_engine_goes_on_when_it_has_thawed() -> None:
    model = EngineModel(spec())
    model.add(call(1, 10, 2), 0.0)
    model.freeze(100.0, 0.0)
    model.plan(0.0)
    assert model.next_at == pytest.approx(101.1)


def test_a_call_that_never_fits_is_told() -> None:
    model = EngineModel(spec(kv_tokens=128))
    assert model.fits(call(1, 100, 28)) and not model.fits(call(1, 100, 29))


@pytest.mark.parametrize(
    "fields", [{"prefix_tokens": 20}, {"max_num_seqs": 200}, {"kv_tokens": 10}, {"max_num_seqs": 0}]
)
def test_an_engine_that_cannot_be_is_refused(fields: dict[str, int]) -> None:
    with pytest.raises(ConfigError):
        spec(**fields)
