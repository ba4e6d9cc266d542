"""Less is done of what the author allows, of what harms least, when a run would be late, and only then."""

from collections.abc import Iterable
from itertools import combinations
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flowserve.core.commands import Degrade, Reject
from flowserve.core.estimates import FRESH
from flowserve.core.events import Code
from flowserve.core.log import LogWriter, replay
from flowserve.graphs.plan import Degradation, Plan, Retry

CRITIC, LOOP = Degradation(0, 0.5), Degradation(1, 0.5)


def refined(kit: ModuleType, rounds: int = 1, degrade: Degradation | None = CRITIC) -> Plan:
    """A draft (task 1) and rounds on it (task 2, calls from 3 on). An optional step is a loop of one round."""
    b = kit.PlanBuilder()
    draft = b.llm()
    body = b.block()
    b.loop(body, draft, limit=rounds, degrade=degrade)
    b.llm(block=body)
    plan: Plan = b.build()
    return plan


def sampled(kit: ModuleType, n: int = 4, degrade: Degradation | None = None, concurrency: int = 0) -> Plan:
    """Samples (task 1, calls from 2 on)."""
    b = kit.PlanBuilder()
    body = b.block()
    b.sample(body, n=n, degrade=degrade, concurrency=concurrency)
    b.llm(block=body)
    plan: Plan = b.build()
    return plan


def found(kit: ModuleType, harm: float = 0.5, **fields: Any) -> Plan:
    """A search (task 1) and a call that reads it (task 2)."""
    b = kit.PlanBuilder()
    b.llm(b.search(limit=8, degrade=Degradation(4, harm), **fields))
    plan: Plan = b.build()
    return plan


def refine(bench: Any, plan: Plan, rounds: int = 1, seconds: float = 10.0) -> None:
    """Runs of `refined` whose calls take so long each, until they have been learned from."""
    for number in range(FRESH):
        run = f"before{number}"
        bench.submit(plan, run)
        bench.now += seconds
        bench.finish(1, run=run)
        for task in range(3, 3 + rounds):
            bench.evaluate(2, 0, run=run)
            bench.now += seconds
            bench.finish(task, run=run)
        bench.finish(2, run=run)


def bench_of(kit: ModuleType, plan: Plan, rounds: int = 1, **config: Any) -> Any:
    bench = kit.Bench(window=1, ageing=0.0, **config)
    refine(bench, plan, rounds)
    return bench


# --- when a run is accepted -------------------------------------------------------------------------------------------


def test_a_run_that_would_be_late_leaves_an_optional_step_out(kit: ModuleType) -> None:
    plan = refined(kit)
    bench = bench_of(kit, plan)
    bench.submit(plan, "r", deadline_s=19.9)
    assert bench.state.runs["r"].taken == (1,)
    assert kit.brief(bench.finish(1)) == ["completed 1", "ready 2", "running 2", "dispatch 2"]
    assert kit.brief(bench.evaluate(2, 0)) == ["degrade 2 to 0", "join 2 of []"]
    assert kit.brief(bench.finish(2)) == ["completed 2", "complete r"]


def test_a_run_that_just_fits_is_whole(kit: ModuleType) -> None:
    plan = refined(kit)
    bench = bench_of(kit, plan)
    bench.submit(plan, "r", deadline_s=20.0)
    assert bench.state.runs["r"].taken == ()
    bench.now += 10.0
    bench.finish(1)
    assert kit.brief(bench.evaluate(2, 0)) == ["open 1 block 1 for 2[0]", "ready 3", "running 3", "dispatch 3 at e0"]


@pytest.mark.parametrize(("allowed", "taken"), [(5.1, True), (4.9, False)])
def test_what_is_hopeless_even_so_is_refused_with_the_estimate_of_the_degraded_run(
    kit: ModuleType, allowed: float, taken: bool
) -> None:
    plan = refined(kit)
    bench = bench_of(kit, plan)
    out = bench.submit(plan, "r", deadline_s=allowed)
    assert ("r" in bench.state.runs) == taken
    if not taken:
        assert isinstance(out[0], Reject) and out[0].expected_s == pytest.approx(10.0)


def test_a_client_may_forbid_it(kit: ModuleType) -> None:
    plan = refined(kit)
    bench = bench_of(kit, plan)
    [refused] = bench.submit(plan, "hopeless", deadline_s=9.0, degrade=False)
    assert isinstance(refused, Reject) and refused.expected_s == pytest.approx(20.0)
    bench.submit(plan, "r", deadline_s=15.0, degrade=False)
    bench.now += 10.0
    bench.finish(1)
    assert "degrade 2 to 0" not in kit.brief(bench.evaluate(2, 0))


def test_nothing_is_degraded_without_a_deadline_or_by_guesses_or_undeclared(kit: ModuleType) -> None:
    plan = refined(kit)
    bench = bench_of(kit, plan)
    bench.submit(plan, "whenever")
    assert bench.state.runs["whenever"].taken == ()
    bench.now += 1e6
    bench.finish(1, run="whenever")
    assert "open 1 block 1 for 2[0]" in kit.brief(bench.evaluate(2, 0, run="whenever"))

    unseen = kit.Bench()
    unseen.submit(plan, "r", deadline_s=0.5)
    unseen.now += 0.4
    unseen.finish(1)
    assert "open 1 block 1 for 2[0]" in kit.brief(unseen.evaluate(2, 0))

    whole = refined(kit, degrade=None)
    strict = bench_of(kit, whole)
    strict.submit(whole, "r", deadline_s=15.0)
    strict.now += 10.0
    strict.finish(1)
    assert "open 1 block 1 for 2[0]" in kit.brief(strict.evaluate(2, 0))


def two_steps(kit: ModuleType, first: float, second: float) -> Plan:
    """Two optional steps one after the other (tasks 1 and 3; calls 2 and 4) of these harms."""
    b = kit.PlanBuilder()
    bodies = [b.block(), b.block()]
    before = b.loop(bodies[0], limit=1, degrade=Degradation(0, first))
    b.loop(bodies[1], before, limit=1, degrade=Degradation(0, second))
    for body in bodies:
        b.llm(block=body)
    plan: Plan = b.build()
    return plan


@pytest.mark.parametrize(
    ("harms", "allowed", "taken"),
    [
        ((0.1, 0.5), 25.0, ()),
        ((0.1, 0.5), 24.0, (0,)),
        ((0.1, 0.5), 20.0, (0,)),
        ((0.1, 0.5), 19.0, (1,)),
        ((0.1, 0.5), 4.0, (0, 1)),
        ((0.5, 0.1), 24.0, (1,)),
        ((0.5, 0.1), 4.0, (1, 0)),
        ((0.5, 0.5), 24.0, (0,)),
    ],
    ids=["whole", "least harm", "just", "the first is given back", "all", "the other order", "all of that", "ties"],
)
def test_the_least_harmful_go_first_and_what_did_not_help_is_given_back(
    kit: ModuleType, harms: tuple[float, float], allowed: float, taken: tuple[int, ...]
) -> None:
    """The first step was seen to take 5 s, the second 20 s."""
    plan = two_steps(kit, *harms)
    bench = kit.Bench(window=1, ageing=0.0, hopeless=0.0)
    for number in range(FRESH):
        run = f"before{number}"
        bench.submit(plan, run)
        for loop, call, seconds in ((1, 2, 5.0), (3, 4, 20.0)):
            bench.evaluate(loop, 0, run=run)
            bench.now += seconds
            bench.finish(call, run=run)
            bench.finish(loop, run=run)
    bench.submit(plan, "r", deadline_s=allowed)
    assert bench.state.runs["r"].taken == taken


@settings(max_examples=60, deadline=None)
@given(
    steps=st.lists(st.tuples(st.sampled_from([0.1, 0.2, 0.5, 1.0]), st.integers(1, 9)), min_size=1, max_size=4),
    allowed=st.integers(1, 40),
)
def test_what_is_taken_suffices_holds_nothing_in_vain_and_harms_no_more_at_once_than_it_must(
    kit: ModuleType, steps: list[tuple[float, int]], allowed: int
) -> None:
    """Against every subset of optional steps that follow each other, of these harms and seconds."""
    b = kit.PlanBuilder()
    loops: list[int] = []
    for harm, _ in steps:
        loops.append(b.loop(body := b.block(), *loops[-1:], limit=1, degrade=Degradation(0, harm)))
        b.llm(block=body)
    plan = b.build()
    bench = kit.Bench(window=1, ageing=0.0, hopeless=0.0)
    for number in range(FRESH):
        run = f"before{number}"
        bench.submit(plan, run)
        for place, (_, seconds) in enumerate(steps):
            bench.evaluate(2 * place + 1, 0, run=run)
            bench.now += seconds
            bench.finish(2 * place + 2, run=run)
            bench.finish(2 * place + 1, run=run)
    bench.submit(plan, "r", deadline_s=float(allowed))
    chosen = [loops.index(node) for node in bench.state.runs["r"].taken]

    def left_s(without: Iterable[int]) -> int:
        return sum(seconds for _, seconds in steps) - sum(steps[place][1] for place in without)

    def worst(taken: Iterable[int]) -> float:
        return max((steps[place][0] for place in taken), default=0.0)

    subsets = [taken for size in range(len(steps) + 1) for taken in combinations(range(len(steps)), size)]
    suffice = [taken for taken in subsets if left_s(taken) <= allowed]  # all of them always do: nothing is left then
    assert left_s(chosen) <= allowed
    assert all(left_s([other for other in chosen if other != place]) > allowed for place in chosen)
    assert worst(chosen) == min(map(worst, suffice))


def test_waiting_for_others_counts(kit: ModuleType) -> None:
    plan = refined(kit)
    bench = bench_of(kit, plan)
    bench.submit(plan, "first")
    bench.submit(plan, "second")
    bench.submit(plan, "r", deadline_s=59.0, tier="batch")
    assert bench.state.runs["r"].taken == (1,), "40 s of others, and 20 s of its own"
    bench.submit(plan, "urgent", deadline_s=59.0, tier="interactive")
    assert bench.state.runs["urgent"].taken == ()


# --- samples ----------------------------------------------------------------------------------------------------------


def learned_samples(kit: ModuleType, plan: Plan, n: int, window: int) -> Any:
    """Every sample was seen to take 10 s."""
    bench = kit.Bench(window=window, ageing=0.0)
    for number in range(FRESH):
        run = f"before{number}"
        bench.submit(plan, run)
        bench.evaluate(1, n, run=run)
        for at in range(0, n, window):
            bench.now += 10.0
            for task in range(at, min(at + window, n)):
                bench.finish(2 + task, run=run)
        bench.finish(1, run=run)
    return bench


@pytest.mark.parametrize(
    ("window", "allowed", "drawn"), [(1, 40.0, 4), (1, 39.0, 2), (2, 20.0, 4), (2, 19.0, 2), (4, 10.0, 4)]
)
def test_fewer_samples_are_drawn_where_all_do_not_fit_through_the_engines_in_time(
    kit: ModuleType, window: int, allowed: float, drawn: int
) -> None:
    plan = sampled(kit, degrade=Degradation(2, 0.2))
    bench = learned_samples(kit, plan, 4, window)
    bench.submit(plan, "r", deadline_s=allowed)
    out = kit.brief(bench.evaluate(1, 4))
    assert sum(line.startswith("open") for line in out) == drawn
    assert ("degrade 1 to 2" in out) == (drawn < 4)


def test_fewer_samples_are_drawn_where_they_follow_each_other(kit: ModuleType) -> None:
    plan = sampled(kit, degrade=Degradation(2, 0.2), concurrency=1)
    bench = learned_samples(kit, plan, 4, 1)
    bench.submit(plan, "r", deadline_s=39.0)
    assert kit.brief(bench.evaluate(1, 4)) == [
        "degrade 1 to 2",
        "open 1 block 1 for 1[0]",
        "ready 2",
        "running 2",
        "dispatch 2 at e0",
    ]
    bench.finish(2)
    assert kit.brief(bench.finish(3)) == ["completed 3", "join 1 of [1, 2]"]


def test_samples_that_were_left_out_are_not_learned_from(kit: ModuleType) -> None:
    plan = sampled(kit, degrade=Degradation(2, 0.2))
    bench = learned_samples(kit, plan, 4, 1)
    for number in range(2 * FRESH):
        run = f"degraded{number}"
        bench.submit(plan, run, deadline_s=39.0)
        assert "degrade 1 to 2" in kit.brief(bench.evaluate(1, 4, run=run))
        for task in (2, 3):
            bench.now += 10.0
            bench.finish(task, run=run)
        bench.finish(1, run=run)


# --- while it runs ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("draft_s", "left_out"), [(10.0, False), (10.5, True)])
def test_an_optional_step_is_left_out_when_the_rest_does_not_fit_any_more(
    kit: ModuleType, draft_s: float, left_out: bool
) -> None:
    plan = refined(kit)
    bench = bench_of(kit, plan)
    bench.submit(plan, "r", deadline_s=20.0)
    bench.now += draft_s
    bench.finish(1)
    assert ("degrade 2 to 0" in kit.brief(bench.evaluate(2, 0))) == left_out


def test_a_loop_ends_before_the_round_that_does_not_fit(kit: ModuleType) -> None:
    plan = refined(kit, rounds=3, degrade=LOOP)
    bench = bench_of(kit, plan, rounds=3)
    bench.submit(plan, "r", deadline_s=40.0)
    assert bench.state.runs["r"].taken == ()
    bench.now += 10.0
    bench.finish(1)
    for task, seconds in ((3, 10.0), (4, 10.5)):
        assert f"ready {task}" in kit.brief(bench.evaluate(2, 0))
        bench.now += seconds
        bench.finish(task)
    assert kit.brief(bench.evaluate(2, 0)) == ["degrade 2 to 2", "join 2 of [2]"]


def test_a_loop_that_makes_its_least_rounds_late_makes_them_all_the_same(kit: ModuleType) -> None:
    plan = refined(kit, rounds=3, degrade=LOOP)
    bench = bench_of(kit, plan, rounds=3)
    bench.submit(plan, "r", deadline_s=40.0)
    bench.now += 39.0
    bench.finish(1)
    assert "ready 3" in kit.brief(bench.evaluate(2, 0))
    bench.now += 0.5
    bench.finish(3)
    assert kit.brief(bench.evaluate(2, 0)) == ["degrade 2 to 1", "join 2 of [1]"]


def test_a_loop_that_is_content_in_time_was_not_degraded(kit: ModuleType) -> None:
    plan = refined(kit, rounds=3, degrade=LOOP)
    bench = bench_of(kit, plan, rounds=3)
    bench.submit(plan, "r", deadline_s=25.0)
    assert bench.state.runs["r"].taken == (1,)
    bench.finish(1)
    bench.evaluate(2, 0)
    bench.finish(3)
    assert kit.brief(bench.evaluate(2, 1)) == ["join 2 of [1]"]


def learned_search(kit: ModuleType, plan: Plan) -> Any:
    """A search was seen to take 1 s, its reader 9 s."""
    bench = kit.Bench(window=1, ageing=0.0, search_window=1)
    for number in range(FRESH):
        run = f"before{number}"
        bench.submit(plan, run)
        bench.now += 1.0
        bench.finish(1, run=run)
        bench.now += 9.0
        bench.finish(2, run=run)
    return bench


@pytest.mark.parametrize(("allowed", "limit"), [(10.0, None), (9.5, 4)])
def test_a_search_asks_for_fewer_passages_when_its_reader_would_be_late(
    kit: ModuleType, allowed: float, limit: int | None
) -> None:
    plan = found(kit)
    bench = learned_search(kit, plan)
    out = kit.brief(bench.submit(plan, "r", deadline_s=allowed))
    assert out[-3 if limit is None else -4 :][:-1] == (
        ["running 1", "dispatch 1"] if limit is None else ["running 1", "degrade 1 to 4", "dispatch 1 limit 4"]
    )


def test_a_search_that_waited_too_long_asks_for_fewer_passages(kit: ModuleType) -> None:
    plan = found(kit)
    bench = learned_search(kit, plan)
    bench.submit(plan, "first")
    bench.submit(plan, "r", deadline_s=10.5)
    bench.now += 1.0
    assert kit.brief(bench.finish(1, run="first"))[-3:] == ["running 1", "degrade 1 to 4", "dispatch 1 limit 4"]


def test_another_attempt_is_decided_anew(kit: ModuleType) -> None:
    """Its first attempt has time for eight passages, its second has not."""
    plan = found(kit, retry=Retry(2, 0.0))
    bench = learned_search(kit, plan)
    assert "dispatch 1" in kit.brief(bench.submit(plan, "r", deadline_s=10.5))
    bench.now += 1.0
    assert kit.brief(bench.fail(1, Code.RETRIEVAL)) == [
        "retrying 1 retrieval",
        "ready 1",
        "running 1",
        "degrade 1 to 4",
        "dispatch 1 attempt 2 limit 4",
    ]


def test_a_log_replays_to_the_same_degradations(kit: ModuleType) -> None:
    lines: list[str] = []
    bench = kit.Bench(window=1)
    writer = LogWriter(lines.append, bench.state.config)
    writer.record(0.0, kit.e.EngineChanged("e0", True, ("",), 1))
    outs, feed = [], bench.feed

    def recorded(event: Any, after: float = 0.0) -> Any:
        writer.record(bench.now + after, event)
        outs.append(feed(event, after))
        return outs[-1]

    bench.feed = recorded
    plan = refined(kit)
    refine(bench, plan)
    bench.submit(plan, "r", deadline_s=15.0)
    bench.finish(1)
    bench.evaluate(2, 0)
    bench.submit(plan, "strict", deadline_s=15.0, degrade=False)
    bench.finish(2)
    assert any(isinstance(command, Degrade) for out in outs for command in out)
    assert list(replay(lines))[1:] == outs
