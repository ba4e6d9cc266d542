"""A chunk's KV as bytes: written once, read layer by layer, believed only after checks.

    header, a multiple of PAGE long, little-endian
        preamble    magic, version of the format, length of the header, length of the record
        facts       shape, tokens, origin, key
        texts       namespace, form of keys, dtype, rope, recipe, document, version: length and UTF-8 each
        ids         token ids, 32 bits each
        layers      per layer: offset, lengths of K and V, CRC-32 of each, codec, SHA-256 of both
        zeros
        seal        32 bytes: HMAC-SHA-256 of all that stands before
    layers, each a multiple of PAGE long: K, V, zeros

The seal covers the digests of the layers, so a whole record is authentic as soon as its header is and each layer that is
read has its digest: no part is believed on behalf of another that was not read. Reading checks the CRCs, which find
accidents; `digests=True` checks the SHA-256s too, which find forgers: for tiers to which others may write.

Whatever is wrong is one exception, Damaged, before anything of it is handed out. Nothing in a record is code.
"""

import hashlib
import hmac
import math
import struct
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, NamedTuple

from flowserve.cachestore.codecs import CODECS, Part, Shape, codec
from flowserve.cachestore.floats import STORED, finite
from flowserve.cachestore.geometry import ITEM_BYTES, Geometry, KForm
from flowserve.cachestore.keys import Namespace
from flowserve.cachestore.lookup import Array
from flowserve.cachestore.tier import Buffer, Key
from flowserve.errors import ConfigError, StoreError
from flowserve.ids import Bytes, Tokens

MAGIC: Final = b"FLOWKV\r\n"
"""With a line end, so that a transfer as text is found at once."""
VERSION: Final = 1
PAGE: Final[Bytes] = 4096
"""What direct I/O and memory maps align to."""
FIRST_READ: Final[Bytes] = 4 * PAGE
"""Holds the headers of chunks of usual size."""
MAX_HEADER: Final[Bytes] = 64 << 20

_PREAMBLE: Final = struct.Struct("<8sIIQ")
_FACTS: Final = struct.Struct("<IIIIQ32s")
_ROW: Final = struct.Struct("<QQQII16s32s")
_LENGTH: Final = struct.Struct("<I")
_SEAL_BYTES: Final[Bytes] = 32
_TEXTS: Final = 7

ReadRange = Callable[[Bytes, Bytes], Buffer | None]
"""Offset and length to bytes; fewer at the end, None: there is no record. `partial(tier.read, key)`."""


class Reason(StrEnum):
    """Why a record is not believed: the label of the metric."""

    MISSING = "missing"
    """It has gone since it was looked up."""
    TRUNCATED = "truncated"
    FORMAT = "format"
    """Not a record, or one of another version of the format."""
    SEAL = "seal"
    """The header was changed, or was sealed with another key."""
    KEY = "key"
    TOKENS = "tokens"
    """It holds other token ids: a collision, or a confusion of keys."""
    STALE = "stale"
    """It is of another version of its document."""
    GEOMETRY = "geometry"
    """It is of another shape or dtype, or its keys are in another frame."""
    CHECKSUM = "checksum"
    VALUES = "values"
    """A payload that its codec cannot have written, or numbers that are none."""
    CODEC = "codec"
    """The package that decodes it is missing here."""


class Damaged(StoreError):
    """A record, or something else in its place, must not be used: a miss, and the record is put away."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(f"record not used ({reason}): {detail}")
        self.reason = reason


@dataclass(frozen=True, slots=True)
class About:
    """What a record says of the KV in it."""

    key: Key
    ids: tuple[int, ...]
    geometry: Geometry
    namespace: Namespace = Namespace.CANON
    k_form: KForm = KForm.UNROTATED
    origin: Tokens = 0
    """Position of the first token, where keys are rotated."""
    rope: str = ""
    """Fingerprint of the parameters of RoPE that keys are to be, or were, rotated with; "" where nobody said."""
    recipe: str = ""
    """`Recipe.digest` of a canonical chunk."""
    document: str = ""
    """Id of the document that the chunk was cut from; "" where nobody said."""
    version: str = ""
    """Of that document."""

    @property
    def shape(self) -> Shape:
        """Of keys and of values of one layer: (tokens, kv_heads, head_dim)."""
        return (len(self.ids), self.geometry.kv_heads, self.geometry.head_dim)


@dataclass(frozen=True, slots=True)
class Expected:
    """What a reader knows of a record before it is read. None, or "", is not compared."""

    key: Key
    geometry: Geometry
    ids: tuple[int, ...] | None = None
    k_form: KForm | None = None
    rope: str = ""
    document: str = ""
    version: str = ""
    """Compared where the record is of `document`: the same text may stand in others as well."""


class _Row(NamedTuple):
    """A layer's place, by its entry in the header."""

    offset: Bytes
    k_bytes: Bytes
    v_bytes: Bytes
    k_crc: int
    v_crc: int
    codec: bytes
    digest: bytes

    @property
    def end(self) -> Bytes:
        return self.offset + _padded(self.k_bytes + self.v_bytes)


def pack(
    about: About, layers: Iterable[tuple[Array, Array]], codecs: str | Sequence[str] = "raw16", seal_key: bytes = b""
) -> list[Buffer]:
    """The record, in parts: keys and values per layer, each (tokens, kv_heads, head_dim) of `floats.STORED`.

    `codecs`: of all layers, or of each. Raises StoreError for arrays that are not what `about` says, or not finite.
    """
    names = [codecs] * about.geometry.layers if isinstance(codecs, str) else list(codecs)
    if not about.ids:
        raise StoreError("record: expected at least one token, got none")
    pairs = list(layers)
    if not len(pairs) == len(names) == about.geometry.layers:
        raise StoreError(f"record: expected {about.geometry.layers} layers, got {len(pairs)} with {len(names)} codecs")
    rows: list[_Row] = []
    parts: list[Buffer] = []
    start = _padded(_header_bytes(about))
    for index, (name, pair) in enumerate(zip(names, pairs, strict=True)):
        encoded = [
            codec(name).encode(_fitting(about, index, part, a), about.geometry.dtype, part)
            for part, a in zip(Part, pair, strict=True)
        ]
        rows.append(_row(rows[-1].end if rows else start, name, *encoded))
        parts += [*encoded, bytes(_padding(sum(map(_nbytes, encoded))))]
    return [_header(about, rows, start, seal_key), *parts]


def open_record(
    read: ReadRange, expected: Expected, size: Bytes | None = None, seal_key: bytes = b"", digests: bool = False
) -> "Reader":
    """Reads and checks the header; raises Damaged, and whatever `read` raises.

    `size`: of the whole record, where the tier knows it: finds a torn end at once instead of with the last layer.
    """
    first = _exactly(read, 0, None)
    if len(first) < _PREAMBLE.size:
        raise Damaged(Reason.TRUNCATED, f"{len(first)} bytes")
    magic, version, header_bytes, record_bytes = _PREAMBLE.unpack_from(first)
    if magic != MAGIC or version != VERSION:
        raise Damaged(Reason.FORMAT, f"expected version {VERSION} of a record, got {bytes(magic)!r} {version}")
    if header_bytes % PAGE or not PAGE <= header_bytes <= MAX_HEADER:
        raise Damaged(Reason.FORMAT, f"a header of {header_bytes} bytes")
    header = bytes(first[:header_bytes])
    if len(header) < header_bytes:
        header += bytes(_exactly(read, len(header), header_bytes - len(header)))
    if not hmac.compare_digest(header[-_SEAL_BYTES:], _seal(seal_key, header[:-_SEAL_BYTES])):
        raise Damaged(Reason.SEAL, "the header is not as it was written")
    if size is not None and size != record_bytes:
        raise Damaged(Reason.TRUNCATED, f"expected {record_bytes} bytes, got {size}")
    try:
        about, rows = _parsed(header, record_bytes)
    except (struct.error, ValueError) as error:
        raise Damaged(Reason.FORMAT, str(error)) from error
    _compare(about, expected)
    return Reader(read, about, rows, record_bytes, digests)


class Reader:
    """An open record: its header is checked, its layers are as they are read."""

    def __init__(self, read: ReadRange, about: About, rows: Sequence[_Row], nbytes: Bytes, digests: bool) -> None:
        self.about = about
        self.nbytes = nbytes
        """Of the whole record."""
        self._read = read
        self._rows = rows
        self._digests = digests

    def __repr__(self) -> str:
        return f"<Reader {self.about.key.hex()[:12]} {self.about.shape} {','.join(sorted(set(self.codecs)))}>"

    @property
    def codecs(self) -> tuple[str, ...]:
        """Of each layer."""
        return tuple(map(_name, self._rows))

    def span(self, index: int) -> tuple[Bytes, Bytes]:
        """Offset and length of a layer: what is to be prefetched."""
        row = self._rows[index]
        return row.offset, row.end - row.offset

    def layer(self, index: int) -> tuple[Array, Array]:
        """Keys and values, each (tokens, kv_heads, head_dim), checked and decoded; they may share the memory of what was read.
        Raises Damaged, and whatever reading raises."""
        return self._decoded(index, self._checked(index, self._digests))

    def check(self) -> None:
        """Reads everything, decodes everything, compares every digest: afterwards each byte is as it was written."""
        for index in range(len(self._rows)):
            self._decoded(index, self._checked(index, digests=True))

    def _checked(self, index: int, digests: bool) -> memoryview:
        row = self._rows[index]
        data = memoryview(_exactly(self._read, *self.span(index))).cast("B")
        end = row.k_bytes + row.v_bytes
        crcs = (zlib.crc32(data[: row.k_bytes]), zlib.crc32(data[row.k_bytes : end]))
        if crcs != (row.k_crc, row.v_crc) or any(data[end:]):
            raise Damaged(Reason.CHECKSUM, f"layer {index} is not as it was written")
        if digests and not hmac.compare_digest(hashlib.sha256(data[:end]).digest(), row.digest):
            raise Damaged(Reason.CHECKSUM, f"layer {index} was forged")
        return data[:end]

    def _decoded(self, index: int, data: memoryview) -> tuple[Array, Array]:
        row = self._rows[index]
        keys = self._array(index, Part.K, data[: row.k_bytes])
        return keys, self._array(index, Part.V, data[row.k_bytes :])

    def _array(self, index: int, part: Part, data: memoryview) -> Array:
        dtype = self.about.geometry.dtype
        try:
            array = codec(_name(self._rows[index])).decode(data, self.about.shape, dtype, part)
        except ValueError as error:
            raise Damaged(Reason.VALUES, f"{part.value} of layer {index}: {error}") from error
        except ConfigError as error:
            raise Damaged(Reason.CODEC, str(error)) from error
        if not finite(array, dtype):
            raise Damaged(Reason.VALUES, f"{part.value} of layer {index}: NaN or infinity")
        return array


def reading(data: Buffer) -> ReadRange:
    """Of a record in memory."""
    view = memoryview(data).cast("B")
    return lambda offset, length: view[offset : offset + length]


def _exactly(read: ReadRange, offset: Bytes, length: Bytes | None) -> Buffer:
    """So many bytes; None: what there is of the first ones."""
    data = read(offset, length or FIRST_READ)
    if data is None:
        raise Damaged(Reason.MISSING, "it is not there any more")
    if length is not None and len(data) != length:
        raise Damaged(Reason.TRUNCATED, f"expected {length} bytes at {offset}, got {len(data)}")
    return data


def _fitting(about: About, index: int, part: Part, array: Array) -> Array:
    dtype = about.geometry.dtype
    if array.shape != about.shape or array.dtype != STORED[dtype]:
        raise StoreError(
            f"record: expected {part.value} of layer {index} to be {about.shape} of {STORED[dtype]} ({dtype}), "
            f"got {array.shape} of {array.dtype}"
        )
    if not finite(array, dtype):
        raise StoreError(f"record: {part.value} of layer {index} hold NaN or infinity")
    return array


def _row(offset: Bytes, name: str, keys: Buffer, values: Buffer) -> _Row:
    digest = hashlib.sha256(keys)
    digest.update(values)
    crcs = (zlib.crc32(keys), zlib.crc32(values))
    return _Row(offset, _nbytes(keys), _nbytes(values), *crcs, name.encode(), digest.digest())


def _name(row: _Row) -> str:
    return row.codec.rstrip(b"\0").decode()


def _texts(about: About) -> tuple[bytes, ...]:
    facts = (about.namespace, about.k_form, about.geometry.dtype, about.rope, about.recipe)
    return tuple(text.encode() for text in (*facts, about.document, about.version))


def _header_bytes(about: About) -> Bytes:
    """Without zeros."""
    texts = sum(_LENGTH.size + len(text) for text in _texts(about))
    fixed = _PREAMBLE.size + _FACTS.size + _SEAL_BYTES
    return fixed + texts + 4 * len(about.ids) + _ROW.size * about.geometry.layers


def _header(about: About, rows: Sequence[_Row], nbytes: Bytes, seal_key: bytes) -> bytes:
    shape = about.geometry
    sizes = (shape.layers, shape.kv_heads, shape.head_dim, len(about.ids))
    body = b"".join(
        (
            _PREAMBLE.pack(MAGIC, VERSION, nbytes, rows[-1].end),
            _FACTS.pack(*sizes, about.origin, about.key),
            *(_LENGTH.pack(len(text)) + text for text in _texts(about)),
            struct.pack(f"<{len(about.ids)}I", *about.ids),
            *(_ROW.pack(*row) for row in rows),
        )
    ).ljust(nbytes - _SEAL_BYTES, b"\0")
    return body + _seal(seal_key, body)


def _parsed(header: bytes, record_bytes: Bytes) -> tuple[About, list[_Row]]:
    """Raises ValueError or struct.error for what no writer of ours wrote."""
    layers, kv_heads, head_dim, tokens, origin, key = _FACTS.unpack_from(header, _PREAMBLE.size)
    at = _PREAMBLE.size + _FACTS.size
    texts: list[str] = []
    for _ in range(_TEXTS):
        (length,) = _LENGTH.unpack_from(header, at)
        at += _LENGTH.size
        texts.append(header[at : at + length].decode())
        at += length
    ids = struct.unpack_from(f"<{tokens}I", header, at)
    namespace, k_form, dtype, rope, recipe, document, version = texts
    about = About(
        key=key,
        ids=ids,
        geometry=Geometry(layers, kv_heads, head_dim, dtype),
        namespace=Namespace(namespace),
        k_form=KForm(k_form),
        origin=origin,
        rope=rope,
        recipe=recipe,
        document=document,
        version=version,
    )
    rows = [_Row(*_ROW.unpack_from(header, at + 4 * tokens + i * _ROW.size)) for i in range(layers)]
    ends = [len(header), *(row.end for row in rows)]
    if (
        len(header) != _padded(_header_bytes(about))
        or dtype not in ITEM_BYTES
        or not math.prod(about.shape)
        or not rows
    ):
        raise ValueError("the header is longer or shorter than what it says")
    if [row.offset for row in rows] != ends[:-1] or ends[-1] != record_bytes:
        raise ValueError("layers do not follow each other")
    if any(_name(row) not in CODECS for row in rows):
        raise ValueError("a codec that is unknown here")
    return about, rows


def _compare(about: About, expected: Expected) -> None:
    if about.key != expected.key:
        raise Damaged(Reason.KEY, f"expected {expected.key.hex()}, got {about.key.hex()}")
    if about.geometry != expected.geometry:
        raise Damaged(Reason.GEOMETRY, f"expected {expected.geometry}, got {about.geometry}")
    if expected.k_form is not None and about.k_form is not expected.k_form:
        raise Damaged(Reason.GEOMETRY, f"expected keys {expected.k_form}, got {about.k_form}")
    if expected.rope and about.rope != expected.rope:
        raise Damaged(Reason.GEOMETRY, f"expected RoPE {expected.rope}, got {about.rope}")
    if expected.ids is not None and about.ids != expected.ids:
        raise Damaged(Reason.TOKENS, f"{len(about.ids)} token ids are not the {len(expected.ids)} expected")
    if expected.document and about.document == expected.document and about.version != expected.version:
        raise Damaged(
            Reason.STALE, f"expected version {expected.version!r} of {expected.document!r}, got {about.version!r}"
        )


def _seal(seal_key: bytes, header: bytes) -> bytes:
    return hmac.digest(seal_key, header, "sha256")


def _nbytes(data: Buffer) -> Bytes:
    return memoryview(data).nbytes


def _padding(length: Bytes) -> Bytes:
    return -length % PAGE


def _padded(length: Bytes) -> Bytes:
    return length + _padding(length)
