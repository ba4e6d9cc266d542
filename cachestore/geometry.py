"""Shapes of keys and values. Axes everywhere in this package: (layers, tokens, kv_heads, head_dim)."""

from dataclasses import dataclass
from enum import StrEnum

from flowserve.ids import Bytes, Tokens

ITEM_BYTES = {"bfloat16": 2, "float16": 2, "float32": 4}
"""Logical types of KV, by torch's names, and the size of one number."""


class KForm(StrEnum):
    """In which frame keys are kept. Values have no position."""

    UNROTATED = "unrotated"
    """As projected, before RoPE (q/k norm, where the model has one, is applied): one rotation puts them anywhere. The form
    of all records that we write."""
    ROTATED = "rotated"
    """As computed at positions from `origin` on: moved by one rotation by the difference."""


@dataclass(frozen=True, slots=True)
class Geometry:
    """What KV of one model looks like."""

    layers: int
    kv_heads: int
    head_dim: int
    dtype: str
    """A key of ITEM_BYTES."""

    @property
    def token_bytes(self) -> Bytes:
        """Of keys and values of one token in all layers."""
        return self.layers * self.layer_token_bytes

    @property
    def layer_token_bytes(self) -> Bytes:
        """Of keys and values of one token in one layer."""
        return 2 * self.kv_heads * self.head_dim * ITEM_BYTES[self.dtype]

    def nbytes(self, tokens: Tokens) -> Bytes:
        """Of keys and values of `tokens` tokens in all layers."""
        return tokens * self.token_bytes
