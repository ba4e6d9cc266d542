"""Policies that go by what calls are expected to write: who goes first, who makes way, and for how long."""

from types import ModuleType
from typing import Any

import pytest

from flowserve.core.commands import Cancel, Command, Dispatch, Mark, Status
from flowserve.core.events import Code, Loss, TaskFinished
from flowserve.graphs.plan import Plan
from flowserve.ids import EngineId, FrameId, NodeId, RunId, TaskId

SHORT, LONG = 20, 4000
"""Prompts whose answers are short (10 tokens) and long (400)."""


def one_call(kit: ModuleType) -> Plan:
    b = kit.PlanBuilder("one")
    b.llm(cost_s=5.0)
    plan: Plan = b.build()
    return plan


def ask(bench: Any, plan: Plan, run: str, prompt: int, **fields: Any) -> list[Command]:
    bench.submit(plan, run, **fields)
    out: list[Command] = bench.measured(1, run=run, tokens=prompt, limit=1000, on_loss=Loss.CONTINUE)
    return out


def taught(kit: ModuleType, **config: Any) -> tuple[Any, Plan]:
    """A bench whose predictor has seen the two sorts of calls of a node, each 5 s long."""
    bench = kit.Bench(window=1, measure=True, **{"predictor": "quantile", "ageing": 0.001, **config})
    plan = one_call(kit)
    for number in range(40):
        run, long = f"seen{number}", number % 2
        ask(bench, plan, run, LONG if long else SHORT)
        bench.now += 5.0
        bench.feed(TaskFinished(RunId(run), TaskId(1), 1, tokens_out=400 if long else 10))
    return bench, plan


def dispatched(out: list[Command]) -> list[str]:
    return [command.run for command in out if isinstance(command, Dispatch)]


@pytest.mark.parametrize(
    ("policy", "first"),
    [
        ("critical_path", "long"),
        ("shortest_work", "long"),
        ("srpt", "short"),
        ("trail", "short"),
        ("memory_time", "short"),
    ],
)
def test_of_two_calls_of_a_node_the_one_that_will_write_less_goes_first(
    kit: ModuleType, policy: str, first: str
) -> None:
    bench, plan = taught(kit, policy=policy)
    ask(bench, plan, "busy", SHORT)
    ask(bench, plan, "long", LONG)
    ask(bench, plan, "short", SHORT)
    assert dispatched(bench.finish(1, run="busy")) == [first]


def test_srpt_counts_a_call_in_proportion_to_what_its_node_writes(kit: ModuleType) -> None:
    bench, plan = taught(kit, policy="srpt")
    ask(bench, plan, "busy", SHORT)
    ask(bench, plan, "long", LONG)
    ask(bench, plan, "short", SHORT)
    runs = bench.state.runs
    usual = runs["long"].shape.figures.written[NodeId(0)].mean
    assert runs["long"].work + runs["long"].longer_s == pytest.approx(5.0 * 400 / usual)
    assert runs["short"].work + runs["short"].longer_s == pytest.approx(5.0 * 10 / usual)


def test_memory_time_is_the_path_times_what_is_needed_over_what_usually_is(kit: ModuleType) -> None:
    bench, plan = taught(kit, policy="memory_time", ageing=0.0)
    usual = bench.state.lengths.kv_tokens.mean
    ask(bench, plan, "busy", SHORT)
    ask(bench, plan, "long", LONG)
    run = bench.state.runs["long"]
    assert run.rank - run.level * 120.0 == pytest.approx(5.0 * (LONG + 400) / usual)


def test_a_run_whose_calls_are_over_ranks_as_if_they_had_never_been(kit: ModuleType) -> None:
    b = kit.PlanBuilder("two")
    b.llm(b.llm(cost_s=5.0), cost_s=5.0)
    bench = kit.Bench(window=1, measure=True, policy="memory_time")
    bench.submit(b.build())
    bench.measured(1, tokens=700, limit=100)
    assert bench.state.runs["r"].kv_tokens == 750, "the prompt and half of the limit"
    bench.finish(1)
    run = bench.state.runs["r"]
    assert (run.kv_tokens, run.longer_s) == (0, 0.0)


def test_a_longer_call_makes_way_for_a_shorter_one_while_it_is_far_from_its_end(kit: ModuleType) -> None:
    bench, plan = taught(kit, policy="trail")
    ask(bench, plan, "long", LONG)
    bench.tokens(1, 300, run="long")
    out = ask(bench, plan, "short", SHORT)
    [dispatch] = [command for command in out if isinstance(command, Dispatch)]
    short = dispatch.priority
    one, zero, task = NodeId(0), FrameId(0), TaskId(1)
    assert out == [
        Cancel(RunId("long"), task, 1, EngineId("e0")),
        Mark(RunId("long"), Status.CONTINUED, task, one, zero, 1, code=Code.MOVED),
        Mark(RunId("long"), Status.READY, task, one, zero, 2),
        Mark(RunId("short"), Status.RUNNING),
        Mark(RunId("short"), Status.RUNNING, task, one, zero, 1),
        Dispatch(RunId("short"), task, one, zero, 1, engine=EngineId("e0"), priority=short),
    ]
    run = bench.state.runs["long"]
    usual = run.shape.figures.written[NodeId(0)].mean
    assert run.work + run.longer_s == pytest.approx(5.0 * (400 - 300) / usual), "what remains of it"
    [again] = [command for command in bench.finish(1, run="short") if isinstance(command, Dispatch)]
    assert (again.run, again.attempt, again.resume) == ("long", 2, True)


@pytest.mark.parametrize(
    ("why", "written", "policy", "prompt"),
    [
        ("it has written more than C of what it will", 321, "trail", SHORT),
        ("the new one is no shorter than what remains", 300, "trail", LONG),
        ("other policies leave calls of a tier where they are", 300, "shortest_work", SHORT),
        ("srpt orders what waits", 300, "srpt", SHORT),
        ("memory_time orders what waits", 300, "memory_time", SHORT),
    ],
)
def test_otherwise_it_stays(kit: ModuleType, why: str, written: int, policy: str, prompt: int) -> None:
    bench, plan = taught(kit, policy=policy)
    ask(bench, plan, "long", LONG)
    bench.tokens(1, written, run="long")
    assert dispatched(ask(bench, plan, "next", prompt)) == [], why


def test_a_call_makes_way_a_bounded_number_of_times(kit: ModuleType) -> None:
    bench, plan = taught(kit, policy="trail")
    ask(bench, plan, "long", LONG)
    bench.tokens(1, 1, run="long")
    for number in range(bench.state.config.pool.max_moves):
        assert dispatched(ask(bench, plan, f"short{number}", SHORT)) == [f"short{number}"]
        assert dispatched(bench.finish(1, run=f"short{number}")) == ["long"]
        bench.tokens(1, 1, attempt=number + 2, run="long")
    assert dispatched(ask(bench, plan, "late", SHORT)) == []


@pytest.mark.parametrize("policy", ["srpt", "trail", "memory_time"])
def test_a_long_call_is_served_within_the_bound_however_many_short_ones_come(kit: ModuleType, policy: str) -> None:
    """As many come as are served. The bound is what a run may be behind by, a band, over `ageing`."""
    bench, plan = taught(kit, policy=policy, band_s=10.0, ageing=0.5)
    ask(bench, plan, "busy", SHORT)
    ask(bench, plan, "long", LONG)
    began, running, number = bench.now, "busy", 0
    while running != "long":
        ask(bench, plan, f"short{number}", SHORT)
        number += 1
        bench.now += 1.0
        [running] = dispatched(bench.finish(1, run=running))
        assert bench.now - began <= 10.0 / 0.5 + 1.0
    assert number > 1, "it did wait for some"
