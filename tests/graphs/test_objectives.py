"""Whom a call works for, by names of nodes: a group that is joined, or the reader of the result."""

import pytest

from flowserve.graphs.objectives import groups
from flowserve.sim.plans import SHAPES, PlanBuilder


def grouped(b: PlanBuilder) -> dict[str, str]:
    """Node -> the first node of its group, for those that have one."""
    plan = b.build()
    found = zip(plan.nodes, groups(plan), strict=True)
    return {node.name: plan.nodes[group].name for node, group in found if group is not None}


def mapped(
    b: PlanBuilder, *deps: int, name: str = "map", block: int = 0, limit: int = 8, concurrency: int = 0
) -> tuple[int, int]:
    """A map and its body, which is empty."""
    body = b.block()
    return b.map(body, *deps, name=name, block=block, limit=limit, concurrency=concurrency), body


def test_the_items_of_a_map_are_a_group_and_what_stands_before_and_behind_it_is_not() -> None:
    b = PlanBuilder("w")
    parts, body = mapped(b, b.llm(name="outline"))
    b.llm(name="say", block=body)
    b.llm(parts, name="join")
    assert grouped(b) == {"say": "map"}


def test_everything_in_a_body_works_for_its_group_whatever_the_body_does() -> None:
    b = PlanBuilder("w")
    _, body = mapped(b)
    arms = [b.block(), b.block()]
    b.switch(arms, b.agent(name="agent", block=body), name="switch", block=body)
    b.tool(name="tool", block=arms[0])
    rounds = b.block()
    b.loop(rounds, name="loop", block=arms[1])
    b.llm(name="draft", block=rounds)
    assert grouped(b) == dict.fromkeys(("agent", "switch", "tool", "loop", "draft"), "map")


@pytest.mark.parametrize(
    ("limit", "concurrency", "expected"),
    [
        (2, 0, {"say": "map"}),
        (1, 0, {}),
        (8, 2, {"say": "map"}),
        (8, 1, {}),
    ],
)
def test_what_has_one_frame_at_a_time_is_a_chain(limit: int, concurrency: int, expected: dict[str, str]) -> None:
    b = PlanBuilder("w")
    _, body = mapped(b, limit=limit, concurrency=concurrency)
    b.llm(name="say", block=body)
    assert grouped(b) == expected


def test_samples_are_a_group() -> None:
    b = PlanBuilder("w")
    body = b.block()
    b.sample(body, name="vote")
    b.llm(name="draw", block=body)
    assert grouped(b) == {"draw": "vote"}


def test_calls_side_by_side_that_feed_one_consumer_are_a_group() -> None:
    b = PlanBuilder("w")
    b.llm(b.llm(name="one"), b.agent(name="other"), name="weigh")
    assert grouped(b) == {"one": "one", "other": "one"}


def test_a_chain_that_feeds_one_consumer_twice_is_none() -> None:
    b = PlanBuilder("w")
    first = b.llm(name="first")
    b.llm(first, b.llm(first, name="second"), name="last")
    assert grouped(b) == {}


def test_a_call_beside_tools_is_not_in_a_group() -> None:
    b = PlanBuilder("w")
    b.llm(b.llm(name="say"), b.tool(name="fetch"), b.search(name="find"), name="weigh")
    assert grouped(b) == {}


def test_what_the_reader_gets_side_by_side_is_latency_bound() -> None:
    b = PlanBuilder("w")
    b.llm(name="one")
    b.llm(name="other")
    assert grouped(b) == {}


def test_arms_of_a_race_are_no_group_since_the_first_decides() -> None:
    b = PlanBuilder("w")
    arms = [b.block(), b.block()]
    b.race(arms, name="race")
    for number, arm in enumerate(arms):
        b.llm(name=f"arm{number}", block=arm)
    assert grouped(b) == {}


def test_of_groups_within_groups_the_outermost_counts() -> None:
    b = PlanBuilder("w")
    outer, body = mapped(b, name="outer")
    inner, within = mapped(b, name="inner", block=body)
    b.llm(name="say", block=within)
    b.llm(inner, name="join", block=body)
    b.llm(outer, b.llm(name="beside"), name="last")
    expected = {"say": "outer", "join": "outer", "inner": "outer", "outer": "outer", "beside": "outer"}
    assert grouped(b) == expected, "the map and the call beside it feed the last one together"


def test_of_the_shapes_of_workload_files_one_has_a_group() -> None:
    assert {name for name, shape in SHAPES.items() if any(group is not None for group in groups(shape()))} == {
        "map-reduce"
    }
