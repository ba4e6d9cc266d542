"""What a store hands to whoever loads KV: leases on records, read layer by layer.

Both the store (store.py) and the engines know only this file of each other. Arrays are numpy; `bfloat16`, which numpy lacks, is
the uint16 of its bits.
"""

from typing import Protocol

import numpy as np
import numpy.typing as npt

from flowserve.cachestore.geometry import Geometry, KForm
from flowserve.cachestore.tier import Key
from flowserve.ids import Tokens

Array = npt.NDArray[np.generic]


class Lease(Protocol):
    """A record that stays where it is until the lease is released (or expires). Closed once, by whoever took it."""

    @property
    def key(self) -> Key: ...

    @property
    def geometry(self) -> Geometry: ...

    @property
    def tokens(self) -> Tokens: ...

    @property
    def k_form(self) -> KForm: ...

    @property
    def tier(self) -> str:
        """Where it is read from."""
        ...

    def layer(self, index: int) -> tuple[Array, Array] | None:
        """Keys and values of one layer, each (tokens, kv_heads, head_dim) in the geometry's dtype, checked and decoded; None:
        the record is damaged, it has been put away, and the whole chunk is a miss. May block: called in a thread."""
        ...

    def release(self) -> None: ...
