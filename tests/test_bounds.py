import random
from collections import Counter
from math import comb, inf

import pytest

from flowserve.bounds import (
    STAKES,
    WEIGHTS,
    binomial_cdf,
    evidence,
    fixed_sequence,
    lower_mean,
    lower_rate,
    problems_needed,
    ratio_interval,
    upper_rate,
)


def exact_cdf(successes: int, trials: int, rate: float) -> float:
    return sum(comb(trials, k) * rate**k * (1 - rate) ** (trials - k) for k in range(successes + 1))


@pytest.mark.parametrize("trials", [1, 2, 7, 40, 400])
def test_the_binomial_distribution_is_the_sum_that_defines_it(trials: int) -> None:
    for successes in sorted({0, 1, trials // 3, trials // 2, trials - 1, trials}):
        for rate in (1e-6, 0.003, 0.1, 0.5, 0.77, 0.999):
            assert binomial_cdf(successes, trials, rate) == pytest.approx(exact_cdf(successes, trials, rate), abs=1e-10)


@pytest.mark.parametrize(
    ("successes", "trials", "error", "bound"),
    [
        (0, 100, 0.05, 1 - 0.05 ** (1 / 100)),
        (0, 299, 0.05, 0.009970),
        (10, 10, 0.05, 1.0),
        (1, 10, 0.025, 0.445016),
        (5, 100, 0.025, 0.112835),
        (50, 100, 0.025, 0.601678),
    ],
)
def test_clopper_pearson_gives_the_tabled_bounds(successes: int, trials: int, error: float, bound: float) -> None:
    assert upper_rate(successes, trials, error) == pytest.approx(bound, abs=2e-6)
    assert lower_rate(trials - successes, trials, error) == pytest.approx(1 - bound, abs=2e-6)


@pytest.mark.parametrize("rate", [0.004, 0.05, 0.5])
def test_clopper_pearson_is_too_low_no_more_often_than_said(rate: float) -> None:
    trials, error = 300, 0.05
    chance = [exact_cdf(k, trials, rate) - exact_cdf(k - 1, trials, rate) for k in range(60 if rate < 0.1 else trials)]
    missed = sum(p for k, p in enumerate(chance) if upper_rate(k, trials, error) < rate)
    assert missed <= error


def test_the_stake_is_divided_whole() -> None:
    assert len(STAKES) == len(WEIGHTS)
    assert sum(WEIGHTS) == pytest.approx(1)


def test_evidence_is_a_fair_game_where_the_mean_is_as_claimed() -> None:
    """Exact expectation over all outcomes of four draws, of a value whose mean is -0.01."""
    values = {-1.0: 0.05, -1 / 3: 0.03, 0.0: 0.87, 1.0: 0.05}
    mean = sum(value * chance for value, chance in values.items())
    draws: list[tuple[list[float], float]] = [([], 1.0)]
    for _ in range(4):
        draws = [([*drawn, value], chance * p) for drawn, chance in draws for value, p in values.items()]
    total = sum(chance * evidence(drawn, mean, -1.0) for drawn, chance in draws)
    assert total == pytest.approx(1)


def test_evidence_does_not_depend_on_the_order() -> None:
    values = [0.0] * 300 + [-1 / 3] * 4 + [1 / 3] * 6 + [-1.0]
    shuffled = random.Random(1).sample(values, len(values))
    assert evidence(values, -0.01, -1.0) == pytest.approx(evidence(shuffled, -0.01, -1.0))


def test_more_harm_is_less_evidence_and_overwhelming_evidence_is_a_number() -> None:
    falling = [evidence([0.0] * (400 - k) + [-1 / 3] * k, -0.01, -1.0) for k in range(8)]
    assert falling == sorted(falling, reverse=True)
    assert evidence([1.0] * 10_000, -0.01, -1.0) == inf


@pytest.mark.parametrize("harm", [0.01, 0.03])
def test_the_bound_of_a_mean_is_above_it_no_more_often_than_said(harm: float) -> None:
    """Problems with three chains that fail together or not, at the edge: the mean is what is tested."""
    chance = random.Random(7)
    error, runs, wrong = 0.1, 400, 0
    for _ in range(runs):
        values = [float(-(chance.random() < harm)) for _ in range(200)]
        wrong += lower_mean(values, -1.0, error) > -harm
    assert wrong / runs <= error


def test_looking_again_and_again_does_not_make_it_wrong_more_often() -> None:
    chance = random.Random(11)
    harm, error, runs, crossed = 0.05, 0.1, 200, 0
    for _ in range(runs):
        counts: Counter[float] = Counter()
        values = []
        for _ in range(200):
            values.append(float(-(chance.random() < harm)))
            counts[values[-1]] += 1
        crossed += any(evidence(values[:n], -harm, -1.0) >= 1 / error for n in range(1, 200, 8))
    assert crossed / runs <= error


def test_the_bound_comes_near_the_mean_with_many_problems() -> None:
    few, many = [-0.5, 0.5] + [0.0] * 198, ([-0.5, 0.5] + [0.0] * 198) * 100
    assert lower_mean(few, -1.0, 0.05) < -0.01
    assert -0.003 < lower_mean(many, -1.0, 0.05) < 0


def test_the_bound_of_a_mean_is_where_the_evidence_suffices() -> None:
    values = [0.0] * 395 + [-1 / 3] * 3 + [1 / 3] * 2
    bound = lower_mean(values, -1.0, 0.05)
    assert evidence(values, bound - 1e-6, -1.0) > 20 > evidence(values, bound + 1e-6, -1.0)


def test_the_number_of_problems_below_which_nothing_can_be_certified() -> None:
    needed = problems_needed(0.01, 0.05)
    assert lower_mean([0.0] * needed, -1.0, 0.05) >= -0.01 > lower_mean([0.0] * (needed - 1), -1.0, 0.05)
    assert problems_needed(0.02, 0.05) < needed < problems_needed(0.01, 0.01)


def test_a_fixed_sequence_ends_at_the_first_that_is_not_rejected() -> None:
    assert fixed_sequence([50, 20, 19.9, 1000], 0.05) == 2
    assert fixed_sequence([], 0.05) == fixed_sequence([1], 0.05) == 0


def test_a_fixed_sequence_certifies_a_false_one_no_more_often_than_said() -> None:
    """Five settings, each with more harm than the last, the last three over the limit; the same problems judge all."""
    chance = random.Random(3)
    harms, error, runs, wrong = (0.0, 0.02, 0.06, 0.08, 0.1), 0.1, 300, 0
    for _ in range(runs):
        difficulty = [chance.random() for _ in range(300)]
        evidences = [evidence([float(-(each < harm)) for each in difficulty], -0.05, -1.0) for harm in harms]
        wrong += fixed_sequence(evidences, error) > 2
    assert wrong / runs <= error


def test_the_interval_of_a_ratio_covers_it() -> None:
    chance = random.Random(5)
    covered = 0
    for _ in range(300):
        wholes = [chance.uniform(1, 10) for _ in range(80)]
        parts = [whole * chance.uniform(0.2, 0.6) for whole in wholes]
        low, high = ratio_interval(parts, wholes, 0.95)
        covered += low <= 0.4 <= high
    assert covered / 300 >= 0.91
    assert ratio_interval([1.0], [2.0], 0.95) == (-inf, inf)
