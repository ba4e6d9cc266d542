"""What cannot be on time is said at once, with the estimate; what may be is taken."""

from types import ModuleType
from typing import Any

import pytest

from flowserve.core.commands import Reject
from flowserve.core.estimates import FRESH
from flowserve.graphs.plan import Plan
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
