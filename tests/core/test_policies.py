"""Each policy of the table serves the runs that its source would serve first; tenants share; nobody waits for ever."""

from collections.abc import Sequence
from types import ModuleType
from typing import Any

import pytest

from flowserve.core.commands import Dispatch
from flowserve.core.config import Config
from flowserve.core.priority import POLICIES
from flowserve.errors import ConfigError
from flowserve.graphs.plan import Plan


def plan(kit: ModuleType, *levels: Sequence[float]) -> Plan:
    """Calls of these durations: those of a level side by side, each after all of the level before."""
    b = kit.PlanBuilder(f"levels{levels}")
    before: tuple[int, ...] = ()
    for level in levels:
        before = tuple(b.llm(*before, cost_s=cost) for cost in level)
    built: Plan = b.build()
    return built


def served(bench: Any, seconds: float = 1.0) -> str:
    """Finish whatever runs, a call at a time, each after so long; the first letters of the runs in order."""
    order = ""
    while running := [task for engine in bench.state.engines.values() for task in engine.running]:
        order += running[0].run.id[0]
        bench.now += seconds
        bench.finish(running[0].id, running[0].attempt, run=running[0].run.id)
    return order


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        ("fcfs", "xwwwwwcccsd"),
        ("critical_path", "xsdwwwwwccc"),
        ("shortest_work", "xsdcccwwwww"),
        ("srpt", "xsdcccwwwww"),
        ("trail", "xsdcccwwwww"),
        ("shortest_time", "xsdcccwwwww"),
        ("memory_time", "xsdwwwwwccc"),
        ("depth_first", "xsdwwwwwccc"),
        ("topology", "xwwwwwcccsd"),
        ("objectives", "xsdcccwwwww"),
        ("least_slack", "xdcwwwwccws"),
        ("plas", "xwcsdwcwcww"),
        ("atlas", "xwcsdwcwcww"),
    ],
)
def test_runs_go_in_the_order_of_the_policy(kit: ModuleType, policy: str, expected: str) -> None:
    """`w` is wide (four calls of 3 s, then one), `c` a chain of three (2 s), `s` short (1 s), `d` short with a deadline."""
    bench = kit.Bench(window=1, policy=policy, ageing=0.001)
    bench.submit(plan(kit, [1.0]), "x")
    bench.submit(plan(kit, [3.0, 3.0, 3.0, 3.0], [1.0]), "wide")
    bench.submit(plan(kit, [2.0], [2.0], [2.0]), "chain")
    bench.submit(plan(kit, [1.0]), "short")
    bench.submit(plan(kit, [1.0]), "due", deadline_s=50.0)
    assert served(bench) == expected


def test_every_policy_of_the_table_has_its_case_above() -> None:
    [mark] = [m for m in test_runs_go_in_the_order_of_the_policy.pytestmark if m.name == "parametrize"]  # type: ignore[attr-defined]
    assert {case[0] for case in mark.args[1]} | {"mlfq"} == set(POLICIES)


def items(kit: ModuleType, count: int) -> Plan:
    """A map of calls of 2 s."""
    b = kit.PlanBuilder(f"items{count}")
    body = b.block()
    b.map(body, limit=count)
    b.llm(cost_s=2.0, block=body)
    built: Plan = b.build()
    return built


def test_objectives_serve_calls_that_somebody_waits_for_before_groups_of_earlier_runs(kit: ModuleType) -> None:
    bench = kit.Bench(window=1, policy="objectives")
    bench.submit(plan(kit, [1.0]), "x")
    bench.submit(items(kit, 3), "map")
    bench.evaluate(1, 3, run="map")
    bench.submit(plan(kit, [1.0], [1.0]), "chat")
    assert served(bench) == "xccmmm"


def test_a_group_is_passed_for_a_minute_and_no_longer(kit: ModuleType) -> None:
    for later, order in ((59.0, "xcmm"), (61.0, "xmmc")):
        bench = kit.Bench(window=1, policy="objectives")
        bench.submit(plan(kit, [1.0]), "x")
        bench.submit(items(kit, 2), "map")
        bench.evaluate(1, 2, run="map")
        bench.now += later
        bench.submit(plan(kit, [1.0]), "chat")
        assert served(bench) == order


def test_runs_of_tier_batch_are_throughput_bound_as_a_whole_and_stand_behind_in_their_tier(kit: ModuleType) -> None:
    bench = kit.Bench(window=1, policy="objectives")
    bench.submit(plan(kit, [1.0]), "x")
    bench.submit(items(kit, 2), "map", tier="batch")
    bench.evaluate(1, 2, run="map")
    bench.submit(plan(kit, [1.0]), "batch", tier="batch")
    bench.submit(plan(kit, [1.0]), "standard")
    assert served(bench) == "xsmmb", "in their tier all are alike"


def test_a_group_of_a_run_goes_before_its_next_group(kit: ModuleType) -> None:
    b = kit.PlanBuilder("two")
    bodies = [b.block(), b.block()]
    first, second = (b.map(body, limit=4) for body in bodies)
    b.llm(block=bodies[0], cost_s=1.0)
    b.llm(block=bodies[1], cost_s=9.0)
    b.llm(first, cost_s=20.0)
    b.llm(second, cost_s=0.5)
    bench = kit.Bench(window=1, policy="objectives")
    bench.submit(b.build(), "r")
    bench.evaluate(2, 2)
    bench.evaluate(1, 2)
    order = []
    while running := list(bench.state.engines["e0"].running):
        order.append(int(running[0].node.id))
        bench.finish(running[0].id)
    assert order == [3, 2, 2, 3], "what runs when the other opens; then the group that holds up most, as a whole"


def test_topology_takes_calls_of_equal_depth_together_whatever_they_take(kit: ModuleType) -> None:
    """Two chains side by side, of three short calls and of two long ones."""
    orders = {}
    for policy in ("topology", "critical_path"):
        b = kit.PlanBuilder("chains")
        short = b.llm(cost_s=1.0)
        long = b.llm(cost_s=9.0)
        short = b.llm(short, cost_s=1.0)
        b.llm(short, cost_s=1.0)
        b.llm(long, cost_s=9.0)
        bench = kit.Bench(window=1, policy=policy)
        bench.submit(plan(kit, [1.0]), "x")
        bench.submit(b.build(), "chains")
        order = []
        while running := list(bench.state.engines["e0"].running):
            if running[0].run.id == "chains":
                order.append(int(running[0].node.id))
            bench.finish(running[0].id, run=running[0].run.id)
        orders[policy] = order
    assert orders == {"topology": [0, 1, 2, 4, 3], "critical_path": [1, 4, 0, 2, 3]}


def test_mlfq_sinks_a_run_by_what_it_has_had_and_lets_long_ones_join_below(kit: ModuleType) -> None:
    bench = kit.Bench(window=1, policy="mlfq", ageing=0.001)
    bench.submit(plan(kit, [1.0]), "x")
    bench.submit(plan(kit, [30.0]), "long")
    bench.submit(plan(kit, [0.5], [0.5], [0.5]), "steps")
    bench.submit(plan(kit, [0.5]), "once")
    assert served(bench, seconds=2.0) == "xsossl", "steps has had 2 s, so once passes; long joins where 30 s belong"


def test_a_run_sinks_no_deeper_than_waiting_lifts_it(kit: ModuleType) -> None:
    bench = kit.Bench(window=1, policy="plas", ageing=0.25)
    bench.submit(plan(kit, *[[1.0]] * 40), "old")
    for number in range(30):
        bench.submit(plan(kit, [1.0]), f"new{number}")
        bench.now += 1.0
        [task] = bench.state.engines["e0"].running
        bench.finish(task.id, run=task.run.id)
    assert bench.state.runs["old"].attained > 4.0, "new runs come as fast as they are served, and old ones still move"


# --- tenants ------------------------------------------------------------------------------------------


def flood(kit: ModuleType, bench: Any, tenant: str, count: int) -> None:
    for number in range(count):
        bench.submit(plan(kit, [2.0]), f"{tenant}{number}", tenant=tenant)


def test_a_tenant_that_floods_does_not_delay_one_that_asks_once(kit: ModuleType) -> None:
    bench = kit.Bench(window=1)
    flood(kit, bench, "a", 6)
    flood(kit, bench, "b", 1)
    assert served(bench, 2.0) == "aabaaaa", (
        "what ran when it came, and one more: who comes back begins where the others stand"
    )


def test_tenants_that_flood_alike_take_turns(kit: ModuleType) -> None:
    bench = kit.Bench(window=1)
    flood(kit, bench, "a", 4)
    flood(kit, bench, "b", 4)
    assert served(bench, 2.0) == "aabababb"


def test_a_tenant_of_twice_the_weight_gets_twice_the_service(kit: ModuleType) -> None:
    bench = kit.Bench(window=1, tenant_weights=(("a", 2.0),))
    flood(kit, bench, "a", 12)
    flood(kit, bench, "b", 12)
    assert served(bench, 2.0)[:15].count("a") == 10


def test_a_tenant_that_was_away_has_saved_nothing_up(kit: ModuleType) -> None:
    bench = kit.Bench(window=1, ageing=0.0)
    flood(kit, bench, "b", 1)
    served(bench, 2.0)
    flood(kit, bench, "a", 20)
    for number in range(10):
        bench.now += 2.0
        bench.finish(1, run=f"a{number}")
    flood(kit, bench, "b", 6)
    order = served(bench, 2.0)
    assert order[:13].count("b") == 6, "20 s of service behind, and still in turns"


def test_without_fairness_a_flood_goes_first(kit: ModuleType) -> None:
    bench = kit.Bench(window=1, fairness=0.0)
    flood(kit, bench, "a", 4)
    flood(kit, bench, "b", 1)
    assert served(bench, 2.0) == "aaaab"


def test_a_call_is_charged_while_it_runs_and_costs_in_the_end_what_it_took(kit: ModuleType) -> None:
    bench = kit.Bench(window=1)
    flood(kit, bench, "a", 1)
    assert bench.state.tenants["a"].counter == 2.0
    assert served(bench, 0.5) == "a"
    assert bench.state.tenants["a"].counter == pytest.approx(0.5)


def test_tiers_stand_above_shares(kit: ModuleType) -> None:
    bench = kit.Bench(window=1)
    flood(kit, bench, "a", 4)
    bench.submit(plan(kit, [1.0]), "urgent", tenant="a", tier="interactive")
    bench.submit(plan(kit, [1.0]), "late", tenant="b", tier="batch")
    bench.state.tenants["a"].counter += 1e6
    assert served(bench) == "uaaaal"


def test_a_weight_that_is_no_share_is_refused() -> None:
    with pytest.raises(ConfigError, match="tenant_weights: expected a number above 0 for 'a'; got 0"):
        Config(tenant_weights=(("a", 0.0),))


def test_a_dispatch_of_a_run_that_had_service_carries_its_new_rank_to_the_engine(kit: ModuleType) -> None:
    bench = kit.Bench(window=1, policy="plas")
    bench.submit(plan(kit, [1.0], [1.0]), "r")
    bench.now += 3.0
    [dispatch] = [c for c in bench.finish(1) if isinstance(c, Dispatch)]
    assert dispatch.priority == int((5 * 120 + 3.0 + 11 * 120) * 1000)
