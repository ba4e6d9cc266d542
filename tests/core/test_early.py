"""Maps that begin while their list is being written: the exact commands, whatever becomes of the list."""

from types import ModuleType
from typing import Any

import pytest

from flowserve.core.events import Code, Items, Loss
from flowserve.errors import InternalError
from flowserve.graphs.plan import Retry
from flowserve.ids import NodeId, RunId, TaskId

CALL, MAP = 0, 1
"""Nodes."""


def bench_of(kit: ModuleType, attempts: int = 1, engines: int = 1, measure: bool = False, **of_map: Any) -> Any:
    """A call (task 1) whose list a map of tool calls takes item by item."""
    b = kit.PlanBuilder()
    call = b.llm(retry=Retry(attempts, 0.0))
    b.map(body := b.block(), call, streams=call, **of_map)
    b.tool(block=body)
    bench = kit.Bench(engines=engines, measure=measure)
    bench.submit(b.build())
    return bench


def test_frames_are_opened_as_items_are_written_and_joined_when_the_list_is_whole(kit: ModuleType) -> None:
    bench = bench_of(kit)
    assert kit.brief(bench.items(1, MAP, 2)) == [
        "ready 2",
        "running 2",
        "open 1 block 1 for 2[0]",
        "ready 3",
        "open 2 block 1 for 2[1]",
        "ready 4",
        "running 3",
        "dispatch 3",
        "running 4",
        "dispatch 4",
    ]
    assert kit.brief(bench.finish(3)) == ["completed 3"]
    assert kit.brief(bench.items(1, MAP, 3)) == ["open 3 block 1 for 2[2]", "ready 5", "running 5", "dispatch 5"]
    assert kit.brief(bench.finish(4)) == ["completed 4"]
    assert kit.brief(bench.finish(1)) == ["completed 1", "evaluate 2"]
    assert kit.brief(bench.settle(2, 3)) == []
    assert kit.brief(bench.finish(5)) == ["completed 5", "join 2 of [1, 2, 3]"]
    assert kit.brief(bench.finish(2)) == ["close 1", "close 2", "close 3", "completed 2", "complete r"]
    assert (bench.state.streamed, bench.state.started_over) == (3, 0)


def test_nothing_is_joined_before_the_list_is_whole(kit: ModuleType) -> None:
    bench = bench_of(kit)
    bench.items(1, MAP, 1)
    assert kit.brief(bench.finish(3)) == ["completed 3"]
    assert kit.brief(bench.finish(1)) == ["completed 1", "evaluate 2"]
    assert kit.brief(bench.settle(2, 1)) == ["join 2 of [1]"]


def test_items_that_were_not_streamed_follow_when_the_list_is_whole(kit: ModuleType) -> None:
    bench = bench_of(kit, concurrency=1)
    assert kit.brief(bench.items(1, MAP, 2))[2:4] == ["open 1 block 1 for 2[0]", "ready 3"]
    assert kit.brief(bench.finish(3))[:2] == ["completed 3", "open 2 block 1 for 2[1]"]
    bench.finish(1)
    assert kit.brief(bench.settle(2, 3)) == []
    assert kit.brief(bench.finish(4))[:2] == ["completed 4", "open 3 block 1 for 2[2]"]


def test_no_frame_is_opened_while_the_list_is_counted(kit: ModuleType) -> None:
    bench = bench_of(kit, concurrency=1)
    bench.items(1, MAP, 2)
    bench.finish(1)
    assert kit.brief(bench.finish(3)) == ["completed 3"]
    assert kit.brief(bench.settle(2, 2))[0] == "open 2 block 1 for 2[1]"


def test_a_call_that_begins_anew_takes_all_frames_with_it_and_the_map_goes_on_with_its_next_list(
    kit: ModuleType,
) -> None:
    bench = bench_of(kit, attempts=2)
    bench.items(1, MAP, 2)
    bench.finish(3)
    assert kit.brief(bench.fail(1, Code.OUTPUT_INVALID)) == [
        "retrying 1 output_invalid",
        "ready 1",
        "cancel 4",
        "cancelled 4",
        "close 2",
        "close 1",
        "running 1",
        "dispatch 1 attempt 2 at e0",
    ]
    assert bench.items(1, MAP, 3) == [], "of the first attempt"
    assert kit.brief(bench.items(1, MAP, 1, attempt=2))[0] == "open 3 block 1 for 2[0]"
    assert kit.brief(bench.finish(1, attempt=2)) == ["completed 1", "evaluate 2"]
    assert bench.state.started_over == 2


def test_a_call_that_fails_for_good_ends_the_map_too(kit: ModuleType) -> None:
    bench = bench_of(kit)
    bench.items(1, MAP, 1)
    assert kit.brief(bench.fail(1, Code.OUTPUT_INVALID)) == [
        "failed 1 output_invalid",
        "cancel 2",
        "cancelled 2",
        "cancel 3",
        "cancelled 3",
        "fail r failed by 1 output_invalid",
    ]


@pytest.mark.parametrize("loss", [Loss.CONTINUE, Loss.RESTART])
def test_a_lost_call_that_goes_on_keeps_its_items_and_one_that_restarts_does_not(kit: ModuleType, loss: Loss) -> None:
    bench = bench_of(kit, engines=2, measure=True)
    bench.measured(1, on_loss=loss)
    bench.tokens(1, 5)
    bench.items(1, MAP, 1)
    out = kit.brief(bench.engine("e0", up=False))
    assert ("close 1" in out) == (loss is Loss.RESTART)
    opened = [line for line in kit.brief(bench.items(1, MAP, 2, attempt=2)) if line.startswith("open")]
    again = ["open 2 block 1 for 2[0]", "open 3 block 1 for 2[1]"]
    assert opened == (["open 2 block 1 for 2[1]"] if loss is Loss.CONTINUE else again)


def test_a_call_that_is_lost_together_with_its_frame_leaves_nothing_behind(kit: ModuleType) -> None:
    """One loss kills the frame by another call of it, before what the first had streamed is looked at."""
    b = kit.PlanBuilder()
    b.sample(body := b.block(), n=2, concurrency=2)
    b.llm(block=body)
    call = b.llm(block=body)
    map = b.map(inner := b.block(), call, block=body, streams=call)
    b.tool(block=inner)
    bench = kit.Bench(measure=True)
    bench.submit(b.build())
    bench.evaluate(1, 2)
    bench.measured(2, on_loss=Loss.FAIL)
    for task in (3, 4, 5):
        bench.measured(task, on_loss=Loss.RESTART)
    bench.tokens(2, 5)
    bench.tokens(3, 5)
    bench.items(3, map, 1)
    out = kit.brief(bench.engine("e0", up=False))
    assert [line for line in out if line.startswith(("failed", "cancelled", "close"))] == [
        "failed 2 engine_lost",
        "cancelled 3",
        "cancelled 7",
        "close 3",
        "cancelled 6",
        "close 1",
    ]


def test_a_map_whose_list_became_another_starts_over(kit: ModuleType) -> None:
    bench = bench_of(kit)
    bench.items(1, MAP, 2)
    bench.finish(3)
    bench.finish(1)
    assert kit.brief(bench.settle(2, 1, anew=True)) == [
        "cancel 4",
        "cancelled 4",
        "close 2",
        "close 1",
        "open 3 block 1 for 2[0]",
        "ready 5",
        "running 5",
        "dispatch 5",
    ]
    assert kit.brief(bench.finish(5)) == ["completed 5", "join 2 of [3]"]


def test_a_list_that_became_shorter_starts_over_too(kit: ModuleType) -> None:
    bench = bench_of(kit)
    bench.items(1, MAP, 1)
    bench.finish(1)
    assert kit.brief(bench.settle(2, 0)) == ["cancel 3", "cancelled 3", "close 1", "join 2 of []"]


def test_a_failure_in_a_frame_is_judged_when_the_list_is_whole(kit: ModuleType) -> None:
    bench = bench_of(kit)
    bench.items(1, MAP, 2)
    assert kit.brief(bench.fail(3, Code.TOOL)) == ["failed 3 tool", "close 1", "cancel 4", "cancelled 4", "close 2"]
    assert bench.items(1, MAP, 3) == []
    assert kit.brief(bench.finish(1)) == ["completed 1", "evaluate 2"]
    assert kit.brief(bench.settle(2, 1))[0] == "open 3 block 1 for 2[0]"
    assert kit.brief(bench.fail(5, Code.TOOL)) == [
        "failed 5 tool",
        "close 3",
        "cancel 2",
        "failed 2 tool",
        "fail r failed by 5 tool",
    ]


def test_a_failure_between_the_end_of_the_list_and_its_count_is_judged_afterwards(kit: ModuleType) -> None:
    bench = bench_of(kit)
    bench.items(1, MAP, 1)
    bench.finish(1)
    assert kit.brief(bench.fail(3, Code.TOOL)) == ["failed 3 tool", "close 1"]
    assert kit.brief(bench.settle(2, 1))[0] == "open 2 block 1 for 2[0]"


def test_no_more_frames_are_opened_than_the_map_may_have(kit: ModuleType) -> None:
    bench = bench_of(kit, limit=2)
    bench.items(1, MAP, 5)
    assert bench.state.streamed == 2
    bench.finish(1)
    assert kit.brief(bench.settle(2, 5))[-3:] == ["cancel 2", "failed 2 limit", "fail r failed by 2 limit"]


def test_a_list_that_cannot_be_counted_fails_the_map(kit: ModuleType) -> None:
    bench = bench_of(kit)
    bench.items(1, MAP, 1)
    bench.finish(1)
    assert kit.brief(bench.fail(2, Code.REQUEST))[-1] == "fail r failed by 2 request"


def test_a_map_that_waits_for_more_than_the_list_begins_when_that_is_there(kit: ModuleType) -> None:
    b = kit.PlanBuilder()
    call, other = b.llm(), b.tool()
    map = b.map(body := b.block(), call, other, streams=call)
    b.tool(block=body)
    bench = kit.Bench()
    bench.submit(b.build())
    assert bench.items(1, map, 1) == []
    assert kit.brief(bench.finish(2)) == ["completed 2"]
    assert kit.brief(bench.items(1, map, 2))[:2] == ["ready 3", "running 3"]


def test_a_map_that_does_not_stream_gets_no_items(kit: ModuleType) -> None:
    b = kit.PlanBuilder()
    b.map(body := b.block(), b.llm())
    b.tool(block=body)
    bench = kit.Bench()
    bench.submit(b.build())
    with pytest.raises(InternalError, match="cannot happen"):
        bench.feed(Items(RunId("r"), TaskId(1), 1, NodeId(MAP), 1))
