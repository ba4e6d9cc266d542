"""Calls that begin alike go to one engine one after the other, and nobody is passed for longer than `near_s`. Exact commands."""

from types import ModuleType
from typing import Any

import pytest

from flowserve.config import PoolConfig
from flowserve.core import passing
from flowserve.core.commands import Dispatch
from flowserve.core.events import Code
from flowserve.core.log import LogWriter, replay
from flowserve.graphs.plan import Plan

GROUP = 256
"""Tokens that a group has in common here: four numbers."""


def one(kit: ModuleType) -> Plan:
    b = kit.PlanBuilder("one")
    b.llm(cost_s=1.0)
    built: Plan = b.build()
    return built


def pool(kit: ModuleType, engines: int = 2, window: int = 8, **fields: Any) -> Any:
    """A bench whose placement knows nothing of prefixes, with groups."""
    fields = {"group_tokens": GROUP, "near_s": 0.5} | fields
    bench = kit.Bench(engines=0, measure=True, placement="least_calls", fairness=0.0, pool=PoolConfig(**fields))
    for number in range(engines):
        bench.engine(f"e{number}", window)
    return bench


def chain(which: str, own: int, common: int = 4) -> tuple[int, ...]:
    """Numbers of a prompt that begins like the others of `which`, and has six numbers in all."""
    return tuple(ord(which) * 1000 + (i if i < common else 10 * own + i) for i in range(6))


def comes(
    bench: Any, kit: ModuleType, run: str, which: str | None = None, **fields: Any
) -> list[tuple[str, str | None]]:
    """A run of one call comes, of the group `which`: what is dispatched then."""
    own = len(bench.state.runs) + 1
    common = fields.pop("common", 4)
    bench.submit(one(kit), run, **fields)
    return where(bench.measured(1, 400, run=run, limit=10, prefix=chain(which, own, common) if which else ()))


def where(out: list[Any]) -> list[tuple[str, str | None]]:
    return [(command.run, command.engine) for command in out if isinstance(command, Dispatch)]


# --- one engine for a group ------------------------------------------------------------------------------


def test_calls_that_begin_alike_go_to_one_engine_while_their_group_lasts(kit: ModuleType) -> None:
    bench = pool(kit)
    assert comes(bench, kit, "a1", "a") == [("a1", "e0")]
    assert comes(bench, kit, "b1", "b") == [("b1", "e1")], "the fewest calls"
    assert comes(bench, kit, "a2", "a") == [("a2", "e0")]
    assert comes(bench, kit, "a3", "a") == [("a3", "e0")], "three calls there, one at e1"
    bench.tick(0.5)
    assert comes(bench, kit, "a4", "a") == [("a4", "e1")], "the group has ended"


def test_without_groups_they_go_where_the_placement_says(kit: ModuleType) -> None:
    bench = pool(kit, group_tokens=0)
    assert [comes(bench, kit, f"a{n}", "a") for n in range(3)] == [[("a0", "e0")], [("a1", "e1")], [("a2", "e0")]]
    assert not bench.state.groups


def test_calls_that_share_less_are_no_group(kit: ModuleType) -> None:
    bench = pool(kit)
    assert comes(bench, kit, "a1", "a", common=3) == [("a1", "e0")]
    assert comes(bench, kit, "a2", "a", common=3) == [("a2", "e1")]
    assert comes(bench, kit, "x") == [("x", "e0")], "nothing is known of its prompt"
    assert comes(bench, kit, "y") == [("y", "e1")]


def test_where_two_engines_hold_what_they_have_in_common_the_placement_decides(kit: ModuleType) -> None:
    bench = pool(kit)
    assert comes(bench, kit, "a1", "a") == [("a1", "e0")]
    bench.feed(kit.e.KVChanged(kit.EngineId("e1"), stored=chain("a", 1)[:4]))
    assert comes(bench, kit, "a2", "a") == [("a2", "e1")], "the fewest calls"


def document(which: str, own: int) -> tuple[int, ...]:
    """Numbers of a prompt of an instruction (4 numbers), a document (12) and a question."""
    return tuple(i if i < 4 else ord(which) * 1000 + i if i < 16 else 10_000 * own + i for i in range(18))


def test_documents_behind_one_instruction_that_every_engine_holds_are_groups_of_their_own(kit: ModuleType) -> None:
    bench = pool(kit)
    found = []
    for number, which in enumerate("abaabb"):
        if number == 1:
            bench.feed(kit.e.KVChanged(kit.EngineId("e1"), stored=document("x", 9)[:4]))
        bench.submit(one(kit), f"r{number}")
        found += where(bench.measured(1, 1152, run=f"r{number}", limit=10, prefix=document(which, number + 1)))
    assert [engine for _, engine in found] == ["e0", "e1", "e0", "e0", "e1", "e1"]


def test_a_call_joins_the_deepest_of_its_groups(kit: ModuleType) -> None:
    bench = pool(kit, engines=3)
    numbers = document("a", 1)
    bench.submit(one(kit), "r")
    bench.measured(1, 1152, run="r", limit=10, prefix=numbers)
    assert list(bench.state.groups) == [numbers[3], numbers[7], numbers[15]], "256, 512 and 1024 tokens"
    assert comes(bench, kit, "x") == [("x", "e1")]
    bench.submit(one(kit), "s")
    [task] = bench.state.runs["s"].tasks.values()
    bench.measured(1, 1152, run="s", limit=10, prefix=(*numbers[:7], *document("b", 2)[7:]))
    assert task.place is not None and task.place.id == "e0", "with 256 in common"
    assert list(bench.state.groups)[3:] == [document("b", 2)[7], document("b", 2)[15]]


def test_a_group_goes_elsewhere_where_its_engine_has_no_room(kit: ModuleType) -> None:
    bench = pool(kit, window=2)
    assert [comes(bench, kit, f"a{n}", "a") for n in range(3)] == [[("a0", "e0")], [("a1", "e0")], [("a2", "e1")]]


def test_a_group_ends_with_what_its_engine_held(kit: ModuleType) -> None:
    bench = pool(kit)
    assert comes(bench, kit, "a1", "a") == [("a1", "e0")]
    assert comes(bench, kit, "x") == [("x", "e1")]
    bench.feed(kit.e.KVChanged(kit.EngineId("e0"), cleared=True))
    assert comes(bench, kit, "y") == [("y", "e0")]
    assert comes(bench, kit, "a2", "a") == [("a2", "e1")]


def test_a_call_that_its_engine_gave_up_does_not_follow_its_group_back(kit: ModuleType) -> None:
    bench = pool(kit)
    assert comes(bench, kit, "a1", "a") == [("a1", "e0")]
    assert comes(bench, kit, "x") == [("x", "e1")]
    assert comes(bench, kit, "y") == [("y", "e0")]
    bench.fail(1, Code.ENGINE_LOST, run="a1")
    [task] = bench.state.runs["a1"].tasks.values()
    assert task.place is not None and task.place.id == "e1"


def test_groups_are_forgotten_when_they_end_and_are_bounded(kit: ModuleType, monkeypatch: Any) -> None:
    monkeypatch.setattr(passing, "MOST_GROUPS", 3)
    bench = pool(kit, window=64)
    for number, which in enumerate("abcde"):
        comes(bench, kit, f"r{number}", which)
    assert len(bench.state.groups) == 3
    bench.tick(0.5)
    comes(bench, kit, "last", "f")
    assert len(bench.state.groups) == 1


# --- who is passed, and for how long ----------------------------------------------------------------------


def full(kit: ModuleType, **fields: Any) -> Any:
    """One engine with one seat, which `a0` has; `x` waits first, then three of its group."""
    bench = pool(kit, engines=1, window=1, **fields)
    assert comes(bench, kit, "a0", "a") == [("a0", "e0")]
    for run, which in (("x", None), ("a1", "a"), ("a2", "a"), ("a3", "a")):
        assert comes(bench, kit, run, which) == []
    return bench


def test_calls_of_a_group_go_ahead_of_one_that_is_nearly_as_urgent(kit: ModuleType) -> None:
    bench = full(kit)
    assert kit.brief(bench.feed(kit.e.TaskFinished("a0", 1, 1))) == [
        "completed 1",
        "complete a0",
        "running run a1",
        "running 1",
        "dispatch 1 at e0",
    ]
    assert where(bench.finish(1, run="a1")) == [("a2", "e0")]
    assert where(bench.finish(1, run="a2")) == [("a3", "e0")]
    assert where(bench.finish(1, run="a3")) == [("x", "e0")]


def test_without_groups_the_first_goes_first(kit: ModuleType) -> None:
    bench = full(kit, group_tokens=0)
    assert where(bench.finish(1, run="a0")) == [("x", "e0")]


def test_a_call_is_passed_for_no_longer_than_the_bound_whoever_comes(kit: ModuleType) -> None:
    """Longest first, and a longer one comes for each that goes."""
    bench = kit.Bench(engines=0, measure=True, placement="scls", pool=PoolConfig(near_s=0.5))
    bench.engine("e0", 1)
    for run, tokens in (("n0", 100), ("short", 100), ("n1", 5000)):
        bench.submit(one(kit), run)
        bench.measured(1, tokens, run=run, limit=10)
    gone: list[str] = []
    for number in range(6):
        bench.now += 0.1
        [(after, _)] = where(bench.finish(1, run=gone[-1] if gone else "n0"))
        gone.append(after)
        bench.submit(one(kit), f"n{number + 2}")
        bench.measured(1, 5000, run=f"n{number + 2}", limit=10)
    assert gone == ["n1", "n2", "n3", "n4", "n5", "short"], "passed from 0.1 s to 0.6 s"


def test_a_group_that_ends_lets_the_first_go(kit: ModuleType) -> None:
    bench = full(kit)
    bench.tick(0.5)
    assert where(bench.finish(1, run="a0")) == [("x", "e0")]


@pytest.mark.parametrize(
    "fields", [{"priority": -1}, {"tier": "batch"}, {"tenant": "other"}], ids=["priority", "tier", "tenant"]
)
def test_only_calls_of_the_same_level_and_tenant_go_ahead(kit: ModuleType, fields: dict[str, Any]) -> None:
    bench = pool(kit, engines=1, window=1, near_s=1000.0)
    comes(bench, kit, "a0", "a")
    comes(bench, kit, "x")
    comes(bench, kit, "a1", "a", **fields)
    assert where(bench.finish(1, run="a0")) == [("x", "e0")]


@pytest.mark.parametrize(("near_s", "goes"), [(0.2, "x"), (0.5, "long")])
def test_a_call_that_is_less_urgent_by_more_than_the_bound_does_not_go_ahead(
    kit: ModuleType, near_s: float, goes: str
) -> None:
    bench = pool(kit, engines=1, window=1, near_s=near_s)
    comes(bench, kit, "a0", "a")
    comes(bench, kit, "x")
    bench.tick(0.1)
    b = kit.PlanBuilder("longer")
    b.llm(cost_s=1.3)
    bench.submit(b.build(), "long")
    bench.measured(1, 400, run="long", limit=10, prefix=chain("a", 9))
    assert where(bench.finish(1, run="a0")) == [(goes, "e0")]


def test_a_call_that_fits_nowhere_is_no_reason_to_let_the_group_go_ahead_for_ever(kit: ModuleType) -> None:
    bench = pool(kit, engines=0)
    bench.engine("e0", 8, kv_tokens=2048)
    comes(bench, kit, "a0", "a")
    bench.submit(one(kit), "large")
    assert where(bench.measured(1, 1900, run="large", limit=10)) == []
    assert comes(bench, kit, "a1", "a") == [("a1", "e0")]
    bench.tick(0.4)
    assert comes(bench, kit, "a2", "a") == [("a2", "e0")]
    bench.tick(0.2)
    assert comes(bench, kit, "a3", "a") == [], "large has been passed for long enough"
    for run in ("a0", "a1"):
        assert where(bench.finish(1, run=run)) == []
    assert where(bench.finish(1, run="a2"))[0] == ("large", "e0")


def test_a_log_with_groups_replays_to_the_same_commands(kit: ModuleType) -> None:
    lines: list[str] = []
    bench = pool(kit, engines=0)
    writer, outs, feed = LogWriter(lines.append, bench.state.config), [], bench.feed

    def recorded(event: Any, after: float = 0.0) -> Any:
        writer.record(bench.now + after, event)
        outs.append(feed(event, after))
        return list(outs[-1])

    bench.feed = recorded
    bench.engine("e0", 1)
    for run, which in (("a0", "a"), ("x", None), ("a1", "a")):
        comes(bench, kit, run, which)
    bench.finish(1, run="a0")
    assert list(replay(lines)) == outs
    assert where(outs[-1]) == [("a1", "e0")]
