"""Stopping rules against published and hand-computed figures."""

from collections import Counter
from collections.abc import Mapping
from itertools import product
from math import log
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flowserve.core.stopping.samples import (
    RULES,
    Votes,
    adaptive_consistency,
    agreement,
    certaindex,
    certainty,
    decided,
    dirichlet,
    entropy,
    esc,
    fixed,
    leads,
    majority,
)
from flowserve.core.stopping.signals import UNUSABLE
from flowserve.core.stopping.waves import needed


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


# --- the rules of the AdaptiveConsistency library --------------------------------------------------------


@settings(deadline=None)  # the integral is slow on a busy machine
@given(st.integers(0, 15), st.integers(0, 15))
def test_of_two_answers_dirichlet_is_the_beta_criterion(a: int, b: int) -> None:
    probability = leads({0: a, 1: b})
    assert adaptive_consistency({0: a, 1: b}, {"threshold": probability - 1e-5})
    assert not adaptive_consistency({0: a, 1: b}, {"threshold": probability + 1e-5})


@pytest.mark.parametrize("counts", [(3, 2, 2), (5, 1, 1, 1), (0, 0, 0), (6, 5, 1)])
def test_dirichlet_agrees_with_draws_from_the_posterior(counts: tuple[int, ...]) -> None:
    rnd, draws = Random(7), 20_000
    won = 0
    for _ in range(draws):
        first, *others = (rnd.gammavariate(count + 1, 1.0) for count in counts)
        won += first > max(others)
    assert leads(dict(enumerate(counts))) == pytest.approx(won / draws, abs=0.015)


def test_dirichlet_minds_every_rival_and_not_only_the_second() -> None:
    assert dirichlet({0: 4}, {}) and not dirichlet({0: 3}, {})
    assert leads({0: 5, 1: 2, 2: 2}) < leads({0: 5, 1: 2})
    assert leads({0: 5, 1: 2, UNUSABLE: 9}) == leads({0: 5, 1: 2})


def test_entropy_is_measured_against_the_classes_that_were_seen() -> None:
    assert entropy({0: 4, 1: 1}, {}), "0.5 nats over log 2 is 0.72"
    assert not entropy({0: 3, 1: 1}, {}), "0.81"
    assert certainty({0: 4, 1: 1}) < 0.7, "certaindex normalises by the number of answers, and is stricter here"
    assert not entropy({0: 1}, {}) and entropy({0: 2}, {})
    assert not entropy({UNUSABLE: 1}, {"min_samples": 1.0}), "an unusable answer does not agree with itself"


def test_a_majority_is_a_share_of_all_samples() -> None:
    assert majority({0: 4, 1: 1}, {}) and not majority({0: 3, 1: 1}, {})
    assert not majority({0: 4, UNUSABLE: 2}, {})
    assert not majority({0: 1}, {}) and majority({0: 2}, {})


# --- esc, agreement, fixed ---------------------------------------------------------------------------------


def test_esc_wants_one_window_unanimous_and_windows_do_not_overlap() -> None:
    args = {"window": 3.0}
    assert esc(Votes([0, 1, 0, 2, 2, 2]), args)
    assert not esc(Votes([0, 1, 2, 2, 2]), args)
    assert not esc(Votes([UNUSABLE] * 3), args)
    assert not esc(Votes(), args)


@pytest.mark.parametrize("shares", [(1.0,), (0.6, 0.4), (0.5, 0.3, 0.2)])
def test_esc_draws_what_its_paper_expects(shares: tuple[float, ...]) -> None:
    """E[n] = w (sum over i < L/w - 1 of q (1 - q)^i (i + 1), and (1 - q)^(L/w - 1) L/w), q the chance of unanimity."""
    window, limit = 2, 8
    q = sum(share**window for share in shares)
    windows = limit // window
    told = sum(q * (1 - q) ** i * (i + 1) for i in range(windows - 1)) + (1 - q) ** (windows - 1) * windows
    expected = 0.0
    for labels in product(range(len(shares)), repeat=limit):
        chance = 1.0
        for label in labels:
            chance *= shares[label]
        drawn = next(n for n in range(1, limit + 1) if n == limit or esc(Votes(labels[:n]), {"window": window}))
        expected += chance * drawn
    assert expected == pytest.approx(window * told)


def test_two_that_agree_are_enough_and_else_a_third_is_drawn() -> None:
    assert agreement({0: 2}, {}) and not agreement({0: 1, 1: 1}, {}) and agreement({0: 1, 1: 2}, {})
    assert not agreement({UNUSABLE: 2}, {})
    assert not agreement({0: 2}, {"agreeing": 3.0})


def test_a_fixed_number_is_reached_whatever_is_said() -> None:
    assert fixed({0: 1, UNUSABLE: 2}, {"samples": 3.0}) and not fixed({0: 2}, {"samples": 3.0})


def test_votes_keep_counts_and_order() -> None:
    votes = Votes([1, 0, 1])
    votes.add(UNUSABLE)
    assert votes == {1: 2, 0: 1, UNUSABLE: 1} and votes.order == [1, 0, 1, UNUSABLE]


# --- how many are needed at least ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rule", "args", "labels", "left", "expected"),
    [
        ("adaptive_consistency", {}, [], 40, 4),
        ("adaptive_consistency", {}, [0, 1], 38, 5),  # 6 to 1
        ("adaptive_consistency", {}, [], 3, 3),
        ("certaindex", {"min_samples": 5.0}, [], 16, 5),
        ("agreement", {}, [], 3, 2),
        ("agreement", {}, [0, 1], 1, 1),
        ("esc", {"window": 5.0}, [], 40, 5),
        ("esc", {"window": 5.0}, [0, 1], 38, 8),  # this window is lost
        ("esc", {"window": 5.0}, [0] * 4 + [1, 1], 34, 4),  # not the leader's window
        ("decided", {}, [], 5, 3),
        ("decided", {}, [0, 0], 6, 3),
        ("majority", {}, [], 8, 2),
        ("fixed", {"samples": 3.0}, [0], 7, 2),
        ("agreement", {}, [UNUSABLE], 9, 2),
    ],
)
def test_a_wave_is_as_many_as_could_suffice(
    rule: str, args: Mapping[str, float], labels: list[int], left: int, expected: int
) -> None:
    assert needed(RULES[rule], Votes(labels), args, left) == expected


@pytest.mark.parametrize("rule", sorted(RULES.keys() - {"entropy"}))
@given(labels=st.lists(st.integers(-1, 2), max_size=4), left=st.integers(1, 4))
def test_no_answers_at_all_could_stop_a_rule_earlier(rule: str, labels: list[int], left: int) -> None:
    """Against every continuation; of `entropy` it does not hold, since a new class raises what it is normalised by."""
    small = {"threshold": 0.8, "window": 3.0, "min_samples": 3.0, "every": 2.0, "samples": 6.0}
    told = needed(RULES[rule], Votes(labels), small, left)
    possible = range(-1, 4)
    shortest = next(
        (
            count
            for count in range(1, left + 1)
            for rest in product(possible, repeat=count)
            if RULES[rule](Votes([*labels, *rest]), {**small, "left": left - count})
        ),
        left,
    )
    assert told == shortest


@given(labels=st.lists(st.integers(-1, 2), min_size=1, max_size=12), left=st.integers(1, 12))
def test_a_label_brings_the_end_nearer_by_one_at_most(labels: list[int], left: int) -> None:
    for name, rule in RULES.items():
        before = needed(rule, Votes(labels[:-1]), {}, left + 1)
        plain = needed(rule, Votes(labels), {}, left)
        if name != "entropy":
            assert plain >= before - 1
            assert needed(rule, Votes(labels), {}, left, before - 1) == plain
