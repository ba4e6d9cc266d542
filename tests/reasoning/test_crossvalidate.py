"""Choosing parameters on other problems and seeds: nothing of a chain may help to choose its own."""

from collections.abc import Iterator
from dataclasses import replace

import pytest

from flowserve.reasoning import crossvalidate
from flowserve.reasoning.bank import RecordedTrial, Trajectory
from flowserve.reasoning.bootstrap import accuracy_change_interval, ratio_interval, tokens_saved_interval
from flowserve.reasoning.crossvalidate import Choice, cross_validate
from flowserve.reasoning.outcomes import Outcome, accuracy_change_pp, tokens_saved_pct
from flowserve.reasoning.replay import Recording, label_all


def chain(problem: int, seed: int, answer: str, confidence: float = 0.97) -> Trajectory:
    """It says `answer` at 100 of 1,000 tokens, and 9, which is right, at the end."""
    trials = (RecordedTrial(100, answer, confidence, 10),)
    return Trajectory("m", "math500", str(problem), seed, "9", "9", True, 1000, True, None, trials)


def bank(wrong: range, confidence: float = 0.97) -> list[Recording]:
    """60 problems with 3 seeds; the trials of the problems `wrong` are."""
    return label_all(
        chain(problem, seed, "3" if problem in wrong else "9", confidence) for problem in range(60) for seed in range(3)
    )


@pytest.fixture(autouse=True)
def two_points(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setitem(crossvalidate.GRIDS, "deer", ({"threshold": 0.95}, {"threshold": 0.99}))
    yield


def test_what_saves_most_of_what_is_allowed_is_chosen_and_applied_to_every_chain_once() -> None:
    outcomes, choices = cross_validate("deer", bank(wrong=range(0)))
    assert sorted((item.problem, item.seed) for item in outcomes) == sorted(
        (str(problem), seed) for problem in range(60) for seed in range(3)
    )
    assert {choice.args["threshold"] for choice in choices if choice.args} == {0.95}
    assert sum(choice.num_outcomes for choice in choices) == 180
    assert (accuracy_change_pp(outcomes), tokens_saved_pct(outcomes)) == (0, 89)


def test_what_loses_more_than_is_allowed_is_not_chosen() -> None:
    outcomes, choices = cross_validate("deer", bank(wrong=range(6)))
    assert {choice.args["threshold"] for choice in choices if choice.args} == {0.99}
    assert tokens_saved_pct(outcomes) == pytest.approx(-1), "no trial is so sure, and each wrote ten tokens"


def test_where_nothing_is_allowed_chains_are_left_alone() -> None:
    outcomes, choices = cross_validate("deer", bank(wrong=range(6), confidence=0.999))
    assert choices and all(choice.args is None for choice in choices)
    assert (accuracy_change_pp(outcomes), tokens_saved_pct(outcomes)) == (0, 0)


def test_a_chain_has_no_part_in_the_choice_for_its_own_problem_or_seed() -> None:
    """Whatever all chains of a problem say, what is chosen for it stays the same."""
    recordings = bank(wrong=range(0))
    (changed,) = {crossvalidate._fold(item) for item in outcomes_of(recordings) if item.problem == "7"}
    spoiled = label_all(
        replace(item.trajectory, trials=(RecordedTrial(100, "3", 0.97, 10),))
        if crossvalidate._fold(outcome) == changed
        else item.trajectory
        for item, outcome in zip(recordings, outcomes_of(recordings), strict=True)
    )
    before = {(item.problem, item.seed): item for item in cross_validate("deer", recordings)[0]}
    after = {(item.problem, item.seed): item for item in cross_validate("deer", spoiled)[0]}
    assert before["7", 1].main_tokens == after["7", 1].main_tokens == 100
    assert after["7", 1].harm


def outcomes_of(recordings: list[Recording]) -> list[Outcome]:
    return [
        Outcome("m", it.trajectory.dataset, it.trajectory.problem, it.trajectory.seed, 1, 1, 0, True, True, False)
        for it in recordings
    ]


def test_the_points_of_a_model_are_chosen_on_its_own_chains() -> None:
    other = [replace(item.trajectory, model="n") for item in bank(wrong=range(6))]
    own = [item.trajectory for item in bank(wrong=range(0))]
    _, choices = cross_validate("deer", label_all([*own, *other]))
    assert chosen(choices, "m") == {0.95}
    assert chosen(choices, "n") == {0.99}


def chosen(choices: list[Choice], model: str) -> set[float]:
    return {choice.args["threshold"] for choice in choices if choice.args and choice.model == model}


def test_intervals_resample_problems_with_all_their_chains() -> None:
    """Ten seeds of one problem are worth one."""
    once = [Outcome("m", "s", str(i), 0, 100, 50 + i % 2 * 20, 0, True, i % 4 != 0, True) for i in range(40)]
    tenfold = [replace(item, seed=seed) for item in once for seed in range(10)]
    assert accuracy_change_interval(once) == pytest.approx(accuracy_change_interval(tenfold))
    low, high = accuracy_change_interval(once)
    assert low < -25 < high
    spread = 1.96 * 100 * (0.25 * 0.75 / 40) ** 0.5
    assert (high - low) / 2 == pytest.approx(spread, rel=0.15), "that of a share of 40 independent problems"
    saved = tokens_saved_interval(once)
    assert saved[0] < 40 < saved[1]


def test_an_interval_of_equal_problems_is_a_point() -> None:
    assert ratio_interval([1, 2, 3], lambda item: item, lambda item: 2 * item, lambda item: item) == (2, 2)
