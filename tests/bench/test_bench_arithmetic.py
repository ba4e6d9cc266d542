"""The votes of `bench arithmetic`: what its workflows make of samples, and its figures."""

from typing import Any

import flowserve as fs
from flowserve.bench import arithmetic
from flowserve.demo import sums


def test_problems_are_unseen_repeat_themselves_and_stand_once() -> None:
    problems = arithmetic.problems(30)
    assert problems == arithmetic.problems(30) and len({problem.question for problem in problems}) == 30
    assert all(sums.split_of(problem.question[8:-1]) == "eval" for problem in problems)


def test_every_way_of_stopping_votes_over_the_first_conclusions() -> None:
    text = "1 + 1 = 2. The answer is 2. The answer is 3."
    drawn = {}
    for way in arithmetic.WAYS[1:]:
        with fs.testing.engine(replies=text):
            result = getattr(arithmetic, way).run("Compute 1 + 1.")
        assert (result.answer.result, result.votes) == ("2", {"2": result.drawn})
        drawn[way] = result.drawn
    assert drawn == {"all_samples": 16, "certaindex": 5, "adaptive_consistency": 4, "decided": 9}


def test_a_text_without_conclusion_gives_no_vote() -> None:
    with fs.testing.engine(replies="1 + 1 = ") as session:
        result = arithmetic.certaindex.run("Compute 1 + 1.")
    assert (result.votes, result.answer.result, len(session.calls)) == ({}, "", 16)


def test_figures_are_per_problem_and_count_what_dropped_samples_wrote() -> None:
    asked = [sums.solve(1, [("+", 1)]), sums.solve(5, [("-", 2)])]

    def ended(result: dict[str, Any], tokens: int) -> dict[str, Any]:
        return {"result": result, "usage": {"tokens_out": tokens}}

    right = ended({"answer": {"text": "", "result": "2"}, "drawn": 9, "dropped": 4}, 100)
    wrong = ended({"text": "", "result": "4"}, 50)
    assert arithmetic.figures(asked, [right, wrong]) == {
        "n": 2, "accuracy": 0.5, "samples_mean": 3.0, "output_tokens_per_problem": 75.0,
    }  # fmt: skip
