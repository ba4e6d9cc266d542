"""Which positions of a load are computed, in positions of the prompt."""

import math

import torch

from flowserve.cachestore.policies import Policy
from flowserve.engines.vllm.connector.metadata import Load
from flowserve.ids import Tokens

Tensor = torch.Tensor


def fixed(load: Load) -> Tensor:
    """True for positions of [start, end) that are computed whatever the layers say: gaps, and what a static policy asks for."""
    chosen = torch.ones(load.end - load.start, dtype=torch.bool)
    for chunk in load.paste.chunks:
        head = chunk.end if load.paste.policy.name == "full" else chunk.start + _head(load.paste.policy)
        low, high = max(head, chunk.start, load.start), min(chunk.end, load.end)
        chosen[max(low - load.start, 0) : max(high - load.start, 0)] = False
    return chosen


def count_rows(load: Load) -> Tokens:
    """Tokens that a load computes, in the layer that computes most."""
    if load.paste.policy.name == "hkvd":  # the layers before the check layer compute all
        return load.end - load.start
    return int(fixed(load).sum())


def count_pasted(load: Load) -> Tokens:
    """Tokens whose recorded KV stays, in the layers behind the check layer where there is one."""
    open_ = load.end - load.start - int(fixed(load).sum())
    return open_ - _count(load.paste.policy, open_) if load.paste.policy.name == "hkvd" else open_


def deviating(policy: Policy, fresh: tuple[Tensor, Tensor], pasted: tuple[Tensor, Tensor], open_: Tensor) -> Tensor:
    """Of the positions that are `open_`, the share with the highest deviation (CacheBlend, section 4.3), ties by position."""
    keys, values = (
        ((new.float() - old.float()) ** 2).flatten(1).sum(1) for new, old in zip(fresh, pasted, strict=True)
    )
    score = {"k_l2": keys, "v_l2": values, "kv_l2": keys + values}[policy.metric]
    places = open_.nonzero().squeeze(1)
    best = places[torch.argsort(score[places], descending=True, stable=True)[: _count(policy, len(places))]]
    return torch.zeros_like(open_).index_fill(0, best, True)


def runs(positions: Tensor) -> list[tuple[int, int]]:
    """Maximal stretches [start, end) of rising positions."""
    told: list[tuple[int, int]] = []
    for position in positions.tolist():
        if told and told[-1][1] == position:
            told[-1] = (told[-1][0], position + 1)
        else:
            told.append((position, position + 1))
    return told


def _count(policy: Policy, open_: Tokens) -> Tokens:
    """How many of these are recomputed."""
    return math.ceil(policy.ratio * open_)


def _head(policy: Policy) -> Tokens:
    """Tokens at the start of a chunk that are recomputed; at position 0 as well, for its record was made behind a sink."""
    return policy.k if policy.name == "first_k" else 0
