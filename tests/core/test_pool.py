"""The pool's decisions: which engine, when there is room, who waits for whom. Exact commands."""

from types import ModuleType
from typing import Any

import pytest

from flowserve.config import PoolConfig
from flowserve.core.commands import Dispatch
from flowserve.core.events import Code, KVChanged, Loss
from flowserve.errors import ConfigError
from flowserve.graphs.plan import Plan
from flowserve.ids import EngineId

CHAIN = tuple(range(100, 140))
"""Numbers of a long prefix."""


def calls(kit: ModuleType, count: int = 1) -> Plan:
    b = kit.PlanBuilder(f"calls{count}")
    for _ in range(count):
        b.llm()
    return b.build()


def pool(kit: ModuleType, engines: int = 2, window: int = 2, facts: dict[str, Any] | None = None, **fields: Any) -> Any:
    """A bench that measures, with engines that say `facts` of themselves."""
    config = PoolConfig(**fields)
    bench = kit.Bench(engines=0, measure=True, pool=config)
    for number in range(engines):
        bench.engine(f"e{number}", window, **(facts or {}))
    return bench


def where(out: list[Any]) -> list[tuple[str, str | None]]:
    return [(command.run, command.engine) for command in out if isinstance(command, Dispatch)]


def test_a_call_is_measured_before_it_is_placed(kit: ModuleType) -> None:
    bench = pool(kit)
    assert kit.brief(bench.submit(calls(kit))) == ["queued run r", "open 0 block 0", "ready 1", "measure 1"]
    assert kit.brief(bench.measured(1, 100)) == ["running run r", "running 1", "dispatch 1 at e0"]


def test_a_call_that_cannot_be_measured_fails_for_good(kit: ModuleType) -> None:
    bench = pool(kit)
    bench.submit(calls(kit))
    assert kit.brief(bench.fail(1, Code.REQUEST)) == ["failed 1 request", "fail r failed by 1 request"]


def test_the_last_step_of_an_agent_is_measured_as_such_and_the_others_are_kept(kit: ModuleType) -> None:
    b = kit.PlanBuilder()
    b.agent(limit=2)
    bench = pool(kit, keep_s=7.0)
    assert kit.brief(bench.submit(b.build()))[-1] == "measure 2"
    [first] = [c for c in bench.measured(2) if isinstance(c, Dispatch)]
    assert first.keep_s == 7.0
    bench.finish(2, tools=(0,))
    assert kit.brief(bench.finish(3))[-1] == "measure 4 last"
    [last] = [c for c in bench.measured(4) if isinstance(c, Dispatch)]
    assert last.last and last.keep_s == 0.0


def test_the_engine_with_the_least_outstanding_tokens_is_chosen(kit: ModuleType) -> None:
    bench = pool(kit, window=8)
    for run, tokens in (("a", 4000), ("b", 100), ("c", 100), ("d", 100)):
        bench.submit(calls(kit), run)
        bench.measured(1, tokens, run=run, limit=100)
    placed = {run: task.place.id for run in bench.state.runs for task in bench.state.runs[run].tasks.values()}
    assert placed == {"a": "e0", "b": "e1", "c": "e1", "d": "e1"}
    bench.tokens(1, run="a")  # its prompt is computed: what is left is its output
    bench.submit(calls(kit), "e")
    assert where(bench.measured(1, 100, run="e")) == [("e", "e0")]


def test_a_slow_engine_gets_fewer_calls(kit: ModuleType) -> None:
    bench = pool(kit, window=16)
    for run, engine, pace in (("a", "e0", 1.0), ("b", "e1", 0.05)):
        bench.submit(calls(kit), run)
        assert where(bench.measured(1, 10, run=run, limit=1000)) == [(run, engine)]
        for _ in range(10):
            bench.tokens(1, run=run, after=pace)
    placed = []
    for number in range(10):
        bench.submit(calls(kit), f"r{number}")
        placed += where(bench.measured(1, 100, run=f"r{number}", limit=100))
    assert [engine for _, engine in placed].count("e1") >= 9


def test_news_that_comes_in_bursts_does_not_make_an_engine_look_fast(kit: ModuleType) -> None:
    bench = pool(kit, engines=1)
    bench.submit(calls(kit), "a")
    bench.measured(1, 10, run="a", limit=1000)
    bench.tokens(1, run="a")
    for _ in range(20):  # a hundred tokens a second, ten at a time
        bench.tokens(1, run="a", after=0.1)
        for _ in range(9):
            bench.tokens(1, run="a")
    assert bench.state.engines[kit.EngineId("e0")].pace == pytest.approx(0.01, rel=0.3)


def test_calls_that_end_within_one_turn_of_the_loop_say_nothing_of_the_pace(kit: ModuleType) -> None:
    bench = pool(kit, engines=1)
    for number in range(20):
        bench.submit(calls(kit), f"r{number}")
        bench.measured(1, 10, run=f"r{number}", limit=1000)
        for _ in range(3):
            bench.tokens(1, run=f"r{number}", after=0.0001)
        bench.tick(1.0)
        bench.finish(1, run=f"r{number}")
    assert bench.state.engines[kit.EngineId("e0")].pace == 0.0


def test_an_idle_engine_that_was_slow_is_tried_again_after_a_while(kit: ModuleType) -> None:
    bench = pool(kit, window=16)
    for run, pace in (("a", 1.0), ("b", 0.05)):
        bench.submit(calls(kit), run)
        bench.measured(1, 10, run=run, limit=1000)
        for _ in range(10):
            bench.tokens(1, run=run, after=pace)
    for run in "ab":
        bench.finish(1, run=run)
    for run, engine, after in (("c", "e1", 1.0), ("d", "e0", 60.0)):
        bench.tick(after)
        bench.submit(calls(kit), run)
        assert where(bench.measured(1, 10, run=run, limit=1000)) == [(run, engine)]
        bench.finish(1, run=run)


def test_prompts_wait_outside_when_enough_of_them_wait_inside(kit: ModuleType) -> None:
    bench = pool(kit, engines=1, window=16, facts={"batch_tokens": 500})
    for number in range(4):
        bench.submit(calls(kit), f"r{number}")
        out = bench.measured(1, 600, run=f"r{number}")
        assert len(where(out)) == (1 if number < 2 else 0), "two steps' worth is inside"
    assert where(bench.tokens(1, run="r0")) == [("r2", "e0")]


def test_prompts_that_wait_for_each_other_do_not_make_an_engine_look_slow(kit: ModuleType) -> None:
    bench = pool(kit, engines=1, window=16)
    for number in range(5):
        bench.submit(calls(kit), f"r{number}")
        bench.measured(1, 100, run=f"r{number}")
    for number in range(5):
        bench.tokens(1, run=f"r{number}", after=0.1)
    assert bench.state.engines[EngineId("e0")].prefill_s == pytest.approx(0.001)
    for number in range(5, 10):
        bench.submit(calls(kit), f"r{number}")
        bench.measured(1, 100, run=f"r{number}")
    for number in range(5, 10):
        bench.tokens(1, run=f"r{number}", after=0.5 if number == 5 else 0.0)
    assert bench.state.engines[EngineId("e0")].prefill_s == pytest.approx(0.001, rel=0.2), "of one step"


def test_calls_wait_while_the_memory_they_need_is_not_there(kit: ModuleType) -> None:
    bench = pool(kit, engines=1, window=16, facts={"kv_tokens": 1000})
    sizes = {"a": 500, "b": 300, "c": 400, "d": 50}
    for run, tokens in sizes.items():
        bench.submit(calls(kit), run)
        bench.measured(1, tokens, run=run, limit=20)  # half of the limit is expected
    placed = [run for run in bench.state.runs if bench.state.runs[run].calls]
    assert placed == ["a", "b"], "c does not fit, and d does not overtake it"
    assert where(bench.finish(1, run="b")) == [("c", "e0"), ("d", "e0")]


def test_a_call_larger_than_the_memory_goes_to_an_empty_engine_and_is_refused_there(kit: ModuleType) -> None:
    bench = pool(kit, engines=1, facts={"kv_tokens": 100})
    bench.submit(calls(kit))
    assert where(bench.measured(1, 5000)) == [("r", "e0")]


def test_nothing_more_goes_to_an_engine_that_pushes_calls_out(kit: ModuleType) -> None:
    bench = pool(kit, engines=1, window=4)
    bench.submit(calls(kit), "a")
    bench.measured(1, run="a")
    bench.tokens(1, run="a")
    bench.report("e0", waiting=1, kv_used=0.98, steps=1, preemptions=1)
    bench.submit(calls(kit), "b")
    assert where(bench.measured(1, run="b")) == []
    assert where(bench.report("e0", waiting=0, kv_used=0.98, steps=2, preemptions=1)) == [("b", "e0")]


def test_choices_take_seats(kit: ModuleType) -> None:
    bench = pool(kit, engines=1, window=4)
    bench.submit(calls(kit), "a")
    bench.measured(1, run="a", choices=3)
    bench.submit(calls(kit), "b")
    assert where(bench.measured(1, run="b", choices=2)) == []
    bench.submit(calls(kit), "c")
    assert where(bench.measured(1, run="c", choices=1)) == [], "in order"
    assert where(bench.finish(1, run="a")) == [("b", "e0"), ("c", "e0")]


# --- what engines hold -----------------------------------------------------------------------------------


def test_a_prompt_goes_where_its_prefix_was_computed(kit: ModuleType) -> None:
    bench = pool(kit, window=8)
    bench.submit(calls(kit), "first")
    assert where(bench.measured(1, 64 * 20, run="first", prefix=CHAIN[:20])) == [("first", "e0")]
    bench.finish(1, run="first")
    bench.submit(calls(kit), "busy")
    bench.measured(1, 500, run="busy")
    assert bench.state.runs["busy"].tasks[1].place.id == "e0", "nothing speaks for the other"
    bench.submit(calls(kit), "same")
    assert where(bench.measured(1, 64 * 20, run="same", prefix=CHAIN[:20])) == [("same", "e0")], (
        "1280 there, 500 before it"
    )
    bench.submit(calls(kit), "other")
    assert where(bench.measured(1, 64 * 20, run="other", prefix=(7, 8, 9))) == [("other", "e1")]


def test_reuse_gives_way_to_load(kit: ModuleType) -> None:
    bench = pool(kit, window=8)
    bench.submit(calls(kit), "first")
    bench.measured(1, 640, run="first", prefix=CHAIN[:10])
    bench.finish(1, run="first")
    for number in range(2):
        bench.submit(calls(kit), f"busy{number}")
        bench.measured(1, 4000, run=f"busy{number}", prefix=CHAIN[:2])
    bench.submit(calls(kit), "same")
    out = bench.measured(1, 640, run="same", prefix=CHAIN[:10])
    busiest = [bench.state.runs[f"busy{n}"].tasks[1].place.id for n in range(2)]
    assert busiest == ["e0", "e1"]
    assert where(out) == [("same", "e0")]
    bench.tokens(1, run="busy1")
    bench.submit(calls(kit), "again")
    assert where(bench.measured(1, 640, run="again", prefix=CHAIN[:10])) == [("again", "e1")], (
        "4000 tokens sooner there"
    )


def test_the_answer_is_resident_too_so_the_next_turn_follows(kit: ModuleType) -> None:
    from flowserve.core.events import TaskFinished
    from flowserve.ids import RunId, TaskId

    bench = pool(kit, window=8)
    bench.submit(calls(kit), "turn1")
    bench.measured(1, 640, run="turn1", prefix=CHAIN[:10])
    bench.feed(TaskFinished(RunId("turn1"), TaskId(1), 1, 640, 200, prefix=CHAIN[:13]))
    assert bench.state.engines[EngineId("e0")].resident.longest(CHAIN) == 13


def test_cache_events_correct_what_was_guessed(kit: ModuleType) -> None:
    bench = pool(kit, window=8)
    bench.submit(calls(kit), "first")
    bench.measured(1, 640, run="first", prefix=CHAIN[:10])
    bench.finish(1, run="first")
    resident = bench.state.engines[EngineId("e0")].resident
    bench.feed(KVChanged(EngineId("e0"), removed=CHAIN[5:10]))
    assert resident.longest(CHAIN) == 5
    bench.feed(KVChanged(EngineId("e0"), stored=CHAIN[5:7]))
    assert resident.longest(CHAIN) == 7
    bench.feed(KVChanged(EngineId("e0"), cleared=True))
    assert resident.longest(CHAIN) == 0
    bench.feed(KVChanged(EngineId("nobody"), stored=CHAIN))


def test_what_is_remembered_of_a_cache_is_bounded_by_its_memory_and_gives_up_ends_first(kit: ModuleType) -> None:
    bench = pool(kit, engines=1, window=8, facts={"kv_tokens": 640})
    resident = bench.state.engines[EngineId("e0")].resident
    resident.add(CHAIN[:8])
    resident.add((1, 2, 3, 4))
    assert len(resident) == 10
    assert resident.longest(CHAIN) == 6
    assert resident.longest((1, 2, 3, 4)) == 4


def test_an_engine_that_comes_back_holds_nothing(kit: ModuleType) -> None:
    bench = pool(kit, engines=1)
    bench.state.engines[EngineId("e0")].resident.add(CHAIN)
    bench.engine("e0", up=False)
    bench.engine("e0", 2)
    assert len(bench.state.engines[EngineId("e0")].resident) == 0


def sticky(kit: ModuleType) -> Any:
    """e0 holds CHAIN[:20] (1280 tokens) and is full; e1 is free."""
    bench = pool(kit, window=1, prefill_rate=1000.0)
    bench.submit(calls(kit), "first")
    bench.measured(1, 1280, run="first", prefix=CHAIN[:20])
    bench.submit(calls(kit), "next")
    return bench


def test_a_call_waits_for_the_engine_that_holds_its_prefix_as_long_as_computing_it_would_take(kit: ModuleType) -> None:
    bench = sticky(kit)
    assert kit.brief(bench.measured(1, 1300, run="next", prefix=CHAIN[:20])) == ["wake at 1.28"]
    assert where(bench.finish(1, run="first")) == [("next", "e0")]
    assert len(bench.state.timers) == 0


def test_a_call_that_has_waited_long_enough_goes_elsewhere(kit: ModuleType) -> None:
    bench = sticky(kit)
    bench.measured(1, 1300, run="next", prefix=CHAIN[:20])
    assert where(bench.tick(1.28)) == [("next", "e1")]


def test_others_pass_a_call_that_waits_for_one_engine(kit: ModuleType) -> None:
    bench = sticky(kit)
    bench.measured(1, 1300, run="next", prefix=CHAIN[:20])
    bench.submit(calls(kit), "other")
    assert where(bench.measured(1, 100, run="other")) == [("other", "e1")]


def test_a_call_does_not_wait_for_an_engine_that_goes(kit: ModuleType) -> None:
    bench = sticky(kit)
    bench.measured(1, 1300, run="next", prefix=CHAIN[:20])
    assert where(bench.engine("e0", up=False)) == [("first", "e1")], "it was lost there, and is the more urgent"
    assert len(bench.state.timers) == 0
    assert where(bench.finish(1, attempt=2, run="first")) == [("next", "e1")]


def test_a_short_prefix_is_not_worth_waiting_for(kit: ModuleType) -> None:
    bench = pool(kit, window=1)
    bench.submit(calls(kit), "first")
    bench.measured(1, 200, run="first", prefix=CHAIN[:3])
    bench.submit(calls(kit), "next")
    assert where(bench.measured(1, 200, run="next", prefix=CHAIN[:3])) == [("next", "e1")]


def test_a_session_follows_its_engine_where_prefixes_are_not_known(kit: ModuleType) -> None:
    bench = pool(kit, window=4)
    bench.submit(calls(kit), "busy")
    bench.measured(1, 10, run="busy")
    bench.submit(calls(kit), "turn1", session="talk", tenant="t")
    assert where(bench.measured(1, 1000, run="turn1")) == [("turn1", "e1")]
    bench.finish(1, run="turn1")
    bench.finish(1, run="busy")
    bench.submit(calls(kit), "turn2", session="talk", tenant="t")
    assert where(bench.measured(1, 1100, run="turn2")) == [("turn2", "e1")]
    bench.submit(calls(kit), "foreign", session="talk", tenant="another")
    assert where(bench.measured(1, 1100, run="foreign")) == [("foreign", "e0")]


# --- the urgent ------------------------------------------------------------------------------------------


def test_an_urgent_tier_pushes_the_least_urgent_call_out_and_that_goes_on_later(kit: ModuleType) -> None:
    bench = pool(kit, engines=1, window=2)
    for run in ("b1", "b2"):
        bench.submit(calls(kit), run, tier="batch")
        bench.measured(1, run=run, limit=50, on_loss=Loss.CONTINUE)
        bench.tokens(1, 5, run=run)
    bench.submit(calls(kit), "now", tier="interactive")
    assert kit.brief(bench.measured(1, run="now")) == [
        "cancel 1 at e0",
        "continued 1 moved",
        "ready 1",
        "running run now",
        "running 1",
        "dispatch 1 at e0",
    ]
    assert bench.state.runs["b2"].tasks[1].attempt == 2, "the later of two equals"
    assert kit.brief(bench.finish(1, run="now"))[-2:] == ["running 1", "dispatch 1 attempt 2 at e0 resume"]


def test_an_equal_tier_pushes_nobody_out(kit: ModuleType) -> None:
    bench = pool(kit, engines=1, window=1)
    bench.submit(calls(kit), "a")
    bench.measured(1, run="a", on_loss=Loss.CONTINUE)
    bench.submit(calls(kit), "b", priority=5)
    assert bench.measured(1, run="b") == []


def test_a_call_that_would_lose_its_output_is_pushed_out_inside_the_engine_where_that_can(kit: ModuleType) -> None:
    for can in (True, False):
        bench = pool(kit, engines=1, window=1, facts={"preempt": can})
        bench.submit(calls(kit), "b", tier="batch")
        bench.measured(1, run="b", on_loss=Loss.RESTART)
        bench.tokens(1, 5, run="b")
        bench.submit(calls(kit), "now", tier="interactive")
        out = kit.brief(bench.measured(1, run="now"))
        assert out == (["preempt 1 at e0", "running run now", "running 1", "dispatch 1 at e0"] if can else [])


def test_a_pushed_out_call_has_its_seat_back_when_it_writes_again(kit: ModuleType) -> None:
    bench = pool(kit, engines=1, window=1, facts={"preempt": True})
    bench.submit(calls(kit), "b", tier="batch")
    bench.measured(1, run="b")
    bench.tokens(1, run="b")
    bench.submit(calls(kit), "now", tier="interactive")
    bench.measured(1, run="now")
    engine = bench.state.engines[EngineId("e0")]
    assert engine.seats == 1 and len(engine.running) == 2
    bench.finish(1, run="now")
    bench.tokens(1, run="b")
    assert engine.seats == 1


def test_preemption_can_be_turned_off(kit: ModuleType) -> None:
    bench = pool(kit, engines=1, window=1, preempt=False)
    bench.submit(calls(kit), "b", tier="batch")
    bench.measured(1, run="b", on_loss=Loss.CONTINUE)
    bench.submit(calls(kit), "now", tier="interactive")
    assert bench.measured(1, run="now") == []


def test_the_same_call_is_pushed_out_a_bounded_number_of_times(kit: ModuleType) -> None:
    bench = pool(kit, engines=1, window=1, max_moves=2)
    bench.submit(calls(kit), "b", tier="batch")
    bench.measured(1, run="b", on_loss=Loss.CONTINUE)
    for number in range(2):
        bench.submit(calls(kit), f"now{number}", tier="interactive")
        assert where(bench.measured(1, run=f"now{number}")) == [(f"now{number}", "e0")]
        bench.finish(1, run=f"now{number}")
    bench.submit(calls(kit), "late", tier="interactive")
    assert where(bench.measured(1, run="late")) == []


def test_calls_that_wait_inside_an_engine_become_urgent_with_their_run(kit: ModuleType) -> None:
    b = kit.PlanBuilder()
    b.tool(cost_s=50.0)
    b.llm(cost_s=2.0)
    b.llm(cost_s=1.0)
    bench = pool(kit, engines=1, window=4, facts={"reprioritise": True})
    bench.submit(b.build())
    bench.measured(2)
    bench.measured(3)
    bench.tokens(3)
    assert kit.brief(bench.finish(1)) == ["completed 1", "reprioritise 2 at e0 to 1922000"], "3 has begun"


# --- settings --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wrong", [{"prefix_tokens": 0}, {"stall_s": -1.0}, {"hedge_share": float("nan")}])
def test_wrong_pool_settings_are_refused_by_name(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        PoolConfig(**wrong)
