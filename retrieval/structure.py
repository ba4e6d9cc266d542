"""What an index has learned or built, as bytes: named arrays, one after the other behind a line that describes them.

No pickle and none of FAISS's own format: sizes are checked against the bytes that are there.
"""

import json
from collections.abc import Iterator, Mapping
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

Arrays = Mapping[str, NDArray[Any]]
DTYPES = ("<f4", "<i4", "<i8", "|u1")


def pack(arrays: Arrays) -> Iterator[bytes]:
    """The bytes of `arrays`, in the order of their names."""
    described = {name: [arrays[name].dtype.str, list(arrays[name].shape)] for name in sorted(arrays)}
    assert all(dtype in DTYPES for dtype, _ in described.values()), described
    yield json.dumps(described).encode() + b"\n"
    for name in described:
        yield np.ascontiguousarray(arrays[name]).tobytes()


def unpack(data: bytes) -> dict[str, NDArray[Any]]:
    """The arrays that were packed; they share the memory of `data`. Raises ValueError, TypeError."""
    at = data.index(b"\n") + 1
    described, arrays = json.loads(data[:at]), {}
    if not isinstance(described, dict):
        raise TypeError(f"a description that is no object: {described!r:.80}")
    for name, (dtype, shape) in described.items():
        if dtype not in DTYPES or any(type(size) is not int or size < 0 for size in shape):
            raise ValueError(f"array '{name}' of type {dtype!r} and shape {shape!r}")
        count = prod(shape)
        arrays[name] = np.frombuffer(data, np.dtype(dtype), count, at).reshape(shape)
        at += count * np.dtype(dtype).itemsize
    if at != len(data):
        raise ValueError(f"{len(data) - at} bytes behind the last array")
    return arrays
