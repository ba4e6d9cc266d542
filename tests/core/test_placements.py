"""Each placement of the table sends calls where its source would. Exact commands."""

from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from flowserve.core import placements
from flowserve.core.commands import Dispatch
from flowserve.core.config import Config
from flowserve.core.engine_state import Engine
from flowserve.core.events import SessionEnded
from flowserve.core.log import LogWriter, read, replay
from flowserve.core.placements import PLACEMENTS, Asked, Memory, Sent, Window
from flowserve.core.state import SchedulerState
from flowserve.errors import ConfigError
from flowserve.graphs.plan import Plan
from flowserve.ids import EngineId

LIMIT = 100


def one(kit: ModuleType) -> Plan:
    b = kit.PlanBuilder("one")
    b.llm()
    built: Plan = b.build()
    return built


def steps(kit: ModuleType, count: int) -> Plan:
    """Calls one after the other."""
    b = kit.PlanBuilder(f"steps{count}")
    before: tuple[int, ...] = ()
    for _ in range(count):
        before = (b.llm(*before),)
    built: Plan = b.build()
    return built


def pool(kit: ModuleType, placement: str, engines: int = 3, window: int = 8, **facts: Any) -> Any:
    bench = kit.Bench(engines=0, measure=True, placement=placement)
    for number in range(engines):
        bench.engine(f"e{number}", window, **facts)
    return bench


def chain(which: int, tokens: int) -> tuple[int, ...]:
    """Numbers of the prefix of prompts that begin alike for so many tokens."""
    return tuple(1000 * which + i for i in range(tokens // 64))


def asks(bench: Any, plan: Plan, run: str, tokens: int = 100, limit: int = LIMIT, **facts: Any) -> str | None:
    """A run of one call comes: the engine that it goes to."""
    session, tier = facts.pop("session", None), facts.pop("tier", "standard")
    bench.submit(plan, run, session=session, tier=tier)
    return engine_of(bench.measured(1, tokens, run=run, limit=limit, **facts))


def engine_of(out: list[Any]) -> str | None:
    [*sent] = [command.engine for command in out if isinstance(command, Dispatch)]
    assert len(sent) <= 1
    return sent[0] if sent else None


def test_an_unknown_placement_is_refused_with_those_that_there_are() -> None:
    known = ", ".join(sorted(PLACEMENTS))
    with pytest.raises(ConfigError, match=f"^placement: expected one of {known}; got 'near'$"):
        SchedulerState(Config(placement="near"))


def test_the_default_is_marginal() -> None:
    assert SchedulerState().placement is PLACEMENTS["marginal"]
    assert "marginal" == Config().placement


def test_a_log_carries_the_placement_and_replays_to_the_same_commands(kit: ModuleType) -> None:
    lines: list[str] = []
    bench = pool(kit, "round_robin", engines=0)
    writer = LogWriter(lines.append, bench.state.config)
    outs = []
    feed = bench.feed

    def recorded(event: Any, after: float = 0.0) -> list[Any]:
        writer.record(bench.now + after, event)
        outs.append(feed(event, after))
        return list(outs[-1])

    bench.feed = recorded
    for number in range(2):
        bench.engine(f"e{number}")
    assert [asks(bench, one(kit), run) for run in "abc"] == ["e0", "e1", "e0"]
    config, _ = read(lines)
    assert config.placement == "round_robin"
    assert list(replay(lines)) == outs


# --- the ones without a memory --------------------------------------------------------------------------


def test_priced_takes_the_least_outstanding_work_with_what_the_call_would_add(kit: ModuleType) -> None:
    bench = pool(kit, "priced", engines=2)
    assert asks(bench, one(kit), "a", 640, prefix=chain(1, 640)) == "e0"
    assert asks(bench, one(kit), "b", 100) == "e1"
    bench.tokens(1, run="a")
    assert asks(bench, one(kit), "c", 640, prefix=chain(1, 640)) == "e0", "its prompt is there, the work alike"
    assert asks(bench, one(kit), "d", 640) == "e1"


def test_marginal_stays_with_a_prompt_where_balance_would_have_it_computed_again(kit: ModuleType) -> None:
    for placement, last in (("marginal", "e0"), ("priced", "e1")):
        bench = pool(kit, placement, engines=2)
        assert asks(bench, one(kit), "a", 640, prefix=chain(1, 640)) == "e0"
        bench.tokens(1, run="a")
        for run in "bcd":
            bench.submit(one(kit), run)
            bench.measured(1, 641, run=run, limit=LIMIT, prefix=chain(1, 640))
            bench.tokens(1, run=run)
        assert asks(bench, one(kit), "e", 641, prefix=chain(1, 640)) == last, placement


def test_marginal_counts_what_others_lose_by_a_prompt_and_by_longer_steps() -> None:
    """With 1 ms per prompt token and steps of 10 + 1 ms a call: 40 x 1 + 20 x (10 + 3) + 2 x 40 x 1 + 1 x 2 x 20 = 420."""
    busy, free = Engine(EngineId("busy"), 1, 20), Engine(EngineId("free"), 2, 20)
    for engine in (busy, free):
        engine.limit = 8
        for calls in range(1, 9):
            engine.step_time.add(calls, 0.010 + 0.001 * calls)
    busy.seats, busy.ahead = 2, 100

    def chosen(held: int, prompt: int) -> Engine:
        """Of a prompt of which the busy engine holds so much, where the free one takes `prompt` + 20 x 11 ms."""
        return placements.marginal(
            Asked(
                ("r", ""),
                prompt,
                20,
                (),
                None,
                False,
                1.0,
                4.0,
                lambda e: held * (e is busy),
                lambda _: 0.0,
                lambda _: 0.001,
            ),
            (busy, free),
            Memory(),
        )

    assert chosen(161, 201) is busy, "420 ms there, 421 here"
    assert chosen(159, 199) is free, "420 ms there, 419 here"
    busy.ahead = 10
    assert chosen(159, 199) is busy, "the others have 10 tokens to write, and lose no more steps than that"


def test_least_calls_counts_calls_however_large(kit: ModuleType) -> None:
    bench = pool(kit, "least_calls", engines=2)
    assert asks(bench, one(kit), "a", 9000, limit=2000) == "e0"
    assert asks(bench, one(kit), "b", 10, limit=1) == "e1"
    assert asks(bench, one(kit), "c", 10, limit=1) == "e0"
    bench.finish(1, run="a")
    bench.finish(1, run="c")
    assert asks(bench, one(kit), "d", 10) == "e0"


def test_least_work_counts_tokens_to_compute_and_to_write_alike(kit: ModuleType) -> None:
    bench = pool(kit, "least_work", engines=2)
    assert asks(bench, one(kit), "a", 500, limit=100) == "e0"  # 500 + 50 expected
    assert asks(bench, one(kit), "b", 100, limit=100) == "e1"
    assert asks(bench, one(kit), "c", 100, limit=800) == "e1"  # 150 before; 650 now
    assert asks(bench, one(kit), "d", 10) == "e0"
    bench.tokens(1, run="a")
    assert asks(bench, one(kit), "e", 10) == "e0", "the prompt of a is computed"


def test_sal_takes_the_engine_whose_scarcest_is_least_scarce(kit: ModuleType) -> None:
    bench = pool(kit, "sal", engines=2, kv_tokens=10_000, batch_tokens=1000)
    assert asks(bench, one(kit), "a", 1000, limit=10) == "e0", "half of the 2,000 tokens that may be queued"
    assert asks(bench, one(kit), "b", 100, limit=8000) == "e1", "4,100 of 10,000 of its memory"
    assert asks(bench, one(kit), "c", 100, limit=10) == "e1", "0.50 queued there, 0.42 of the memory here"
    bench.tokens(1, run="a")  # nothing is queued there any more: what counts is memory, a tenth
    assert asks(bench, one(kit), "d", 100, limit=10) == "e0"


def test_sal_places_by_queued_tokens_where_engines_say_nothing_of_themselves(kit: ModuleType) -> None:
    bench = pool(kit, "sal", engines=2)
    assert [asks(bench, one(kit), run, tokens) for run, tokens in (("a", 300), ("b", 100), ("c", 100), ("d", 200))] == [
        "e0",
        "e1",
        "e1",
        "e1",
    ]


def test_scls_takes_the_least_predicted_time(kit: ModuleType) -> None:
    bench = pool(kit, "scls", engines=2)
    assert asks(bench, one(kit), "a", 100, limit=800) == "e0"  # 100 + 4 * 400 tokens' time
    assert asks(bench, one(kit), "b", 900, limit=100) == "e1"  # 900 + 4 * 50: more tokens, less time
    assert asks(bench, one(kit), "c", 100, limit=100) == "e1"
    bench.tokens(1, 390, run="a")  # 4 * 10 left
    assert asks(bench, one(kit), "d", 100, limit=100) == "e0"


def test_scls_counts_the_pace_of_an_engine(kit: ModuleType) -> None:
    bench = pool(kit, "scls", engines=2)
    for run, engine, pace in (("a", "e0", 1.0), ("b", "e1", 0.01)):
        assert asks(bench, one(kit), run, 10, limit=1000) == engine
        for _ in range(10):
            bench.tokens(1, run=run, after=pace)
    assert asks(bench, one(kit), "c", 10) == "e1", "the second has as much to write, and writes it sooner"


def test_scls_sends_the_longest_of_the_calls_that_wait_first(kit: ModuleType) -> None:
    """Two seats become free at once: the longest goes to the engine with least."""
    bench = pool(kit, "scls", engines=1, window=1)
    bench.submit(one(kit), "x")
    bench.measured(1, 10, run="x")
    for run, tokens in (("a", 100), ("b", 3000), ("c", 500)):
        assert asks(bench, one(kit), run, tokens) is None
    out = bench.engine("e1", 2)
    assert [(c.run, c.engine) for c in out if isinstance(c, Dispatch)] == [("b", "e1"), ("c", "e1")]


# --- those that remember ------------------------------------------------------------------------------


def test_round_robin_takes_engines_in_turn_and_passes_over_full_ones(kit: ModuleType) -> None:
    bench = pool(kit, "round_robin", engines=3, window=2)
    assert [asks(bench, one(kit), run) for run in "abcd"] == ["e0", "e1", "e2", "e0"]
    bench.finish(1, run="c")
    bench.finish(1, run="b")
    assert [asks(bench, one(kit), run) for run in "efgh"] == ["e1", "e2", "e1", "e2"], "e0 is full"
    assert bench.state.placed.turn == 3


def test_a_call_does_not_go_back_where_it_was_given_up(kit: ModuleType) -> None:
    for name in PLACEMENTS:
        bench = pool(kit, name, engines=2)
        assert asks(bench, one(kit), "a", 3000, prefix=chain(1, 3000)) == "e0"
        bench.feed(kit.e.EngineChanged(kit.EngineId("e0"), False))
        out = bench.engine("e0", 8)
        assert engine_of(out) is None  # it went to e1 when e0 went down
        [task] = bench.state.runs["a"].tasks.values()
        assert task.place.id == "e1", name


def test_a_session_that_has_ended_is_placed_like_a_new_one(kit: ModuleType) -> None:
    bench = pool(kit, "sticky", engines=2)
    assert asks(bench, one(kit), "a", 10, session="s") == "e0"
    assert asks(bench, one(kit), "b", 10, session="t") == "e1"
    bench.finish(1, run="a")
    bench.finish(1, run="b")
    assert bench.feed(SessionEnded("another", "t")) == [] == bench.feed(SessionEnded("", "unknown"))
    assert asks(bench, one(kit), "c", 10, session="t") == "e1", "it goes on"
    bench.finish(1, run="c")
    assert bench.feed(SessionEnded("", "t")) == []
    assert not any(key[1] == "t" for memory in (bench.state.homes, bench.state.placed.pins) for key in memory)
    assert asks(bench, one(kit), "d", 10, session="t") == "e0", "as at first sight"


def test_sticky_follows_a_session_wherever_it_is_not_loaded_twice_as_much(kit: ModuleType) -> None:
    bench = pool(kit, "sticky", engines=2)
    assert asks(bench, one(kit), "a", 10, limit=1000, session="s") == "e0"
    assert asks(bench, one(kit), "b", 10, limit=1000, session="t") == "e1"
    bench.finish(1, run="a")
    bench.finish(1, run="b")
    assert asks(bench, one(kit), "c", 10, limit=1000, session="t") == "e1", "though both are empty"
    assert asks(bench, one(kit), "d", 10, limit=1000, session="t") == "e1", "twice the work of e0, not more"
    assert asks(bench, one(kit), "e", 10, limit=1000, session="t") == "e0", "three times: it spills"
    assert asks(bench, one(kit), "f", 10, limit=1000, session="t") == "e0", "and stays there"


def test_sticky_keeps_the_calls_of_a_run_together(kit: ModuleType) -> None:
    bench = pool(kit, "sticky", engines=2)
    plan = steps(kit, 2)
    assert asks(bench, plan, "a") == "e0"
    assert asks(bench, plan, "b") == "e1"
    for run, engine in (("b", "e1"), ("a", "e0")):
        bench.finish(1, run=run)
        assert engine_of(bench.measured(2, 100, run=run, limit=LIMIT)) == engine


def test_a_program_that_was_used_least_recently_is_forgotten(kit: ModuleType, monkeypatch: Any) -> None:
    monkeypatch.setattr(placements, "MOST_PINS", 2)
    bench = pool(kit, "sticky", engines=2)
    for run, session in (("a", "s"), ("b", "t"), ("c", "s"), ("d", "u")):
        asks(bench, one(kit), run, session=session)
        bench.finish(1, run=run)
    assert list(bench.state.placed.pins) == [("", "s"), ("", "u")]


def test_autellix_sends_long_prompts_to_the_engine_of_their_program_and_short_ones_anywhere(kit: ModuleType) -> None:
    bench = pool(kit, "autellix", engines=2)
    assert asks(bench, one(kit), "a", 100, session="s") == "e0", "at first sight: the fewest calls"
    assert asks(bench, one(kit), "b", 2048, session="s") == "e1", "not longer than 2,048"
    assert asks(bench, one(kit), "c", 100, session="t") == "e0"
    assert asks(bench, one(kit), "d", 2049, session="s") == "e0", "two calls there, one at e1"
    assert asks(bench, one(kit), "e", 100, session="s") == "e1"
    assert asks(bench, one(kit), "f", 2049, session="s") == "e0", (
        "where s was given at first sight, not where it was last"
    )


def test_e2_exploits_where_more_is_cached_than_not(kit: ModuleType) -> None:
    bench = pool(kit, "e2", engines=2)
    assert asks(bench, one(kit), "a", 1280, prefix=chain(1, 1280)) == "e0"
    bench.finish(1, run="a")
    half = chain(1, 640) + chain(2, 640)
    assert asks(bench, one(kit), "b", 1280, prefix=half) == "e1", "half is no more than the rest: the least load"
    bench.finish(1, run="b")
    more = chain(1, 704) + chain(3, 576)
    assert asks(bench, one(kit), "c", 1280, prefix=more) == "e0", "704 of 1,280"


def test_e2_explores_by_what_calls_cost_within_the_window_not_by_what_is_outstanding(kit: ModuleType) -> None:
    bench = pool(kit, "e2", engines=2)
    assert asks(bench, one(kit), "a", 4000) == "e0"
    bench.finish(1, run="a")
    assert asks(bench, one(kit), "b", 100) == "e1"
    assert asks(bench, one(kit), "c", 100) == "e1", "e0 is idle and e1 is not, but e0 has had more"
    bench.tick(placements.WINDOW_S + 1.0)
    assert asks(bench, one(kit), "d", 100) == "e0", "that is forgotten"


def test_e2_lets_the_heaviest_engine_pass_on_what_it_could_exploit(kit: ModuleType) -> None:
    bench = pool(kit, "e2", engines=2, window=64)
    went = []
    for number in range(40):  # answers of 100 tokens: each counts like 400 of prompt
        went.append(asks(bench, one(kit), f"r{number}", 1280, prefix=chain(1, 1280)))
        bench.feed(kit.e.TaskFinished(kit.RunId(f"r{number}"), kit.TaskId(1), 1, tokens_out=100))
    assert went[:3] == ["e0", "e0", "e1"], "1,280 + 2 * 400 against 1.5 times what it costs to compute the prompt again"
    assert 15 < went.count("e1") < 25, "then both hold it, and share"


def test_e2_explores_where_what_must_go_was_used_less(kit: ModuleType) -> None:
    """Two engines of four numbers each, both full and equally loaded; only the first has used what it holds."""
    engines, memory = [Engine(kit.EngineId(f"e{n}"), n + 1, 20) for n in range(2)], Memory()
    for engine, used in zip(engines, [(1, 2, 3, 4), ()], strict=True):
        engine.resident.capacity = 4
        engine.resident.add((1, 2, 3, 4))
        memory.windows[engine] = Window()
        memory.windows[engine].add(Sent(1.0, 2.0, used))

    def asked(*prefix: int) -> Asked:
        size = 64 * len(prefix)
        return Asked(("r", ""), size, 0, prefix, None, False, 1.0, 4.0, lambda _: 0, lambda _: 0.0, lambda _: 0.001)

    assert placements.e2(asked(6, 7, 8, 9), engines, memory) is engines[1]
    assert [placements._evicted_s(asked(6, 7), engine, memory) for engine in engines] == [2 * 64 * 0.001, 0.0]


def test_e2_forgets_what_an_engine_did_before_it_came_back(kit: ModuleType) -> None:
    bench = pool(kit, "e2", engines=2)
    assert asks(bench, one(kit), "a", 4000) == "e0"
    bench.finish(1, run="a")
    assert asks(bench, one(kit), "b", 100) == "e1"
    bench.tick(1.0)
    bench.feed(kit.e.EngineChanged(kit.EngineId("e0"), False))
    bench.engine("e0", 8)
    assert asks(bench, one(kit), "c", 100) == "e0"


def test_a_window_forgets_by_age_and_by_number(monkeypatch: Any) -> None:
    monkeypatch.setattr(placements, "MOST_SENT", 3)
    window = Window()
    for second in range(5):
        window.add(Sent(float(second), 1.0, (7, second)))
    assert [sent.at for sent in window.sent] == [2.0, 3.0, 4.0]
    assert window.uses == {7: 3, 2: 1, 3: 1, 4: 1}
    assert window.since(3.0) == (2.0, 2)
    window.add(Sent(4.1 + placements.WINDOW_S, 1.0, (9,)))
    assert window.uses == {9: 1}


@pytest.mark.parametrize(
    ("bound", "grouped", "prompt", "least_held"),
    [(False, 0, 201, 161), (True, 2, 201, 161), (False, 2, 201, 101), (True, 0, 221, 219)],
)
def test_objectives_counts_seconds_of_throughput_bound_calls_a_quarter(
    bound: bool, grouped: int, prompt: int, least_held: int
) -> None:
    """At the busy engine, with two calls, d tokens of the prompt are left: the call takes d + 20 x 13 ms, and the two lose
    2 d + 40; at the free one it takes the prompt + 20 x 11 ms. From how many tokens held there on is the busy one chosen?"""
    busy, free = Engine(EngineId("e0"), 1, 20), Engine(EngineId("e1"), 2, 20)
    for engine in (busy, free):
        engine.limit = 8
        for calls in range(1, 9):
            engine.step_time.add(calls, 0.010 + 0.001 * calls)
    waiting: Any = {"one": None, "other": None}
    busy.running, busy.seats, busy.ahead, busy.throughput_calls = waiting, 2, 100, grouped

    def chosen(held: int) -> Engine:
        costs = (lambda e: held * (e is busy), lambda _: 0.0, lambda _: 0.001)
        return placements.objectives(
            Asked(("r", ""), prompt, 20, (), None, bound, 1.0, 4.0, *costs), (busy, free), Memory()
        )

    assert (chosen(least_held - 2), chosen(least_held)) == (free, busy)


def test_objectives_of_a_call_are_those_of_its_plan_and_tier(kit: ModuleType) -> None:
    b = kit.PlanBuilder("items")
    body = b.block()
    b.map(body, limit=2)
    b.llm(block=body)
    bench = pool(kit, "objectives", engines=1)
    for run, tier in (("a", "standard"), ("b", "batch"), ("c", "interactive")):
        assert asks(bench, one(kit), run, tier=tier) == "e0"
    bench.submit(b.build(), "map")
    bench.evaluate(1, 2, run="map")
    for item in (2, 3):
        bench.measured(item, run="map", limit=LIMIT)
    [engine] = bench.state.engines.values()
    assert (engine.throughput_calls, len(engine.running)) == (3, 5)
    bench.cancel("map")
    assert (engine.throughput_calls, len(engine.running)) == (1, 3)


@pytest.mark.parametrize(("placement", "waits"), [(name, known.waits) for name, known in PLACEMENTS.items()])
def test_only_placements_that_know_of_prefixes_let_a_call_wait_for_its_engine(
    kit: ModuleType, placement: str, waits: bool
) -> None:
    bench = pool(kit, placement, engines=1, window=1)
    assert asks(bench, one(kit), "a", 640, prefix=chain(1, 640), session="s") == "e0"
    bench.finish(1, run="a")
    bench.engine("e1", 1)
    bench.feed(kit.e.EngineChanged(kit.EngineId("e1"), False))
    assert asks(bench, one(kit), "b", 640, prefix=chain(1, 640), session="s") == "e0"
    bench.engine("e1", 1)
    goes = asks(bench, one(kit), "c", 640, prefix=chain(1, 640), session="s")
    assert goes == (None if waits else "e1")


def test_every_placement_of_the_table_has_a_test_above() -> None:
    text = Path(__file__).read_text(encoding="utf-8")
    for name in PLACEMENTS:
        assert f"\ndef test_{name}_" in text, name
