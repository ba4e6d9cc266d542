"""Intervals of figures over recorded chains, by resampling problems.

Chains of one problem are no independent evidence, whichever model and seed they are of, so problems are drawn with replacement
and bring all their chains along (cluster bootstrap; percentiles, Efron 1979).
"""

from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np

from flowserve.reasoning.outcomes import Outcome

REPEATS = 2000
SEED = 0
CONFIDENCE = 0.95
Interval = tuple[float, float]
Item = TypeVar("Item")


def ratio_interval(
    items: Sequence[Item],
    problem: Callable[[Item], object],
    part: Callable[[Item], float],
    whole: Callable[[Item], float],
) -> Interval:
    """Of sum(part) / sum(whole) over resampled problems."""
    sums: dict[object, list[float]] = {}
    for item in items:
        of_problem = sums.setdefault(problem(item), [0.0, 0.0])
        of_problem[0] += part(item)
        of_problem[1] += whole(item)
    table = np.array(list(sums.values()))
    draws = np.random.default_rng(SEED).multinomial(len(table), np.full(len(table), 1 / len(table)), size=REPEATS)
    parts, wholes = (draws @ table).T
    low, high = np.quantile(parts / wholes, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)


def accuracy_change_interval(outcomes: Sequence[Outcome]) -> Interval:
    """In percentage points."""
    return percent(ratio_interval(outcomes, problem_of, lambda item: item.correct - item.full_correct, lambda item: 1))


def tokens_saved_interval(outcomes: Sequence[Outcome]) -> Interval:
    """In percent."""
    return percent(ratio_interval(outcomes, problem_of, _saved, lambda item: item.full_tokens))


def problem_of(item: Outcome) -> tuple[str, str]:
    """What chains have to share to be of one problem."""
    return item.dataset, item.problem


def _saved(item: Outcome) -> float:
    return item.full_tokens - item.main_tokens - item.extra_tokens


def percent(interval: Interval) -> Interval:
    return 100 * interval[0], 100 * interval[1]
