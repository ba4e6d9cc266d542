"""What a tenant may take: runs at work, runs that wait, rates. What is over is told at once, with when to come again."""

from random import Random
from types import ModuleType
from typing import Any

import pytest

from flowserve.config import Price, TenantLimits
from flowserve.core.allowances import Allowance
from flowserve.core.commands import Bound, Complete, Over, Reject
from flowserve.core.config import Config
from flowserve.core.quotas import Bucket
from flowserve.errors import ConfigError
from flowserve.graphs.plan import Plan
from flowserve.ids import RunId


def single(kit: ModuleType) -> Plan:
    b = kit.PlanBuilder()
    b.llm()
    plan: Plan = b.build()
    return plan


def limited(kit: ModuleType, **limits: Any) -> Any:
    """A scheduler whose tenant `a` has limits; nobody else has any."""
    return kit.Bench(window=8, tenant_limits=(("a", TenantLimits(**limits)),))


def over(out: list[Any]) -> tuple[float, Over]:
    [refused] = out
    assert isinstance(refused, Reject) and refused.over is not None
    return refused.retry_after_s, refused.over


# --- runs at work ---------------------------------------------------------------------------------------


def test_a_run_beyond_those_at_work_waits_for_one_of_its_tenant_to_end(kit: ModuleType) -> None:
    bench, plan = limited(kit, live_runs=1, queued_runs=2), single(kit)
    assert "dispatch 1 at e0" in kit.brief(bench.submit(plan, "first", tenant="a"))
    assert kit.brief(bench.submit(plan, "second", tenant="a")) == ["queued run second"]
    assert kit.brief(bench.finish(1, run="first")) == [
        "completed 1",
        "complete first",
        "open 0 block 0",
        "ready 1",
        "running run second",
        "running 1",
        "dispatch 1 at e0",
    ]


def test_without_a_queue_a_run_beyond_those_at_work_is_rejected(kit: ModuleType) -> None:
    bench, plan = limited(kit, live_runs=1), single(kit)
    bench.submit(plan, "first", tenant="a")
    assert over(bench.submit(plan, "second", tenant="a")) == (1.0, Over(Bound.LIVE, 1, 1, 0))
    bench.finish(1, run="first")
    bench.submit(plan, "third", tenant="a")
    assert "third" in bench.state.runs


def test_a_full_queue_rejects_and_says_when_runs_of_the_tenant_end(kit: ModuleType) -> None:
    bench, plan = limited(kit, live_runs=1, queued_runs=1), single(kit)
    bench.submit(plan, "r0", tenant="a")
    for number in range(1, 4):
        bench.submit(plan, f"r{number}", tenant="a")
        bench.now += 5.0
        bench.finish(1, run=f"r{number - 1}")
    bench.submit(plan, "waits", tenant="a")
    assert over(bench.submit(plan, "x", tenant="a")) == (5.0, Over(Bound.QUEUE, 1, 1, 0))
    assert over(bench.submit(plan, "y", tenant="a")) == (10.0, Over(Bound.QUEUE, 1, 1, 0))


def test_the_most_urgent_of_those_that_wait_begins_first(kit: ModuleType) -> None:
    bench, plan = limited(kit, live_runs=1, queued_runs=2), single(kit)
    for name, tier in (("first", "batch"), ("early", "batch"), ("late", "interactive")):
        bench.submit(plan, name, tenant="a", tier=tier)
    assert "dispatch 1 at e0" in kit.brief(bench.finish(1, run="first"))
    assert [run.id for run in bench.state.runs.values() if run.started] == ["late"]


def test_a_run_that_waits_can_be_cancelled_and_its_deadline_counts(kit: ModuleType) -> None:
    bench, plan = limited(kit, live_runs=1, queued_runs=2), single(kit)
    bench.submit(plan, "first", tenant="a")
    bench.submit(plan, "second", tenant="a")
    assert kit.brief(bench.submit(plan, "third", tenant="a", deadline_s=3.0)) == ["queued run third", "wake at 3"]
    assert kit.brief(bench.cancel("second")) == ["fail second cancelled"]
    assert kit.brief(bench.tick(3.0)) == ["fail third timed_out"]
    assert list(bench.state.runs) == ["first"] and not bench.state.held


def test_runs_that_wait_take_no_place_from_others(kit: ModuleType) -> None:
    bench = kit.Bench(window=8, max_live_runs=2, tenant_limits=(("a", TenantLimits(live_runs=1, queued_runs=9)),))
    plan = single(kit)
    for number in range(5):
        bench.submit(plan, f"a{number}", tenant="a")
    assert "dispatch 1 at e0" in kit.brief(bench.submit(plan, "b", tenant="b"))
    assert kit.brief(bench.submit(plan, "c", tenant="b")) == ["reject c for 1"]


def test_a_rejected_tenant_does_not_make_others_wait_longer(kit: ModuleType) -> None:
    bench = kit.Bench(max_live_runs=2, tenant_limits=(("a", TenantLimits(live_runs=1)),))
    plan = single(kit)
    bench.submit(plan, "a", tenant="a")
    bench.submit(plan, "b", tenant="b")
    for number in range(5):
        bench.submit(plan, f"a{number}", tenant="a")
    assert bench.submit(plan, "c", tenant="b") == [Reject(RunId("c"), 1.0)]


# --- rates ----------------------------------------------------------------------------------------------


def test_runs_per_minute_are_a_bucket_and_the_advice_is_exact(kit: ModuleType) -> None:
    bench, plan = limited(kit, runs_per_minute=30.0, run_burst=2.0), single(kit)
    bench.submit(plan, "r0", tenant="a")
    bench.submit(plan, "r1", tenant="a")
    wait, found = over(bench.submit(plan, "r2", tenant="a"))
    assert (wait, found) == (2.0, Over(Bound.RUNS, 30.0, 1, 0.0))
    bench.now += 1.999
    assert over(bench.submit(plan, "r2", tenant="a"))[0] == pytest.approx(0.001)
    bench.now += 0.001
    bench.submit(plan, "r2", tenant="a")
    assert "r2" in bench.state.runs


@pytest.mark.parametrize("seed", range(5))
def test_who_waits_as_long_as_it_was_told_is_let_in(kit: ModuleType, seed: int) -> None:
    rnd = Random(seed)
    bench, plan = limited(kit, runs_per_minute=rnd.uniform(1, 5000), run_burst=rnd.uniform(1, 3)), single(kit)
    for number in range(50):
        out = bench.submit(plan, f"r{number}", tenant="a")
        if isinstance(out[0], Reject):
            bench.now += out[0].retry_after_s
            assert not isinstance(bench.submit(plan, f"again{number}", tenant="a")[0], Reject)


def test_what_runs_took_is_charged_when_it_is_known_and_the_next_run_by_the_mean(kit: ModuleType) -> None:
    bench, plan = limited(kit, tokens_per_minute=600.0, token_burst=1000.0), single(kit)
    bench.submit(plan, "r0", tenant="a")
    bucket = bench.state.tenants["a"].quota.tokens[Bound.TOKENS]
    assert bucket.holds(bench.now) == 999.0, "nobody knows what it takes"
    bench.feed(kit.e.TaskFinished(RunId("r0"), 1, 1, 300, 100))
    assert bucket.holds(bench.now) == 600.0
    bench.submit(plan, "r1", tenant="a")
    assert bucket.holds(bench.now) == 200.0, "as much as the one before"
    assert over(bench.submit(plan, "r2", tenant="a")) == (20.0, Over(Bound.TOKENS, 600.0, 400.0, 200.0))
    bench.feed(kit.e.TaskFinished(RunId("r1"), 1, 1, 30, 10))
    assert bucket.holds(bench.now) == 560.0, "what it did not take goes back"


def test_a_bucket_that_owes_lets_nobody_in_until_it_does_not(kit: ModuleType) -> None:
    bench, plan = limited(kit, tokens_per_minute=60.0, token_burst=100.0), single(kit)
    bench.submit(plan, "r0", tenant="a")
    bench.tokens(1, 150, run="r0")
    wait, found = over(bench.submit(plan, "r1", tenant="a"))
    assert (wait, found) == (pytest.approx(51.0), Over(Bound.TOKENS, 60.0, 1.0, -50.0))
    bench.submit(plan, "other", tenant="b")
    assert "other" in bench.state.runs


def test_a_run_that_takes_more_than_a_burst_is_let_in_when_the_bucket_is_full(kit: ModuleType) -> None:
    bench, plan = limited(kit, tokens_per_minute=60.0, token_burst=100.0), single(kit)
    bench.submit(plan, "r0", tenant="a")
    bench.feed(kit.e.TaskFinished(RunId("r0"), 1, 1, 300, 0))
    wait, found = over(bench.submit(plan, "r1", tenant="a"))
    assert (wait, found.needed, found.left) == (300.0, 100.0, -200.0)
    bench.now += wait
    bench.submit(plan, "r1", tenant="a")
    assert "r1" in bench.state.runs


def test_a_bucket_against_a_slow_obvious_one() -> None:
    rnd = Random(1)
    bucket, level, now = Bucket(60.0, 10.0, 0.0), 10.0, 0.0
    for _ in range(500):
        pause, amount = rnd.randint(0, 5), rnd.randint(-3, 8)
        for _ in range(pause):
            level = min(10.0, level + 1.0)
        now += pause
        bucket.take(amount, now)
        level = min(10.0, level - amount)
        assert bucket.holds(now) == pytest.approx(level)
        if level < 5:
            assert bucket.wait_s(5, now) == pytest.approx(5 - level)


# --- allowances -----------------------------------------------------------------------------------------

HOUR, DAY = 3600.0, 86_400.0


def test_tokens_of_an_hour_are_back_as_a_whole_when_it_is_over(kit: ModuleType) -> None:
    bench, plan = limited(kit, tokens_per_hour=1000.0), single(kit)
    bench.submit(plan, "r0", tenant="a")
    bench.now = 600.0
    bench.feed(kit.e.TaskFinished(RunId("r0"), 1, 1, 300, 300))
    assert over(bench.submit(plan, "r1", tenant="a")) == (3000.0, Over(Bound.HOUR_TOKENS, 1000.0, 600.0, 400.0))
    bench.now = 3599.0
    assert over(bench.submit(plan, "r1", tenant="a"))[0] == 1.0
    bench.now = 3600.0
    bench.submit(plan, "r1", tenant="a")
    assert "r1" in bench.state.runs
    assert bench.state.tenants["a"].quota.tokens[Bound.HOUR_TOKENS].holds(bench.now) == 400.0, "prepaid"


def test_what_was_taken_beyond_an_hour_is_taken_from_the_next_ones(kit: ModuleType) -> None:
    bench, plan = limited(kit, tokens_per_hour=1000.0), single(kit)
    bench.submit(plan, "r0", tenant="a")
    bench.feed(kit.e.TaskFinished(RunId("r0"), 1, 1, 3000, 500))
    assert over(bench.submit(plan, "r1", tenant="a")) == (4 * HOUR, Over(Bound.HOUR_TOKENS, 1000.0, 1000.0, -2500.0))
    bench.now = 4 * HOUR
    bench.submit(plan, "r1", tenant="a")
    assert "r1" in bench.state.runs


def test_runs_at_work_have_taken_what_they_are_expected_to_take(kit: ModuleType) -> None:
    bench, plan = limited(kit, tokens_per_day=1000.0), single(kit)
    bench.submit(plan, "r0", tenant="a")
    bench.feed(kit.e.TaskFinished(RunId("r0"), 1, 1, 300, 100))
    bench.submit(plan, "r1", tenant="a")
    assert over(bench.submit(plan, "r2", tenant="a")) == (DAY, Over(Bound.DAY_TOKENS, 1000.0, 400.0, 200.0))
    bench.cancel("r1")
    bench.submit(plan, "r2", tenant="a")
    assert "r2" in bench.state.runs, "what r1 has not taken is back"


def test_money_is_what_calls_cost_by_the_prices(kit: ModuleType) -> None:
    limits = (("a", TenantLimits(money_per_hour=1.0)),)
    bench = kit.Bench(window=8, tenant_limits=limits, prices=(("", Price(1000.0, 2000.0)),))
    plan = single(kit)
    bench.submit(plan, "r0", tenant="a")
    bench.now = 60.0
    bench.feed(kit.e.TaskFinished(RunId("r0"), 1, 1, 200, 250))
    wait, found = over(bench.submit(plan, "r1", tenant="a"))
    assert (wait, found.bound) == (HOUR - 60.0, Bound.HOUR_MONEY)
    assert (found.needed, found.left) == pytest.approx((0.7, 0.3)), "200 tokens at 0.001, 250 at 0.002"
    bench.submit(plan, "other", tenant="b")
    assert "other" in bench.state.runs


def test_money_that_is_spent_refuses_runs_of_which_nobody_knows_what_they_cost(kit: ModuleType) -> None:
    limits = (("a", TenantLimits(money_per_hour=1.0)),)
    bench = kit.Bench(window=8, tenant_limits=limits, prices=(("", Price(1000.0, 1000.0)),))
    bench.submit(single(kit), "r0", tenant="a")
    bench.feed(kit.e.TaskFinished(RunId("r0"), 1, 1, 600, 400))
    b = kit.PlanBuilder("new")
    b.llm()
    assert over(bench.submit(b.build(), "r1", tenant="a"))[1].left == pytest.approx(0.0)


def test_money_without_prices_is_refused() -> None:
    with pytest.raises(ConfigError) as raised:
        Config(tenant_limits=(("a", TenantLimits(money_per_day=5.0)),))
    assert str(raised.value) == "tenant_limits: expected prices beside the money that 'a' may spend; got none"


def test_an_allowance_against_a_slow_obvious_one() -> None:
    rnd = Random(1)
    allowance, owed, now = Allowance(10.0, 5.0, 0.0), 0.0, 0
    for _ in range(2000):
        for _ in range(rnd.choice([0, 0, 1, 2, 9])):
            now += 1
            owed = max(0.0, owed - 10.0) if now % 5 == 0 else owed
        amount = rnd.choice([-2.0, 1.0, 4.0, 23.0])
        allowance.take(amount, now)
        owed = max(0.0, owed + amount)
        assert allowance.holds(now) == 10.0 - owed
        wanted = rnd.choice([1.0, 4.0, 10.0])
        waited, left = now, owed
        while 10.0 - left < wanted:
            waited += 1
            left = max(0.0, left - 10.0) if waited % 5 == 0 else left
        assert allowance.wait_s(wanted, now) == waited - now
        assert allowance.has(wanted, now) == (waited == now)


@pytest.mark.parametrize("seed", range(5))
def test_who_waits_for_an_allowance_as_long_as_it_was_told_is_let_in(kit: ModuleType, seed: int) -> None:
    rnd = Random(seed)
    bench, plan = limited(kit, tokens_per_hour=rnd.uniform(50, 500), tokens_per_day=rnd.uniform(500, 3000)), single(kit)
    refused = 0
    for number in range(100):
        bench.now += rnd.uniform(0, 900)
        out = bench.submit(plan, f"r{number}", tenant="a")
        if isinstance(out[0], Reject):
            refused += 1
            bench.now += out[0].retry_after_s
            assert not isinstance(bench.submit(plan, f"r{number}", tenant="a")[0], Reject)
        bench.feed(kit.e.TaskFinished(RunId(f"r{number}"), 1, 1, rnd.randint(1, 200), 0))
    assert refused


# --- whose ----------------------------------------------------------------------------------------------


def test_a_star_stands_for_those_that_are_not_named(kit: ModuleType) -> None:
    limits = (("a", TenantLimits()), ("*", TenantLimits(live_runs=1)))
    bench, plan = kit.Bench(window=8, tenant_limits=limits), single(kit)
    for number in range(2):
        for tenant in ("a", "b", ""):
            bench.submit(plan, f"{tenant}{number}", tenant=tenant)
    assert list(bench.state.runs) == ["a0", "b0", "0", "a1"]


def test_without_limits_nobody_has_a_quota(kit: ModuleType) -> None:
    bench = kit.Bench()
    bench.submit(single(kit), "r", tenant="a")
    assert bench.state.tenants["a"].quota is None
    assert isinstance(bench.finish(1)[-1], Complete)


@pytest.mark.parametrize(
    ("limits", "told"),
    [
        ({"live_runs": 0}, "TenantLimits.live_runs: expected a whole number of at least 1; got 0"),
        ({"queued_runs": 1.5}, "TenantLimits.queued_runs: expected a whole number of at least 1; got 1.5"),
        ({"runs_per_minute": 0}, "TenantLimits.runs_per_minute: expected a number above 0; got 0"),
        ({"runs_per_minute": "9"}, "TenantLimits.runs_per_minute: expected a number above 0; got '9'"),
        ({"tokens_per_minute": float("inf")}, "TenantLimits.tokens_per_minute: expected a number above 0; got inf"),
        ({"token_burst": 5.0}, "TenantLimits.token_burst: expected tokens_per_minute beside it; got none"),
        ({"money_per_day": 0}, "TenantLimits.money_per_day: expected a number above 0; got 0"),
        ({"runs_per_minute": 5, "run_burst": 0.5}, "TenantLimits.run_burst: expected at least 1; got 0.5"),
    ],
)
def test_limits_that_make_no_sense_are_refused(limits: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError) as raised:
        TenantLimits(**limits)
    assert str(raised.value) == told
