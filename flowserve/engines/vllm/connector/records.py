"""Records of chunks in the worker's memory, least recently used first out."""

from collections import OrderedDict

import torch

from flowserve.ids import Bytes

Layer = tuple[torch.Tensor, torch.Tensor]
"""Unrotated keys, and values, each (tokens, kv_heads, head_dim)."""


class Records:
    """At most `capacity` bytes. `gained` and `lost` tell what changed since `told`."""

    def __init__(self, capacity: Bytes) -> None:
        self._capacity = capacity
        self._used: Bytes = 0
        self._layers: OrderedDict[str, list[Layer]] = OrderedDict()
        self.gained: set[str] = set()
        self.lost: set[str] = set()

    def get(self, key: str, tokens: int) -> list[Layer] | None:
        """None: it is not there, or is of another length."""
        layers = self._layers.get(key)
        if layers is None or len(layers[0][0]) != tokens:
            return None
        self._layers.move_to_end(key)
        return layers

    def put(self, key: str, layers: list[Layer]) -> None:
        self._drop(key)
        size = _nbytes(layers)
        if size > self._capacity:
            return
        while self._used + size > self._capacity:
            self._drop(next(iter(self._layers)))
        self._layers[key] = layers
        self._used += size
        self.gained.add(key)
        self.lost.discard(key)

    def told(self) -> None:
        self.gained, self.lost = set(), set()

    def _drop(self, key: str) -> None:
        if (layers := self._layers.pop(key, None)) is not None:
            self._used -= _nbytes(layers)
            self.lost.add(key)
            self.gained.discard(key)


def _nbytes(layers: list[Layer]) -> Bytes:
    return sum(part.numel() * part.element_size() for layer in layers for part in layer)
