"""Races and quorums from their declaration to the abort of the losers."""

from math import inf
from typing import Any

import pytest
from pydantic import BaseModel

import flowserve as fs
from flowserve.errors import EngineError, GraphError, RunError
from flowserve.graphs.codec import from_spec, to_spec


class Draft(BaseModel):
    text: str
    score: int


@fs.llm(max_tokens=32)
def quick(topic: str) -> Draft:
    fs.prompt("Write {{ topic }}")


@fs.llm(max_tokens=32)
def thorough(topic: str) -> Draft:
    fs.prompt("Write {{ topic }} well")


@fs.llm(max_tokens=32)
def third(topic: str) -> Draft:
    fs.prompt("Write {{ topic }} anyhow")


@fs.llm(max_tokens=32)
def praise(text: str) -> str:
    fs.prompt("Praise {{ text }}")


@fs.workflow()
def first(topic: str) -> str:
    draft = fs.race(lambda: quick(topic), lambda: thorough(topic))
    return praise(draft.text)


@fs.workflow()
def good(topic: str) -> Draft:
    return fs.race(lambda: quick(topic), lambda: thorough(topic), valid=lambda d: d.score >= 8)


@fs.workflow()
def two(topic: str) -> list[Draft]:
    return fs.quorum(2, lambda: quick(topic), lambda: thorough(topic), lambda: third(topic))


def draft(text: str, score: int = 5) -> Draft:
    return Draft(text=text, score=score)


def test_the_first_to_end_wins_and_the_other_is_aborted_at_its_engine() -> None:
    replies = {"quick": draft("q"), "thorough": draft("t"), "praise": lambda call: call.prompt_text}
    delays = {"thorough": inf, "quick": 0.0, "praise": 0.0}
    with fs.testing.engine(replies, delays=delays) as session:
        assert "q" in first.run("x")
        assert len(session.engine.aborted) == 1
        (loser,) = [call for call in session.calls if call.meta["node"] == "thorough"]
        assert session.engine.aborted == [loser.id]


def test_an_arm_that_fails_loses_and_the_other_is_waited_for() -> None:
    with fs.testing.engine({"quick": EngineError("no"), "thorough": draft("t", 9)}) as session:
        assert good.run("x") == draft("t", 9)
        assert session.engine.aborted == []


def test_a_result_that_is_not_valid_does_not_count() -> None:
    with fs.testing.engine({"quick": draft("q", 3), "thorough": draft("t", 8)}, delays={"thorough": 0.05}):
        assert good.run("x") == draft("t", 8)
    with (
        fs.testing.engine({"quick": draft("q", 3), "thorough": draft("t", 7)}),
        pytest.raises(RunError, match="valid="),
    ):
        good.run("x")


def test_a_quorum_gives_the_first_so_many_in_the_order_of_the_arms() -> None:
    replies = {"quick": draft("q"), "thorough": draft("t"), "third": draft("3")}
    with fs.testing.engine(replies, delays={"quick": 0.05, "thorough": inf, "third": 0.0}):
        assert two.run("x") == [draft("q"), draft("3")]


def test_arms_are_whole_graphs() -> None:
    @fs.workflow()
    def nested(topic: str) -> str:
        return fs.race(
            lambda: praise(quick(topic).text),
            lambda: praise(fs.race(lambda: thorough(topic), lambda: third(topic)).text),
        )

    replies = {"praise": lambda call: "deep" if "deep" in call.prompt_text else "?", "third": draft("deep")}
    with fs.testing.engine(replies, delays={"quick": inf, "thorough": inf}):
        assert nested.run("x") == "deep"


@pytest.mark.parametrize("workflow", [first, good, two], ids=lambda workflow: workflow.name)
def test_a_race_survives_its_spec(workflow: fs.Workflow[..., Any]) -> None:
    assert from_spec(to_spec(workflow.program)).plan == workflow.program.plan


def test_a_spec_with_fewer_arms_than_are_to_count_is_refused() -> None:
    spec = to_spec(two.program)
    (node,) = spec["body"]["nodes"]
    node["limit"] = 4
    del spec["version"]
    with pytest.raises(GraphError, match="4 bodies"):
        from_spec(spec)


def test_a_race_is_drawn_with_its_arms() -> None:
    assert "first of 2" in first.graph().text and "arm 2:" in first.graph().text
    assert "first 2 of 3" in two.graph().mermaid
    assert "score" in good.graph().text


def test_what_is_no_race_is_refused_with_what_to_write() -> None:
    def one(topic: str) -> Draft:
        return fs.race(lambda: quick(topic))

    def called(topic: str) -> Draft:
        return fs.race(quick(topic), lambda: quick(topic))  # type: ignore[arg-type]

    def too_many(topic: str) -> list[Draft]:
        return fs.quorum(3, lambda: quick(topic), lambda: thorough(topic))

    def asks(topic: str) -> Draft:
        return fs.race(lambda: quick(topic), lambda: thorough(topic), valid=lambda d: praise(d.text) == "good")

    for fn, told in (
        (one, "at least two arms"),
        (called, "arms that are functions"),
        (too_many, "a count from 2"),
        (asks, "a condition without calls"),
    ):
        with pytest.raises(GraphError, match=told):
            _ = fs.workflow()(fn).program


def test_outside_a_workflow_arms_are_tried_in_turn() -> None:
    def broken() -> int:
        raise KeyError("no")

    assert fs.race(broken, lambda: 2, lambda: 3) == 2
    assert fs.race(lambda: 1, lambda: 2, valid=lambda n: n > 1) == 2
    assert fs.quorum(2, lambda: 1, broken, lambda: 3) == [1, 3]
    with pytest.raises(KeyError):
        fs.race(broken, broken)
    with pytest.raises(LookupError, match="expected 2"):
        fs.quorum(2, lambda: 1, lambda: 2, valid=lambda n: n > 1)
