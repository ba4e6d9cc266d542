"""From scores to tokens: ties, counts and shares."""

import pytest

torch = pytest.importorskip("torch", reason="the blend needs torch")

from hypothesis import given
from hypothesis import strategies as st

from flowserve.engines.blend.selection import count, highest, shared_out

pytestmark = pytest.mark.torch


def test_ties_go_to_the_earlier_token_and_order_is_the_positions() -> None:
    assert highest(torch.tensor([1.0, 3.0, 3.0, 0.0, 3.0]), 2).tolist() == [False, True, True, False, False]
    assert highest(torch.tensor([1.0, 2.0]), 5).tolist() == [True, True]
    assert highest(torch.zeros(0), 0).tolist() == []


def test_a_ratio_is_rounded_up() -> None:
    assert [count(ratio, 20) for ratio in (0.0, 0.01, 0.15, 1.0)] == [0, 1, 3, 20]


@pytest.mark.parametrize(
    ("total", "lengths", "weights", "given_out"),
    [
        (6, [10, 10], [0.2, 0.1], [4, 2]),
        (3, [10, 10], [0.1, 0.1], [2, 1]),
        (12, [4, 10, 10], [0.9, 0.1, 0.1], [4, 4, 4]),
        (6, [10, 10], [0.0, 0.5], [0, 6]),
        (14, [10, 10], [0.0, 0.5], [4, 10]),
        (6, [10, 20], [0.0, 0.0], [2, 4]),
        (99, [3, 0, 4], [0.5, 0.5, 0.0], [3, 0, 4]),
        (5, [], [], []),
    ],
)
def test_shares_follow_weight_times_length(
    total: int, lengths: list[int], weights: list[float], given_out: list[int]
) -> None:
    assert shared_out(total, lengths, weights) == given_out


@given(
    st.integers(0, 200),
    st.lists(st.tuples(st.integers(0, 50), st.floats(0.0, 1.0, allow_subnormal=False)), max_size=6),
)
def test_all_is_given_out_and_none_gets_more_than_it_has(total: int, chunks: list[tuple[int, float]]) -> None:
    lengths, weights = [n for n, _ in chunks], [w for _, w in chunks]
    shares = shared_out(total, lengths, weights)
    assert sum(shares) == min(total, sum(lengths))
    assert all(0 <= share <= length for share, length in zip(shares, lengths, strict=True))
    for one, other in [(i, j) for i in range(len(chunks)) for j in range(len(chunks))]:
        if lengths[one] == lengths[other] and weights[one] > weights[other]:
            assert shares[one] >= shares[other]
