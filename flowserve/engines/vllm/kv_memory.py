"""KV in memory that one process fills and another reads: a host hands records to vLLM's worker, and gets what it encoded.

    (layers, 2, tokens, kv_heads, head_dim) numbers: keys without position and values; then TOKEN_BYTES bytes

The memory has no name on any file system, so nothing is left of it when all who use it are gone, however they ended. It is opened
through the descriptor of its maker, and descriptors are used again: the token at its end, which whoever fills it writes last, says
whose it is and that it is whole.
"""

import mmap
import os
import secrets
import stat
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch

from flowserve.cachestore.floats import STORED
from flowserve.cachestore.geometry import Geometry
from flowserve.cachestore.lookup import Array
from flowserve.errors import StoreError
from flowserve.ids import Bytes, Tokens

TOKEN_BYTES: Final[Bytes] = 16


@dataclass(frozen=True, slots=True)
class Place:
    """Where such memory is, for another process of the same user. Plain, so that a request can carry it."""

    path: str
    token: str
    """In hexadecimal digits."""


class KVMemory:
    """On the side of its maker. `kv` may outlive `close`, which ends what others can open."""

    def __init__(self, geometry: Geometry, tokens: Tokens) -> None:
        """Raises StoreError when there is no memory for it."""
        size = geometry.nbytes(tokens)
        try:
            self._descriptor = os.memfd_create("flowserve-kv")
            os.ftruncate(self._descriptor, size + TOKEN_BYTES)
            self._bytes = mmap.mmap(self._descriptor, size + TOKEN_BYTES)
        except OSError as error:
            raise StoreError(f"no memory for the KV of {tokens} tokens ({size} bytes): {error}") from error
        self._size = size
        self._token = secrets.token_bytes(TOKEN_BYTES)
        shape = (geometry.layers, 2, tokens, geometry.kv_heads, geometry.head_dim)
        flat: Array = np.frombuffer(self._bytes, STORED[geometry.dtype], size // STORED[geometry.dtype].itemsize)
        self.kv = flat.reshape(shape)

    @property
    def place(self) -> Place:
        return Place(f"/proc/{os.getpid()}/fd/{self._descriptor}", self._token.hex())

    @property
    def whole(self) -> bool:
        """Has it been filled to the end?"""
        return self._bytes[self._size :] == self._token

    def seal(self) -> None:
        """It is filled."""
        self._bytes[self._size :] = self._token

    def close(self) -> None:
        """Idempotent."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


class Opened:
    """On the other side."""

    def __init__(self, place: Place, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        """shape: of `kv`. Raises OSError when it is gone, or something of another size has taken its place."""
        status = os.stat(place.path)
        size = torch.Size(shape).numel() * dtype.itemsize
        if not stat.S_ISREG(status.st_mode) or status.st_size != size + TOKEN_BYTES:
            raise FileNotFoundError(f"KV in memory: expected {size} bytes and a token; got something else")
        self._bytes = np.memmap(place.path, np.uint8, mode="r+")
        self._size = size
        self._token = bytes.fromhex(place.token)
        self.kv = torch.from_numpy(self._bytes[:size]).view(dtype).view(shape)

    @property
    def whole(self) -> bool:
        """It is the one that was named, and filled."""
        return self._bytes[self._size :].tobytes() == self._token

    def seal(self) -> None:
        self._bytes[self._size :] = np.frombuffer(self._token, np.uint8)
