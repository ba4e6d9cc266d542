"""Records: what was written comes back whole, and whatever else is there is found out before a number of it is used."""

import struct
import zlib
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flowserve.cachestore.floats import STORED
from flowserve.cachestore.geometry import Geometry, KForm
from flowserve.cachestore.keys import Namespace
from flowserve.cachestore.record import PAGE, About, Damaged, Expected, Reader, Reason, open_record, pack, reading
from flowserve.errors import StoreError

KEY = bytes(range(32))
GEOMETRY = Geometry(2, 1, 4, "float32")
ABOUT = About(KEY, (3, 1, 2), GEOMETRY, rope="r", recipe="c", document="d", version="1")
EXPECTED = Expected(KEY, GEOMETRY, (3, 1, 2), KForm.UNROTATED, "r", "d", "1")
SEAL = b"seal"


def numbers(about: About, seed: int = 0) -> list[tuple[Any, Any]]:
    draws = np.random.default_rng(seed)
    dtype = STORED[about.geometry.dtype]

    def array() -> Any:
        if about.geometry.dtype == "bfloat16":
            return draws.integers(0, 0x7F80, about.shape).astype(dtype)
        return draws.standard_normal(about.shape).astype(dtype)

    return [(array(), array()) for _ in range(about.geometry.layers)]


def written(about: About = ABOUT, codec: str = "raw16", seal: bytes = SEAL) -> bytes:
    return b"".join(bytes(part) for part in pack(about, numbers(about), codec, seal))


DATA = written()


def opened(data: bytes, expected: Expected = EXPECTED, seal: bytes = SEAL, digests: bool = False) -> Reader:
    return open_record(reading(data), expected, len(data), seal, digests)


@pytest.mark.parametrize("dtype", STORED)
@pytest.mark.parametrize("tokens", [1, 7, 300])
def test_what_was_written_comes_back(dtype: str, tokens: int) -> None:
    about = replace(ABOUT, ids=tuple(range(tokens)), geometry=Geometry(3, 2, 8, dtype), namespace=Namespace.EXACT)
    data = written(about)
    reader = opened(data, Expected(KEY, about.geometry, about.ids))
    assert reader.about == about and reader.nbytes == len(data) and len(data) % PAGE == 0
    for index, pair in enumerate(numbers(about)):
        for right, found in zip(pair, reader.layer(index), strict=True):
            np.testing.assert_array_equal(right, found)
    reader.check()


def test_a_layer_is_read_by_its_own_range() -> None:
    asked: list[tuple[int, int]] = []

    def read(offset: int, length: int) -> bytes:
        asked.append((offset, length))
        return DATA[offset : offset + length]

    reader = open_record(read, EXPECTED, len(DATA), SEAL)
    asked.clear()
    reader.layer(1)
    assert asked == [reader.span(1)] and asked[0][1] == PAGE


def test_every_flipped_byte_is_found() -> None:
    """T14. Also those between the numbers."""
    for place in range(len(DATA)):
        data = bytearray(DATA)
        data[place] ^= 1 << (place % 8)
        with pytest.raises(Damaged):
            opened(bytes(data)).check()


def test_a_flip_in_one_layer_leaves_the_others_readable() -> None:
    reader = opened(DATA)
    data = bytearray(DATA)
    data[reader.span(1)[0]] ^= 1
    reader = opened(bytes(data))
    reader.layer(0)
    with pytest.raises(Damaged) as caught:
        reader.layer(1)
    assert caught.value.reason is Reason.CHECKSUM


@pytest.mark.parametrize("length", [0, 1, 23, PAGE - 1, PAGE, PAGE + 1, 2 * PAGE, len(DATA) - 1])
@pytest.mark.parametrize("told", [True, False])
def test_a_torn_record_is_found(length: int, told: bool) -> None:
    with pytest.raises(Damaged) as caught:
        open_record(reading(DATA[:length]), EXPECTED, length if told else None, SEAL).check()
    assert caught.value.reason in (Reason.TRUNCATED, Reason.FORMAT, Reason.SEAL)


@pytest.mark.parametrize(
    ("expected", "reason"),
    [
        (replace(EXPECTED, key=bytes(32)), Reason.KEY),
        (replace(EXPECTED, ids=(3, 1, 4)), Reason.TOKENS),
        (replace(EXPECTED, ids=(3, 1)), Reason.TOKENS),
        (replace(EXPECTED, geometry=replace(GEOMETRY, layers=3)), Reason.GEOMETRY),
        (replace(EXPECTED, geometry=replace(GEOMETRY, kv_heads=2)), Reason.GEOMETRY),
        (replace(EXPECTED, geometry=replace(GEOMETRY, dtype="float16")), Reason.GEOMETRY),
        (replace(EXPECTED, k_form=KForm.ROTATED), Reason.GEOMETRY),
        (replace(EXPECTED, rope="other"), Reason.GEOMETRY),
        (replace(EXPECTED, version="2"), Reason.STALE),
    ],
)
def test_a_record_of_something_else_is_not_used(expected: Expected, reason: Reason) -> None:
    with pytest.raises(Damaged) as caught:
        opened(DATA, expected)
    assert caught.value.reason is reason


def test_the_same_text_in_another_document_is_the_same_text() -> None:
    opened(DATA, replace(EXPECTED, document="another", version="7")).check()


def test_another_seal_or_format_is_refused() -> None:
    with pytest.raises(Damaged, match="seal"):
        opened(DATA, seal=b"other")
    later = DATA[:8] + struct.pack("<I", 2) + DATA[12:]
    with pytest.raises(Damaged, match="version 1"):
        opened(later)


def test_whoever_forges_the_checksum_of_a_layer_is_found_by_its_digest() -> None:
    """CRC32 finds accidents: other keys with the same one are easily made. Digests, which the seal covers, find intent."""
    offset, _ = opened(DATA).span(0)
    keys = bytearray(DATA[offset : offset + 48])
    keys[:4] = struct.pack("<f", 7.0)
    keys[44:] = _patched(bytes(keys[:44]), zlib.crc32(DATA[offset : offset + 48]))
    assert zlib.crc32(keys) == zlib.crc32(DATA[offset : offset + 48]) and keys != DATA[offset : offset + 48]
    forged = DATA[:offset] + bytes(keys) + DATA[offset + 48 :]
    try:
        opened(forged).layer(0)  # may be found as no number; not by the checksum
    except Damaged as error:
        assert error.reason is Reason.VALUES
    with pytest.raises(Damaged, match="layer 0 was forged"):
        opened(forged, digests=True).layer(0)


def _patched(data: bytes, wanted: int) -> bytes:
    """Four bytes behind `data` that give the CRC32 `wanted`: the register is run backwards."""
    table = [zlib.crc32(bytes([i])) ^ zlib.crc32(b"\0") for i in range(256)]
    by_top = {entry >> 24: (index, entry) for index, entry in enumerate(table)}
    state = wanted ^ 0xFFFFFFFF
    steps: list[int] = []
    for _ in range(4):
        index, entry = by_top[state >> 24]
        steps.append(index)
        state = ((state ^ entry) << 8) & 0xFFFFFFFF
    register, patch = zlib.crc32(data) ^ 0xFFFFFFFF, []
    for index in reversed(steps):
        patch.append((register ^ index) & 0xFF)
        register = (register >> 8) ^ table[index]
    return bytes(patch)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_none_are_not_written(bad: float) -> None:
    pairs = numbers(ABOUT)
    pairs[1][0][0, 0, 0] = bad
    with pytest.raises(StoreError, match="keys of layer 1 hold NaN or infinity"):
        pack(ABOUT, pairs, "raw16", SEAL)


def test_arrays_of_another_shape_or_number_are_not_written() -> None:
    with pytest.raises(StoreError, match=r"to be \(3, 1, 4\)"):
        pack(ABOUT, [(np.zeros((2, 1, 4), np.float32), np.zeros((2, 1, 4), np.float32))] * 2)
    for count in (1, 3):
        with pytest.raises(StoreError, match=f"expected 2 layers, got {count}"):
            pack(ABOUT, (numbers(ABOUT) * 2)[:count])
    with pytest.raises(StoreError, match="at least one token"):
        pack(replace(ABOUT, ids=()), [])


@settings(max_examples=200)
@given(st.binary(max_size=3 * PAGE), st.booleans())
def test_nothing_but_damage_comes_of_foreign_bytes(noise: bytes, begins_well: bool) -> None:
    data = DATA[:24] + noise if begins_well else noise
    with pytest.raises(Damaged):
        opened(data).check()
