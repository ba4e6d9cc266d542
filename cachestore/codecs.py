"""How keys and values of a layer become bytes, from exact to a quarter of the size.

    raw16   the numbers themselves (of float32 too)        exact
    fp8     e4m3, one scale per head
    int8    8 bits between the least and the greatest      K: per channel of the chunk; V: per token and head
    int4    4 bits, the same in groups of GROUP            K: per channel, GROUP tokens; V: per token, GROUP channels;
            the first LINK tokens as raw16
    +zstd   on top of any

K per channel and V per token, in groups, is the layout of KIVI (ICML 2024): channels of keys have each their own range, values have
none. Ours differs in that keys are un-rotated, so that channels are not mixed by RoPE, and in what stays exact: the first tokens
of a chunk, which question and later chunks attend to most, not the last. All arithmetic is float32 and the same everywhere:
equal arrays give equal bytes.

Axes: keys, values: (tokens, kv_heads, head_dim).
"""

from dataclasses import dataclass
from enum import Enum
from typing import Any, Final, Protocol

import numpy as np
import numpy.typing as npt

from flowserve.cachestore.e4m3 import E4M3, E4M3_MAX, to_e4m3
from flowserve.cachestore.floats import STORED, Floats, narrowed, narrowed_up, widened
from flowserve.cachestore.lookup import Array
from flowserve.cachestore.tier import Buffer
from flowserve.errors import ConfigError, StoreError
from flowserve.ids import Tokens

GROUP: Final = 32
"""Numbers that share a scale (int4)."""
LINK: Final[Tokens] = 16
"""Tokens at the start of a chunk that int4 keeps exact."""
ZSTD_LEVEL: Final = 3
GREATEST: Final = {"bfloat16": 2.0**120, "float16": 2.0**15, "float32": 2.0**120}
"""Lossy codecs refuse numbers beyond: what is decoded may be a step larger, and would be infinite."""

Shape = tuple[int, int, int]


class Part(Enum):
    """Of a layer."""

    K = "keys"
    V = "values"


_AXIS: Final = {Part.K: 0, Part.V: 2}
"""Along which numbers are grouped: tokens, channels."""


class Codec(Protocol):
    """Turns one part of one layer into bytes and back."""

    @property
    def lossy(self) -> bool: ...

    def encode(self, array: Array, dtype: str, part: Part) -> Buffer:
        """`array` holds what `floats.STORED` says of `dtype`, all finite. Raises StoreError when it cannot."""
        ...

    def decode(self, data: Buffer, shape: Shape, dtype: str, part: Part) -> Array:
        """The array, which may share the memory of `data`. Raises ValueError when `data` is not of that shape."""
        ...


class Raw:
    """The numbers themselves."""

    lossy = False

    def encode(self, array: Array, dtype: str, part: Part) -> Buffer:
        return _bytes(array)

    def decode(self, data: Buffer, shape: Shape, dtype: str, part: Part) -> Array:
        return np.frombuffer(data, STORED[dtype]).reshape(shape)


class Float8:
    """e4m3 without infinities: 4 bits of exponent, 3 of mantissa, as accelerators have it."""

    lossy = True

    def encode(self, array: Array, dtype: str, part: Part) -> Buffer:
        numbers = _bounded(array, dtype)
        scale = (np.abs(numbers).max(axis=(0, 2), keepdims=True) / np.float32(E4M3_MAX)).astype(np.float32)
        return _joined(scale, to_e4m3(np.divide(numbers, np.where(scale > 0, scale, np.float32(1)), dtype=np.float32)))

    def decode(self, data: Buffer, shape: Shape, dtype: str, part: Part) -> Array:
        reader = _Parts(data)
        scale = reader.take((1, shape[1], 1), np.dtype("<f4")).view(np.float32)
        codes = reader.take(shape, np.dtype(np.uint8)).view(np.uint8)
        reader.end()
        return narrowed(E4M3[codes] * scale, dtype)


@dataclass(frozen=True, slots=True)
class Integer:
    """`bits` bits between the least and the greatest number of a group; both ends of a group are exact, or nearly."""

    bits: int
    group: int | None = None
    """Numbers in a group; None: all along the axis."""
    link: Tokens = 0
    """Tokens at the start that are kept as they are."""

    lossy = True

    def encode(self, array: Array, dtype: str, part: Part) -> Buffer:
        numbers = _bounded(array[self.link :], dtype)
        if not numbers.size:
            return _bytes(array)
        starts = self._starts(numbers.shape[_AXIS[part]])
        low = np.minimum.reduceat(numbers, starts, axis=_AXIS[part])
        high = np.maximum.reduceat(numbers, starts, axis=_AXIS[part])
        step = narrowed_up(np.divide(high - low, np.float32(self._top), dtype=np.float32), dtype)
        spread_low, spread_step = (self._spread(a, numbers.shape, part) for a in (low, widened(step, dtype)))
        codes = np.rint((numbers - spread_low) / np.where(spread_step > 0, spread_step, np.float32(1)))
        codes = codes.clip(0, self._top).astype(np.uint8)
        return _joined(array[: self.link], narrowed(low, dtype), step, _packed(codes, self.bits))

    def decode(self, data: Buffer, shape: Shape, dtype: str, part: Part) -> Array:
        reader = _Parts(data)
        link = reader.take((min(self.link, shape[0]), *shape[1:]), STORED[dtype])
        rest = (shape[0] - link.shape[0], *shape[1:])
        if not rest[0]:
            reader.end()
            return link
        groups = list(rest)
        groups[_AXIS[part]] = len(self._starts(rest[_AXIS[part]]))
        low, step = (widened(reader.take(tuple(groups), STORED[dtype]), dtype) for _ in range(2))
        packed = reader.take((-(-int(np.prod(rest)) * self.bits // 8),), np.dtype(np.uint8)).view(np.uint8)
        codes = _unpacked(packed, self.bits, rest)
        reader.end()
        numbers = codes * self._spread(step, rest, part) + self._spread(low, rest, part)
        return np.concatenate([link, narrowed(numbers, dtype)])

    @property
    def _top(self) -> int:
        return (1 << self.bits) - 1

    def _starts(self, length: int) -> list[int]:
        return list(range(0, length, self.group or length))

    def _spread(self, per_group: Floats, shape: tuple[int, ...], part: Part) -> Floats:
        """One number for each of `shape`, from one for each group."""
        axis = _AXIS[part]
        group = self.group or shape[axis]
        return per_group.repeat(group, axis=axis)[: shape[0], :, : shape[2]]


@dataclass(frozen=True, slots=True)
class Zstd:
    """Packs what another codec wrote. Raw numbers are first sorted by place of their bytes: exponents of neighbours are alike."""

    inner: Codec

    @property
    def lossy(self) -> bool:
        return self.inner.lossy

    def encode(self, array: Array, dtype: str, part: Part) -> Buffer:
        data = self.inner.encode(array, dtype, part)
        size = array.itemsize if isinstance(self.inner, Raw) else 1
        return _zstd().ZstdCompressor(level=ZSTD_LEVEL).compress(_transposed(data, size))  # type: ignore[no-any-return]

    def decode(self, data: Buffer, shape: Shape, dtype: str, part: Part) -> Array:
        zstd = _zstd()
        bound = 4 * int(np.prod(shape)) * STORED[dtype].itemsize + 64
        try:
            if zstd.frame_content_size(data) > bound:
                raise ValueError("a zstd frame larger than what it may hold")
            plain = zstd.ZstdDecompressor().decompress(data, max_output_size=bound)
        except zstd.ZstdError as error:
            raise ValueError(str(error)) from error
        if isinstance(self.inner, Raw):
            plain = _transposed(plain, len(plain) // STORED[dtype].itemsize)
        return self.inner.decode(plain, shape, dtype, part)


_PLAIN: Final[dict[str, Codec]] = {
    "raw16": Raw(),
    "fp8": Float8(),
    "int8": Integer(8),
    "int4": Integer(4, GROUP, LINK),
}
CODECS: Final[dict[str, Codec]] = _PLAIN | {f"{name}+zstd": Zstd(codec) for name, codec in _PLAIN.items()}
"""By the name in records and settings."""


def codec(name: str) -> Codec:
    """Raises ConfigError where it is unknown or its package is missing."""
    if name not in CODECS:
        raise ConfigError(f"codec: expected one of {', '.join(CODECS)}; got '{name}'")
    if isinstance(CODECS[name], Zstd):
        _zstd()
    return CODECS[name]


def _zstd() -> Any:
    try:
        import zstandard
    except ImportError as error:
        raise ConfigError("codecs with +zstd need the package zstandard: pip install 'flowserve[zstd]'") from error
    return zstandard


def _bounded(array: Array, dtype: str) -> Floats:
    numbers = widened(array, dtype)
    if numbers.size and float(np.abs(numbers).max()) > GREATEST[dtype]:
        raise StoreError(f"KV of {dtype}: a lossy codec takes numbers up to {GREATEST[dtype]:g}; use raw16")
    return numbers


def _bytes(array: Array) -> Buffer:
    """The memory of an array; of a copy only if it has gaps or its bytes are in the other order."""
    little = array.astype(array.dtype.newbyteorder("<"), copy=False)
    return np.ascontiguousarray(little).reshape(-1).view(np.uint8).data


def _joined(*arrays: Array) -> bytes:
    return b"".join(map(_bytes, arrays))


class _Parts:
    """Takes arrays one after the other; never reads beyond, never leaves anything."""

    def __init__(self, data: Buffer) -> None:
        self._data = memoryview(data).cast("B")
        self._at = 0

    def take(self, shape: tuple[int, ...], dtype: np.dtype[np.generic]) -> Array:
        end = self._at + int(np.prod(shape)) * dtype.itemsize
        array = np.frombuffer(self._data[self._at : end], dtype).reshape(shape)
        self._at = end
        return array

    def end(self) -> None:
        if self._at != len(self._data):
            raise ValueError(f"{len(self._data) - self._at} bytes too many")


def _packed(codes: npt.NDArray[np.uint8], bits: int) -> npt.NDArray[np.uint8]:
    """Two codes of 4 bits in a byte, the earlier one low."""
    flat = codes.reshape(-1)
    if bits == 8:
        return flat
    even = np.concatenate([flat, np.zeros(flat.size % 2, np.uint8)])
    packed: npt.NDArray[np.uint8] = even[::2] | (even[1::2] << np.uint8(4))
    return packed


def _unpacked(data: npt.NDArray[np.uint8], bits: int, shape: tuple[int, ...]) -> Floats:
    if bits == 8:
        return data.reshape(shape).astype(np.float32)
    codes = np.stack([data & np.uint8(15), data >> np.uint8(4)], axis=-1)
    return codes.reshape(-1)[: int(np.prod(shape))].reshape(shape).astype(np.float32)


def _transposed(data: Buffer, columns: int) -> bytes:
    """Bytes of a table with so many columns, read column by column."""
    return np.frombuffer(data, np.uint8).reshape(-1, columns).T.tobytes()
