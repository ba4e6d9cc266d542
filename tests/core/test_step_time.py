"""What is known of an engine's steps, and who may join a batch beside urgent calls."""

from random import Random
from types import ModuleType
from typing import Any

import pytest

from flowserve.config import PoolConfig
from flowserve.core.commands import Dispatch
from flowserve.core.step_time import StepTime


def seen(*spans: tuple[float, float]) -> StepTime:
    steps = StepTime()
    for calls, seconds in spans:
        steps.add(calls, seconds)
    return steps


def test_the_line_through_exact_spans_is_found() -> None:
    rnd = Random(1)
    steps = seen(*((n := rnd.randint(1, 64), 0.01 + 0.0005 * n) for _ in range(50)))
    base, slope = steps.line() or (0.0, 0.0)
    assert (base, slope) == pytest.approx((0.01, 0.0005))
    assert steps.beside(urgent=4, slowdown=2.0) == pytest.approx(0.01 / 0.0005 + 2 - 4)


@pytest.mark.parametrize(
    "spans",
    [
        [(1, 0.1), (64, 0.2)],
        [(8, 0.01), (8, 0.02)] * 20,
        [(1, 0.02), (64, 0.01)] * 20,
        [(10, 0.001), (60, 0.4)] * 20,
    ],
    ids=["two spans", "one size", "larger is quicker", "less than nothing for none"],
)
def test_where_nothing_is_known_nobody_waits(spans: list[tuple[float, float]]) -> None:
    assert seen(*spans).beside(urgent=4, slowdown=2.0) == float("inf")


def test_older_spans_fade() -> None:
    before = [(n, 0.01 + 0.0005 * n) for n in range(1, 60)]
    after = [(n, 0.02 + 0.001 * n) for n in range(1, 60)] * 10
    base, slope = seen(*before, *after).line() or (0.0, 0.0)
    assert (base, slope) == pytest.approx((0.02, 0.001), rel=0.01)


def bench_with(kit: ModuleType, **pool: Any) -> Any:
    """An engine whose steps take 10 ms and 5 ms per call: 30 ms, twice what one call takes, are reached with four."""
    bench = kit.Bench(window=32, pool=PoolConfig(**pool))
    for n in range(1, 20):
        bench.state.engines["e0"].step_time.add(n, 0.01 + 0.005 * n)
    return bench


def single(kit: ModuleType) -> Any:
    b = kit.PlanBuilder()
    b.llm()
    return b.build()


def started(out: Any) -> list[str]:
    return [c.run for c in out if isinstance(c, Dispatch)]


def test_calls_of_a_less_urgent_tier_join_until_steps_take_twice_as_long_and_go_when_the_urgent_one_left(
    kit: ModuleType,
) -> None:
    bench, plan = bench_with(kit), single(kit)
    assert started(bench.submit(plan, "urgent", tier="interactive")) == ["urgent"]
    went = [started(bench.submit(plan, f"b{n}", tier="batch")) for n in range(5)]
    assert went == [["b0"], ["b1"], ["b2"], [], []]
    assert started(bench.submit(plan, "s", tier="standard")) == ["s"], "it does not wait for those behind it"
    assert started(bench.finish(1, run="urgent")) == [], "what is standard is urgent to batch"
    assert started(bench.finish(1, run="s")) == ["b3", "b4"], "nobody urgent is left"


def test_one_call_may_always_join(kit: ModuleType) -> None:
    bench, plan = bench_with(kit, tier_slowdown=1.01), single(kit)
    bench.submit(plan, "urgent", tier="interactive")
    assert started(bench.submit(plan, "b0", tier="batch")) == ["b0"]
    assert started(bench.submit(plan, "b1", tier="batch")) == []


def test_the_bound_can_be_switched_off(kit: ModuleType) -> None:
    bench, plan = bench_with(kit, tier_slowdown=0.0), single(kit)
    bench.submit(plan, "urgent", tier="interactive")
    assert [started(bench.submit(plan, f"b{n}", tier="batch")) for n in range(9)] == [[f"b{n}"] for n in range(9)]


def test_calls_of_one_tier_do_not_wait_for_each_other(kit: ModuleType) -> None:
    bench, plan = bench_with(kit), single(kit)
    assert all(started(bench.submit(plan, f"r{n}")) for n in range(20))
