"""What a vote tells of itself: how many were asked for and drawn, how they fell, how sure that is and why sampling ended."""

from collections.abc import Sequence
from io import StringIO
from typing import Any

import pytest
from rich.console import Console

import flowserve as fs
from flowserve.cli.running import node_table
from flowserve.engines.fake import FakeEngine
from flowserve.errors import EngineError
from flowserve.runtime.runner import Runtime
from flowserve.runtime.votes import Tally, answer_key, tally, winner


@fs.llm(max_tokens=32, temperature=0.8)
def guess(question: str) -> str:
    fs.prompt("{{ question }}?")


@fs.workflow()
def early(question: str) -> str:
    return guess.sample(16, vote="", stop=fs.agreement(3), wave=1)(question)


@fs.workflow()
def all_of_them(question: str) -> str:
    return guess.sample(5, vote="")(question)


@fs.workflow()
def mapped(questions: list[str]) -> list[str]:
    return early.map(questions, max_width=4)


@fs.workflow()
def listed(question: str) -> list[str]:
    return guess.sample(2)(question)


def told(workflow: Any, value: Any, replies: Any) -> tuple[list[tuple[str, Tally]], list[Any]]:
    """The votes of a run by label, and the data of `node.completed` that tell of votes."""
    with fs.testing.engine(replies={"guess": replies}):
        run = workflow.submit(value)
        run.result()
        events = [event.data["votes"] for event in run.events() if "votes" in event.data]
        records = [(record.label, record.votes) for record in run.snapshot().nodes if record.votes is not None]
    return records, events


def test_a_vote_that_was_stopped_says_by_what_and_after_how_many() -> None:
    [(label, votes)], [event] = told(early, "x", lambda call: "Same ")
    assert (label, votes) == ("guess.sample", Tally(16, 3, (3,), 0, 1.0, "agreement"))
    assert event == {
        "asked": 16, "drawn": 3, "counts": (3,), "unusable": 0, "certainty": 1.0, "stopped_by": "agreement",
    }  # fmt: skip


def test_a_vote_of_all_counts_answers_and_those_that_are_none() -> None:
    [(_, votes)], _ = told(all_of_them, "x", ["b", "a", "A", "", "a"])
    assert (votes.asked, votes.drawn, votes.counts, votes.unusable) == (5, 5, (3, 1), 1)
    assert 0 < votes.certainty < 1 and votes.stopped_by is None


def test_failed_samples_are_asked_for_and_not_drawn() -> None:
    [(_, votes)], _ = told(all_of_them, "x", ["a", EngineError("lost"), "a", "a", "a"])
    assert votes == Tally(5, 4, (4,), 0, 1.0, None)


def test_every_vote_of_a_map_tells_of_itself_and_samples_without_a_vote_do_not() -> None:
    records, _ = told(mapped, ["x", "y"], lambda call: "same")
    assert [label for label, _ in records] == ["early/guess.sample[0]", "early/guess.sample[1]"]
    assert told(listed, "x", lambda call: "same") == ([], [])


async def test_the_table_of_a_run_says_how_many_were_drawn() -> None:
    runtime = Runtime([FakeEngine(lambda call: "same")])
    await runtime.start()
    try:
        run = await runtime.submit(early.program, {"question": "x"})
        await run.result()
    finally:
        await runtime.aclose()
    text = StringIO()
    Console(file=text, width=200).print(node_table(run))
    assert "completed, 3 of 16 samples, certainty 1.00" in text.getvalue()


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        ([], Tally(9, 0, (), 0, 0.0, None)),
        (["a"], Tally(9, 1, (1,), 0, 0.0, None)),
        ([""], Tally(9, 1, (), 1, 0.0, None)),
        (["", ""], Tally(9, 2, (), 2, 0.0, None)),
        ([2, "2", 2.0], Tally(9, 3, (3,), 0, 1.0, None)),
        (["a", "b"], Tally(9, 2, (1, 1), 0, 0.0, None)),
        ("aabaaaa", Tally(9, 7, (6, 1), 0, 0.789242, None)),
    ],
)
def test_tallies(answers: Sequence[Any], expected: Tally) -> None:
    keys = [answer_key(answer) for answer in answers]
    assert tally(keys, 9, None) == expected
    assert winner(keys) == 0
