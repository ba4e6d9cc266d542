"""`check` notices what is wrong, and `story` tells how it came to be."""

from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest

from flowserve.core.events import CancelRequested, Code
from flowserve.core.invariants import check
from flowserve.core.readiness import leave
from flowserve.core.state import Phase, Width
from flowserve.core.step import mermaid, step
from flowserve.core.story import story
from flowserve.core.tasks import TRANSITIONS
from flowserve.core.timers import Timers
from flowserve.errors import InternalError
from flowserve.graphs.plan import Retry
from flowserve.ids import RunId


def busy(kit: ModuleType) -> Any:
    """A state with something of everything: waiting, running, retrying, open frames, timers."""
    b = kit.PlanBuilder()
    body = b.block()
    b.llm(timeout_s=9.0, retry=Retry(attempts=2))
    b.llm()
    b.map(body, concurrency=2)
    b.agent()
    b.tool(0, 2)
    b.search(block=body)
    bench = kit.Bench(window=1)
    bench.submit(b.build(), deadline_s=60.0)
    bench.evaluate(3, 3)
    running = next(iter(bench.state.engines["e0"].running))
    if running.node.id == 0:
        bench.fail(running.id, Code.ENGINE)
    return bench.state


def _first(state: Any) -> Any:
    return next(iter(state.runs["r"].tasks.values()))


BREAKS: dict[str, Callable[[Any], Any]] = {
    "a task without frame": lambda s: s.runs["r"].frames.pop(1),
    "a forgotten task": lambda s: s.runs["r"].tasks.popitem(),
    "a wrong count": lambda s: s.runs["r"].frames[0].nodes.__setitem__(4, 1),
    "a wrong number of unfinished nodes": lambda s: setattr(s.runs["r"].frames[0], "unfinished", 1),
    "a finished task that is listed": lambda s: setattr(_first(s), "phase", Phase.COMPLETED),
    "a running call its engine does not know": lambda s: s.engines["e0"].running.clear(),
    "a queue that miscounts": lambda s: setattr(s.models[""], "size", 7),
    "a lane at an old rank": lambda s: setattr(s.runs["r"], "rank", -5.0),
    "a pointer that ran ahead": lambda s: setattr(s.runs["r"], "pointer", 3),
    "a timer nobody wants": lambda s: s.timers.start(99.0, s.runs["r"].tasks[3]),
    "a promise that was broken": lambda s: setattr(s, "wake_at", 1e9),
    "an overfull window": lambda s: setattr(s.searches, "limit", 1),
    "room that is not given": lambda s: setattr(s.engines["e0"], "limit", 5),
    "a plan that is used by nobody": lambda s: setattr(next(iter(s.shapes.values())), "runs", 2),
    "a frame its owner does not know": lambda s: leave(s.runs["r"].frames[1]),
    "a map that waits for a list that it does not stream": lambda s: setattr(
        s.runs["r"].tasks[3].expansion, "sure", Width.ASKED
    ),
    "passages at an engine that pastes none": lambda s: s.engines["e0"].passages.add([1]),
    "commands left over": lambda s: s.out.append(None),
}


def test_a_busy_state_is_sound(kit: ModuleType) -> None:
    check(busy(kit))


@pytest.mark.parametrize("name", BREAKS)
def test_check_notices(kit: ModuleType, name: str) -> None:
    state = busy(kit)
    BREAKS[name](state)
    with pytest.raises(InternalError, match="invariants are broken"):
        check(state)


def test_an_error_inside_a_step_is_told_with_the_story(kit: ModuleType) -> None:
    state = busy(kit)
    del state.runs["r"].shape
    with pytest.raises(InternalError, match="state is broken") as error:
        step(state, CancelRequested(RunId("r")), 1.0)
    assert "story of Run('r'" in error.value.story


def test_a_story_tells_events_and_commands_in_order_and_is_bounded(kit: ModuleType) -> None:
    b = kit.PlanBuilder()
    b.llm()
    b.tool()
    bench = kit.Bench(engines=0, story_length=6)
    bench.submit(b.build())
    bench.finish(2)
    lines = story(bench.state, RunId("r")).splitlines()
    assert [line.split("(")[0].split()[-1] for line in lines[1:]] == [
        "RunSubmitted", "Mark", "OpenFrame", "Dispatch", "TaskFinished", "Task",
    ]  # fmt: skip
    for _ in range(20):
        bench.finish(1, attempt=9)
    assert len(story(bench.state, RunId("r")).splitlines()) == 1 + 6 + 1
    assert story(bench.state, RunId("gone")) == "run 'gone' is not live"


def test_the_diagram_shows_every_transition() -> None:
    drawn = mermaid()
    for phase, following in TRANSITIONS.items():
        for later in following:
            assert f"{phase.name} --> {later.name}\n" in drawn
    assert drawn.count("--> [*]") == 3


class Subject:
    """Something that can have a timer."""

    timer: Any = None


def test_cancelled_timers_do_not_pile_up() -> None:
    timers = Timers()
    subjects: list[Any] = [Subject() for _ in range(11)]
    for number in range(10):
        timers.start(float(number), subjects[number])
    for _ in range(10_000):
        timers.start(5.0, subjects[10])
        timers.cancel(subjects[10])
    assert len(timers) == 10 and len(timers.heap) < 200
    assert list(iter(lambda: timers.pop_due(100.0), None)) == subjects[:10]
    assert len(timers) == 0 and all(subject.timer is None for subject in subjects)


def test_timers_of_one_moment_fire_in_order_of_arrival() -> None:
    timers = Timers()
    subjects: list[Any] = [Subject() for _ in range(4)]
    for at, subject in zip((2.0, 1.0, 2.0, 1.0), subjects, strict=True):
        timers.start(at, subject)
    assert list(iter(lambda: timers.pop_due(2.0), None)) == [subjects[1], subjects[3], subjects[0], subjects[2]]


def test_memory_follows_what_is_live(kit: ModuleType) -> None:
    """A thousand runs with waiting, timers and failures leave nothing but bounded garbage."""
    b = kit.PlanBuilder()
    body = b.block()
    b.llm(timeout_s=1000.0)
    b.sample(body, n=3)
    b.llm(block=body)
    plan = b.build()
    bench = kit.Bench(window=2)
    for number in range(300):
        bench.submit(plan, f"r{number}", deadline_s=1e6)
        bench.evaluate(2, 3, run=f"r{number}")
        bench.cancel(f"r{number}")
    state = bench.state
    assert not state.runs and not state.shapes and len(state.timers) == 0 and len(state.timers.heap) <= 130
    assert all(queue.size == 0 for queue in state.models.values())
    lines = [line for queue in state.models.values() for line in queue.lines.values()]
    assert lines and all(len(line.heap) <= 40 for line in lines)
