"""Heads of prompts: computed ahead by engines that have nothing to do, and out of the way of everything else."""

from types import ModuleType
from typing import Any

import pytest

from flowserve.config import PoolConfig
from flowserve.core import events as e
from flowserve.ids import EngineId, FrameId, NodeId, RunId

HEAD = RunId("r"), FrameId(0)


def bench(kit: ModuleType, engines: int = 2, ahead_tokens: int = 256) -> Any:
    return kit.Bench(engines, measure=True, pool=PoolConfig(ahead_tokens=ahead_tokens))


def after_a_tool(kit: ModuleType) -> Any:
    """A model call that reads what a tool gives."""
    plan = kit.PlanBuilder()
    plan.llm(plan.tool())
    return plan.build()


def lines(kit: ModuleType, out: Any) -> list[str]:
    return [line for line in kit.brief(out) if "head" in line or "dispatch" in line]


def test_what_is_known_is_computed_while_a_tool_runs(kit: ModuleType) -> None:
    run = bench(kit)
    assert lines(kit, run.submit(after_a_tool(kit))) == ["dispatch 1", "measure head of node 1 in 0"]
    prefix = tuple(range(10))
    out = run.feed(e.HeadMeasured(*HEAD, NodeId(1), 640, prefix))
    assert kit.brief(out) == ["compute head of node 1 in 0 at e0"]
    assert kit.brief(run.feed(e.HeadComputed(*HEAD, NodeId(1)))) == []
    run.finish(1)
    assert lines(kit, run.measured(2, 700, prefix=(*prefix, 10))) == ["dispatch 2 at e0"]
    assert run.state.runs[HEAD[0]].tasks[2].call.resident == 640


def test_the_call_itself_goes_on_where_its_head_is_being_computed(kit: ModuleType) -> None:
    run = bench(kit)
    run.submit(after_a_tool(kit))
    run.feed(e.HeadMeasured(*HEAD, NodeId(1), 640, tuple(range(10))))
    run.finish(1)
    out = run.measured(2, 700, prefix=tuple(range(10)))
    assert lines(kit, out) == ["drop head of node 1 in 0 at e0", "dispatch 2 at e0"]
    assert run.state.runs[HEAD[0]].tasks[2].call.resident == 0, "nobody knows how much of it was computed"
    assert kit.brief(run.feed(e.HeadComputed(*HEAD, NodeId(1)))) == [] and run.state.stale == 1


def test_another_call_displaces_it(kit: ModuleType) -> None:
    run = bench(kit, engines=1)
    run.submit(after_a_tool(kit))
    run.feed(e.HeadMeasured(*HEAD, NodeId(1), 640, tuple(range(10))))
    plan = kit.PlanBuilder("other")
    plan.llm()
    run.submit(plan.build(), "s")
    out = run.measured(1, 50, run="s")
    assert lines(kit, out) == ["drop head of node 1 in 0 at e0", "dispatch 1 at e0"]


@pytest.mark.parametrize(("tokens", "held"), [(0, 0), (255, 0), (640, 7)])
def test_what_is_short_or_held_already_is_left(kit: ModuleType, tokens: int, held: int) -> None:
    run = bench(kit, engines=1)
    run.feed(e.KVChanged(EngineId("e0"), tuple(range(held))))
    run.submit(after_a_tool(kit))
    out = run.feed(e.HeadMeasured(*HEAD, NodeId(1), tokens, tuple(range(tokens // 64))))
    assert kit.brief(out) == ["drop head of node 1 in 0"]


def test_no_head_where_no_engine_is_idle(kit: ModuleType) -> None:
    run = bench(kit, engines=1)
    plan = kit.PlanBuilder()
    plan.llm(plan.llm())
    run.submit(plan.build())
    assert lines(kit, run.measured(1)) == ["dispatch 1 at e0"], "its own call keeps the only engine busy"


def test_a_call_at_one_engine_and_the_next_ones_head_at_the_other(kit: ModuleType) -> None:
    run = bench(kit)
    plan = kit.PlanBuilder()
    plan.llm(plan.llm())
    run.submit(plan.build())
    assert lines(kit, run.measured(1)) == ["dispatch 1 at e0", "measure head of node 1 in 0"]
    out = run.feed(e.HeadMeasured(*HEAD, NodeId(1), 640, tuple(range(10))))
    assert kit.brief(out) == ["compute head of node 1 in 0 at e1"]


def test_of_several_results_the_last_one_counts(kit: ModuleType) -> None:
    run = bench(kit)
    plan = kit.PlanBuilder()
    plan.llm(plan.tool(), plan.tool())
    assert "head" not in "".join(lines(kit, run.submit(plan.build())))
    assert lines(kit, run.finish(1)) == ["measure head of node 2 in 0"]


@pytest.mark.parametrize("computing", [False, True])
def test_the_end_of_a_run_is_the_end_of_its_heads(kit: ModuleType, computing: bool) -> None:
    run = bench(kit)
    run.submit(after_a_tool(kit))
    if computing:
        run.feed(e.HeadMeasured(*HEAD, NodeId(1), 640, tuple(range(10))))
    where = " at e0" if computing else ""
    assert lines(kit, run.cancel()) == [f"drop head of node 1 in 0{where}"]
    assert not run.state.heads and run.state.engines["e0"].head is None


def test_an_engine_that_goes_or_is_drained_computes_no_more(kit: ModuleType) -> None:
    for event in (e.EngineChanged(EngineId("e0"), False), e.DrainRequested(EngineId("e0"))):
        run = bench(kit)
        run.submit(after_a_tool(kit))
        run.feed(e.HeadMeasured(*HEAD, NodeId(1), 640, tuple(range(10))))
        assert "drop head of node 1 in 0 at e0" in kit.brief(run.feed(event))


def test_off_by_default(kit: ModuleType) -> None:
    run = kit.Bench(2, measure=True)
    assert lines(kit, run.submit(after_a_tool(kit))) == ["dispatch 1"]
