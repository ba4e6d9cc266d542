"""The exact commands for each kind of node, from its readiness to its value."""

from types import ModuleType
from typing import Any

from flowserve.core.events import Code


def test_a_run_is_queued_opened_dispatched_and_completed(kit: ModuleType) -> None:
    b = kit.PlanBuilder()
    first = b.llm()
    b.llm(first)
    bench = kit.Bench()
    assert kit.brief(bench.submit(b.build())) == [
        "queued run r",
        "open 0 block 0",
        "ready 1",
        "running run r",
        "running 1",
        "dispatch 1 at e0",
    ]
    assert kit.brief(bench.finish(1)) == ["completed 1", "ready 2", "running 2", "dispatch 2 at e0"]
    assert kit.brief(bench.finish(2)) == ["completed 2", "complete r"]
    assert not bench.state.runs


def test_a_workflow_without_nodes_completes_at_once(kit: ModuleType) -> None:
    assert kit.brief(kit.Bench().submit(kit.PlanBuilder().build())) == ["queued run r", "open 0 block 0", "complete r"]


def test_a_list_of_commands_is_the_callers_and_does_not_change_later(kit: ModuleType) -> None:
    b = kit.PlanBuilder()
    b.llm()
    bench = kit.Bench()
    early = bench.tick()
    bench.submit(b.build())
    assert early == []


def test_a_node_becomes_ready_when_the_last_of_its_dependencies_is_done(kit: ModuleType) -> None:
    b = kit.PlanBuilder()
    left, right = b.tool(), b.search()
    b.compute(left, right)
    bench = kit.Bench()
    bench.submit(b.build())
    assert kit.brief(bench.finish(2)) == ["completed 2"]
    assert kit.brief(bench.finish(1)) == ["completed 1", "ready 3", "running 3", "dispatch 3"]


def test_a_map_opens_frames_in_item_order_within_its_concurrency_and_joins_them_in_item_order(kit: ModuleType) -> None:
    b = kit.PlanBuilder()
    b.map(body := b.block(), concurrency=2)
    b.llm(block=body)
    bench = kit.Bench()
    bench.submit(b.build())
    assert kit.brief(bench.evaluate(1, 3)) == [
        "open 1 block 1 for 1[0]",
        "ready 2",
        "open 2 block 1 for 1[1]",
        "ready 3",
        "running 2",
        "dispatch 2 at e0",
        "running 3",
        "dispatch 3 at e0",
    ]
    assert kit.brief(bench.finish(3)) == [
        "completed 3",
        "open 3 block 1 for 1[2]",
        "ready 4",
        "running 4",
        "dispatch 4 at e0",
    ]
    assert kit.brief(bench.finish(4)) == ["completed 4"]
    assert kit.brief(bench.finish(2)) == ["completed 2", "join 1 of [1, 2, 3]"]
    assert kit.brief(bench.finish(1)) == ["close 1", "close 2", "close 3", "completed 1", "complete r"]


def test_a_map_over_nothing_joins_nothing(kit: ModuleType) -> None:
    b = kit.PlanBuilder()
    b.map(body := b.block())
    b.llm(block=body)
    bench = kit.Bench()
    bench.submit(b.build())
    assert kit.brief(bench.evaluate(1, 0)) == ["join 1 of []"]


def test_a_map_whose_body_has_no_nodes_joins_at_once(kit: ModuleType) -> None:
    b = kit.PlanBuilder()
    b.map(b.block(), concurrency=1)
    bench = kit.Bench()
    bench.submit(b.build())
    assert kit.brief(bench.evaluate(1, 2)) == ["open 1 block 1 for 1[0]", "open 2 block 1 for 1[1]", "join 1 of [1, 2]"]


def test_a_map_wider_than_declared_fails_with_limit(kit: ModuleType) -> None:
    b = kit.PlanBuilder()
    b.map(b.block(), limit=4)
    bench = kit.Bench()
    bench.submit(b.build())
    assert kit.brief(bench.evaluate(1, 5)) == ["cancel 1", "failed 1 limit", "fail r failed by 1 limit"]


def test_samples_without_a_rule_all_run_and_a_failed_one_is_dropped(kit: ModuleType) -> None:
    b = kit.PlanBuilder()
    b.sample(body := b.block(), n=3)
    b.llm(block=body)
    bench = kit.Bench()
    bench.submit(b.build())
    bench.evaluate(1, 3)
    assert kit.brief(bench.finish(2)) == ["completed 2"]
    assert kit.brief(bench.fail(3, Code.ENGINE)) == ["failed 3 engine", "close 2"]
    assert kit.brief(bench.finish(4)) == ["completed 4", "join 1 of [1, 3]"]
    assert kit.brief(bench.finish(1)) == ["close 1", "close 3", "completed 1", "complete r"]


def test_a_sample_whose_samples_all_fail_fails_with_the_last_code(kit: ModuleType) -> None:
    b = kit.PlanBuilder()
    b.sample(body := b.block(), n=2)
    b.llm(block=body)
    bench = kit.Bench()
    bench.submit(b.build())
    bench.evaluate(1, 2)
    bench.fail(2, Code.ENGINE)
    assert kit.brief(bench.fail(3, Code.REQUEST)) == [
        "failed 3 request",
        "close 2",
        "cancel 1",
        "failed 1 request",
        "fail r failed by 3 request",
    ]


def test_agreeing_samples_end_the_others(kit: ModuleType) -> None:
    b = kit.PlanBuilder()
    b.sample(body := b.block(), n=4, rule="certaindex", args=(("min_samples", 2.0), ("threshold", 0.9)))
    b.llm(block=body)
    bench = kit.Bench(window=3)
    bench.submit(b.build())
    bench.evaluate(1, 4)
    opened = ["open 4 block 1 for 1[3]", "ready 5", "running 5", "dispatch 5 at e0"]
    assert kit.brief(bench.finish(3)) == ["completed 3", "label 1 frame 2", *opened]
    assert kit.brief(bench.label(1, 2, 0)) == []
    assert kit.brief(bench.finish(5)) == ["completed 5", "label 1 frame 4"]
    assert kit.brief(bench.label(1, 4, 0)) == [
        "cancel 2 at e0",
        "cancelled 2",
        "close 1",
        "cancel 4 at e0",
        "cancelled 4",
        "close 3",
        "join 1 of [2, 4] stopped by certaindex",
    ]
    assert bench.label(1, 4, 0) == [] and bench.state.stale == 1


def test_a_vote_that_is_decided_cancels_the_samples_that_are_left(kit: ModuleType) -> None:
    b = kit.PlanBuilder()
    b.sample(body := b.block(), n=5, rule="decided")
    b.llm(block=body)
    bench = kit.Bench(window=8)
    bench.submit(b.build())
    bench.evaluate(1, 5)
    for task, frame in ((2, 1), (3, 2)):
        bench.finish(task)
        assert kit.brief(bench.label(1, frame, 0)) == [], "two of five agree: the other three could still outvote them"
    bench.finish(4)
    assert kit.brief(bench.label(1, 3, 0)) == [
        "cancel 5 at e0",
        "cancelled 5",
        "close 4",
        "cancel 6 at e0",
        "cancelled 6",
        "close 5",
        "join 1 of [1, 2, 3] stopped by decided",
    ]


def test_disagreeing_samples_all_run_and_the_last_is_not_labelled(kit: ModuleType) -> None:
    b = kit.PlanBuilder()
    b.sample(body := b.block(), n=2, rule="certaindex", args=(("min_samples", 1.0), ("threshold", 0.9)))
    b.llm(block=body)
    bench = kit.Bench()
    bench.submit(b.build())
    bench.evaluate(1, 2)
    assert kit.brief(bench.finish(2)) == ["completed 2", "label 1 frame 1"]
    assert kit.brief(bench.label(1, 1, -1)) == []
    assert kit.brief(bench.finish(3)) == ["completed 3", "join 1 of [1, 2]"]


def test_an_unknown_stopping_rule_fails_the_node(kit: ModuleType) -> None:
    b = kit.PlanBuilder()
    b.sample(b.block(), rule="coin")
    bench = kit.Bench()
    bench.submit(b.build())
    assert kit.brief(bench.evaluate(1, 3))[-1] == "fail r failed by 1 internal"


def test_a_switch_opens_one_arm_and_marks_the_nodes_of_the_others_skipped(kit: ModuleType) -> None:
    b = kit.PlanBuilder()
    arms = [b.block(), b.block(), b.block()]
    b.switch([arms[0], arms[1], arms[2], arms[1]])
    for arm in arms:
        b.llm(block=arm)
    bench = kit.Bench()
    bench.submit(b.build())
    assert kit.brief(bench.evaluate(1, 3)) == [
        "skipped node 1 in 0",
        "skipped node 3 in 0",
        "open 1 block 2 for 1[0]",
        "ready 2",
        "running 2",
        "dispatch 2 at e0",
    ]
    assert kit.brief(bench.finish(2)) == ["completed 2", "join 1 of [1]"]
    assert kit.brief(bench.finish(1)) == ["close 1", "completed 1", "complete r"]


def test_a_switch_with_an_arm_out_of_range_is_our_mistake(kit: ModuleType) -> None:
    b = kit.PlanBuilder()
    b.switch([b.block()])
    for choice in (1, -1):
        bench = kit.Bench()
        bench.submit(b.build())
        assert kit.brief(bench.evaluate(1, choice)) == ["cancel 1", "failed 1 internal", "fail r failed by 1 internal"]


def test_a_loop_evaluates_after_each_iteration_and_keeps_only_the_last(kit: ModuleType) -> None:
    b = kit.PlanBuilder()
    b.loop(body := b.block(), limit=5)
    b.llm(block=body)
    bench = kit.Bench()
    assert kit.brief(bench.submit(b.build()))[-1] == "dispatch 1"
    assert kit.brief(bench.evaluate(1, 0)) == ["open 1 block 1 for 1[0]", "ready 2", "running 2", "dispatch 2 at e0"]
    assert kit.brief(bench.finish(2)) == ["completed 2", "evaluate 1 after 1"]
    assert kit.brief(bench.evaluate(1, 0))[0] == "open 2 block 1 for 1[1]"
    assert kit.brief(bench.finish(3)) == ["completed 3", "evaluate 1 after 2", "close 1"]
    assert kit.brief(bench.evaluate(1, 1)) == ["join 1 of [2]"]
    assert kit.brief(bench.finish(1)) == ["close 2", "completed 1", "complete r"]


def test_a_loop_that_is_done_before_it_begins_joins_nothing(kit: ModuleType) -> None:
    b = kit.PlanBuilder()
    b.loop(b.block())
    bench = kit.Bench()
    bench.submit(b.build())
    assert kit.brief(bench.evaluate(1, 1)) == ["join 1 of []"]


def test_a_loop_ends_at_its_bound_without_asking(kit: ModuleType) -> None:
    b = kit.PlanBuilder()
    b.loop(body := b.block(), limit=2)
    b.llm(block=body)
    bench = kit.Bench()
    bench.submit(b.build())
    bench.evaluate(1, 0)
    bench.finish(2)
    bench.evaluate(1, 0)
    assert kit.brief(bench.finish(3)) == ["completed 3", "join 1 of [2]", "close 1"]


def test_an_agent_takes_steps_and_tools_in_turn_and_a_failed_tool_is_not_fatal(kit: ModuleType) -> None:
    b = kit.PlanBuilder()
    b.agent(limit=3, parallel=2)
    bench = kit.Bench()
    assert kit.brief(bench.submit(b.build()))[2:] == [
        "ready 1",
        "ready 2",
        "running run r",
        "running 1",
        "running 2",
        "dispatch 2 step[0] of 1 at e0",
    ]
    assert kit.brief(bench.finish(2, tools=(0, 0, 0))) == [
        "completed 2",
        "ready 3",
        "ready 4",
        "running 3",
        "dispatch 3 tool[0] of 1",
        "running 4",
        "dispatch 4 tool[1] of 1",
    ]
    assert kit.brief(bench.fail(4, Code.TOOL)) == ["failed 4 tool", "ready 5", "running 5", "dispatch 5 tool[2] of 1"]
    assert kit.brief(bench.finish(3)) == ["completed 3"]
    assert kit.brief(bench.finish(5)) == ["completed 5", "ready 6", "running 6", "dispatch 6 step[1] of 1 at e0"]
    assert kit.brief(bench.finish(6)) == ["completed 6", "join 1 of []"]
    assert kit.brief(bench.finish(1)) == ["completed 1", "complete r"]


def test_an_agent_that_asks_for_tools_at_its_last_step_fails_with_limit(kit: ModuleType) -> None:
    b = kit.PlanBuilder()
    b.agent(limit=1)
    bench = kit.Bench()
    assert kit.brief(bench.submit(b.build()))[-1] == "dispatch 2 step[0] of 1 last at e0"
    assert kit.brief(bench.finish(2, tools=(0,))) == [
        "completed 2",
        "cancel 1",
        "failed 1 limit",
        "fail r failed by 1 limit",
    ]


def test_an_agent_is_ready_but_not_running_while_its_first_step_waits(kit: ModuleType) -> None:
    b = kit.PlanBuilder()
    b.agent()
    bench = kit.Bench(engines=0)
    assert kit.brief(bench.submit(b.build())) == ["queued run r", "open 0 block 0", "ready 1", "ready 2"]
    assert kit.brief(bench.cancel()) == ["cancelled 1", "cancelled 2", "fail r cancelled"]


def test_a_dynamic_function_gets_an_answer_to_each_call(kit: ModuleType) -> None:
    b = kit.PlanBuilder()
    bodies = [b.block(), b.block()]
    b.dynamic(bodies, limit=3)
    b.llm(block=bodies[0])
    b.tool(block=bodies[1])
    bench = kit.Bench()
    assert kit.brief(bench.submit(b.build()))[-1] == "dispatch 1"
    assert kit.brief(bench.call(1, 0, callee=1)) == [
        "open 1 block 2 for 1[0]",
        "ready 2",
        "running 2",
        "dispatch 2",
    ]
    assert kit.brief(bench.call(1, 1, callee=0))[0] == "open 2 block 1 for 1[1]"
    assert kit.brief(bench.finish(3)) == ["completed 3", "return 1 call 1 frame 2", "close 2"]
    assert kit.brief(bench.fail(2, Code.TOOL)) == ["failed 2 tool", "close 1", "return 1 call 0 error tool"]
    assert kit.brief(bench.call(1, 2, callee=7)) == ["return 1 call 2 error internal"]
    assert kit.brief(bench.call(1, 3)) == ["return 1 call 3 error limit"]
    assert bench.call(1, 3) == [] and bench.state.stale == 1
    assert kit.brief(bench.finish(1)) == ["completed 1", "complete r"]


def test_a_dynamic_function_that_returns_early_ends_its_open_calls(kit: ModuleType) -> None:
    b = kit.PlanBuilder()
    b.dynamic([body := b.block()])
    b.llm(block=body)
    bench = kit.Bench()
    bench.submit(b.build())
    bench.call(1, 0)
    assert kit.brief(bench.finish(1)) == ["cancel 2 at e0", "cancelled 2", "close 1", "completed 1", "complete r"]


def test_nested_frames_are_cancelled_from_the_inside(kit: ModuleType) -> None:
    b = kit.PlanBuilder()
    outer, inner = b.block(), b.block()
    b.dynamic([outer])
    b.map(inner, block=outer)
    b.tool(block=outer)
    b.llm(block=inner)
    bench = kit.Bench()
    bench.submit(b.build())
    bench.call(1, 0)
    bench.evaluate(2, 1)
    assert kit.brief(bench.fail(3, Code.TOOL)) == [
        "failed 3 tool",
        "cancel 4 at e0",
        "cancelled 4",
        "close 2",
        "cancel 2",
        "cancelled 2",
        "close 1",
        "return 1 call 0 error tool",
    ]


# --- races ------------------------------------------------------------------------------------------------------------


def race(kit: ModuleType, arms: int = 3, limit: int = 1, **fields: Any) -> Any:
    """A race of single calls, and a call that reads it."""
    b = kit.PlanBuilder()
    bodies = [b.block() for _ in range(arms)]
    node = b.race(bodies, limit=limit, **fields)
    for body in bodies:
        b.llm(block=body)
    b.llm(node)
    bench = kit.Bench(window=arms)
    bench.submit(b.build())
    return bench


def test_the_first_arm_that_counts_ends_the_others_at_their_engines(kit: ModuleType) -> None:
    bench = race(kit)
    assert [line for line in kit.brief(bench.evaluate(1, 3)) if line.startswith(("open", "dispatch"))] == [
        "open 1 block 1 for 1[0]",
        "open 2 block 2 for 1[1]",
        "open 3 block 3 for 1[2]",
        "dispatch 2 at e0",
        "dispatch 3 at e0",
        "dispatch 4 at e0",
    ]
    assert kit.brief(bench.finish(3)) == ["completed 3", "label 1 frame 2"]
    assert kit.brief(bench.label(1, 2, 0)) == [
        "cancel 2 at e0",
        "cancelled 2",
        "close 1",
        "cancel 4 at e0",
        "cancelled 4",
        "close 3",
        "join 1 of [2]",
    ]
    assert kit.brief(bench.finish(1)) == ["close 2", "completed 1", "ready 5", "running 5", "dispatch 5 at e0"]


def test_an_arm_that_fails_or_does_not_count_is_out_and_the_next_may_win(kit: ModuleType) -> None:
    bench = race(kit)
    bench.evaluate(1, 3)
    assert "failed 2 engine" in kit.brief(bench.fail(2, Code.ENGINE))
    assert kit.brief(bench.finish(3)) == ["completed 3", "label 1 frame 2"]
    assert kit.brief(bench.label(1, 2, -1)) == ["close 2"]
    assert kit.brief(bench.finish(4)) == ["completed 4", "label 1 frame 3"]
    assert kit.brief(bench.label(1, 3, 0)) == ["join 1 of [3]"]


def test_a_race_fails_when_no_arm_is_left(kit: ModuleType) -> None:
    bench = race(kit, arms=2)
    bench.evaluate(1, 2)
    bench.fail(2, Code.ENGINE)
    bench.finish(3)
    assert kit.brief(bench.label(1, 2, -1))[-2:] == ["failed 1 output_invalid", "fail r failed by 1 output_invalid"]
    bench = race(kit, arms=2)
    bench.evaluate(1, 2)
    bench.fail(2, Code.ENGINE)
    assert kit.brief(bench.fail(3, Code.TOOL))[-1] == "fail r failed by 3 tool"


def test_a_quorum_joins_the_first_so_many_and_drops_one_that_ended_too_late(kit: ModuleType) -> None:
    bench = race(kit, limit=2)
    bench.evaluate(1, 3)
    bench.finish(4)
    bench.finish(2)
    bench.finish(3)
    assert kit.brief(bench.label(1, 3, 0)) == []
    assert kit.brief(bench.label(1, 1, 0)) == ["close 2", "join 1 of [1, 3]"]
    assert bench.label(1, 2, 0) == [], "it is too late"
    assert bench.state.stale == 1


def test_a_quorum_that_cannot_be_reached_ends_what_is_at_work(kit: ModuleType) -> None:
    bench = race(kit, limit=2)
    bench.evaluate(1, 3)
    bench.finish(2)
    bench.label(1, 1, 0)
    bench.fail(3, Code.ENGINE)
    out = kit.brief(bench.fail(4, Code.ENGINE))
    assert out[-1] == "fail r failed by 4 engine" and "close 1" in out


def test_a_race_with_another_number_of_arms_is_our_mistake(kit: ModuleType) -> None:
    assert kit.brief(race(kit).evaluate(1, 2))[-1] == "fail r failed by 1 internal"


def test_the_first_of_a_race_is_expected_to_take_as_long_as_its_shortest_arm(kit: ModuleType) -> None:
    from flowserve.graphs.analysis import expanded_s

    b = kit.PlanBuilder()
    b.race([b.block() for _ in range(3)], limit=2)
    assert expanded_s(b.build().nodes[0], 1.0, [5.0, 1.0, 3.0]) == 3.0
