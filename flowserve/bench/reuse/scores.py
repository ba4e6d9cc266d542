"""How good an answer is, and how far one first token's distribution is from another."""

from collections import Counter
from collections.abc import Sequence
from math import isnan
from typing import Any

import numpy as np
import numpy.typing as npt

from flowserve.bench.retrieval import normalised

MAX_KL = 100.0
"""Nats. More is told as this: a token that one model takes for impossible would make a mean endless."""

LogProbs = npt.NDArray[np.floating[Any]]
"""(vocabulary,)"""


def f1(answer: str, golds: Sequence[str]) -> float:
    """Of normalised words, as SQuAD and LongBench score; the best over `golds`. 0 to 1."""
    return max((_f1(normalised(answer).split(), normalised(gold).split()) for gold in golds), default=0.0)


def exact(answer: str, golds: Sequence[str]) -> float:
    """1 if the normalised answer is one of `golds`, else 0."""
    return float(any(normalised(answer) == normalised(gold) for gold in golds))


def kl(full: LogProbs, other: LogProbs) -> float:
    """Nats that are lost by taking `other` for `full`. What is no distribution any longer (NaN) is as far as can be."""
    p, q = np.asarray(full, np.float64), np.asarray(other, np.float64)
    possible = ~np.isneginf(p)
    total = float(np.sum(np.exp(p[possible]) * (p[possible] - q[possible])))
    return MAX_KL if isnan(total) else min(max(total, 0.0), MAX_KL)


def _f1(words: Sequence[str], gold: Sequence[str]) -> float:
    """Two empty ones are equal."""
    if not words or not gold:
        return float(words == gold)
    common = (Counter(words) & Counter(gold)).total()
    return 2 * common / (len(words) + len(gold))
