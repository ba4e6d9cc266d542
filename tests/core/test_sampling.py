"""How many samples with a stopping rule are under way, and what becomes of the rest."""

from types import ModuleType
from typing import Any

import pytest

from flowserve.core.events import Code
from flowserve.graphs.plan import Plan

BETA = "adaptive_consistency"


def voting(kit: ModuleType, n: int, rule: str = BETA, wave: int | None = 1, **fields: Any) -> Plan:
    """`n` samples of one call under `rule`. Tasks 2, 3, ... are the calls of frames 1, 2, ..."""
    b = kit.PlanBuilder()
    b.sample(body := b.block(), n=n, rule=rule, wave=wave, **fields)
    b.llm(block=body)
    plan: Plan = b.build()
    return plan


def begun(kit: ModuleType, bench: Any, n: int) -> int:
    """How many samples begin when the number is known."""
    return sum(line.startswith("open") for line in kit.brief(bench.evaluate(1, n)))


def dispatched(kit: ModuleType, commands: Any) -> list[str]:
    return [line for line in kit.brief(commands) if line.startswith("dispatch")]


def say(kit: ModuleType, bench: Any, frame: int, label: int) -> list[str]:
    """The call of `frame` is answered, and its answer is of class `label`."""
    bench.finish(frame + 1)
    lines: list[str] = kit.brief(bench.label(1, frame, label))
    return lines


@pytest.mark.parametrize(
    ("rule", "n", "expected"), [(BETA, 40, 4), (BETA, 3, 3), ("agreement", 3, 2), ("esc", 40, 5), ("decided", 8, 5)]
)
def test_the_first_wave_is_as_many_as_could_suffice(kit: ModuleType, rule: str, n: int, expected: int) -> None:
    bench = kit.Bench(window=64)
    bench.submit(voting(kit, n, rule))
    assert begun(kit, bench, n) == expected


def test_two_chains_run_and_a_third_only_where_they_differ(kit: ModuleType) -> None:
    agree, differ = kit.Bench(window=8), kit.Bench(window=8)
    for bench in (agree, differ):
        bench.submit(voting(kit, 3, "agreement"))
        assert begun(kit, bench, 3) == 2
        assert say(kit, bench, 1, 0) == []
    assert say(kit, agree, 2, 0) == ["join 1 of [1, 2] stopped by agreement"]
    third = ["open 3 block 1 for 1[2]", "ready 4", "running 4", "dispatch 4 at e0"]
    assert say(kit, differ, 2, 1) == third


def test_answers_that_differ_make_the_wave_longer_at_once(kit: ModuleType) -> None:
    """After 1 to 1 the leader needs five more, and two of the first four are still under way: three begin."""
    bench = kit.Bench(window=64)
    bench.submit(voting(kit, 40))
    assert begun(kit, bench, 40) == 4
    assert say(kit, bench, 1, 0) == []
    assert len([line for line in say(kit, bench, 2, 1) if line.startswith("open")]) == 3


@pytest.mark.parametrize(
    "labels", [[0] * 12, [0, 1] + [0] * 10, [0, 1, 1, 0, 1, 1, 1, 1, 1, 1], [-1, 0, 0, -1, 0, 0, 0]]
)
@pytest.mark.parametrize("rule", [BETA, "certaindex", "esc", "agreement", "decided", "majority"])
def test_what_is_begun_because_it_is_needed_is_never_stopped(kit: ModuleType, rule: str, labels: list[int]) -> None:
    bench = kit.Bench(window=64)
    bench.submit(voting(kit, 40, rule))
    bench.evaluate(1, 40)
    for frame, label in enumerate(labels, 1):
        if (frame + 1) not in bench.state.runs["r"].tasks:
            break
        lines = say(kit, bench, frame, label)
        assert not any(line.startswith("cancel") for line in lines)


def test_seats_that_nobody_waits_for_are_used(kit: ModuleType) -> None:
    """On an idle engine all that have a seat begin at once, and the next as soon as one is free."""
    bench = kit.Bench(window=6)
    bench.submit(voting(kit, 8, wave=None))
    assert begun(kit, bench, 8) == 6
    assert kit.brief(bench.finish(2)) == [
        "completed 2",
        "label 1 frame 1",
        "open 7 block 1 for 1[6]",
        "ready 8",
        "running 8",
        "dispatch 8 at e0",
    ]


def test_a_busy_engine_is_given_what_is_needed(kit: ModuleType) -> None:
    bench = kit.Bench(window=2)
    b = kit.PlanBuilder("others")
    for _ in range(3):
        b.llm()
    bench.submit(b.build(), "other")
    bench.submit(voting(kit, 40, wave=None))
    assert begun(kit, bench, 40) == 4


def test_calls_that_are_being_measured_count_as_waiting(kit: ModuleType) -> None:
    """Of two runs that come together, the second does not take the seats of the first for empty."""
    bench = kit.Bench(window=6, measure=True)
    plan = voting(kit, 8, wave=None)
    bench.submit(plan)
    bench.submit(plan, "s")
    assert begun(kit, bench, 8) == 6
    opened = [line for line in kit.brief(bench.evaluate(1, 8, run="s")) if line.startswith("open")]
    assert len(opened) == 4
    bench.measured(2)
    bench.cancel()
    assert bench.state.measuring == 4
    bench.cancel("s")
    assert bench.state.measuring == 0


def test_a_wave_of_nought_is_all_at_once_and_its_rest_is_cancelled_in_the_step_of_the_stop(kit: ModuleType) -> None:
    bench = kit.Bench(window=2)
    bench.submit(voting(kit, 4, "agreement", wave=0))
    assert begun(kit, bench, 4) == 4
    say(kit, bench, 1, 0)
    assert say(kit, bench, 2, 0) == [
        "cancel 4 at e0",
        "cancelled 4",
        "close 3",
        "cancel 5 at e0",
        "cancelled 5",
        "close 4",
        "join 1 of [1, 2] stopped by agreement",
    ]


def test_a_wave_is_at_least_what_its_author_says(kit: ModuleType) -> None:
    bench = kit.Bench(window=64)
    bench.submit(voting(kit, 40, wave=7))
    assert begun(kit, bench, 40) == 7
    assert len([line for line in say(kit, bench, 1, 0) if line.startswith("open")]) == 1


def test_concurrency_bounds_a_wave(kit: ModuleType) -> None:
    for wave in (None, 0, 9):
        bench = kit.Bench(window=64)
        bench.submit(voting(kit, 40, wave=wave, concurrency=3))
        assert begun(kit, bench, 40) == 3


def test_a_sample_that_failed_is_made_good_within_the_number_asked_for(kit: ModuleType) -> None:
    bench = kit.Bench(window=64)
    bench.submit(voting(kit, 5))
    assert begun(kit, bench, 5) == 4
    again = ["failed 2 request", "close 1", "open 5 block 1 for 1[4]", "ready 6", "running 6", "dispatch 6 at e0"]
    assert kit.brief(bench.fail(2, Code.REQUEST)) == again
    assert kit.brief(bench.fail(3, Code.REQUEST)) == ["failed 3 request", "close 2"]
    for frame in (3, 4):
        assert say(kit, bench, frame, 0) == []
    assert kit.brief(bench.finish(6)) == ["completed 6", "join 1 of [3, 4, 5]"]


def test_samples_without_a_rule_begin_all_at_once_as_ever(kit: ModuleType) -> None:
    b = kit.PlanBuilder()
    b.sample(body := b.block(), n=9)
    b.llm(block=body)
    bench = kit.Bench(window=2)
    bench.submit(b.build())
    assert begun(kit, bench, 9) == 9


def test_samples_of_one_run_stand_together(kit: ModuleType) -> None:
    """A gang: of two runs of six samples at an engine of two seats, the one goes wholly before the other, whichever came in between."""
    bench = kit.Bench(window=2)
    plan = voting(kit, 6, "decided", wave=0)
    bench.submit(plan, "a")
    bench.submit(plan, "b")
    bench.evaluate(1, 6, run="a")
    bench.evaluate(1, 6, run="b")
    order = []
    for number in range(2, 6):
        sent = [c for c in bench.finish(number, run="a") if type(c).__name__ == "Dispatch"]
        order += [(c.run, c.task) for c in sent]
    assert order == [("a", 4), ("a", 5), ("a", 6), ("a", 7)]


def test_frames_of_a_dynamic_node_stand_together(kit: ModuleType) -> None:
    b = kit.PlanBuilder()
    b.dynamic([body := b.block()], limit=8)
    b.llm(block=body)
    plan = b.build()
    bench = kit.Bench(window=1)
    for run in ("a", "b"):
        bench.submit(plan, run)
    for call in range(3):  # the two runs take turns in calling
        for run in ("b", "a"):
            bench.call(1, call, run=run)
    order, task = [], ("b", 2)
    for _ in range(5):
        sent = [c for c in bench.finish(task[1], run=task[0]) if type(c).__name__ == "Dispatch"]
        task = (sent[0].run, sent[0].task)
        order.append(task)
    assert order == [("a", 2), ("a", 3), ("a", 4), ("b", 3), ("b", 4)]
