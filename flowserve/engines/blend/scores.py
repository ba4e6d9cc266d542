"""What tells which pasted tokens matter: how far their KV is from the right one, and who looks at whom.

Axes: keys and values (kv_heads, rows, head_dim); attention (rows, places), the mean over heads.
"""

import math
from collections.abc import Iterator
from typing import Final

import torch

from flowserve.engines.blend.decoder import Decoder
from flowserve.engines.blend.walk import Walk
from flowserve.ids import Tokens

ROWS: Final[Tokens] = 128
"""Whose attention is written out at once: heads of a group times rows times places, in float32."""


def deviation(
    metric: str, fresh: tuple[torch.Tensor, torch.Tensor], pasted: tuple[torch.Tensor, torch.Tensor]
) -> torch.Tensor:
    """(rows,): squared L2 over heads and dimensions of what was computed from what was pasted (CacheBlend, EuroSys 2025, section 4.3).
    metric: `v_l2`, `k_l2` or `kv_l2`; keys in one frame."""
    keys, values = (
        (new.float() - old.float()).square().sum(dim=(0, 2)) for new, old in zip(fresh, pasted, strict=True)
    )
    return {"k_l2": keys, "v_l2": values, "kv_l2": keys + values}[metric]


def attention(queries: torch.Tensor, keys: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """queries: (heads, rows, head_dim), scaled. keys: (kv_heads, places, head_dim). mask: (1, 1, rows, places), allowed places or what
    is added to logits. In float32, one head of keys at a time, which bounds the memory."""
    per_head = queries.float().reshape(len(keys), -1, *queries.shape[1:])
    told = torch.zeros(queries.shape[1], keys.shape[1], device=queries.device)
    for group, key in zip(per_head, keys.float(), strict=True):
        logits = group @ key.T
        logits = logits.masked_fill(~mask[0], -torch.inf) if mask.dtype == torch.bool else logits + mask[0]
        told += logits.softmax(dim=-1).sum(dim=0)
    return told / len(queries)


class Look:
    """What the rows of one chunk look at, in one layer of a prompt whose keys of this layer are in the slot."""

    def __init__(self, decoder: Decoder, index: int, start: Tokens) -> None:
        """start: of the chunk."""
        self._decoder = decoder
        self._index = index
        self._start = start
        self._inner = 0.0
        self._pairs = 0
        self.outer = torch.zeros(0)
        """(rows,): what each gives to what stands before the chunk, without the prompt's first token. A record was encoded behind a
        sink, so attention to the sink is no context that it lacks."""

    def of(self, walk: Walk, inside: torch.Tensor) -> Iterator[int]:
        """Look at the rows of `walk` with these numbers: the chunk's, ascending. Yields the rows of each part."""
        parts: list[torch.Tensor] = []
        for at in range(0, len(inside), ROWS):
            numbers = inside[at : at + ROWS]
            rows, where = walk.hidden[numbers], walk.positions[numbers]
            block = self._decoder.block(where, rows)
            keys, _ = self._decoder.table.read(self._index, walk.slot, slice(0, block.visible))
            queries = self._decoder.queries(self._index, rows, block)
            weights = attention(queries, keys, self._decoder.mask(self._index, block))
            parts.append(weights[:, 1 : self._start].sum(dim=1))
            self._inner += float(weights[:, self._start :].sum())
            self._pairs += int((where - self._start + 1).sum())
            yield len(rows)
        self.outer = torch.cat(parts)

    @property
    def impact(self) -> float:
        """How much the chunk's KV owes to its context, 0 to 1: Cache-Craft's context impact (SIGMOD 2025), of one layer.

        Theirs is sigmoid(a / b), a and b the attention per pair of tokens to other chunks and within, averaged over the layers of
        prompts in which the chunk was seen. Our records have seen none, so it is measured in this prompt, and begins at 0 where
        nothing before the chunk is looked at.
        """
        a = float(self.outer.sum()) / max(1, len(self.outer) * (self._start - 1))
        b = self._inner / max(1, self._pairs)
        return math.tanh(a / max(b, 1e-12) / 2)  # 2 sigmoid(a / b) - 1
