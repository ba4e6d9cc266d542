"""What runs spend, and that they end where their budgets do: before a call, while it writes, when it has answered."""

from types import ModuleType
from typing import Any

import pytest

from flowserve.config import Price, TenantLimits
from flowserve.core.commands import Complete, Fail, Overspent, Spending
from flowserve.core.events import Code, Loss, TaskFinished
from flowserve.core.log import LogWriter, replay
from flowserve.graphs.plan import Budget, Plan
from flowserve.ids import NodeId, RunId, TaskId


def chain(kit: ModuleType, count: int = 2, *models: str) -> Plan:
    """Model calls in a row."""
    b = kit.PlanBuilder()
    for number in range(count):
        b.llm(*range(number)[-1:], model=models[number] if models else None)
    plan: Plan = b.build()
    return plan


def side_by_side(kit: ModuleType, count: int) -> Plan:
    b = kit.PlanBuilder()
    for _ in range(count):
        b.llm()
    plan: Plan = b.build()
    return plan


def answered(bench: Any, task: int, tokens_in: int, tokens_out: int, cached: int = 0, attempt: int = 1) -> Any:
    return bench.feed(TaskFinished(RunId("r"), TaskId(task), attempt, tokens_in, tokens_out, cached_tokens=cached))


def failed(out: list[Any]) -> Fail:
    fail: Fail = out[-1]
    assert isinstance(fail, Fail)
    return fail


# --- what is spent --------------------------------------------------------------------------------------


def test_a_run_tells_what_it_has_spent_without_a_budget_too(kit: ModuleType) -> None:
    bench = kit.Bench(measure=True, prices=(("*", Price(1.0, 10.0, cached=0.5)),))
    bench.submit(chain(kit))
    bench.measured(1, 100)
    bench.now += 2.0
    answered(bench, 1, 100, 20, cached=64)
    bench.measured(2, 50)
    bench.now += 1.0
    out = answered(bench, 2, 50, 5)
    spent = out[-1].spent
    assert out[-1] == Complete(RunId("r"), Spending(86, 64, 25, 3.0, spent.money))
    assert spent.money == pytest.approx((86 * 1.0 + 64 * 0.5 + 25 * 10.0) / 1e6)


def test_a_call_that_is_tried_again_is_paid_again_and_one_that_goes_on_is_not(kit: ModuleType) -> None:
    bench = kit.Bench(engines=2, measure=True)
    bench.submit(chain(kit, 1))
    bench.measured(1, 100, on_loss=Loss.CONTINUE)
    bench.tokens(1, 7)
    bench.engine("e0", up=False)
    bench.tokens(1, 3, attempt=2, engine="e1")
    assert answered(bench, 1, 107, 10, attempt=2)[-1].spent == Spending(100, 0, 10, 0.0, None)

    bench = kit.Bench(engines=2, measure=True)
    bench.submit(chain(kit, 1))
    bench.measured(1, 100)
    bench.tokens(1, 7)
    bench.engine("e0", up=False)
    bench.tokens(1, 3, attempt=2, engine="e1")
    assert answered(bench, 1, 100, 10, attempt=2)[-1].spent == Spending(200, 0, 17, 0.0, None)


def test_a_call_without_a_token_that_is_taken_back_has_spent_seconds_alone(kit: ModuleType) -> None:
    bench = kit.Bench(measure=True)
    bench.submit(chain(kit, 1))
    bench.measured(1, 100)
    bench.now += 2.0
    assert failed(bench.cancel()).spent == Spending(0, 0, 0, 2.0, None)


# --- tokens ---------------------------------------------------------------------------------------------


def test_a_call_whose_prompt_does_not_fit_is_not_made(kit: ModuleType) -> None:
    bench = kit.Bench(measure=True)
    bench.submit(chain(kit), budget=Budget(tokens=220))
    bench.measured(1, 100)
    answered(bench, 1, 100, 20)
    out = bench.measured(2, 101)
    assert kit.brief(out) == ["cancelled 2", "fail r failed by 2 budget_exhausted"]
    node = (NodeId(0), Spending(100, 0, 20, 0.0, None))
    assert failed(out).over == Overspent("tokens", 220, 120, 101, (node,))


def test_a_call_whose_prompt_just_fits_is_made_and_ends_when_it_writes(kit: ModuleType) -> None:
    bench = kit.Bench(measure=True)
    bench.submit(chain(kit), budget=Budget(tokens=220))
    bench.measured(1, 100)
    answered(bench, 1, 100, 20)
    assert "dispatch 2 at e0" in kit.brief(bench.measured(2, 100))
    out = bench.tokens(2)
    assert kit.brief(out) == ["cancel 2 at e0", "cancelled 2", "fail r failed by 2 budget_exhausted"]
    found = failed(out).over
    assert found is not None and (found.spent, found.needed) == (221, 0)
    assert [(node, spent.prompt, spent.output) for node, spent in found.nodes] == [(0, 100, 20), (1, 100, 1)]


def test_exactly_the_budget_may_be_spent(kit: ModuleType) -> None:
    bench = kit.Bench(measure=True)
    bench.submit(chain(kit, 1), budget=Budget(tokens=120))
    bench.measured(1, 100)
    bench.tokens(1, 20)
    assert kit.brief(answered(bench, 1, 100, 20)) == ["completed 1", "complete r"]


def test_an_answer_that_was_longer_than_the_budget_is_no_result(kit: ModuleType) -> None:
    bench = kit.Bench()
    bench.submit(chain(kit, 1), budget=Budget(tokens=119))
    assert kit.brief(answered(bench, 1, 100, 20)) == ["completed 1", "fail r failed by 1 budget_exhausted"]


def test_tokens_that_were_in_the_cache_are_not_computed(kit: ModuleType) -> None:
    bench = kit.Bench(measure=True)
    bench.submit(chain(kit, 2), budget=Budget(tokens=60))
    bench.measured(1, 40)
    answered(bench, 1, 40, 10, cached=32)
    bench.measured(2, 40)
    assert bench.state.runs["r"].spent.told() == Spending(48, 32, 10, 0.0, None)
    assert kit.brief(answered(bench, 2, 40, 10, cached=8)) == ["completed 2", "complete r"]


def test_prompts_of_calls_side_by_side_count_from_their_dispatch(kit: ModuleType) -> None:
    bench = kit.Bench(measure=True)
    bench.submit(side_by_side(kit, 3), budget=Budget(tokens=250))
    bench.measured(1, 100)
    bench.measured(2, 100)
    assert kit.brief(bench.measured(3, 100)) == [
        "cancel 1 at e0",
        "cancelled 1",
        "cancel 2 at e0",
        "cancelled 2",
        "cancelled 3",
        "fail r failed by 3 budget_exhausted",
    ]


def test_what_a_run_frees_by_its_end_is_given_out_in_the_same_step(kit: ModuleType) -> None:
    bench = kit.Bench(window=1, measure=True)
    bench.submit(chain(kit, 1), budget=Budget(tokens=100))
    bench.submit(chain(kit, 1), "next")
    bench.measured(1, 100)
    bench.measured(1, 100, run="next")
    assert kit.brief(bench.tokens(1))[-3:] == ["running run next", "running 1", "dispatch 1 at e0"]


def test_a_run_that_ends_by_its_budget_lets_one_that_waits_for_it_begin(kit: ModuleType) -> None:
    limits = (("a", TenantLimits(live_runs=1, queued_runs=2)),)
    bench = kit.Bench(measure=True, tenant_limits=limits)
    bench.submit(chain(kit, 1), tenant="a", budget=Budget(tokens=99))
    bench.submit(chain(kit, 1), "next", tenant="a")
    assert kit.brief(bench.measured(1, 100)) == [
        "cancelled 1",
        "fail r failed by 1 budget_exhausted",
        "open 0 block 0",
        "ready 1",
        "measure 1",
    ]


# --- seconds and money ----------------------------------------------------------------------------------


def test_seconds_of_calls_side_by_side_are_summed(kit: ModuleType) -> None:
    bench = kit.Bench()
    bench.submit(side_by_side(kit, 2), budget=Budget(seconds=3.0))
    bench.tokens(1, after=1.5)
    assert bench.state.runs["r"].spent.seconds == 1.5, "of the other there is no news"
    bench.tokens(2)
    out = bench.tokens(1, after=0.25)
    assert kit.brief(out)[-1] == "fail r failed by 1 budget_exhausted"
    found = failed(out).over
    assert found is not None and (found.name, found.limit, found.spent) == ("seconds", 3.0, 3.25)


def test_money_counts_by_the_price_of_the_engine_that_has_the_call(kit: ModuleType) -> None:
    bench = kit.Bench(engines=0, measure=True, prices=(("cheap-9b", Price(1.0, 2.0)), ("large", Price(100.0, 200.0))))
    bench.engine("small", models=("cheap-9b", "small", ""))
    bench.engine("big", models=("large-70b", "large"))
    bench.submit(chain(kit, 2, "small", "large"), budget=Budget(money=0.02))
    bench.measured(1, 100)
    answered(bench, 1, 100, 50)
    assert bench.state.runs["r"].spent.money == pytest.approx(200 / 1e6)
    bench.measured(2, 100)
    assert bench.state.runs["r"].spent.money == pytest.approx(0.0102)
    out = bench.tokens(2, 50)
    assert kit.brief(out)[-1] == "fail r failed by 2 budget_exhausted"
    found = failed(out).over
    assert found is not None and found.spent == pytest.approx(0.0202)


def test_a_budget_of_money_and_an_engine_without_a_price_do_not_go_together(kit: ModuleType) -> None:
    bench = kit.Bench()
    assert kit.brief(bench.submit(chain(kit, 1), budget=Budget(money=1.0)))[-2:] == [
        "cancelled 1",
        "fail r failed by 1 unpriced",
    ]


# --- replay ---------------------------------------------------------------------------------------------


def test_a_log_with_limits_prices_and_budgets_replays_to_the_same_commands(kit: ModuleType) -> None:
    config = {
        "measure": True,
        "tenant_limits": (("a", TenantLimits(live_runs=1, queued_runs=4, tokens_per_minute=600.0)),),
        "prices": (("*", Price(1.0, 2.0, 0.25)),),
    }
    bench = kit.Bench(engines=0, **config)
    lines: list[str] = []
    writer, outs, feed = LogWriter(lines.append, bench.state.config), [], bench.feed

    def recorded(event: Any, after: float = 0.0) -> Any:
        out = feed(event, after)
        writer.record(bench.now, event)
        outs.append(out)
        return out

    bench.feed = recorded
    bench.engine("e0")
    for number in range(4):
        bench.submit(chain(kit, 1), f"r{number}", tenant="a", budget=Budget(tokens=150, money=0.5))
    for number in range(4):
        bench.measured(1, 100, run=f"r{number}")
        bench.tokens(1, 30 * number, run=f"r{number}", after=0.5)
        if f"r{number}" in bench.state.runs:
            bench.feed(TaskFinished(RunId(f"r{number}"), TaskId(1), 1, 100, 30 * number, cached_tokens=40))
    ends = [command for out in outs for command in out if isinstance(command, Complete | Fail)]
    assert [type(command).__name__ for command in ends] == ["Complete", "Complete", "Fail", "Fail"]
    assert list(replay(lines)) == outs


def test_the_code_of_a_budget_is_what_clients_are_told() -> None:
    assert Code.BUDGET.value == "budget_exhausted"
