"""What cannot be on time is said at once, with the estimate; what may be is taken."""

from dataclasses import replace
from types import ModuleType
from typing import Any

import pytest

from flowserve.core.commands import Reject
from flowserve.core.estimates import FRESH
from flowserve.graphs.plan import SLO, Plan
from flowserve.ids import RunId


def single(kit: ModuleType, cost_s: float = 1.0) -> Plan:
    b = kit.PlanBuilder()
    b.llm(cost_s=cost_s)
    plan: Plan = b.build()
    return plan


def learned(kit: ModuleType, seconds: float, **config: Any) -> tuple[Any, Plan]:
    """A scheduler that has seen runs of a plan take so long."""
    bench, plan = kit.Bench(window=1, ageing=0.0, **config), single(kit)
    for number in range(FRESH):
        bench.submit(plan, f"before{number}")
        bench.now += seconds
        bench.finish(1, run=f"before{number}")
    return bench, plan


def test_a_run_that_takes_far_longer_than_it_has_is_rejected_at_once_with_the_estimate(kit: ModuleType) -> None:
    bench, plan = learned(kit, 30.0)
    [refused] = bench.submit(plan, "r", deadline_s=10.0)
    assert isinstance(refused, Reject) and refused.run == RunId("r")
    assert (refused.retry_after_s, refused.expected_s, refused.wait_s) == pytest.approx((1.0, 30.0, 0.0))
    assert not bench.state.runs and not bench.state.shapes and not len(bench.state.timers)


@pytest.mark.parametrize("allowed", [16.0, 29.0, 60.0, None])
def test_a_run_that_may_be_on_time_is_taken(kit: ModuleType, allowed: float | None) -> None:
    bench, plan = learned(kit, 30.0)
    bench.submit(plan, "r", deadline_s=allowed)
    assert "r" in bench.state.runs


def test_those_that_go_before_it_count(kit: ModuleType) -> None:
    bench, plan = learned(kit, 10.0)
    for number in range(4):
        bench.submit(plan, f"ahead{number}")
    [refused] = bench.submit(plan, "r", deadline_s=12.0, tier="batch")
    assert (refused.expected_s, refused.wait_s, refused.retry_after_s) == pytest.approx((50.0, 40.0, 40.0))
    bench.submit(plan, "urgent", deadline_s=12.0, tier="interactive")
    assert "urgent" in bench.state.runs, "nobody goes before it"


def test_what_nobody_has_seen_is_tried(kit: ModuleType) -> None:
    bench = kit.Bench()
    bench.submit(single(kit, cost_s=500.0), "r", deadline_s=1.0)
    assert "r" in bench.state.runs


def test_it_can_be_switched_off(kit: ModuleType) -> None:
    bench, plan = learned(kit, 30.0, hopeless=0.0)
    bench.submit(plan, "r", deadline_s=1.0)
    assert "r" in bench.state.runs


# --- a binding promise ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("promised", "binding", "taken"), [(14.9, True, False), (15.0, True, True), (1.0, False, True)]
)
def test_a_run_that_cannot_keep_a_binding_promise_is_rejected(
    kit: ModuleType, promised: float, binding: bool, taken: bool
) -> None:
    bench, plan = learned(kit, 30.0)
    out = bench.submit(replace(plan, slo=SLO(e2e=promised, binding=binding)), "r")
    assert ("r" in bench.state.runs) is taken
    if not taken:
        assert (out[0].expected_s, out[0].wait_s) == pytest.approx((30.0, 0.0))


# --- under way ------------------------------------------------------------------------------------------


def two_calls(kit: ModuleType) -> Plan:
    b = kit.PlanBuilder()
    b.llm(b.llm())
    plan: Plan = b.build()
    return plan


def seen(kit: ModuleType, plan: Plan, first: float, second: float, **config: Any) -> Any:
    """A scheduler that has seen runs of two calls take so long."""
    bench = kit.Bench(window=1, ageing=0.0, **config)
    for number in range(FRESH):
        bench.submit(plan, f"before{number}")
        for task, seconds in ((1, first), (2, second)):
            bench.now += seconds
            bench.finish(task, run=f"before{number}")
    return bench


@pytest.mark.parametrize(
    ("slow", "told"), [(14.75, "dispatch 2 at e0"), (15.25, "fail r failed by 2 deadline_hopeless")]
)
def test_a_call_that_would_be_in_vain_is_not_computed(kit: ModuleType, slow: float, told: str) -> None:
    """The second call takes 10 s, so with a margin of 2 the run is lost when less than 5 s are left."""
    plan = two_calls(kit)
    bench = seen(kit, plan, 4.0, 10.0, drop_hopeless=True)
    bench.submit(plan, deadline_s=20.0)
    bench.now += slow
    out = bench.finish(1)
    before = ["completed 1", "ready 2"]
    if told.startswith("fail"):
        assert kit.brief(out) == [*before, "cancelled 2", told]
        assert out[-1].expected_s == pytest.approx(10.0)
    else:
        assert kit.brief(out) == [*before, "running 2", told]


def test_it_is_off_unless_asked_for(kit: ModuleType) -> None:
    plan = two_calls(kit)
    bench = seen(kit, plan, 4.0, 10.0)
    bench.submit(plan, deadline_s=20.0)
    bench.now += 19.9
    assert "dispatch 2 at e0" in kit.brief(bench.finish(1))


def test_priors_end_nothing(kit: ModuleType) -> None:
    """The first call was seen, the second never: only the compiler says that it takes 500 s."""
    b = kit.PlanBuilder()
    b.llm(b.llm(), cost_s=500.0)
    plan = b.build()
    bench = kit.Bench(drop_hopeless=True)
    for number in range(2 * FRESH):
        bench.submit(plan, f"before{number}")
        bench.now += 1.0
        bench.finish(1, run=f"before{number}")
        bench.cancel(f"before{number}")
    bench.submit(plan, deadline_s=300.0)
    assert bench.state.runs["r"].tails[1] == pytest.approx(500.0)
    bench.now += 299.0
    assert "dispatch 2 at e0" in kit.brief(bench.finish(1))


def test_a_call_that_others_may_do_without_ends_nothing(kit: ModuleType) -> None:
    b = kit.PlanBuilder()
    body = b.block()
    b.sample(body, n=2)
    b.llm(block=body)
    plan = b.build()
    bench = kit.Bench(ageing=0.0, drop_hopeless=True, hopeless=1.0)
    for number in range(FRESH):
        run = f"before{number}"
        bench.submit(plan, run)
        bench.evaluate(1, 2, run=run)
        bench.now += 10.0
        bench.finish(2, run=run)
        bench.finish(3, run=run)
        bench.finish(1, run=run)
    bench.submit(plan, deadline_s=10.0)
    bench.now += 5.0
    assert "dispatch 2 at e0" in kit.brief(bench.evaluate(1, 2))


def test_a_call_that_is_needed_ends_its_run_from_inside_a_map_too(kit: ModuleType) -> None:
    b = kit.PlanBuilder()
    body = b.block()
    b.map(body)
    b.llm(block=body)
    plan = b.build()
    bench = kit.Bench(ageing=0.0, drop_hopeless=True, hopeless=1.0)
    for number in range(FRESH):
        run = f"before{number}"
        bench.submit(plan, run)
        bench.evaluate(1, 1, run=run)
        bench.now += 10.0
        bench.finish(2, run=run)
        bench.finish(1, run=run)
    bench.submit(plan, deadline_s=10.0)
    bench.now += 5.0
    assert kit.brief(bench.evaluate(1, 2))[-1] == "fail r failed by 2 deadline_hopeless"
