"""Random plans, random answers in random order, with failures, losses, cancels, time limits and noise."""

from random import Random
from types import ModuleType

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flowserve.config import PoolConfig, Price, TenantLimits
from flowserve.core.placements import PLACEMENTS
from flowserve.core.priority import POLICIES
from flowserve.graphs.plan import Budget


def random_limits(rnd: Random) -> tuple[tuple[str, TenantLimits], ...]:
    """Of tenants `a` and, for about half of the worlds, all others."""
    narrow = TenantLimits(live_runs=1, queued_runs=rnd.choice([None, 1, 3]))
    rates = TenantLimits(
        live_runs=rnd.choice([None, 2]), runs_per_minute=60.0, run_burst=2.0, tokens_per_minute=600.0, token_burst=400.0
    )
    return (("a", narrow), ("*", rates))[: rnd.randint(0, 2)]


def random_budget(rnd: Random) -> Budget | None:
    """None for most."""
    return rnd.choice([None] * 3 + [Budget(tokens=rnd.choice([30, 600])), Budget(seconds=0.5), Budget(money=0.002)])


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(seed=st.integers(0, 2**32), policy=st.sampled_from(sorted(POLICIES)))
def test_any_order_of_events_keeps_the_invariants_and_ends(kit: ModuleType, seed: int, policy: str) -> None:
    rnd = Random(seed)
    driver = kit.Driver(
        rnd,
        policy=policy,
        max_live_runs=4,
        tool_window=2,
        search_window=1,
        run_retries=rnd.choice([3, 99]),
        tenant_limits=random_limits(rnd),
    )
    plans = [kit.random_plan(rnd) for _ in range(2)]
    for _ in range(rnd.randint(10, 120)):
        if rnd.random() < 0.1:
            limit = rnd.choice([None, None, 2.0, 10.0])
            tier = rnd.choice(["interactive", "standard", "batch"])
            how = {"tenant": rnd.choice(["", "a", "b"]), "budget": random_budget(rnd)}
            driver.start(rnd.choice(plans), deadline_s=limit, tier=tier, priority=rnd.randint(-9, 9), **how)
        else:
            driver.random_event()
    driver.drain()
    driver.assert_nothing_left()
    assert len(driver.ended) == driver.num_runs


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(seed=st.integers(0, 2**32))
def test_any_fate_of_engines_and_calls_keeps_the_invariants_and_ends(kit: ModuleType, seed: int) -> None:
    """Measured calls that write, move, are hedged and pushed out, on engines that stall, trip, drain and come back."""
    rnd = Random(seed)
    pool = PoolConfig(
        hedge_after_s=rnd.choice([0.0, 0.1]),
        hedge_share=1.0,
        stall_s=rnd.choice([0.3, 5.0]),
        probe_s=0.4,
        first_token_s=rnd.choice([0.0, 1.0]),
        between_tokens_s=1.0,
        drain_s=0.5,
        outage_s=1e9,
        breaker_calls=4,
        ahead_tokens=rnd.choice([0, 64]),
        group_tokens=rnd.choice([0, 64]),
        near_s=rnd.choice([0.0, 0.05, 5.0]),
    )
    named = {"policy": rnd.choice(sorted(POLICIES)), "placement": rnd.choice(sorted(PLACEMENTS))}
    prices = (("", Price(1.0, 4.0, cached=0.1)), ("large", Price(10.0, 40.0)))
    driver = kit.Driver(
        rnd,
        engines=0,
        max_live_runs=4,
        measure=True,
        pool=pool,
        run_retries=99,
        tenant_limits=random_limits(rnd),
        prices=prices[: rnd.randint(0, 2)],
        drop_hopeless=rnd.random() < 0.5,
        **named,
    )
    driver.facts = {
        "kv_tokens": rnd.choice([0, 3000]),
        "batch_tokens": rnd.choice([0, 300]),
        "restart": rnd.random() < 0.8,
        "preempt": rnd.random() < 0.5,
        "reprioritise": rnd.random() < 0.5,
    }
    for number in range(2):
        driver.engine(f"e{number}", 2, models=driver.serves(f"e{number}"), **driver.facts)
    plans = [kit.random_plan(rnd) for _ in range(2)]
    for _ in range(rnd.randint(10, 150)):
        if rnd.random() < 0.12:
            tier = rnd.choice(["interactive", "standard", "batch"])
            session = rnd.choice([None, "s1", "s2"])
            how = {"tenant": rnd.choice(["", "a", "b"]), "budget": random_budget(rnd)}
            driver.start(rnd.choice(plans), deadline_s=rnd.choice([None, 10.0]), tier=tier, session=session, **how)
        else:
            driver.random_event()
    driver.drain()
    driver.assert_nothing_left()
    assert len(driver.ended) == driver.num_runs
