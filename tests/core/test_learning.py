"""What one scheduler learned is known to the next from its first run on, and the log of that one replays alone."""

from types import ModuleType
from typing import Any

import pytest

from flowserve.core.commands import Command
from flowserve.core.config import Config
from flowserve.core.events import Learned, TaskFinished
from flowserve.core.learning import MOST_ANSWERS, lessons
from flowserve.core.log import LogWriter, replay
from flowserve.errors import StoreError
from flowserve.graphs.plan import Plan
from flowserve.ids import NodeId, RunId, TaskId


class Recorded:
    """A bench whose events are written down."""

    def __init__(self, kit: ModuleType, **config: Any) -> None:
        self.bench = kit.Bench(engines=0, measure=True, **config)
        self.lines: list[str] = []
        self.outs: list[list[Command]] = []
        self.writer = LogWriter(self.lines.append, self.bench.state.config)
        inner = self.bench.feed

        def feed(event: Any, after: float = 0.0) -> list[Command]:
            out: list[Command] = inner(event, after)
            self.writer.record(self.bench.now, event)
            self.outs.append(out)
            return out

        self.bench.feed = feed
        self.bench.engine("e0")

    def serve(self, plan: Plan, run: str, arm: int, tokens: int) -> None:
        """A call of 2 s, then a tool of 3 s in one of two arms."""
        bench = self.bench
        bench.submit(plan, run)
        bench.measured(1, run=run, tokens=500, limit=100)
        bench.now += 2.0
        bench.feed(TaskFinished(RunId(run), TaskId(1), 1, tokens_out=tokens))
        bench.evaluate(2, arm, run=run)
        bench.now += 3.0
        bench.finish(3, run=run)
        bench.finish(2, run=run)


def two_arms(kit: ModuleType) -> Plan:
    b = kit.PlanBuilder("arms")
    call = b.llm(cost_s=20.0)
    first, second = b.block(), b.block()
    b.tool(block=first, cost_s=1.0)
    b.tool(block=second, cost_s=9.0)
    b.switch((first, second), call, cost_s=9.0)
    plan: Plan = b.build()
    return plan


def recorded(kit: ModuleType, **config: Any) -> tuple[Recorded, Plan]:
    log, plan = Recorded(kit, **config), two_arms(kit)
    for number in range(20):
        log.serve(plan, f"r{number}", 0, 10 + number % 3)
    return log, plan


def test_the_first_run_has_the_critical_path_and_the_lengths_that_were_learned(kit: ModuleType) -> None:
    log, plan = recorded(kit)
    [lesson] = lessons(log.lines)
    bench = kit.Bench(measure=True, window=4)
    bench.submit(plan, "cold")
    assert bench.state.runs["cold"].remaining_s == 29.0, "as the compiler guesses"
    bench.feed(lesson)
    bench.submit(plan, "warm")
    assert bench.state.runs["warm"].remaining_s == pytest.approx(2.0 + 3.0)
    bench.measured(1, run="warm", tokens=500, limit=100)
    call = bench.state.runs["warm"].tasks[1].call
    assert call.predicted.mean == pytest.approx(11, abs=0.5)


@pytest.mark.parametrize("predictor", ["mean", "bins", "ranker"])
def test_a_log_that_begins_with_lessons_replays_alone_and_hands_them_on(kit: ModuleType, predictor: str) -> None:
    log, plan = recorded(kit, predictor=predictor)
    taught = lessons(log.lines)
    following = Recorded(kit, predictor=predictor)
    for lesson in taught:
        following.bench.feed(lesson)
    assert lessons(following.lines) == taught
    following.serve(plan, "next", 1, 50)
    assert list(replay(following.lines)) == following.outs


def test_lessons_name_what_was_seen_and_the_latest_answers(kit: ModuleType) -> None:
    log, plan = recorded(kit)
    [lesson] = lessons(log.lines)
    assert isinstance(lesson, Learned) and lesson.plan == plan
    assert [(item.node, item.mean, item.seen) for item in lesson.figures] == [
        (NodeId(0), pytest.approx(2.0), 20),
        (NodeId(1), pytest.approx(3.0), 20),
    ]
    assert [node for node, _ in lesson.arms] == [NodeId(3)]
    assert [tokens for _, tokens in lesson.answers] == [10 + number % 3 for number in range(20)]
    assert len(lesson.answers) <= MOST_ANSWERS


def test_what_is_no_log_teaches_nothing() -> None:
    with pytest.raises(StoreError, match="line 1: expected a log"):
        lessons(["{}\n"])


def test_an_empty_log_teaches_nothing() -> None:
    lines: list[str] = []
    LogWriter(lines.append, Config())
    assert lessons(lines) == []
