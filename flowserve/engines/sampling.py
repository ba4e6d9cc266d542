"""Choosing the next token of many sequences at once, each by its own settings.

Axes of logits: (rows, vocabulary). A row's choice depends on its logits, settings and its own random source alone. The
source is Python's Random, one number per token: as reproducible as a torch generator and a hundred times cheaper.
"""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from flowserve.engines.base import Sampling
from flowserve.ids import Tokens


class Chooser:
    """One choice's settings and random source."""

    __slots__ = ("_random", "greedy", "temperature", "top_k", "top_p")

    def __init__(self, sampling: Sampling, index: int, written: Tokens = 0) -> None:
        """`written`: tokens that another engine has chosen already; the draws after them are others than those from the start."""
        self.greedy = sampling.temperature < 1e-6
        self.temperature = sampling.temperature
        self.top_p = sampling.top_p
        self.top_k = sampling.top_k
        self._random = random.Random(None if sampling.seed is None else sampling.seed + index + written)

    @property
    def cuts(self) -> bool:
        """Some tokens are excluded before drawing."""
        return self.top_p < 1 or self.top_k > 0

    def draw(self) -> float:
        """A number in [0, 1)."""
        return self._random.random()


@dataclass(frozen=True, slots=True)
class TopLogprobs:
    """Of one row: the chosen token's, and (id, logprob) of the likeliest, best first."""

    chosen: float
    top: tuple[tuple[int, float], ...]


def forbid(logits: torch.Tensor, rows: Sequence[int], masks: np.ndarray) -> None:
    """Set to -inf, in place, what is not allowed. masks: per row of `rows` a packed bit mask, lowest bit first."""
    bits = np.unpackbits(masks.view(np.uint8), axis=1, bitorder="little")
    vocabulary = logits.shape[1]
    if bits.shape[1] < vocabulary:
        bits = np.pad(bits, ((0, 0), (0, vocabulary - bits.shape[1])))
    allowed = torch.from_numpy(bits[:, :vocabulary].astype(bool)).to(logits.device)
    where = torch.tensor(rows, device=logits.device)
    logits[where] = logits[where].masked_fill(~allowed, -math.inf)


def choose(logits: torch.Tensor, choosers: Sequence[Chooser]) -> list[int]:
    """One token per row. `logits` are not changed."""
    tokens: list[int] = logits.argmax(dim=-1).tolist()
    # Two groups, so that a row is handled in the same way whatever its neighbours ask for.
    plain = [i for i, chooser in enumerate(choosers) if not chooser.greedy and not chooser.cuts]
    cut = [i for i, chooser in enumerate(choosers) if not chooser.greedy and chooser.cuts]
    for group, sample in ((plain, _sample), (cut, _sample_cut)):
        if group:
            rows = logits[torch.tensor(group, device=logits.device)]
            for i, token in zip(group, sample(rows, [choosers[i] for i in group]), strict=True):
                tokens[i] = token
    return tokens


def _sample(logits: torch.Tensor, choosers: Sequence[Chooser]) -> list[int]:
    """By inverting each row's distribution function at its random number."""
    chosen: list[int] = _invert(torch.softmax(_scaled(logits, choosers), dim=-1), choosers).tolist()
    return chosen


def _sample_cut(logits: torch.Tensor, choosers: Sequence[Chooser]) -> list[int]:
    """The same, of what top-k and then top-p leave."""
    ranked, order = _scaled(logits, choosers).sort(dim=-1, descending=True, stable=True)
    probabilities = torch.softmax(ranked, dim=-1)
    vocabulary = logits.shape[1]
    top_k = _column([chooser.top_k or vocabulary for chooser in choosers], logits)
    probabilities = probabilities.masked_fill(torch.arange(vocabulary, device=logits.device) >= top_k, 0.0)
    probabilities = probabilities / probabilities.sum(dim=-1, keepdim=True)
    before = probabilities.cumsum(dim=-1) - probabilities
    top_p = _column([chooser.top_p for chooser in choosers], logits)
    probabilities = probabilities.masked_fill((before >= top_p) & (top_p < 1), 0.0)
    ranks = _invert(probabilities, choosers)
    chosen: list[int] = order.gather(1, ranks[:, None])[:, 0].tolist()
    return chosen


def _scaled(logits: torch.Tensor, choosers: Sequence[Chooser]) -> torch.Tensor:
    """By temperature; shifted by the maximum first, so that a tiny temperature does not overflow."""
    shifted = logits.double() - logits.amax(dim=-1, keepdim=True).double()
    return shifted / _column([chooser.temperature for chooser in choosers], logits)


def _column(values: Sequence[float], like: torch.Tensor) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64, device=like.device)[:, None]


def _invert(probabilities: torch.Tensor, choosers: Sequence[Chooser]) -> torch.Tensor:
    """Per row the first index at which the running sum exceeds draw * total: never one of probability 0."""
    draws = _column([chooser.draw() for chooser in choosers], probabilities)
    running = probabilities.cumsum(dim=-1)
    found = torch.searchsorted(running, draws * running[:, -1:], right=True)[:, 0]
    places = torch.arange(1, probabilities.shape[1] + 1, device=probabilities.device)
    last = ((probabilities > 0) * places).argmax(dim=-1)  # rounding may push `found` past it
    return torch.minimum(found, last)


def logprobs(logits: torch.Tensor, tokens: Sequence[int], wanted: Sequence[int | None]) -> list[TopLogprobs | None]:
    """For each row that wants them (None: does not): of the chosen token and of the likeliest."""
    rows = [i for i, count in enumerate(wanted) if count is not None]
    found: list[TopLogprobs | None] = [None] * len(wanted)
    if not rows:
        return found
    where = torch.tensor(rows, device=logits.device)
    distribution = torch.log_softmax(logits[where].float(), dim=-1)
    most = min(max(wanted[i] or 0 for i in rows), logits.shape[1])
    values, ids = distribution.topk(most, dim=-1) if most else (None, None)
    for j, i in enumerate(rows):
        count = min(wanted[i] or 0, most)
        top = (
            []
            if values is None or ids is None
            else zip(ids[j, :count].tolist(), values[j, :count].tolist(), strict=True)
        )
        found[i] = TopLogprobs(float(distribution[j, tokens[i]]), tuple(top))
    return found
