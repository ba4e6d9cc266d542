"""How far guesses go ahead of their verification."""

import pytest

from flowserve.core.speculation.stride import MOST_STEPS, Stride, best_stride, line, pays, verified_steps
from flowserve.errors import ConfigError


@pytest.mark.parametrize(
    ("a", "b", "chance", "alone", "overlapped"),
    [
        (0.1, 4, 0.6, 6, 6),
        (0.1, 4, 0.3, 3, 3),
        (0.1, 0.05, 0.6, 1, 1),
        (0.1, 0.2, 0.6, 2, 2),
        (0.1, 0.2, 0.9, 6, 4),
        (0.1, 0.4, 0.3, 2, 2),
        (0.1, 1.0, 0.8, 7, 7),
    ],
)
def test_the_stride_is_the_best_of_the_papers_objective(
    a: float, b: float, chance: float, alone: int, overlapped: int
) -> None:
    assert best_stride(a, b, chance) == alone
    assert best_stride(a, b, chance, overlapped=True) == overlapped


def test_expected_steps_are_the_closed_form() -> None:
    for chance in (0.0, 0.3, 0.9):
        for steps in (1, 4, MOST_STEPS):
            assert verified_steps(chance, steps) == pytest.approx((1 - chance**steps) / (1 - chance))
    assert verified_steps(1.0, 7) == 7


def test_speculation_does_not_pay_where_guesses_are_wrong_or_verification_is_fast() -> None:
    assert pays(0.1, 4, 0.6, 6)
    assert not pays(0.1, 4, 0.0, 1)
    assert not pays(0.1, 0.01, 0.3, 1)
    assert pays(0.1, 0.05, 0.6, 1, overlapped=True)
    assert not pays(0.1, 0.05, 0.0, 1, overlapped=True)
    assert not pays(0.1, 0.03, 0.6, 1, overlapped=True)  # a wrong step is not stopped at once


def test_the_chance_is_right_guesses_over_those_looked_at_of_the_last_five_capped() -> None:
    stride = Stride()
    assert stride.chance == 0.0
    stride.verified(1, 3, 3, 1.0)  # one right, one wrong, the third not looked at
    assert stride.chance == 0.5
    for _ in range(5):
        stride.verified(3, 3, 3, 1.0)
    assert stride.chance == 0.6


def test_the_first_round_has_one_guess_then_times_decide() -> None:
    stride = Stride()
    assert stride.next() == 1
    stride.wrote(0.1)
    stride.verified(0, 0, 1, 4.0)  # the first search guesses nothing
    assert stride.next() == 1
    stride.verified(1, 1, 1, 4.0)
    assert stride.next() == 6


def test_wrong_guesses_turn_speculation_off_and_right_ones_on_again() -> None:
    stride = Stride()
    stride.wrote(0.1)
    for _ in range(5):
        stride.verified(0, 1, 1, 4.0)
    assert stride.next() == 0
    stride.verified(1, 1, 1, 4.0)
    stride.verified(1, 1, 1, 4.0)
    assert stride.next() > 0


def test_without_the_gate_wrong_guesses_leave_a_stride_of_one() -> None:
    stride = Stride(gated=False)
    stride.wrote(0.1)
    for _ in range(5):
        stride.verified(0, 1, 1, 4.0)
    assert stride.next() == 1


def test_one_slow_step_among_five_does_not_matter() -> None:
    stride, steady = Stride(), Stride()
    for seconds in (0.1, 0.1, 30.0, 0.1, 0.1):
        stride.wrote(seconds)
        steady.wrote(0.1)
    for one in (stride, steady):
        one.verified(2, 3, 3, 1.0)
    assert stride.next() == steady.next() > 1


def test_a_fixed_stride_stays() -> None:
    stride = Stride(fixed=3)
    stride.wrote(0.1)
    stride.verified(0, 3, 3, 0.001)
    assert stride.next() == 3
    with pytest.raises(ConfigError, match=r"expected 1 to 32 steps or None for OS3, got 0"):
        Stride(fixed=0)


def test_batches_that_take_longer_the_larger_they_are_make_strides_shorter() -> None:
    assert line([(1, 1.0), (3, 1.4), (2, 1.2)]) == pytest.approx((1.0, 0.2))
    assert line([(1, 1.0), (1, 3.0), (1, 1.1)]) == (1.1, 0.0)
    assert line([(1, 2.0), (4, 1.0)])[1] == 0.0
    flat, steep = best_stride(0.1, 1.0, 0.6), best_stride(0.1, 1.0, 0.6, more=0.5)
    assert steep < flat
    assert pays(0.1, 1.0, 0.6, flat)
    assert not pays(0.1, 1.0, 0.6, flat, more=1.0)  # as if each query were searched for alone


def test_one_wild_time_does_not_move_the_line() -> None:
    points = [(1, 1.0), (2, 1.1), (3, 1.2), (4, 1.3), (1, 1.0), (3, 1.2), (2, 90.0)]
    assert line(points) == pytest.approx((1.0, 0.1), abs=1e-9)
