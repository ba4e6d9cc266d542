"""Choosing tokens: the right distribution, rows that do not see each other."""

import math
from collections import Counter

import pytest

torch = pytest.importorskip("torch", reason="sampling works on torch tensors")
np = pytest.importorskip("numpy")

from flowserve.engines.base import Sampling
from flowserve.engines.sampling import Chooser, choose, forbid, logprobs

pytestmark = pytest.mark.torch
LOGITS = torch.tensor([[2.0, 1.0, 0.0, -1.0, -2.0]])


def frequencies(draws: int = 4000, **settings: float) -> dict[int, float]:
    chooser = Chooser(Sampling(seed=1, **settings), 0)  # type: ignore[arg-type]
    counts = Counter(choose(LOGITS, [chooser])[0] for _ in range(draws))
    return {token: count / draws for token, count in counts.items()}


def softmax(values: list[float]) -> list[float]:
    total = sum(math.exp(value) for value in values)
    return [math.exp(value) / total for value in values]


@pytest.mark.parametrize("temperature", [0.7, 1.0, 2.0])
def test_draws_follow_the_tempered_softmax(temperature: float) -> None:
    wanted = softmax([value / temperature for value in LOGITS[0].tolist()])
    found = frequencies(temperature=temperature)
    assert all(abs(found.get(i, 0.0) - p) < 0.03 for i, p in enumerate(wanted))


def test_top_k_leaves_the_k_likeliest() -> None:
    assert set(frequencies(400, temperature=3.0, top_k=2)) == {0, 1}


def test_top_p_leaves_the_smallest_set_that_reaches_it() -> None:
    probabilities = softmax(LOGITS[0].tolist())
    just_two = probabilities[0] + probabilities[1]
    assert set(frequencies(800, temperature=1.0, top_p=just_two - 0.01)) == {0, 1}
    assert set(frequencies(800, temperature=1.0, top_p=just_two + 0.01)) == {0, 1, 2}
    assert set(frequencies(50, temperature=1.0, top_p=1e-6)) == {0}


def test_a_tiny_temperature_is_greedy_and_does_not_overflow() -> None:
    assert set(frequencies(50, temperature=1e-5)) == {0}


def test_a_row_draws_the_same_whatever_its_neighbours_ask_for() -> None:
    torch.manual_seed(0)
    logits = torch.randn(6, 50)
    settings = [
        Sampling(temperature=1.0, seed=i, top_p=p, top_k=k) for i, (p, k) in enumerate([(1, 0), (0.9, 0), (1, 5)] * 2)
    ]
    alone = [choose(logits[i : i + 1], [Chooser(settings[i], 0)])[0] for i in range(6)]
    assert choose(logits, [Chooser(s, 0) for s in settings]) == alone


def test_what_a_mask_forbids_is_never_chosen() -> None:
    logits = torch.zeros(3, 40)
    masks = np.zeros((2, 2), dtype=np.int32)
    masks[0, 1] = 1 << 3  # token 35
    masks[1, 0] = 1 << 7
    forbid(logits, [0, 2], masks)
    choosers = [Chooser(Sampling(temperature=1.0, seed=1), 0) for _ in range(3)]
    for _ in range(20):
        chosen = choose(logits, choosers)
        assert (chosen[0], chosen[2]) == (35, 7)
    assert torch.isfinite(logits[1]).all()


def test_logprobs_are_given_to_rows_that_want_them() -> None:
    found = logprobs(LOGITS.expand(3, -1), [1, 0, 4], [None, 0, 2])
    wanted = [math.log(p) for p in softmax(LOGITS[0].tolist())]
    assert found[0] is None
    assert found[1] is not None and found[2] is not None
    assert found[1].chosen == pytest.approx(wanted[0])
    assert found[1].top == ()
    assert found[2].chosen == pytest.approx(wanted[4])
    assert [token for token, _ in found[2].top] == [0, 1]
