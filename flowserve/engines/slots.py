"""Keys and values of many sequences in one table, as a transformers cache.

Axes of a plane: (layers' keys and values, slots, kv_heads, positions, head_dim). A sequence occupies one slot from position
0 on, so a token's place in the table is its position in the text: joining and leaving need no padding and no re-packing,
only the copy of a slot when a gap is closed. Masks are `place <= position`, whatever the other slots' lengths are.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers.cache_utils import Cache, CacheLayerMixin, DynamicLayer, DynamicSlidingWindowLayer

from flowserve.errors import EngineError
from flowserve.ids import Bytes, Tokens

Kv = tuple[torch.Tensor, ...]
"""KV of a stretch of one sequence: per plane (layers' keys and values, kv_heads, positions, head_dim)."""


class CannotShare(Exception):
    """The model keeps more than keys and values per position, so its sequences cannot live in one table."""


@dataclass(frozen=True, slots=True)
class _Place:
    """Which plane and row hold a layer's keys (or values)."""

    plane: int
    row: int


class _SlotLayer(CacheLayerMixin):  # type: ignore[no-untyped-call]
    """One layer's window on the table. What `update` writes and returns is set by the table before each forward."""

    is_sliding = False

    def __init__(self, table: "SlotTable", keys: _Place, values: _Place) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._table = table
        self._k = keys
        self._v = values
        self.is_initialized = True

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Nothing: the table exists."""

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return self._table.exchange(self._k, key_states), self._table.exchange(self._v, value_states)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self._table.visible, 0

    def get_seq_length(self) -> int:
        return self._table.visible

    def get_max_length(self) -> int:
        return -1


class SlotTable:
    """The table. Slots and positions grow by doubling, up to `budget_bytes`.

    One forward is: `aim_prefill` or `aim_decode`, then the model with `cache` as its past_key_values.
    """

    def __init__(self, probe: Cache, budget_bytes: Bytes) -> None:
        """`probe`: the cache of a forward of the same model, for its shapes. Raises CannotShare."""
        shapes: dict[tuple[int, int], int] = {}
        places: list[tuple[_Place, _Place]] = []
        sample: torch.Tensor | None = None
        for layer in probe.layers:
            keys, values = getattr(layer, "keys", None), getattr(layer, "values", None)
            if type(layer) not in (DynamicLayer, DynamicSlidingWindowLayer) or keys is None or values is None:
                raise CannotShare(f"a layer's state is a {type(layer).__name__}")
            sample = keys
            shape_k, shape_v = ((t.shape[1], t.shape[3]) for t in (keys, values))
            places.append((self._place(shapes, shape_k), self._place(shapes, shape_v)))
        if sample is None:
            raise CannotShare("the model keeps no state")
        self._shapes = shapes
        self._dtype, self._device = sample.dtype, sample.device
        self._budget_bytes = budget_bytes
        self.num_slots = 0
        self.capacity: Tokens = 0
        self._planes: list[torch.Tensor] = []
        self.visible: Tokens = 0
        """Positions that the present forward may see."""
        self._rows: torch.Tensor | slice = slice(0)
        self._positions: torch.Tensor | slice = slice(0)
        self._places = places
        self.cache = Cache(layers=[_SlotLayer(self, keys, values) for keys, values in places])
        size = sample.element_size()
        self.bytes_per_token: Bytes = sum(rows * heads * dim * size for (heads, dim), rows in shapes.items())

    @staticmethod
    def _place(shapes: dict[tuple[int, int], int], shape: tuple[int, int]) -> _Place:
        rows = shapes.setdefault(shape, 0)
        shapes[shape] += 1
        return _Place(list(shapes).index(shape), rows)

    @property
    def budget_tokens(self) -> Tokens:
        """Positions of all slots together that fit the budget."""
        return self._budget_bytes // self.bytes_per_token

    def can_hold(self, slots: int, positions: Tokens) -> bool:
        """Whether a table of that size is within the budget. One slot always is."""
        return slots == 1 or slots * positions <= self.budget_tokens

    def hold(self, slots: int, positions: Tokens) -> None:
        """Make room for `slots` slots of `positions` positions; what lies within that stays."""
        if slots <= self.num_slots and positions <= self.capacity:
            return
        wide, long = max(slots, self.num_slots), max(positions, self.capacity)
        sizes = [(_doubled(wide, 8), _doubled(long, 256)), (wide, _doubled(long, 256)), (wide, long)]
        wide, long = next((size for size in sizes if self.can_hold(*size)), (slots, positions))
        planes = [
            torch.zeros((rows, wide, heads, long, dim), dtype=self._dtype, device=self._device)
            for (heads, dim), rows in self._shapes.items()
        ]
        kept_slots, kept = min(wide, self.num_slots), min(long, self.capacity)
        for new, old in zip(planes, self._planes, strict=False):
            new[:, :kept_slots, :, :kept] = old[:, :kept_slots, :, :kept]
        self._planes, self.num_slots, self.capacity = planes, wide, long

    def release(self) -> None:
        """Give the memory back; all contents are lost."""
        self._planes, self.num_slots, self.capacity = [], 0, 0

    def aim_prefill(self, slot: int, start: Tokens, end: Tokens) -> None:
        """The next forward computes positions `start` to `end` of one slot."""
        self._rows = self._span = slice(slot, slot + 1)
        self._positions, self.visible = slice(start, end), end

    def aim_together(self, slot: int, places: torch.Tensor, visible: Tokens) -> None:
        """The next forward computes several positions of each slot from `slot` on. places: (slots, new positions)."""
        self._span = slice(slot, slot + len(places))
        self._rows = torch.arange(slot, slot + len(places), device=places.device)[:, None]
        self._positions, self.visible = places, visible

    def aim_decode(self, positions: Sequence[Tokens], device_positions: torch.Tensor) -> None:
        """The next forward computes one position of each slot from 0 on."""
        self.aim_together(0, device_positions[:, None], max(positions) + 1)

    def exchange(self, place: _Place, states: torch.Tensor) -> torch.Tensor:
        """Write a forward's keys or values (rows, kv_heads, new positions, head_dim); return all that it may see."""
        plane = self._planes[place.plane][place.row]
        whole = isinstance(self._rows, slice)
        plane[self._rows, :, self._positions] = states if whole else states.transpose(1, 2)
        return plane[self._span, :, : self.visible]

    def read(self, layer: int, slot: int, positions: torch.Tensor | slice) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of one layer at these positions of a slot: (kv_heads, positions, head_dim) each."""
        keys, values = self._planes_of(layer, slot)
        return keys[:, positions], values[:, positions]

    def write(self, layer: int, slot: int, positions: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> None:
        """The opposite of `read`."""
        for plane, states in zip(self._planes_of(layer, slot), (keys, values), strict=True):
            plane[:, positions] = states

    def _planes_of(self, layer: int, slot: int) -> tuple[torch.Tensor, torch.Tensor]:
        keys, values = (self._planes[place.plane][place.row, slot] for place in self._places[layer])
        return keys, values

    def copy(self, source: int, target: int, length: Tokens) -> None:
        """The first `length` positions of a slot into another."""
        for plane in self._planes:
            plane[:, target, :, :length] = plane[:, source, :, :length]

    def save(self, slot: int, start: Tokens, end: Tokens) -> Kv:
        """A copy of a stretch of a slot."""
        return tuple(plane[:, slot, :, start:end].clone() for plane in self._planes)

    def load(self, slot: int, start: Tokens, kv: Kv) -> None:
        """Put a saved stretch at `start` (positions are encoded in the keys: the same `start` as it had)."""
        for plane, part in zip(self._planes, kv, strict=True):
            if start + part.shape[2] > self.capacity:
                raise EngineError("a cached prefix is longer than the slot")
            plane[:, slot, :, start : start + part.shape[2]] = part


def _doubled(need: int, least: int) -> int:
    size = least
    while size < need:
        size *= 2
    return size
