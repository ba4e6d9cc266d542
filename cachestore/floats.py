"""Numbers of keys and values in numpy, which lacks bfloat16: there it is the uint16 of its bits."""

from typing import Final

import numpy as np
import numpy.typing as npt

from flowserve.cachestore.lookup import Array

Floats = npt.NDArray[np.float32]

STORED: Final[dict[str, np.dtype[np.generic]]] = {
    "bfloat16": np.dtype("<u2"),
    "float16": np.dtype("<f2"),
    "float32": np.dtype("<f4"),
}
"""By the logical type: what arrays hold, in memory and in records."""

_INFINITY: Final = {"bfloat16": 0x7F80, "float16": 0x7C00, "float32": 0x7F800000}
"""Bits of positive infinity; NaNs are above."""


def widened(array: Array, dtype: str) -> Floats:
    """The same numbers as float32: exact."""
    if dtype != "bfloat16":
        return array.astype(np.float32, copy=False)
    return (array.astype(np.uint32) << np.uint32(16)).view(np.float32)


def narrowed(numbers: Floats, dtype: str) -> Array:
    """To the nearest number of `dtype`, ties to even."""
    if dtype != "bfloat16":
        return numbers.astype(STORED[dtype], copy=False)
    bits = numbers.view(np.uint32)
    return ((bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)).astype(np.uint16)


def narrowed_up(numbers: Floats, dtype: str) -> Array:
    """To the least number of `dtype` that is not below; of numbers from 0 on."""
    if dtype == "bfloat16":
        return ((numbers.view(np.uint32) + np.uint32(0xFFFF)) >> np.uint32(16)).astype(np.uint16)
    if dtype == "float32":
        return numbers
    nearest = numbers.astype(np.float16)
    return np.where(nearest.astype(np.float32) < numbers, np.nextafter(nearest, np.float16(np.inf)), nearest)


def finite(array: Array, dtype: str) -> bool:
    """Is there neither NaN nor infinity in it? Looks at bits: no arithmetic, no warning, any type."""
    unsigned = np.dtype(f"<u{array.itemsize}")
    magnitudes = array.view(unsigned) & unsigned.type(np.iinfo(unsigned).max >> 1)
    return not array.size or int(magnitudes.max()) < _INFINITY[dtype]
