import random
from collections.abc import Callable, Sequence

import pytest

from flowserve.errors import ConfigError
from flowserve.reasoning.calibrate import Candidate, Certified, Refused, Risk, calibrate, figures_of
from flowserve.reasoning.outcomes import Outcome

Replay = Callable[[Candidate], Sequence[Outcome]]
PATH = [Candidate("rule", {"loose": float(loose)}) for loose in range(5)]
SEEDS = (42, 43, 44)


def outcome(problem: int, seed: int, change: int = 0, main: int = 1000, differs: bool = False) -> Outcome:
    return Outcome("model", "set", str(problem), seed, 1000, main, 0, change <= 0, change >= 0, main < 1000, differs)


def replayed(num_problems: int, harmed: Sequence[int], rescued: Sequence[int] = (0,) * 5) -> Replay:
    """Candidate `loose` saves a tenth of the tokens more each step, and harms so many problems, all seeds of each."""

    def replay(candidate: Candidate) -> list[Outcome]:
        loose = int(candidate.args["loose"])
        changes = [-1] * harmed[loose] + [1] * rescued[loose]
        changes += [0] * (num_problems - len(changes))
        order = random.Random(0).sample(range(num_problems), num_problems)
        return [
            outcome(problem, seed, change, 900 - 100 * loose, differs=change != 0)
            for problem, change in zip(order, changes, strict=True)
            for seed in SEEDS
        ]

    return replay


def test_the_loosest_within_the_bound_is_certified_with_its_figures() -> None:
    verdict = calibrate([PATH], replayed(2000, [0, 2, 4, 60, 200], [0, 0, 2, 5, 5]), Risk())
    assert isinstance(verdict, Certified)
    assert verdict.candidate == PATH[2]
    figures = verdict.figures
    assert (figures.num_problems, figures.num_trajectories, figures.stopped) == (2000, 6000, 6000)
    assert (figures.harmed, figures.rescued, figures.differing) == (12, 6, 18)
    assert figures.change == pytest.approx(-0.001)
    assert -0.01 <= figures.change_low < figures.change
    assert figures.saved == pytest.approx(0.3)
    assert figures.saved_low == pytest.approx(0.3) == pytest.approx(figures.saved_high)
    assert 6 / 2000 < figures.differing_high < 0.01


def test_what_it_does_on_unseen_problems_is_estimated_in_folds() -> None:
    verdict = calibrate([PATH], replayed(2000, [0, 2, 4, 60, 200]), Risk())
    assert isinstance(verdict, Certified)
    assert verdict.cross_fit.refused_folds == 0
    assert verdict.cross_fit.saved == pytest.approx(0.3)
    assert verdict.cross_fit.change == pytest.approx(-4 / 2000)


def test_nothing_behind_a_failure_is_certified_though_it_would_pass_alone() -> None:
    verdict = calibrate([PATH], replayed(2000, [0, 60, 0, 0, 0]), Risk())
    assert isinstance(verdict, Certified)
    assert verdict.candidate == PATH[0]


def test_a_harmful_rule_is_refused_with_figures() -> None:
    verdict = calibrate([PATH], replayed(1000, [100, 120, 140, 160, 200]), Risk())
    assert isinstance(verdict, Refused)
    assert verdict.failed == PATH[0]
    assert verdict.figures is not None and verdict.figures.harmed == 300
    assert verdict.reason.startswith("rule(loose=0), the strictest, changes accuracy by -10.00 pp, at worst by -1")
    assert verdict.reason.endswith("allowed are at most 1 pp lost at 95 % confidence")


def test_too_few_problems_are_named_as_the_reason() -> None:
    verdict = calibrate([PATH], replayed(100, [0] * 5), Risk())
    assert isinstance(verdict, Refused)
    assert (
        "100 problems are too few: at most 1 pp lost at 95 % confidence takes 351 even of a rule that never errs"
        in verdict.reason
    )


def test_a_safe_rule_that_saves_nothing_is_refused() -> None:
    def replay(candidate: Candidate) -> list[Outcome]:
        return [outcome(problem, seed, 0, 1010) for problem in range(500) for seed in SEEDS]

    verdict = calibrate([PATH], replay, Risk())
    assert isinstance(verdict, Refused)
    assert "saves nothing: -1.0 % of tokens" in verdict.reason


def test_several_paths_share_the_error() -> None:
    """400 problems without harm suffice for one path (351 are needed) and not for three (475)."""
    never = replayed(400, [0] * 5)
    assert isinstance(calibrate([PATH], never, Risk()), Certified)
    refused = calibrate([PATH, PATH[:2], PATH[:1]], never, Risk())
    assert isinstance(refused, Refused)
    assert "too few" in refused.reason


def test_of_several_paths_the_one_that_saves_most_is_taken() -> None:
    paths = [PATH[:1], PATH[1:2]]
    verdict = calibrate(paths, replayed(1000, [0] * 5), Risk())
    assert isinstance(verdict, Certified)
    assert verdict.candidate == PATH[1]


def test_seeds_of_one_problem_are_one_piece_of_evidence() -> None:
    one = figures_of([outcome(problem, 42) for problem in range(100)], Risk())
    three = figures_of([outcome(problem, seed) for problem in range(100) for seed in SEEDS], Risk())
    assert one.change_low == three.change_low
    assert one.evidence == three.evidence


def test_a_false_certificate_is_no_likelier_than_was_said() -> None:
    """A population where candidates 3 and 4 harm 2 and 4 % of problems: those may not be certified more often than one in ten."""
    chance, wrong, runs = random.Random(9), 0, 60
    for _ in range(runs):
        fate = [chance.random() for _ in range(400)]

        def replay(candidate: Candidate, fate: Sequence[float] = fate) -> list[Outcome]:
            harm = (0.0, 0.002, 0.01, 0.02, 0.04)[int(candidate.args["loose"])]
            return [outcome(number, 42, -int(at < harm), 500) for number, at in enumerate(fate)]

        verdict = calibrate([PATH], replay, Risk(margin=0.015, error=0.1))
        wrong += isinstance(verdict, Certified) and verdict.candidate.args["loose"] > 2
    assert wrong / runs <= 0.1


@pytest.mark.parametrize("arguments", [{"margin": 0}, {"margin": 1.0}, {"error": 0.0}, {"error": 0.5}])
def test_a_risk_that_means_nothing_is_refused(arguments: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=next(iter(arguments))):
        Risk(**arguments)


def test_a_path_without_candidates_is_refused() -> None:
    with pytest.raises(ConfigError, match="at least one"):
        calibrate([[]], replayed(10, [0] * 5), Risk())
