"""Where keys and values lie in a layer's paged cache, found out by writing patterns through vLLM's own write path.

Attention backends pack blocks as they like (vLLM's on a CPU keeps keys transposed). A block is taken as numbers without
order: bit patterns that are written into the null block tell which of them is which element. No bijection, no reuse: so it is
with quantised caches. Axes: (tokens, kv_heads, head_dim).
"""

from collections.abc import Sequence
from typing import Any

import torch

from flowserve.errors import ConfigError

SCRATCH = 0
"""vLLM's null block, which nobody reads."""
Tensor = torch.Tensor


class PagedLayer:
    """The cache of one Attention module. Raises ConfigError when its layout cannot be found."""

    def __init__(self, name: str, attention: Any, dtype: torch.dtype) -> None:
        self.name = name
        self._attention = attention
        cache = attention.kv_cache
        if not isinstance(cache, torch.Tensor) or cache.dtype != dtype:
            found = getattr(cache, "dtype", type(cache).__name__)
            raise ConfigError(f"reuse on vLLM: expected a KV cache of {dtype} in layer '{name}'; got {found}")
        self._cache = cache
        self.dtype = dtype
        self.heads, self.dim = int(attention.num_kv_heads), int(attention.head_size)
        self._block_tokens, left = divmod(cache[SCRATCH].numel(), 2 * self.heads * self.dim)
        if left:
            raise ConfigError(f"reuse on vLLM: a block of layer '{name}' does not hold whole tokens")
        self._keys, self._values = self._probe()

    @property
    def block_tokens(self) -> int:
        return self._block_tokens

    def slots(self, blocks: Sequence[int], positions: Tensor) -> Tensor:
        table = torch.tensor(blocks, dtype=torch.int64, device=positions.device)
        return table[positions // self._block_tokens] * self._block_tokens + positions % self._block_tokens

    def write(self, keys: Tensor, values: Tensor, slots: Tensor) -> None:
        self._attention.impl.do_kv_cache_update(
            self._attention, keys.contiguous(), values.contiguous(), self._cache, slots
        )

    def read(self, blocks: Sequence[int], start: int, end: int) -> tuple[Tensor, Tensor]:
        """Keys and values of positions [start, end) of a request with these blocks."""
        first = start // self._block_tokens
        wanted = list(blocks[first : -(-end // self._block_tokens)])
        packed = self._cache[wanted].reshape(len(wanted), -1)
        skip = first * self._block_tokens

        def unpack(where: Tensor) -> Tensor:
            flat = packed[:, where].view(len(wanted) * self._block_tokens, self.heads, self.dim)
            return flat[start - skip : end - skip]

        return unpack(self._keys), unpack(self._values)

    def _probe(self) -> tuple[Tensor, Tensor]:
        """By element in (tokens, kv_heads, head_dim) order: its place in the flat block."""
        shape = (self._block_tokens, self.heads, self.dim)
        count = self._block_tokens * self.heads * self.dim
        device = self._cache.device
        element = torch.arange(count, device=device)
        slots = torch.arange(self._block_tokens, device=device) + SCRATCH * self._block_tokens
        before = self._cache[SCRATCH].clone()

        def written(keys: Tensor, values: Tensor) -> Tensor:
            self.write(keys.to(self._cache.dtype).view(shape), values.to(self._cache.dtype).view(shape), slots)
            return self._cache[SCRATCH].reshape(-1).clone()

        zeros, ones = torch.zeros(count, device=device), torch.ones(count, device=device)
        is_key = written(ones, zeros)
        number = torch.zeros(2 * count, dtype=torch.int64, device=device)
        clean = ((is_key == 0) | (is_key == 1)).all()
        for bit in range(count.bit_length()):
            pattern = ((element >> bit) & 1).float()
            seen = written(pattern, pattern)
            clean &= ((seen == 0) | (seen == 1)).all()
            number += seen.long() << bit
        self._cache[SCRATCH].copy_(before)
        places = torch.arange(2 * count, device=device)
        found = [torch.full((count,), -1, device=device) for _ in range(2)]
        for where, mine in zip(found, (is_key == 1, is_key == 0), strict=True):
            if not clean or int(mine.sum()) != count or not torch.equal(number[mine].sort().values, element):
                raise ConfigError(f"reuse on vLLM: the cache layout of layer '{self.name}' is no permutation of its KV")
            where[number[mine]] = places[mine]
        return found[0], found[1]
