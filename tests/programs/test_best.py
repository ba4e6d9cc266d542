"""Best-of-n: what is judged with what, which one wins, and what ends the search."""

import math
from typing import Any

import pytest

import flowserve as fs
from flowserve import errors, programs
from flowserve.engines.base import Call


@fs.llm(temperature=0.8, seed=1)
def write(topic: str, words: int = 10) -> str:
    fs.prompt("{{ topic }} in {{ words }} words")


@fs.llm()
def judge(topic: str, draft: str) -> float:
    fs.prompt("{{ topic }}: {{ draft }}")


@fs.llm()
def tell(why: str) -> str:
    fs.prompt("{{ why }}")


@fs.tool(effects=False)
def closest(draft: str, model: str) -> float:
    """Judge by likeness."""
    return float(draft == model)


@fs.tool(effects=False)
def first_word(topic: str) -> str:
    """Judge nothing."""
    return topic.split()[0]


@fs.tool(effects=False)
def longest(draft: str) -> int:
    """Judge by length."""
    return len(draft)


def test_the_best_by_the_scorer_wins_and_every_score_is_told() -> None:
    program = programs.best_of_n(write, judge, n=3)
    with fs.testing.engine({"write": ["a", "b", "c"], "judge": [0.2, 0.9, 0.5]}) as session:
        result = program.run("tides")
    assert (result.answer, result.score, result.scores) == ("b", 0.9, [0.2, 0.9, 0.5])
    assert (result.ended, result.why) == ("complete", "all 3 branches were drawn")
    assert sorted(call.meta["node"].rpartition("/")[2] for call in session.calls) == ["judge"] * 3 + ["write"] * 3
    assert "tides: b" in " ".join(call.prompt_text for call in session.calls), "the scorer gets inputs by name"


def test_a_tool_may_judge_and_of_equal_ones_the_earliest_wins() -> None:
    program = programs.best_of_n(write, longest, n=4)
    with fs.testing.engine({"write": ["aa", "bbb", "ccc", "d"]}):
        result = program.run("tides", words=3)
    assert (result.answer, result.score, result.calls) == ("bbb", 3.0, 8)


def test_a_score_that_is_enough_drops_what_is_under_way() -> None:
    program = programs.best_of_n(write, judge, n=6, enough=0.8)
    arrived: list[str] = []

    def delay(call: Call) -> float:
        if call.meta["node"].endswith("write"):
            arrived.append(call.id)
            return 0.0 if len(arrived) <= 2 else math.inf
        return 0.0

    @fs.workflow()
    def flow(topic: str) -> tuple[programs.Best[str], str]:
        result = program(topic)
        return result, tell(result.why)

    with fs.testing.engine({"write": "text", "judge": [0.3, 0.8], "tell": "told"}, delays=delay) as session:
        result, _ = flow.run("tides")
        assert sorted(session.engine.aborted) == sorted(arrived[2:])
    assert (result.score, result.ended, result.why) == (0.8, "enough", "reward 0.8 >= 0.8 at 2")
    assert (result.drawn, result.dropped, result.scores) == (6, 4, [0.3, 0.8])


def test_waves_begin_no_more_than_is_needed() -> None:
    program = programs.best_of_n(write, judge, n=6, enough=0.8, wave=2)
    with fs.testing.engine({"write": "text", "judge": [0.3, 0.1, 0.9, 0.2]}) as session:
        result = program.run("tides")
    assert result.score == 0.9 and result.drawn == 4
    assert 6 <= len(session.calls) <= 8, "the fourth may have been judged already"


def test_a_sample_that_fails_or_cannot_be_judged_is_not_counted() -> None:
    program = programs.best_of_n(write, judge, n=3)
    replies: dict[str, Any] = {"write": [errors.EngineError("gone"), "b", "c"], "judge": ["what?", 0.1]}
    with fs.testing.engine(replies):
        result = program.run("tides")
    assert (result.answer, result.failed, result.calls) == ("c", 2, 5)
    assert result.scores == [None, None, 0.1]


def test_a_budget_ends_it_with_the_best_so_far() -> None:
    program = programs.best_of_n(write, judge, n=8, budget_calls=5)
    with fs.testing.engine({"write": ["a", "b"], "judge": [0.4, 0.3]}):
        result = program.run("tides")
    assert (result.answer, result.ended, result.calls) == ("a", "budget", 4)
    assert result.why == "budget: 4 of 5 calls"


@pytest.mark.parametrize(
    ("scorer", "came"),
    [(closest, "got draft, model."), (first_word, "got none."), (first_word, "gives a number; got str")],
)
def test_a_scorer_has_one_parameter_of_its_own_and_gives_a_number(scorer: Any, came: str) -> None:
    with pytest.raises(errors.GraphError) as error:
        programs.best_of_n(write, scorer, n=2).alone.program  # noqa: B018
    assert came in str(error.value)


def test_a_budget_that_has_no_room_for_one_answer_is_refused() -> None:
    with pytest.raises(errors.GraphError, match="budget_calls= a number from 2"):
        programs.best_of_n(write, judge, n=2, budget_calls=1).alone.program  # noqa: B018
