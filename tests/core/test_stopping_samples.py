"""Stopping rules against published and hand-computed figures."""

from collections import Counter
from itertools import product
from math import log

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowserve.core.stopping.samples import adaptive_consistency, certaindex, certainty, decided
from flowserve.core.stopping.signals import UNUSABLE


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ([], 0.0),
        ([0], 0.0),
        ([0, 0], 1.0),
        ([0, 1], 0.0),
        ([0, 0, 0, 0, 0], 1.0),
        ([0, 0, 0, 0, 1], 1 - (0.8 * log(1.25) + 0.2 * log(5)) / log(5)),
        ([0, 1, 2, 3, 4], 0.0),
        ([-1, -1, -1], 0.0),
        ([0, 0, -1, -1], 1 - (0.5 * log(2) + 0.5 * log(4)) / log(4)),
    ],
)
def test_certainty_is_one_minus_normalised_entropy(labels: list[int], expected: float) -> None:
    assert certainty(Counter(labels)) == pytest.approx(expected, abs=1e-12)


def test_the_papers_ablation_threshold_agrees_with_its_table() -> None:
    """An entropy of 0.5 nats over 5 samples is the 0.7 of the table: 4 of 5 agreeing is just above 0.68."""
    assert 1 - 0.5 / log(5) == pytest.approx(0.69, abs=0.005)
    assert certainty(Counter([0, 0, 0, 0, 1])) == pytest.approx(0.689, abs=0.001)


@given(st.lists(st.integers(-1, 5), max_size=12))
def test_certainty_is_a_share_and_does_not_depend_on_names(labels: list[int]) -> None:
    renamed = [label if label < 0 else 100 - label for label in labels]
    assert 0.0 <= certainty(Counter(labels)) <= 1.0
    assert certainty(Counter(labels)) == pytest.approx(certainty(Counter(renamed)))


def test_certaindex_detects_once_or_repeatedly() -> None:
    one_detection = {"min_samples": 5.0, "every": 0.0, "threshold": 0.7}
    assert not certaindex({0: 4}, one_detection)
    assert certaindex({0: 5}, one_detection)
    assert not certaindex({0: 6}, one_detection)
    assert certaindex({0: 6}, {"min_samples": 5.0, "threshold": 0.7})
    assert not certaindex({0: 6}, {"min_samples": 5.0, "every": 5.0})
    assert certaindex({0: 10}, {"min_samples": 5.0, "every": 5.0})


@pytest.mark.parametrize(
    ("counts", "stops"),
    [
        ({0: 3}, False),  # 0.9375
        ({0: 4}, True),  # 0.96875, the published stop of unanimous runs
        ({0: 5, 1: 1}, False),  # 120 / 128 = 0.9375
        ({0: 6, 1: 1}, True),  # 247 / 256 = 0.9648
        ({-1: 9, 0: 3}, False),
        ({}, False),
    ],
)
def test_adaptive_consistency_stops_at_the_published_points(counts: dict[int, int], stops: bool) -> None:
    assert adaptive_consistency(counts, {}) is stops


@given(st.integers(0, 12), st.integers(0, 12))
def test_the_beta_tail_equals_numeric_integration(a: int, b: int) -> None:
    a, b = max(a, b), min(a, b)
    steps = 4000
    points = [(i + 0.5) / steps for i in range(steps)]
    weights = [x**a * (1 - x) ** b for x in points]
    tail = sum(weights[steps // 2 :]) / sum(weights)
    assert adaptive_consistency({0: a, 1: b}, {"threshold": tail - 1e-4})
    assert not adaptive_consistency({0: a, 1: b}, {"threshold": tail + 1e-4})


@given(st.lists(st.integers(-1, 2), min_size=1, max_size=7), st.integers(0, 4))
def test_decided_stops_when_and_only_when_no_rest_could_change_the_winner(labels: list[int], left: int) -> None:
    """Against every possible rest, each standing before, so that ties go to it."""

    def winners(rest: tuple[int, ...]) -> list[int]:
        counts = Counter(label for label in (*rest, *labels) if label != UNUSABLE)
        most = max(counts.values(), default=0)
        return [label for label in counts if counts[label] == most]

    possible = {tuple(sorted(winners(rest))) for rest in product((-1, 0, 1, 2, 3), repeat=left)}
    sure = len(possible) == 1 and all(len(winner) == 1 for winner in possible)
    assert decided(Counter(labels), {"left": left}) == sure
