"""Random plans, random answers in random order, with failures, losses, cancels, time limits and noise."""

from random import Random
from types import ModuleType

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(seed=st.integers(0, 2**32), policy=st.sampled_from(["critical_path", "fcfs"]))
def test_any_order_of_events_keeps_the_invariants_and_ends(kit: ModuleType, seed: int, policy: str) -> None:
    rnd = Random(seed)
    driver = kit.Driver(
        rnd, policy=policy, max_live_runs=4, tool_window=2, search_window=1, run_retries=rnd.choice([3, 99])
    )
    plans = [kit.random_plan(rnd) for _ in range(2)]
    for _ in range(rnd.randint(10, 120)):
        if rnd.random() < 0.1:
            limit = rnd.choice([None, None, 2.0, 10.0])
            tier = rnd.choice(["interactive", "standard", "batch"])
            driver.start(rnd.choice(plans), deadline_s=limit, tier=tier, priority=rnd.randint(-9, 9))
        else:
            driver.random_event()
    driver.drain()
    driver.assert_nothing_left()
    assert len(driver.ended) == driver.num_runs
