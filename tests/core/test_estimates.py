"""What is learned of nodes: critical paths, widths, lengths of answers; and what stays as it was."""

from types import ModuleType
from typing import Any

import pytest

from flowserve.core.commands import Dispatch
from flowserve.core.engine_state import Engine
from flowserve.core.estimates import FRESH, MOST_PLANS, Figure
from flowserve.core.events import Code
from flowserve.core.predict import shares
from flowserve.graphs.plan import Plan, Retry


def single(kit: ModuleType, name: str, cost_s: float) -> Plan:
    b = kit.PlanBuilder(name)
    b.llm(cost_s=cost_s)
    plan: Plan = b.build()
    return plan


def serve(bench: Any, plan: Plan, seconds: float, times: int = FRESH) -> None:
    """Runs of one model call each, one after the other."""
    for number in range(times):
        run = f"{plan.name}-{number}"
        bench.submit(plan, run)
        bench.now += seconds
        bench.finish(1, run=run)


def first_served(bench: Any, plans: dict[str, Plan]) -> list[str]:
    """Order in which runs go that came, in this order, while the engine was busy."""
    [blocker, *others] = plans
    for name, plan in plans.items():
        bench.submit(plan, name)
    order, current = [], blocker
    for _ in others:
        [found] = [c for c in bench.finish(1, run=current) if isinstance(c, Dispatch)]
        order.append(current := str(found.run))
    bench.finish(1, run=current)
    return order


def test_runs_are_ordered_by_what_their_nodes_took_not_by_what_the_compiler_guessed(kit: ModuleType) -> None:
    bench = kit.Bench(window=1)
    said_short, said_long = single(kit, "said-short", 1.0), single(kit, "said-long", 5.0)
    line = {"blocker": said_short, "a": said_long, "b": said_short}
    assert first_served(bench, line) == ["b", "a"]
    serve(bench, said_short, 9.0, 20)
    serve(bench, said_long, 2.0, 20)
    assert first_served(bench, line) == ["a", "b"]


def test_a_run_keeps_the_paths_that_it_was_accepted_with(kit: ModuleType) -> None:
    bench = kit.Bench(window=4)
    plan = single(kit, "p", 5.0)
    bench.submit(plan, "old")
    rank = bench.state.runs["old"].rank
    serve(bench, plan, 1.0)
    bench.submit(plan, "new")
    old, new = bench.state.runs["old"], bench.state.runs["new"]
    assert old.tails == (5.0,) and old.rank == rank
    assert new.tails == pytest.approx((1.0,))


def test_nothing_is_computed_anew_before_enough_was_seen(kit: ModuleType) -> None:
    bench = kit.Bench()
    plan = single(kit, "p", 5.0)
    serve(bench, plan, 1.0, FRESH - 1)
    bench.submit(plan, "r")
    assert bench.state.runs["r"].tails == (5.0,)


def test_an_execution_that_was_retried_teaches_nothing(kit: ModuleType) -> None:
    b = kit.PlanBuilder()
    b.tool(cost_s=5.0, retry=Retry(attempts=2))
    bench = kit.Bench()
    bench.submit(b.build())
    bench.fail(1, Code.TOOL)
    bench.tick(60.0)
    figures = bench.state.runs["r"].shape.figures
    bench.finish(1, attempt=2)
    assert figures.figures[0].seen == 0


def test_a_map_counts_its_items_and_a_body_that_is_slow_makes_it_long(kit: ModuleType) -> None:
    b = kit.PlanBuilder()
    body = b.block()
    item = b.tool(block=body, cost_s=1.0)
    mapped = b.map(body, limit=100, concurrency=1, cost_s=8.0)
    plan = b.build()
    bench = kit.Bench()
    for number in range(FRESH):
        run = f"r{number}"
        bench.submit(plan, run)
        bench.evaluate(1, 3, run=run)
        for task in (2, 3, 4):
            bench.now += 2.0
            bench.finish(task, run=run)
        bench.finish(1, run=run)
    bench.submit(plan, "r")
    tails = bench.state.runs["r"].tails
    assert tails[mapped] == pytest.approx(3 * 2.0)
    assert tails[item] == pytest.approx(2.0)


def test_a_switch_is_as_long_as_the_arms_that_are_taken(kit: ModuleType) -> None:
    b = kit.PlanBuilder()
    short, long = b.block(), b.block()
    b.tool(block=short, cost_s=1.0)
    b.tool(block=long, cost_s=9.0)
    chosen = b.switch((short, long), cost_s=9.0)
    plan = b.build()
    bench = kit.Bench()
    for number in range(FRESH):
        run = f"r{number}"
        bench.submit(plan, run)
        bench.evaluate(1, 0, run=run)
        bench.now += 1.0
        bench.finish(2, run=run)
        bench.finish(1, run=run)
    bench.submit(plan, "r")
    assert bench.state.runs["r"].tails[chosen] == pytest.approx(1.0)


def test_a_loop_is_as_long_as_its_iterations(kit: ModuleType) -> None:
    b = kit.PlanBuilder()
    body = b.block()
    b.tool(block=body, cost_s=1.0)
    loop = b.loop(body, limit=10, cost_s=4.0)
    plan = b.build()
    bench = kit.Bench()
    for number in range(FRESH):
        run = f"r{number}"
        bench.submit(plan, run)
        for task in (2, 3):
            bench.evaluate(1, 0, run=run)
            bench.now += 1.0
            bench.finish(task, run=run)
        bench.evaluate(1, 1, run=run)
        bench.finish(1, run=run)
    bench.submit(plan, "r")
    assert bench.state.runs["r"].tails[loop] == pytest.approx(2.0)


def test_a_call_nobody_has_seen_counts_in_terms_of_those_that_were_seen(kit: ModuleType) -> None:
    bench = kit.Bench()
    serve(bench, single(kit, "known", 10.0), 1.0)
    bench.submit(single(kit, "new", 20.0), "r")
    assert bench.state.runs["r"].tails == pytest.approx((2.0,))


def test_the_length_of_an_answer_is_expected_as_the_node_writes_it(kit: ModuleType) -> None:
    bench = kit.Bench(measure=True, window=8)
    terse, wordy = single(kit, "terse", 1.0), single(kit, "wordy", 1.0)
    for number in range(shares.ENOUGH):
        for plan, tokens in ((terse, 10), (wordy, 90)):
            run = f"{plan.name}-{number}"
            bench.submit(plan, run)
            bench.measured(1, run=run, limit=100)
            bench.feed(kit.e.TaskFinished(run, 1, 1, tokens_out=tokens))
    ahead = {}
    for plan in (terse, wordy):
        bench.submit(plan, plan.name)
        engine: Engine = bench.state.engines["e0"]
        before = engine.ahead
        bench.measured(1, run=plan.name, limit=200)
        ahead[plan.name] = engine.ahead - before
    assert ahead == {"terse": 20, "wordy": 180}


def test_a_plan_that_was_not_used_for_long_is_forgotten(kit: ModuleType) -> None:
    bench = kit.Bench()
    for number in range(MOST_PLANS + 1):
        plan = single(kit, f"p{number}", 1.0)
        bench.submit(plan, "r")
        bench.finish(1)
    known = bench.state.estimates.plans
    assert len(known) == MOST_PLANS and single(kit, "p0", 1.0).digest not in known


def test_a_mean_starts_with_what_came_first_and_forgets_in_the_end() -> None:
    figure = Figure()
    for value in (4.0, 8.0):
        figure.add(value)
    assert figure.mean == 6.0
    for _ in range(100):
        figure.add(1.0)
    assert figure.mean == pytest.approx(1.0, abs=0.01)


def test_money_that_was_taken_back_leaves_no_expectation_under_nothing(kit: ModuleType) -> None:
    bench = kit.Bench()
    plan = single(kit, "priced", 1.0)
    serve(bench, plan, 1.0)
    bench.state.estimates.plans[plan.digest].money.mean = -8e-20
    assert bench.state.estimates.money(plan.digest) == 0.0
