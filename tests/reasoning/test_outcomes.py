"""Figures over outcomes of replayed trajectories."""

import pytest

from flowserve.reasoning.outcomes import Outcome, accuracy_change_pp, tokens_saved_pct


def outcome(full: int, main: int, extra: int, full_correct: bool, correct: bool) -> Outcome:
    return Outcome("m", "math500", "1", 1, full, main, extra, full_correct, correct, main < full)


def test_trials_are_charged() -> None:
    assert tokens_saved_pct([outcome(1000, 500, 100, True, True), outcome(1000, 1000, 50, True, True)]) == 17.5


def test_a_rescue_makes_up_for_a_harm() -> None:
    harmed, rescued = outcome(10, 5, 0, True, False), outcome(10, 5, 0, False, True)
    assert (harmed.harm, harmed.rescue, rescued.harm, rescued.rescue) == (True, False, False, True)
    assert accuracy_change_pp([harmed, rescued]) == 0
    assert accuracy_change_pp([harmed, outcome(10, 5, 0, True, True)]) == pytest.approx(-50)
