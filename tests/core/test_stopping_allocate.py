"""The allocator against every allocation there is, and its closed forms against sums."""

from itertools import product
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowserve.core.stopping.allocate import (
    Bin,
    allocate,
    binary_gains,
    look_up,
    next_sample,
    posterior_gains,
    table,
)

FALLING = st.lists(st.floats(0, 1), max_size=4).map(lambda gains: sorted(gains, reverse=True))


def total(gains: list[list[float]], given: list[int]) -> float:
    return sum(sum(own[:count]) for own, count in zip(gains, given, strict=True))


@given(gains=st.lists(FALLING, max_size=3), budget=st.integers(0, 8))
def test_nothing_gains_more_than_the_greatest_gains_first(gains: list[list[float]], budget: int) -> None:
    given_ = allocate(gains, budget)
    assert sum(given_) <= budget
    possible = (list(one) for one in product(*(range(len(own) + 1) for own in gains)) if sum(one) <= budget)
    assert total(gains, given_) == pytest.approx(max(total(gains, one) for one in possible))


def test_binary_gains_are_what_one_more_sample_adds() -> None:
    chance, gains = 0.3, binary_gains(0.3, 6)
    for drawn in range(7):
        assert sum(gains[:drawn]) == pytest.approx(1 - (1 - chance) ** drawn)
    assert list(gains) == sorted(gains, reverse=True)


@pytest.mark.parametrize(("successes", "failures"), [(0, 0), (2, 1), (0, 5), (7, 0)])
def test_posterior_gains_are_means_over_what_the_chance_may_be(successes: int, failures: int) -> None:
    steps = 4000
    chances = [(i + 0.5) / steps for i in range(steps)]
    weights = [c**successes * (1 - c) ** failures for c in chances]
    for drawn, gain in enumerate(posterior_gains(successes, failures, 5)):
        mean = sum(w * c * (1 - c) ** drawn for c, w in zip(chances, weights, strict=True)) / sum(weights)
        assert gain == pytest.approx(mean, rel=1e-3)


def test_a_program_that_never_succeeds_gets_no_sample_unless_each_must_have_one() -> None:
    gains = [binary_gains(0.5, 8), binary_gains(0.0, 8), binary_gains(1e-6, 8), binary_gains(1.0, 8)]
    assert allocate(gains, 8) == [7, 0, 0, 1]
    assert allocate(gains, 8, least=1) == [5, 1, 1, 1]
    assert allocate(gains, 100) == [8, 0, 8, 1], "nor where there is plenty"
    assert allocate(gains, 2, least=1) == [1, 1, 0, 0]


def test_a_table_spends_what_programs_of_its_bins_may_have_on_average() -> None:
    bins = [Bin(0.3, 10, binary_gains(0.9, 8)), Bin(0.7, 10, binary_gains(0.4, 8)), Bin(1.0, 10, binary_gains(0.05, 8))]
    entries = table(bins, 2.0)
    assert entries == [(0.3, 2), (0.7, 4), (1.0, 0)]
    assert [look_up(entries, x) for x in (0.0, 0.3, 0.5, 0.99, 7.0)] == [2, 2, 4, 0, 0]
    assert look_up([], 0.5) == 0


@given(chances=st.lists(st.floats(0, 1), min_size=1, max_size=3), samples=st.integers(0, 4))
def test_a_table_of_bins_of_one_size_is_the_best_there_is(chances: list[float], samples: int) -> None:
    gains = [list(binary_gains(chance, 4)) for chance in chances]
    bins = [Bin(float(number), 5, own) for number, own in enumerate(gains)]
    counts = [count for _, count in table(bins, samples)]
    assert total(gains, counts) == pytest.approx(total(gains, allocate(gains, samples * len(bins))))


def test_a_bin_that_does_not_fit_is_passed_over_for_one_that_does() -> None:
    bins = [Bin(0.5, 8, (0.9, 0.8)), Bin(1.0, 2, (0.5, 0.4))]
    assert table(bins, 1.0) == [(0.5, 1), (1.0, 1)]


def test_online_the_next_sample_goes_where_it_gains_most() -> None:
    assert next_sample({"a": 0.2, "b": 0.4, "c": 0.4}) == "b"
    assert next_sample({"a": 0.2}, floor=0.2) is None
    assert next_sample({}) is None


def test_online_with_known_gains_is_the_allocation() -> None:
    rnd = Random(3)
    gains = [binary_gains(rnd.random(), 12) for _ in range(6)]
    given_ = dict.fromkeys(range(6), 0)
    for _ in range(20):
        chosen = next_sample({program: gains[program][count] for program, count in given_.items() if count < 12})
        assert chosen is not None
        given_[chosen] += 1
    assert list(given_.values()) == allocate(gains, 20)
