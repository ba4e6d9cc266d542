"""How engines are judged, left, drained and started anew, and what becomes of their calls. Exact commands."""

from types import ModuleType
from typing import Any

import pytest

from flowserve.config import PoolConfig
from flowserve.core.commands import Dispatch
from flowserve.core.engine_state import Health
from flowserve.core.events import Code, DrainRequested, Loss, Probed, ResumeRequested, TaskFailed, TaskFinished
from flowserve.graphs.plan import Plan, Retry
from flowserve.ids import EngineId, RunId, TaskId

E0, E1 = EngineId("e0"), EngineId("e1")


def call(kit: ModuleType, **fields: Any) -> Plan:
    b = kit.PlanBuilder(f"call{fields}")
    b.llm(**fields)
    return b.build()


def pool(kit: ModuleType, engines: int = 2, window: int = 4, **fields: Any) -> Any:
    """Engines that can be started again."""
    settings = {"stall_s": 10.0, "probe_s": 5.0, "first_token_s": 0.0, "between_tokens_s": 0.0, **fields}
    bench = kit.Bench(engines=0, measure=True, pool=PoolConfig(**settings))
    for number in range(engines):
        bench.engine(f"e{number}", window, restart=True)
    return bench


def begin(kit: ModuleType, bench: Any, run: str = "r", loss: Loss = Loss.RESTART, written: int = 0, **more: Any) -> str:
    """A run whose call is at an engine, and has `written` so many tokens; the engine."""
    bench.submit(call(kit), run, **more)
    [dispatch] = [c for c in bench.measured(1, run=run, limit=100, on_loss=loss) if isinstance(c, Dispatch)]
    if written:
        bench.tokens(1, written, run=run)
    return str(dispatch.engine)


def health(bench: Any, engine: EngineId = E0) -> Health:
    found: Health = bench.state.engines[engine].health
    return found


# --- losses ----------------------------------------------------------------------------------------------


def test_a_lost_call_begins_anew_at_another_engine_at_once(kit: ModuleType) -> None:
    bench = pool(kit)
    assert begin(kit, bench, written=5) == "e0"
    assert kit.brief(bench.fail(1, Code.ENGINE_LOST)) == [
        "retrying 1 engine_lost",
        "ready 1",
        "running 1",
        "dispatch 1 attempt 2 at e1",
    ]


def test_a_lost_call_goes_on_at_another_engine_where_it_may(kit: ModuleType) -> None:
    bench = pool(kit)
    begin(kit, bench, loss=Loss.CONTINUE, written=5)
    assert kit.brief(bench.fail(1, Code.ENGINE_LOST)) == [
        "continued 1 engine_lost",
        "ready 1",
        "running 1",
        "dispatch 1 attempt 2 at e1 resume",
    ]
    bench.tokens(1, 3, attempt=2)
    assert kit.brief(bench.fail(1, Code.ENGINE, attempt=2))[0] == "failed 1 engine", "other failures are the node's"


def test_a_lost_call_that_has_written_nothing_begins_anew_whatever_it_may(kit: ModuleType) -> None:
    for loss in Loss:
        bench = pool(kit)
        begin(kit, bench, loss=loss)
        assert kit.brief(bench.fail(1, Code.ENGINE_LOST))[-1] == "dispatch 1 attempt 2 at e1"


def test_a_lost_call_fails_the_node_where_that_is_wanted(kit: ModuleType) -> None:
    bench = pool(kit)
    begin(kit, bench, loss=Loss.FAIL, written=1)
    assert kit.brief(bench.fail(1, Code.ENGINE_LOST)) == ["failed 1 engine_lost", "fail r failed by 1 engine_lost"]


def test_a_retry_after_a_failure_of_the_node_begins_anew(kit: ModuleType) -> None:
    bench = pool(kit)
    bench.submit(call(kit, retry=Retry(2, backoff_s=0.0)))
    bench.measured(1, on_loss=Loss.CONTINUE)
    bench.tokens(1, 5)
    assert kit.brief(bench.fail(1, Code.OUTPUT_INVALID)) == [
        "retrying 1 output_invalid",
        "ready 1",
        "running 1",
        "dispatch 1 attempt 2 at e0",
    ]


def test_all_calls_of_an_engine_that_goes_down_are_placed_anew_and_it_is_started_again(kit: ModuleType) -> None:
    bench = pool(kit)
    assert [begin(kit, bench, run, Loss.CONTINUE, written=1) for run in ("a", "b", "c")] == ["e0", "e1", "e0"]
    assert kit.brief(bench.engine("e0", up=False)) == [
        "cancel 1 at e0",
        "continued 1 engine_lost",
        "ready 1",
        "cancel 1 at e0",
        "continued 1 engine_lost",
        "ready 1",
        "restart e0",
        "running 1",
        "dispatch 1 attempt 2 at e1 resume",
        "running 1",
        "dispatch 1 attempt 2 at e1 resume",
    ]


def test_a_call_is_lost_with_its_engine_a_bounded_number_of_times(kit: ModuleType) -> None:
    bench = pool(kit)
    begin(kit, bench)
    for attempt in (1, 2, 3):
        assert kit.brief(bench.fail(1, Code.ENGINE_LOST, attempt))[-1].startswith(f"dispatch 1 attempt {attempt + 1}")
    assert kit.brief(bench.fail(1, Code.ENGINE_LOST, 4)) == ["failed 1 engine_lost", "fail r failed by 1 engine_lost"]


def test_without_another_engine_a_lost_call_pauses(kit: ModuleType) -> None:
    bench = pool(kit, engines=1)
    begin(kit, bench)
    out = kit.brief(bench.fail(1, Code.ENGINE_LOST))
    assert out[0] == "retrying 1 engine_lost" and out[1].startswith("wake at 0.")


# --- coming back -----------------------------------------------------------------------------------------


def test_starts_that_fail_are_repeated_with_doubling_pauses(kit: ModuleType) -> None:
    bench = pool(kit, restart_s=1.0, max_pause_s=3.0)
    assert kit.brief(bench.engine("e0", up=False)) == ["restart e0"]
    for pause in (1.0, 2.0, 3.0, 3.0):
        assert kit.brief(bench.engine("e0", up=False)) == [f"wake at {bench.now + pause:g}"]
        assert kit.brief(bench.tick(pause)) == ["restart e0"]
    bench.engine("e0", 4)
    assert health(bench) is Health.UP
    assert kit.brief(bench.engine("e0", up=False))[-1].startswith("wake at"), "it was not up for long"
    bench.tick(3.0)
    bench.engine("e0", 4)
    bench.now += 60.0
    assert kit.brief(bench.engine("e0", up=False)) == ["restart e0"]


def test_an_engine_that_cannot_be_started_again_is_waited_for(kit: ModuleType) -> None:
    bench = kit.Bench(engines=1)
    assert bench.engine("e0", up=False) == []


def test_runs_are_rejected_in_a_long_outage_and_accepted_in_a_short_one(kit: ModuleType) -> None:
    bench = pool(kit, engines=1, outage_s=5.0, restart_s=20.0)
    bench.engine("e0", up=False)
    bench.engine("e0", up=False)
    assert kit.brief(bench.submit(call(kit), "early"))[0] == "queued run early"
    bench.now += 6.0
    assert kit.brief(bench.submit(call(kit), "late")) == ["reject late for 14 outage"]
    b = kit.PlanBuilder("tools only")
    b.tool()
    assert kit.brief(bench.submit(b.build(), "tools"))[0] == "queued run tools"
    assert kit.brief(bench.submit(call(kit, model="nowhere"), "unknown"))[0] == "queued run unknown", (
        "it fails by itself"
    )


# --- standing still --------------------------------------------------------------------------------------


def test_an_engine_that_stands_still_with_work_is_probed_and_gets_nothing_meanwhile(kit: ModuleType) -> None:
    bench = pool(kit)
    begin(kit, bench, "a", written=1)
    assert kit.brief(bench.tick(10.0)) == ["probe e0", "wake at 15"]
    assert health(bench) is Health.SUSPECT
    assert begin(kit, bench, "b") == "e1"
    assert kit.brief(bench.feed(Probed(E0, True))) == []
    assert health(bench) is Health.UP
    assert kit.brief(bench.tick(10.0))[0] == "probe e1", "that one stands still, too"


def test_an_engine_that_computes_is_not_probed(kit: ModuleType) -> None:
    bench = pool(kit)
    begin(kit, bench, "a")
    bench.now += 9.0
    bench.report("e0", steps=5)
    assert kit.brief(bench.tick(1.0)) == ["wake at 45"], "it may pause four times as long as it did"
    bench.tokens(1, run="a", after=5.0)
    assert kit.brief(bench.tick(30.0))[0].startswith("wake at")


def test_an_idle_engine_is_not_probed(kit: ModuleType) -> None:
    bench = pool(kit)
    begin(kit, bench, "a")
    bench.finish(1, run="a")
    assert bench.tick(100.0) == []


@pytest.mark.parametrize("answer", [False, None])
def test_an_engine_that_does_not_pass_its_probe_is_down_and_its_calls_go_on_elsewhere(
    kit: ModuleType, answer: bool | None
) -> None:
    bench = pool(kit)
    begin(kit, bench, "a", Loss.CONTINUE, written=3)
    bench.tick(10.0)
    out = bench.feed(Probed(E0, False)) if answer is False else bench.tick(5.0)
    assert kit.brief(out)[:6] == [
        "cancel 1 at e0",
        "continued 1 stalled",
        "ready 1",
        "restart e0",
        "running 1",
        "dispatch 1 attempt 2 at e1 resume",
    ]
    assert bench.feed(Probed(E0, True)) == [] and health(bench) is Health.DOWN, "too late"


def test_a_call_that_gets_no_first_token_is_lost_there_and_its_engine_has_to_answer_for_it(kit: ModuleType) -> None:
    bench = pool(kit, first_token_s=8.0, between_tokens_s=4.0)
    begin(kit, bench, "a")
    assert kit.brief(bench.tick(8.0))[:6] == [
        "cancel 1 at e0",
        "retrying 1 stalled",
        "ready 1",
        "probe e0",
        "running 1",
        "dispatch 1 attempt 2 at e1",
    ]


def test_a_call_that_stops_between_tokens_goes_on_elsewhere(kit: ModuleType) -> None:
    bench = pool(kit, first_token_s=8.0, between_tokens_s=4.0)
    begin(kit, bench, "a", Loss.CONTINUE)
    bench.tokens(1, 2, run="a", after=7.0)
    assert kit.brief(bench.tick(1.0)) == ["wake at 11"]
    assert kit.brief(bench.tick(3.0))[:2] == ["cancel 1 at e0", "continued 1 stalled"]


# --- breakers --------------------------------------------------------------------------------------------


def fault(kit: ModuleType, bench: Any, run: str, code: Code = Code.ENGINE) -> str:
    """A call that fails with `code`; where it was."""
    engine = begin(kit, bench, run)
    bench.feed(TaskFailed(RunId(run), TaskId(1), 1, code))
    return engine


def test_an_engine_whose_calls_fail_is_left_alone_and_then_tried_with_one_call(kit: ModuleType) -> None:
    bench = pool(kit, breaker_calls=8, breaker_s=5.0)
    assert [fault(kit, bench, f"r{i}") for i in range(2)] == ["e0", "e0"]
    assert health(bench) is Health.TRIPPED
    assert begin(kit, bench, "a") == "e1"
    bench.tick(5.0)
    assert begin(kit, bench, "trial") == "e0"
    assert begin(kit, bench, "b") == "e1", "one trial at a time"
    bench.finish(1, run="trial")
    assert health(bench) is Health.UP


def test_a_trial_that_fails_doubles_the_pause(kit: ModuleType) -> None:
    bench = pool(kit, breaker_calls=8, breaker_s=5.0)
    for i in range(2):
        fault(kit, bench, f"r{i}")
    begin(kit, bench, "busy")
    bench.tick(5.0)
    assert fault(kit, bench, "trial") == "e0"
    assert health(bench) is Health.TRIPPED
    assert begin(kit, bench, "a") == "e1"
    assert bench.state.engines[E0].pause_until == 15.0


def test_a_breaker_never_closes_the_last_door(kit: ModuleType) -> None:
    bench = pool(kit, engines=1, breaker_calls=8)
    for i in range(20):
        assert fault(kit, bench, f"r{i}") == "e0"
    assert health(bench) is Health.UP
    bench = pool(kit, breaker_calls=8)
    bench.engine("e0", 4, models=("", "rare"), restart=True)
    for i in range(20):
        fault(kit, bench, f"r{i}")
    assert health(bench) is Health.UP, "nobody else serves 'rare'"


@pytest.mark.parametrize("code", [Code.REQUEST, Code.OUTPUT_INVALID, Code.TIMEOUT, Code.LIMIT])
def test_a_thousand_faults_of_clients_trip_nothing(kit: ModuleType, code: Code) -> None:
    bench = pool(kit, breaker_calls=8)
    for i in range(1000):
        assert fault(kit, bench, f"r{i}", code) == "e0"
    assert health(bench) is Health.UP


def test_an_engine_without_room_is_left_until_it_said_and_that_is_no_fault(kit: ModuleType) -> None:
    bench = pool(kit, breaker_calls=8)
    begin(kit, bench, "a")
    assert kit.brief(bench.fail(1, Code.OVERLOADED, run="a", again=7.0)) == [
        "retrying 1 overloaded",
        "ready 1",
        "running 1",
        "dispatch 1 attempt 2 at e1",
        "wake at 7",
    ]
    assert health(bench) is Health.UP
    assert begin(kit, bench, "b") == "e1"
    bench.finish(1, attempt=2, run="a")
    bench.finish(1, run="b")
    bench.tick(7.0)
    assert begin(kit, bench, "c") == "e0"


def test_when_no_engine_has_room_a_call_waits_for_the_first_that_does(kit: ModuleType) -> None:
    bench = pool(kit, engines=1)
    begin(kit, bench, "a")
    assert kit.brief(bench.fail(1, Code.OVERLOADED, run="a", again=3.0)) == [
        "retrying 1 overloaded",
        "ready 1",
        "wake at 3",
    ]
    assert kit.brief(bench.tick(3.0))[:2] == ["running 1", "dispatch 1 attempt 2 at e0"]


# --- drains ----------------------------------------------------------------------------------------------


def test_a_drained_engine_gives_away_what_it_has_not_begun_and_ends_when_the_rest_is_done(kit: ModuleType) -> None:
    bench = pool(kit)
    begin(kit, bench, "begun", written=2)
    begin(kit, bench, "there")
    begin(kit, bench, "waits")
    assert bench.state.runs["waits"].tasks[1].place.id == "e0"
    assert kit.brief(bench.feed(DrainRequested(E0))) == [
        "cancel 1 at e0",
        "continued 1 moved",
        "ready 1",
        "running 1",
        "dispatch 1 attempt 2 at e1",
    ]
    assert begin(kit, bench, "new") == "e1"
    assert kit.brief(bench.finish(1, run="begun")) == ["completed 1", "complete begun", "close e0"]
    assert health(bench) is Health.CLOSED
    assert bench.engine("e0", up=False) == [], "it is closed, not lost"


def test_what_a_drained_engine_still_has_when_its_time_is_up_moves_with_what_it_wrote(kit: ModuleType) -> None:
    bench = pool(kit, drain_s=3.0)
    begin(kit, bench, "goes on", Loss.CONTINUE, written=2)
    begin(kit, bench, "elsewhere")
    begin(kit, bench, "begins anew", Loss.RESTART, written=2)
    begin(kit, bench, "elsewhere too")
    begin(kit, bench, "must end there", Loss.FAIL, written=2)
    bench.feed(DrainRequested(E0, replace=True))
    assert kit.brief(bench.tick(3.0)) == [
        "cancel 1 at e0",
        "continued 1 moved",
        "ready 1",
        "cancel 1 at e0",
        "retrying 1 moved",
        "ready 1",
        "running 1",
        "dispatch 1 attempt 2 at e1 resume",
        "running 1",
        "dispatch 1 attempt 2 at e1",
        "wake at 10",
    ]
    assert kit.brief(bench.finish(1, run="must end there")) == ["completed 1", "complete must end there", "restart e0"]
    bench.engine("e0", 4)
    assert health(bench) is Health.UP
    assert begin(kit, bench, "new") == "e0"


def test_without_time_to_drain_everything_moves_at_once(kit: ModuleType) -> None:
    bench = pool(kit, drain_s=0.0)
    begin(kit, bench, "begun", Loss.CONTINUE, written=2)
    assert kit.brief(bench.feed(DrainRequested(E0))) == [
        "cancel 1 at e0",
        "continued 1 moved",
        "ready 1",
        "close e0",
        "running 1",
        "dispatch 1 attempt 2 at e1 resume",
    ]


def test_the_last_engine_of_a_model_keeps_its_calls_while_it_is_drained(kit: ModuleType) -> None:
    bench = pool(kit, engines=1, drain_s=1.0)
    begin(kit, bench, "a", Loss.CONTINUE, written=1)
    assert kit.brief(bench.feed(DrainRequested(E0))) == ["wake at 1"]
    bench.tick(1.0)
    assert kit.brief(bench.finish(1, run="a"))[-1] == "close e0"


def test_an_idle_engine_is_drained_at_once_and_can_be_had_back(kit: ModuleType) -> None:
    bench = pool(kit)
    assert kit.brief(bench.feed(DrainRequested(E0))) == ["close e0"]
    assert kit.brief(bench.feed(ResumeRequested(E0))) == ["restart e0"]
    bench.engine("e0", 4)
    assert begin(kit, bench) == "e0"
    assert kit.brief(bench.feed(DrainRequested(E1, replace=True))) == ["restart e1"]


def test_a_drain_can_be_called_off(kit: ModuleType) -> None:
    bench = pool(kit)
    begin(kit, bench, "a", written=1)
    bench.feed(DrainRequested(E0))
    assert kit.brief(bench.feed(ResumeRequested(E0))) == []
    assert begin(kit, bench, "b") == "e1"
    assert begin(kit, bench, "c") == "e0"
    before = bench.state.stale
    bench.feed(ResumeRequested(E0))
    bench.feed(DrainRequested(EngineId("nobody")))
    assert bench.state.stale == before + 2


# --- moving ----------------------------------------------------------------------------------------------


def test_a_call_that_waits_inside_an_engine_moves_to_one_that_would_begin_it_at_once(kit: ModuleType) -> None:
    bench = pool(kit)
    bench.engine("e1", up=False)
    for run in ("a", "b", "c"):
        begin(kit, bench, run)
    bench.tokens(1, run="a")
    bench.tokens(1, run="b")
    bench.engine("e1", 4, restart=True)
    assert kit.brief(bench.report("e0", waiting=1, steps=1)) == [
        "cancel 1 at e0",
        "continued 1 moved",
        "ready 1",
        "running 1",
        "dispatch 1 attempt 2 at e1",
    ]
    assert bench.state.runs["c"].tasks[1].attempt == 2


def test_under_memory_pressure_the_smallest_call_that_can_go_on_elsewhere_is_given_away(kit: ModuleType) -> None:
    bench = pool(kit)
    bench.engine("e1", up=False)
    for run, loss in (("large", Loss.CONTINUE), ("small", Loss.CONTINUE), ("fixed", Loss.RESTART)):
        bench.submit(call(kit), run)
        bench.measured(1, {"large": 900, "small": 200, "fixed": 10}[run], run=run, limit=9, on_loss=loss)
        bench.tokens(1, 2, run=run)
    bench.engine("e1", 4, restart=True)
    assert bench.report("e0", waiting=1, kv_used=0.99, steps=1) == [], "it has pushed nothing out yet"
    out = bench.report("e0", waiting=1, kv_used=0.99, steps=2, preemptions=1)
    assert kit.brief(out)[-1] == "dispatch 1 attempt 2 at e1 resume"
    assert out[0].run == "small"


def slow_and_fast(kit: ModuleType, seconds: float, **more: Any) -> Any:
    """Call "a" is at e0, which takes `seconds` a token; e1 takes a hundredth of a second, and is idle again."""
    bench = pool(kit)
    for run, pace in (("a", seconds), ("b", 0.01)):
        bench.submit(call(kit), run)
        bench.measured(1, 100, run=run, limit=200, **more)
        for _ in range(50):
            bench.tokens(1, run=run, after=pace)
    bench.finish(1, run="b")
    return bench


def test_a_call_at_a_slow_engine_moves_to_one_that_ends_it_long_before(kit: ModuleType) -> None:
    bench = slow_and_fast(kit, 0.1, on_loss=Loss.CONTINUE)
    assert kit.brief(bench.report("e0", steps=1)) == [
        "cancel 1 at e0",
        "continued 1 moved",
        "ready 1",
        "running 1",
        "dispatch 1 attempt 2 at e1 resume",
    ]
    assert bench.report("e1", steps=1) == [], "there it stays"


@pytest.mark.parametrize(
    ("seconds", "more"),
    [(0.02, {"on_loss": Loss.CONTINUE}), (0.1, {"on_loss": Loss.RESTART}), (0.1, {"on_loss": Loss.FAIL})],
    ids=["hardly slower", "would begin anew", "would fail"],
)
def test_a_call_at_a_slow_engine_stays(kit: ModuleType, seconds: float, more: dict[str, Any]) -> None:
    assert slow_and_fast(kit, seconds, **more).report("e0", steps=1) == []


def test_a_call_that_is_almost_over_stays_at_its_slow_engine(kit: ModuleType) -> None:
    bench = slow_and_fast(kit, 0.1, on_loss=Loss.CONTINUE)
    for _ in range(45):  # 5 of the 100 expected tokens are left: half a second
        bench.tokens(1, run="a", after=0.1)
    assert bench.report("e0", steps=1) == []


# --- hedging ---------------------------------------------------------------------------------------------


def hedged(kit: ModuleType) -> Any:
    """A call that is at e0 and, after half a second without a token, at e1 too."""
    bench = pool(kit, hedge_after_s=0.5, hedge_share=1.0)
    assert begin(kit, bench, "a", tier="interactive") == "e0"
    assert kit.brief(bench.tick(0.5))[0] == "hedge 1 at e1"
    return bench


@pytest.mark.parametrize(("first", "other"), [("e0", "e1"), ("e1", "e0")])
def test_of_two_engines_the_first_to_write_keeps_the_call(kit: ModuleType, first: str, other: str) -> None:
    bench = hedged(kit)
    assert kit.brief(bench.tokens(1, run="a", engine=first)) == [f"choose 1 at {first} not {other}"]
    before = bench.state.stale
    assert bench.tokens(1, run="a", engine=other) == []
    assert bench.state.stale == before + 1
    out = bench.feed(TaskFinished(RunId("a"), TaskId(1), 1, engine=EngineId(first)))
    assert kit.brief(out)[-1] == "complete a"
    assert not any(engine.seats for engine in bench.state.engines.values())


def test_of_two_engines_one_may_fail(kit: ModuleType) -> None:
    for failing, other in ((E0, E1), (E1, E0)):
        bench = hedged(kit)
        out = bench.feed(TaskFailed(RunId("a"), TaskId(1), 1, Code.ENGINE, None, failing))
        assert kit.brief(out) == [f"choose 1 at {other} not {failing}"]
        out = bench.feed(TaskFinished(RunId("a"), TaskId(1), 1, engine=other))
        assert kit.brief(out)[-1] == "complete a"


def test_of_two_engines_one_may_go_down(kit: ModuleType) -> None:
    for gone, other in (("e0", "e1"), ("e1", "e0")):
        bench = hedged(kit)
        assert kit.brief(bench.engine(gone, up=False)) == [f"choose 1 at {other} not {gone}", f"restart {gone}"]


def test_hedges_are_for_short_interactive_calls_that_have_written_nothing_and_for_a_share_of_all(
    kit: ModuleType,
) -> None:
    for tier, tokens, written in (("standard", 10, 0), ("interactive", 9999, 0), ("interactive", 10, 1)):
        bench = pool(kit, hedge_after_s=0.5, hedge_share=1.0)
        bench.submit(call(kit), "a", tier=tier)
        bench.measured(1, tokens, run="a", limit=10)
        if written:
            bench.tokens(1, written, run="a")
        assert not any(line.startswith("hedge") for line in kit.brief(bench.tick(0.5)))
    bench = pool(kit, window=99, hedge_after_s=0.5, hedge_share=0.1)
    for i in range(30):
        begin(kit, bench, f"r{i}", tier="interactive")
    lines = kit.brief(bench.tick(0.5))
    assert sum(line.startswith("hedge") for line in lines) == 3


def test_a_cancelled_hedge_is_at_work_nowhere(kit: ModuleType) -> None:
    bench = hedged(kit)
    assert kit.brief(bench.cancel("a")) == ["cancel 1 at e0", "cancelled 1", "fail a cancelled"]
    assert not any(engine.seats or engine.rivals for engine in bench.state.engines.values())
