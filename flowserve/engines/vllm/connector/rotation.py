"""Keys out of their positions and into others, with the model's own table of cosines and sines."""

from typing import Any

import torch

from flowserve.errors import ConfigError

Tensor = torch.Tensor
KNOWN = ("RotaryEmbedding", "Llama3RotaryEmbedding", "LinearScalingRotaryEmbedding", "YaRNScalingRotaryEmbedding")
"""vLLM's classes of which a table row depends on its position alone. Dynamic NTK's depends on the length as well."""


class Rotation:
    """Of one layer. rotary: its module. Raises ConfigError for kinds of RoPE that cannot be undone."""

    def __init__(self, rotary: Any) -> None:
        kind = type(rotary).__name__
        if kind not in KNOWN:
            raise ConfigError(f"reuse on vLLM: expected RoPE of {', '.join(KNOWN)}; got {kind}")
        self._rotary = rotary

    def undone(self, keys: Tensor, positions: Tensor) -> Tensor:
        """Rotated keys (tokens, kv_heads, head_dim) as they were before; scaling of the table (YaRN) is divided out."""
        cos, sin = self._rotary.cos_sin_cache[positions].float().unsqueeze(1).chunk(2, dim=-1)
        width = self._rotary.rotary_dim
        turned, rest = keys[..., :width].float(), keys[..., width:].float()
        square = cos * cos + sin * sin
        if self._rotary.is_neox_style:
            one, two = turned.chunk(2, dim=-1)
        else:
            one, two = turned[..., ::2], turned[..., 1::2]
        back = ((one * cos + two * sin) / square, (two * cos - one * sin) / square)
        plain = torch.cat(back, -1) if self._rotary.is_neox_style else torch.stack(back, -1).flatten(-2)
        return torch.cat((plain, rest), -1).to(keys.dtype)

    def done(self, keys: Tensor, positions: Tensor) -> Tensor:
        """By the model's own operation, so that it rounds as the model's keys do."""
        flat = keys.reshape(len(keys), -1)
        _, turned = self._rotary(positions, flat.clone(), flat.clone())
        return torch.as_tensor(turned).view_as(keys)
