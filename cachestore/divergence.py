"""How far one distribution of a first token is from another: the same measure when a gate is made and when it is watched."""

from math import isnan
from typing import Any, Final

import numpy as np
import numpy.typing as npt

MAX_KL: Final = 100.0
"""Nats. More is told as this: a token that one model takes for impossible would make a mean endless."""

LogProbs = npt.NDArray[np.floating[Any]]
"""(vocabulary,)"""


def kl(full: LogProbs, other: LogProbs) -> float:
    """Nats that are lost by taking `other` for `full`. What is no distribution any longer (NaN) is as far as can be."""
    p, q = np.asarray(full, np.float64), np.asarray(other, np.float64)
    possible = ~np.isneginf(p)
    total = float(np.sum(np.exp(p[possible]) * (p[possible] - q[possible])))
    return MAX_KL if isnan(total) else min(max(total, 0.0), MAX_KL)
