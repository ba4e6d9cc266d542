"""From scores of pasted tokens to the tokens that are recomputed. Ties go to the earlier token, so the same scores choose the same tokens.

A count is always the ratio times all pasted tokens, rounded up.
"""

import math
from collections.abc import Sequence

import torch


def count(ratio: float, tokens: int) -> int:
    """How many of so many pasted tokens are recomputed."""
    return math.ceil(ratio * tokens)


def highest(scores: torch.Tensor, chosen: int) -> torch.Tensor:
    """Which `chosen` of them are the highest: booleans of the shape of `scores`, (tokens,)."""
    best = torch.argsort(scores, descending=True, stable=True)[:chosen]
    return torch.zeros(len(scores), dtype=torch.bool, device=scores.device).index_fill(0, best, True)


def shared_out(total: int, lengths: Sequence[int], weights: Sequence[float]) -> list[int]:
    """`total` tokens over chunks, in proportion to weight times length, none above its length (largest remainders; ties to the
    earlier chunk). Chunks of weight 0 get what the others cannot take. At most sum(lengths) are given out."""
    given = [0] * len(lengths)
    left = min(total, sum(lengths))
    for claims in ([w * n for w, n in zip(weights, lengths, strict=True)], [float(n) for n in lengths]):
        while left and (open_ := [i for i, claim in enumerate(claims) if claim > 0 and given[i] < lengths[i]]):
            whole = sum(claims[i] for i in open_)
            parts = {i: left * claims[i] / whole for i in open_}
            full = [i for i in open_ if given[i] + parts[i] >= lengths[i]]
            for i in full:
                left -= lengths[i] - given[i]
                given[i] = lengths[i]
            if full:
                continue  # what they could not take is shared out among the rest
            for i in open_:
                given[i] += math.floor(parts[i])
            rest = left - sum(math.floor(parts[i]) for i in open_)
            for i in sorted(open_, key=lambda i: (math.floor(parts[i]) - parts[i], i))[:rest]:
                given[i] += 1
            left = 0
    return given
