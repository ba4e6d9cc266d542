"""Calls that allow it go where the KV of their passages is, whatever stands before it. Exact commands."""

from types import ModuleType
from typing import Any

import pytest

from flowserve.core import passages, placement
from flowserve.core.commands import Dispatch
from flowserve.core.engine_state import Engine
from flowserve.core.events import Passage
from flowserve.core.log import LogWriter, replay
from flowserve.graphs.plan import Plan
from flowserve.ids import EngineId

FIRST, SECOND, THIRD = Passage(1, 100, 500), Passage(2, 600, 500), Passage(3, 1100, 500)


def one(kit: ModuleType) -> Plan:
    b = kit.PlanBuilder("one")
    b.llm()
    built: Plan = b.build()
    return built


def pool(kit: ModuleType, *pasted: float) -> Any:
    """Engines that paste these shares."""
    bench = kit.Bench(engines=0, measure=True)
    for number, share in enumerate(pasted):
        bench.engine(f"e{number}", 8, pasted=share)
    return bench


def two_kept_apart(bench: Any, plan: Plan) -> list[str | None]:
    """Two calls at once, with a passage each: the engines that they went to."""
    found = [placed(bench, plan, "a", FIRST), placed(bench, plan, "b", SECOND)]
    for run in ("a", "b"):
        bench.finish(1, run=run)
    return found


def asks(bench: Any, plan: Plan, run: str, *asked: Passage, tokens: int = 1700) -> str | None:
    """A run of one call comes and is answered: the engine that it went to."""
    where = placed(bench, plan, run, *asked, tokens=tokens)
    bench.finish(1, run=run)
    return where


def placed(bench: Any, plan: Plan, run: str, *asked: Passage, tokens: int = 1700) -> str | None:
    bench.submit(plan, run)
    [sent] = [c for c in bench.measured(1, tokens, run=run, limit=10, passages=asked) if isinstance(c, Dispatch)]
    engine: str | None = sent.engine
    return engine


def engine(bench: Any, id: str) -> Engine:
    found: Engine = bench.state.engines[EngineId(id)]
    return found


def test_a_call_goes_where_its_passages_are_though_they_stand_elsewhere(kit: ModuleType) -> None:
    bench, plan = pool(kit, 0.85, 0.85), one(kit)
    assert two_kept_apart(bench, plan) == ["e0", "e1"]
    moved = Passage(SECOND.number, 40, 500)
    assert [asks(bench, plan, run, moved) for run in ("c", "d")] == ["e1", "e1"]
    assert asks(bench, plan, "e", FIRST) == "e0"


def test_a_call_that_is_computed_exactly_learns_and_profits_nothing(kit: ModuleType) -> None:
    bench, plan = pool(kit, 0.85, 0.85), one(kit)
    asks(bench, plan, "a")
    assert [len(engine(bench, id).passages) for id in ("e0", "e1")] == [0, 0]


def test_an_engine_that_pastes_nothing_is_not_thought_to_have_any(kit: ModuleType) -> None:
    bench, plan = pool(kit, 0.0), one(kit)
    asks(bench, plan, "a", FIRST, SECOND)
    assert len(engine(bench, "e0").passages) == 0
    bench.submit(plan, "b")
    bench.measured(1, 1700, run="b", passages=(FIRST,))
    assert engine(bench, "e0").backlog == 1700


@pytest.mark.parametrize(
    ("held", "spared"),
    [(0, 850), (100, 850), (350, 637), (1100, 0), (1700, 0)],
)
def test_what_is_held_exactly_is_not_spared_again(kit: ModuleType, held: int, spared: int) -> None:
    bench = pool(kit, 0.85)
    passages.sent(engine(bench, "e0"), (FIRST, SECOND))
    assert passages.spared(engine(bench, "e0"), (FIRST, SECOND, THIRD), held) == spared


def test_at_least_one_token_is_computed(kit: ModuleType) -> None:
    bench, plan = pool(kit, 1.0), one(kit)
    whole = Passage(9, 0, 500)
    asks(bench, plan, "a", whole, tokens=500)
    bench.submit(plan, "b")
    bench.measured(1, 500, run="b", limit=10, passages=(whole,))
    [task] = engine(bench, "e0").running
    assert placement.resident(bench.state, engine(bench, "e0"), task) == 499
    assert engine(bench, "e0").backlog == 1


def test_an_engine_that_comes_back_is_thought_to_have_nothing(kit: ModuleType) -> None:
    bench = pool(kit, 0.85)
    asks(bench, one(kit), "a", FIRST)
    bench.engine("e0", 8, up=False)
    bench.engine("e0", 8, pasted=0.85)
    assert len(engine(bench, "e0").passages) == 0


def test_an_engine_whose_policy_is_switched_off_is_thought_to_have_nothing(kit: ModuleType) -> None:
    bench = pool(kit, 0.85)
    asks(bench, one(kit), "a", FIRST)
    bench.engine("e0", 8)
    assert len(engine(bench, "e0").passages) == 0


def test_a_log_with_passages_replays_to_the_same_commands(kit: ModuleType) -> None:
    lines: list[str] = []
    bench = kit.Bench(engines=0, measure=True)
    writer = LogWriter(lines.append, bench.state.config)
    outs = []
    feed = bench.feed

    def recorded(event: Any, after: float = 0.0) -> list[Any]:
        writer.record(bench.now + after, event)
        outs.append(feed(event, after))
        return list(outs[-1])

    bench.feed = recorded
    for id in ("e0", "e1"):
        bench.engine(id, 8, pasted=0.85)
    assert two_kept_apart(bench, one(kit)) == ["e0", "e1"]
    assert asks(bench, one(kit), "c", SECOND) == "e1"
    assert list(replay(lines)) == outs
