"""Retries, budgets, time limits, lost engines, and what cannot happen."""

from types import ModuleType

import pytest

from flowserve.core.events import Code, Evaluated, TaskFailed, TaskFinished, TokensProduced
from flowserve.core.retry import jitter
from flowserve.errors import InternalError
from flowserve.graphs.plan import Retry
from flowserve.ids import RunId, TaskId


def test_a_failure_without_retry_fails_the_run_and_cancels_what_is_at_work(kit: ModuleType) -> None:
    b = kit.PlanBuilder()
    b.llm()
    b.tool()
    b.llm(0)
    bench = kit.Bench()
    bench.submit(b.build())
    assert kit.brief(bench.fail(2, Code.TOOL)) == [
        "failed 2 tool",
        "cancel 1 at e0",
        "cancelled 1",
        "fail r failed by 2 tool",
    ]


def test_a_retry_waits_for_its_jittered_back_off_and_counts_the_attempt_up(kit: ModuleType) -> None:
    b = kit.PlanBuilder()
    b.llm(retry=Retry(attempts=3, backoff_s=2.0))
    bench = kit.Bench()
    bench.submit(b.build())
    first = 2.0 * jitter(RunId("r"), TaskId(1), 1)
    assert kit.brief(bench.fail(1, Code.ENGINE)) == ["retrying 1 engine", f"wake at {first:g}"]
    assert bench.finish(1) == [] and bench.state.stale == 1
    assert kit.brief(bench.tick(first)) == ["ready 1", "running 1", "dispatch 1 attempt 2 at e0"]
    second = 4.0 * jitter(RunId("r"), TaskId(1), 2)
    assert kit.brief(bench.fail(1, Code.TIMEOUT, attempt=2)) == ["retrying 1 timeout", f"wake at {first + second:g}"]
    assert kit.brief(bench.tick(second))[-1] == "dispatch 1 attempt 3 at e0"
    assert kit.brief(bench.fail(1, Code.ENGINE, attempt=3)) == ["failed 1 engine", "fail r failed by 1 engine"]


def test_a_pause_that_was_asked_for_is_kept_and_an_absurd_one_is_a_failure(kit: ModuleType) -> None:
    b = kit.PlanBuilder()
    b.tool(retry=Retry(attempts=9, backoff_s=0.0))
    bench = kit.Bench()
    bench.submit(b.build())
    assert kit.brief(bench.fail(1, Code.OVERLOADED, again=7.0)) == ["retrying 1 overloaded", "wake at 7"]
    bench.tick(7.0)
    assert kit.brief(bench.fail(1, Code.OVERLOADED, attempt=2, again=1e6))[-1] == "fail r failed by 1 overloaded"


@pytest.mark.parametrize(
    ("code", "on", "tried"),
    [
        (Code.ENGINE, (), True),
        (Code.OUTPUT_INVALID, (), True),
        (Code.TOOL, ("tool",), True),
        (Code.ENGINE, ("tool",), False),
        (Code.REQUEST, (), False),
        (Code.REQUEST, ("request",), False),
        (Code.LIMIT, (), False),
        (Code.INTERNAL, (), False),
    ],
)
def test_only_retryable_codes_that_the_node_names_are_tried_again(
    kit: ModuleType, code: Code, on: tuple[str, ...], tried: bool
) -> None:
    b = kit.PlanBuilder()
    b.llm(retry=Retry(attempts=2, on=on))
    bench = kit.Bench()
    bench.submit(b.build())
    assert kit.brief(bench.fail(1, code))[0].startswith("retrying" if tried else "failed")


def test_a_run_may_not_retry_more_than_its_budget(kit: ModuleType) -> None:
    b = kit.PlanBuilder()
    b.llm(retry=Retry(attempts=100, backoff_s=0.0))
    bench = kit.Bench(run_retries=3)
    bench.submit(b.build())
    for attempt in (1, 2, 3):
        assert kit.brief(bench.fail(1, Code.ENGINE, attempt))[-1] == f"dispatch 1 attempt {attempt + 1} at e0"
    assert kit.brief(bench.fail(1, Code.ENGINE, 4))[-1] == "fail r failed by 1 engine"


def test_when_everything_fails_retries_settle_at_their_share_of_the_traffic(kit: ModuleType) -> None:
    b = kit.PlanBuilder()
    b.llm(retry=Retry(attempts=2, backoff_s=0.0))
    plan = b.build()
    bench = kit.Bench(retry_reserve=5, retry_share=0.1)
    retries = 0
    for number in range(200):
        bench.submit(plan, run=f"r{number}")
        out = bench.fail(1, Code.ENGINE, run=f"r{number}")
        if kit.brief(out)[-1].startswith("dispatch"):
            retries += 1
            bench.fail(1, Code.ENGINE, attempt=2, run=f"r{number}")
    assert 20 <= retries <= 5 + 200 * 0.1


def test_a_node_that_runs_out_of_time_is_cancelled_and_tried_again(kit: ModuleType) -> None:
    b = kit.PlanBuilder()
    b.llm(timeout_s=3.0, retry=Retry(attempts=2, backoff_s=0.0))
    bench = kit.Bench()
    assert kit.brief(bench.submit(b.build()))[-1] == "wake at 3"
    assert kit.brief(bench.tick(3.0)) == [
        "cancel 1 at e0",
        "retrying 1 timeout",
        "ready 1",
        "running 1",
        "dispatch 1 attempt 2 at e0",
        "wake at 6",
    ]
    assert kit.brief(bench.tick(3.0)) == ["cancel 1 at e0", "failed 1 timeout", "fail r failed by 1 timeout"]


def test_the_time_limit_of_a_map_covers_its_frames(kit: ModuleType) -> None:
    b = kit.PlanBuilder()
    b.map(body := b.block(), timeout_s=3.0)
    b.llm(block=body, timeout_s=10.0)
    bench = kit.Bench()
    bench.submit(b.build())
    out = bench.feed(Evaluated(RunId("r"), TaskId(1), 1, 1), after=1.0)
    dispatched = [command for command in out if type(command).__name__ == "Dispatch"]
    assert [command.timeout_s for command in dispatched] == [2.0]
    assert kit.brief(bench.tick(2.0)) == [
        "cancel 2 at e0",
        "cancelled 2",
        "close 1",
        "cancel 1",
        "failed 1 timeout",
        "fail r failed by 1 timeout",
    ]


def test_the_time_limit_of_an_agent_covers_its_steps_and_tools(kit: ModuleType) -> None:
    b = kit.PlanBuilder()
    b.agent(timeout_s=3.0, retry=Retry(attempts=2, backoff_s=0.0))
    bench = kit.Bench()
    bench.submit(b.build())
    bench.finish(2, tools=(0,))
    assert kit.brief(bench.tick(3.0)) == [
        "cancel 3",
        "cancelled 3",
        "cancel 1",
        "retrying 1 timeout",
        "ready 1",
        "ready 4",
        "running 1",
        "running 4",
        "dispatch 4 step[0] of 1 at e0",
        "wake at 6",
    ]


def test_a_failed_step_is_retried_alone_and_then_fails_its_agent(kit: ModuleType) -> None:
    b = kit.PlanBuilder()
    b.agent(retry=Retry(attempts=2, backoff_s=0.0))
    bench = kit.Bench()
    bench.submit(b.build())
    assert kit.brief(bench.fail(2, Code.OUTPUT_INVALID)) == [
        "retrying 2 output_invalid",
        "ready 2",
        "running 2",
        "dispatch 2 step[0] of 1 attempt 2 at e0",
    ]
    assert kit.brief(bench.fail(2, Code.OUTPUT_INVALID, 2)) == [
        "failed 2 output_invalid",
        "cancel 1",
        "failed 1 output_invalid",
        "fail r failed by 2 output_invalid",
    ]


def test_a_failed_join_is_retried_from_the_start(kit: ModuleType) -> None:
    b = kit.PlanBuilder()
    b.map(b.block(), retry=Retry(attempts=2, backoff_s=0.0))
    bench = kit.Bench()
    bench.submit(b.build())
    bench.evaluate(1, 1)
    assert kit.brief(bench.fail(1, Code.OUTPUT_INVALID)) == [
        "close 1",
        "retrying 1 output_invalid",
        "ready 1",
        "running 1",
        "dispatch 1 attempt 2",
    ]


def test_a_wake_up_is_asked_for_only_when_it_is_earlier_than_the_promised_one(kit: ModuleType) -> None:
    b = kit.PlanBuilder()
    b.tool(timeout_s=5.0)
    b.tool(timeout_s=9.0)
    plan = b.build()
    bench = kit.Bench()
    assert kit.brief(bench.submit(plan, "a"))[-1] == "wake at 5"
    bench.now = 1.0
    assert kit.brief(bench.submit(plan, "b"))[-1] == "dispatch 2", "its timers are later"
    assert kit.brief(bench.submit(plan, "c", deadline_s=1.0))[-1] == "wake at 2"
    assert kit.brief(bench.tick(1.0))[-2:] == ["fail c timed_out", "wake at 5"]
    assert kit.brief(bench.finish(1, run="a")) == ["completed 1"], "the promise stays"
    assert kit.brief(bench.tick(3.0)) == ["wake at 6"], "nothing was due any more"


def test_an_unserved_model_inside_a_map_fails_the_map_once(kit: ModuleType) -> None:
    b = kit.PlanBuilder()
    b.map(body := b.block())
    b.llm(block=body, model="nowhere")
    bench = kit.Bench()
    bench.submit(b.build())
    assert kit.brief(bench.evaluate(1, 2))[4:] == [
        "failed 2 request",
        "failed 3 request",
        "close 1",
        "close 2",
        "cancel 1",
        "failed 1 request",
        "fail r failed by 2 request",
    ]


def test_the_deadline_of_the_run_ends_everything(kit: ModuleType) -> None:
    b = kit.PlanBuilder()
    b.llm()
    b.tool()
    b.compute(0, 1)
    bench = kit.Bench(engines=0)
    assert kit.brief(bench.submit(b.build(), deadline_s=4.0))[-1] == "wake at 4"
    assert kit.brief(bench.tick(4.0)) == ["cancelled 1", "cancel 2", "cancelled 2", "fail r timed_out"]


def test_cancel_ends_everything_once_and_its_room_is_given_on_in_the_same_step(kit: ModuleType) -> None:
    b = kit.PlanBuilder()
    b.llm()
    plan = b.build()
    bench = kit.Bench(window=1)
    bench.submit(plan, "a")
    bench.submit(plan, "b")
    assert kit.brief(bench.cancel("a")) == [
        "cancel 1 at e0",
        "cancelled 1",
        "fail a cancelled",
        "running run b",
        "running 1",
        "dispatch 1 at e0",
    ]
    assert bench.cancel("a") == [] and bench.state.stale == 1


def test_a_lost_engine_gives_its_calls_back_without_using_up_attempts(kit: ModuleType) -> None:
    b = kit.PlanBuilder()
    b.llm()
    bench = kit.Bench(engines=1)
    bench.submit(b.build())
    assert kit.brief(bench.engine("e0", up=False)) == ["cancel 1 at e0", "retrying 1 engine_lost", "ready 1"]
    assert kit.brief(bench.engine("e1")) == ["running 1", "dispatch 1 attempt 2 at e1"]


def test_an_engine_that_is_lost_too_often_is_a_failure(kit: ModuleType) -> None:
    b = kit.PlanBuilder()
    b.llm(retry=Retry(attempts=9))
    bench = kit.Bench(max_engine_losses=2)
    bench.submit(b.build())
    for _ in range(2):
        assert kit.brief(bench.engine("e0", up=False))[-1] == "ready 1"
        bench.engine("e0")
    assert kit.brief(bench.engine("e0", up=False)) == [
        "cancel 1 at e0",
        "failed 1 engine_lost",
        "fail r failed by 1 engine_lost",
    ]


def test_a_call_that_reports_its_engine_lost_pauses_before_it_goes_elsewhere(kit: ModuleType) -> None:
    b = kit.PlanBuilder()
    b.llm()
    bench = kit.Bench()
    bench.submit(b.build())
    pause = 0.5 * jitter(RunId("r"), TaskId(1), 1)
    assert kit.brief(bench.fail(1, Code.ENGINE_LOST)) == ["retrying 1 engine_lost", f"wake at {pause:g}"]
    assert kit.brief(bench.tick(pause))[-1] == "dispatch 1 attempt 2 at e0"


def test_losses_that_calls_report_are_bounded_too(kit: ModuleType) -> None:
    b = kit.PlanBuilder()
    b.llm(retry=Retry(attempts=9))
    bench = kit.Bench(max_engine_losses=2)
    bench.submit(b.build())
    for attempt in (1, 2):
        assert kit.brief(bench.fail(1, Code.ENGINE_LOST, attempt))[0] == "retrying 1 engine_lost"
        bench.tick(8.0)
    assert kit.brief(bench.fail(1, Code.ENGINE_LOST, 3)) == ["failed 1 engine_lost", "fail r failed by 1 engine_lost"]


def test_a_model_that_no_engine_has_is_a_wrong_request_but_without_engines_calls_wait(kit: ModuleType) -> None:
    b = kit.PlanBuilder()
    b.llm(model="large")
    plan = b.build()
    bench = kit.Bench(engines=0)
    assert kit.brief(bench.submit(plan, "early"))[-1] == "ready 1"
    assert kit.brief(bench.engine("e0")) == ["failed 1 request", "fail early failed by 1 request"]
    assert kit.brief(bench.submit(plan, "late"))[-1] == "fail late failed by 1 request"
    bench.engine("e1", models=("large",), up=False)
    assert kit.brief(bench.submit(plan, "known"))[-1] == "ready 1"
    assert kit.brief(bench.engine("e1", models=("large",)))[-1] == "dispatch 1 at e1"


def test_stale_events_change_nothing(kit: ModuleType) -> None:
    b = kit.PlanBuilder()
    b.llm()
    bench = kit.Bench()
    bench.submit(b.build())
    assert bench.finish(1, attempt=2) == []
    assert bench.finish(2) == []
    assert bench.finish(1, run="other") == []
    assert bench.feed(TokensProduced(RunId("r"), TaskId(1), 0, 1)) == []
    assert bench.feed(TokensProduced(RunId("r"), TaskId(1), 1, 1)) == []
    assert bench.state.stale == 4


@pytest.mark.parametrize(
    "event",
    [
        TaskFinished(RunId("r"), TaskId(2), 1),
        TaskFailed(RunId("r"), TaskId(2), 1, Code.TOOL),
        Evaluated(RunId("r"), TaskId(1), 1, 0),
    ],
)
def test_what_contradicts_the_contract_raises_with_the_story_and_changes_nothing(
    kit: ModuleType, event: object
) -> None:
    b = kit.PlanBuilder()
    b.llm()
    b.llm()
    bench = kit.Bench(window=1)
    bench.submit(b.build())
    with pytest.raises(InternalError, match="cannot happen") as error:
        bench.feed(event)
    assert "RunSubmitted" in error.value.story and "-> Dispatch" in error.value.story
    assert kit.brief(bench.finish(1)) == ["completed 1", "running 2", "dispatch 2 at e0"]


def test_a_run_that_is_submitted_twice_is_our_mistake(kit: ModuleType) -> None:
    plan = kit.PlanBuilder()
    plan.llm()
    bench = kit.Bench()
    bench.submit(plan.build())
    with pytest.raises(InternalError, match="submitted twice"):
        bench.submit(plan.build())
