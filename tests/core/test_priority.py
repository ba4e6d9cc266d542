"""Who goes first: policies, ageing and its bound, windows, placement, admission."""

from random import Random
from types import ModuleType
from typing import Any

import pytest

from flowserve.core.commands import Command, Dispatch, Reject
from flowserve.core.config import Config
from flowserve.core.priority import TIERS, engine_priority, level
from flowserve.core.state import SchedulerState
from flowserve.errors import ConfigError
from flowserve.ids import RunId


def dispatched(out: list[Command]) -> list[str]:
    return [command.run for command in out if isinstance(command, Dispatch)]


def order(kit: ModuleType, bench: Any) -> list[str]:
    """Finish what runs, one by one, until nothing does; the runs in order of dispatch."""
    seen: list[str] = []
    while True:
        running = [task for engine in bench.state.engines.values() for task in engine.running]
        if not running:
            return seen
        seen.append(running[0].run.id)
        bench.finish(running[0].id, running[0].attempt, run=running[0].run.id)


def chain(kit: ModuleType, *costs: float) -> Any:
    b = kit.PlanBuilder(f"chain{costs}")
    last: tuple[int, ...] = ()
    for cost in costs:
        last = (b.llm(*last, cost_s=cost),)
    return b.build()


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        ("critical_path", ["blocker", "short", "short", "middle", "long", "long"]),
        ("fcfs", ["blocker", "long", "long", "middle", "short", "short"]),
    ],
)
def test_critical_path_serves_the_shortest_run_first_and_fcfs_the_earliest(
    kit: ModuleType, policy: str, expected: list[str]
) -> None:
    bench = kit.Bench(window=1, policy=policy)
    bench.submit(chain(kit, 1.0), "blocker")
    bench.submit(chain(kit, 9.0, 9.0), "long")
    bench.submit(chain(kit, 5.0), "middle")
    bench.submit(chain(kit, 1.0, 1.0), "short")
    assert order(kit, bench) == expected


def test_a_run_that_comes_near_its_end_overtakes(kit: ModuleType) -> None:
    bench = kit.Bench(window=1)
    bench.submit(chain(kit, 9.0, 1.0), "nearly")
    bench.submit(chain(kit, 5.0), "middle")
    bench.submit(chain(kit, 7.0), "later")
    assert dispatched(bench.finish(1, run="nearly")) == ["nearly"]


def test_waiting_tasks_of_a_run_move_up_when_its_critical_path_shortens(kit: ModuleType) -> None:
    b = kit.PlanBuilder("wide")
    b.tool(cost_s=50.0)
    b.llm(cost_s=2.0)
    bench = kit.Bench(window=1)
    bench.submit(chain(kit, 1.0), "blocker")
    bench.submit(b.build(), "wide")
    bench.submit(chain(kit, 5.0), "other")
    assert bench.finish(1, run="wide")[-1].task == 1
    assert order(kit, bench) == ["blocker", "wide", "other"]


def test_within_a_run_the_longest_tail_goes_first(kit: ModuleType) -> None:
    b = kit.PlanBuilder()
    b.llm(cost_s=1.0)
    b.llm(cost_s=2.0)
    long = b.llm(cost_s=1.5)
    b.llm(long, cost_s=3.0)
    bench = kit.Bench(window=1)
    out = bench.submit(b.build())
    tasks = [command.task for command in out if isinstance(command, Dispatch)]
    for _ in range(3):
        tasks += [command.task for command in bench.finish(tasks[-1]) if isinstance(command, Dispatch)]
    assert tasks == [3, 4, 2, 1]


def test_a_nested_node_is_ranked_by_its_way_to_the_end_of_the_run(kit: ModuleType) -> None:
    b = kit.PlanBuilder()
    body = b.block()
    fan = b.map(body, cost_s=2.0)
    b.llm(cost_s=6.0)
    b.llm(fan, cost_s=9.0)
    b.llm(block=body, cost_s=2.0)
    bench = kit.Bench(window=1)
    bench.submit(b.build())
    bench.evaluate(1, 1)
    assert [type(c).__name__ + str(c.task) for c in bench.finish(2) if isinstance(c, Dispatch)] == ["Dispatch3"]
    b = kit.PlanBuilder()
    b.llm(cost_s=1.0)
    body = b.block()
    b.llm(cost_s=6.0)
    b.map(body, cost_s=2.0)
    b.llm(block=body, cost_s=2.0)
    bench = kit.Bench(window=1)
    bench.submit(b.build())
    bench.evaluate(3, 1)
    assert [c.task for c in bench.finish(2) if isinstance(c, Dispatch)] == [4], "2 s nested before 1 s outside"


def test_tiers_come_before_client_priority_and_that_before_the_critical_path(kit: ModuleType) -> None:
    bench = kit.Bench(window=1)
    bench.submit(chain(kit, 1.0), "blocker", tier="interactive", priority=9)
    bench.submit(chain(kit, 1.0), "batch", tier="batch", priority=5)
    bench.submit(chain(kit, 1.0), "standard")
    bench.submit(chain(kit, 90.0), "raised", priority=1)
    bench.submit(chain(kit, 1.0), "interactive-low", tier="interactive", priority=-5)
    bench.submit(chain(kit, 90.0), "interactive", tier="interactive")
    bench.submit(chain(kit, 1.0), "unknown", tier="gold")
    assert order(kit, bench) == [
        "blocker",
        "interactive",
        "interactive-low",
        "raised",
        "standard",
        "unknown",
        "batch",
    ]


def test_levels_are_ordered_and_clamped() -> None:
    config = Config(priority_levels=2)
    levels = [level(tier, priority, config) for tier in TIERS for priority in (99, 2, 1, 0, -1, -2, -99)]
    assert levels == [0, 0, 1, 2, 3, 4, 4, 5, 5, 6, 7, 8, 9, 9, 10, 10, 11, 12, 13, 14, 14]


def test_starvation_is_bounded_by_the_documented_time(kit: ModuleType) -> None:
    """Under a stream of short runs that alone fills the engine, a long one passes all that came 4 w after it."""
    bench = kit.Bench(window=1, ageing=0.25, max_live_runs=10_000)
    bench.submit(chain(kit, 1.0), "running")
    bench.submit(chain(kit, 20.0), "long")
    current, number, served = "running", 0, 0.0
    while current != "long":
        for _ in range(2):  # two arrive in the time of one
            bench.submit(chain(kit, 1.0), f"s{number}")
            number += 1
        bench.now += 1.0
        served = bench.now
        [current] = dispatched(bench.finish(1, run=current))
        assert served <= 20.0 / 0.25 * 2 + 10, "the long run starves"
    assert served > 20.0, "it was passed by shorter ones for a while"
    submitted = {run.id: run.submitted_at for run in bench.state.runs.values()}
    passed = [int(run[1:]) for run in (f"s{i}" for i in range(number)) if run not in submitted]
    assert max(passed) / 2 <= 20.0 / 0.25 + 1, "nobody who came later than w / ageing went before it"


def test_dispatch_priority_never_contradicts_the_rank() -> None:
    ranks = [Random(1).uniform(0, 1e6) for _ in range(1000)]
    assert [engine_priority(rank) for rank in sorted(ranks)] == sorted(engine_priority(rank) for rank in ranks)


def test_windows_bound_what_runs_and_the_rest_waits(kit: ModuleType) -> None:
    b = kit.PlanBuilder()
    for _ in range(3):
        b.tool()
        b.search()
        b.llm()
    bench = kit.Bench(window=2, tool_window=1, search_window=2)
    out = bench.submit(b.build())
    assert [c.task for c in out if isinstance(c, Dispatch)] == [3, 6, 1, 2, 5]
    assert kit.brief(bench.finish(1)) == ["completed 1", "running 4", "dispatch 4"]


def test_calls_go_to_the_least_loaded_engine_that_serves_the_model(kit: ModuleType) -> None:
    b = kit.PlanBuilder()
    for model in (None, None, None, "large", "large", None):
        b.llm(model=model)
    bench = kit.Bench(engines=0)
    bench.engine("small", window=4)
    bench.engine("both", window=2, models=("", "large"))
    bench.engine("idle", window=0)
    out = bench.submit(b.build())
    assert [(c.task, c.engine) for c in out if isinstance(c, Dispatch)] == [
        (1, "small"),
        (2, "both"),
        (3, "small"),
        (4, "both"),
        (6, "small"),
    ]
    bench.engine("small", window=1)
    assert kit.brief(bench.finish(1)) == ["completed 1"]
    assert kit.brief(bench.finish(4)) == ["completed 4", "running 5", "dispatch 5 at both"]


def test_one_run_more_than_allowed_is_rejected_with_advice_from_the_rate_of_endings(kit: ModuleType) -> None:
    plan = chain(kit, 1.0)
    bench = kit.Bench(max_live_runs=1)
    for number in range(4):
        bench.submit(plan, f"r{number}")
        bench.now += 3.0
        bench.finish(1, run=f"r{number}")
    bench.submit(plan, "last")
    assert bench.submit(plan, "x") == [Reject(RunId("x"), 3.0)]
    assert bench.submit(plan, "y") == [Reject(RunId("y"), 6.0)]
    bench.now += 1e6
    assert bench.submit(plan, "z") == [Reject(RunId("z"), 60.0)]
    assert kit.Bench(max_live_runs=1).state.rejected == 0


def test_the_first_rejected_client_gets_the_least_advice(kit: ModuleType) -> None:
    bench = kit.Bench(max_live_runs=1)
    bench.submit(chain(kit, 1.0), "a")
    assert bench.submit(chain(kit, 1.0), "b") == [Reject(RunId("b"), 1.0)]


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"tool_window": 0}, "tool_window"),
        ({"band_s": 0.0}, "band_s"),
        ({"ageing": float("nan")}, "ageing"),
        ({"retry_share": -0.1}, "retry_share"),
        ({"min_reject_s": 99.0}, "min_reject_s"),
    ],
)
def test_wrong_settings_are_refused_by_name(fields: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=f"^{named}: expected"):
        Config(**fields)


def test_an_unknown_policy_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="atlas, critical_path, depth_first, fcfs"):
        SchedulerState(Config(policy="lottery"))
