"""Codecs: what is lost is bounded by a step, and what is not lossy loses nothing."""

import importlib.util
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flowserve.cachestore.codecs import CODECS, GROUP, LINK, Part, codec
from flowserve.cachestore.e4m3 import E4M3, E4M3_MAX, to_e4m3
from flowserve.cachestore.floats import STORED, narrowed, widened
from flowserve.errors import ConfigError, StoreError

EPSILON = {"bfloat16": 2.0**-8, "float16": 2.0**-11, "float32": 2.0**-24}
"""Half a unit in the last place, of 1."""
PLAIN = [name for name in CODECS if "zstd" not in name]
LOSSY = [name for name in PLAIN if CODECS[name].lossy]
SHAPES = st.tuples(st.integers(1, 70), st.integers(1, 3), st.sampled_from([2, 4, 33, 64]))


def drawn(shape: tuple[int, int, int], dtype: str, seed: int, scale: float = 1.0) -> Any:
    return narrowed((np.random.default_rng(seed).standard_normal(shape) * scale).astype(np.float32), dtype)


def through(name: str, array: Any, dtype: str, part: Part) -> Any:
    data = codec(name).encode(array, dtype, part)
    found = codec(name).decode(bytes(data), array.shape, dtype, part)
    assert found.shape == array.shape and found.dtype == STORED[dtype]
    return found


@pytest.mark.parametrize("dtype", STORED)
@pytest.mark.parametrize("part", Part)
@given(shape=SHAPES, seed=st.integers(0, 99))
@settings(max_examples=15)
def test_raw_numbers_come_back_bit_by_bit(dtype: str, part: Part, shape: tuple[int, int, int], seed: int) -> None:
    array = drawn(shape, dtype, seed)
    np.testing.assert_array_equal(through("raw16", array, dtype, part), array)


@pytest.mark.parametrize("dtype", STORED)
@pytest.mark.parametrize("part", Part)
@given(shape=SHAPES, seed=st.integers(0, 99), scale=st.sampled_from([1e-3, 1.0, 100.0]))
@settings(max_examples=25)
def test_int8_is_off_by_half_a_step_of_its_group_at_most(
    dtype: str, part: Part, shape: tuple[int, int, int], seed: int, scale: float
) -> None:
    """Keys: a group is a channel of a head over the tokens; values: a token of a head over the channels (KIVI)."""
    array = drawn(shape, dtype, seed, scale)
    numbers, found = widened(array, dtype), widened(through("int8", array, dtype, part), dtype)
    axis = 0 if part is Part.K else 2
    spread = numbers.max(axis, keepdims=True) - numbers.min(axis, keepdims=True)
    rounding = 4 * EPSILON[dtype] * np.abs(numbers).max()
    assert np.all(np.abs(found - numbers) <= spread / 255 * (0.5 + 2 * EPSILON[dtype]) * 1.02 + rounding)


@pytest.mark.parametrize("dtype", STORED)
@pytest.mark.parametrize("part", Part)
@given(shape=SHAPES, seed=st.integers(0, 99))
@settings(max_examples=25)
def test_int4_keeps_its_first_tokens_and_is_off_by_half_a_step_beyond(
    dtype: str, part: Part, shape: tuple[int, int, int], seed: int
) -> None:
    array = drawn(shape, dtype, seed)
    found = through("int4", array, dtype, part)
    np.testing.assert_array_equal(found[:LINK], array[:LINK])
    numbers, rest = widened(array, dtype)[LINK:], widened(found, dtype)[LINK:]
    axis = 0 if part is Part.K else 2
    for start in range(0, numbers.size and numbers.shape[axis], GROUP):
        group = np.take(numbers, range(start, min(start + GROUP, numbers.shape[axis])), axis)
        own = np.take(rest, range(start, min(start + GROUP, numbers.shape[axis])), axis)
        spread = group.max(axis, keepdims=True) - group.min(axis, keepdims=True)
        assert np.all(np.abs(own - group) <= spread / 15 * 0.52 + 4 * EPSILON[dtype] * np.abs(group).max())


@pytest.mark.parametrize("dtype", STORED)
@given(shape=SHAPES, seed=st.integers(0, 99))
@settings(max_examples=25)
def test_fp8_is_off_by_a_sixteenth_of_a_number_at_most(dtype: str, shape: tuple[int, int, int], seed: int) -> None:
    array = drawn(shape, dtype, seed)
    numbers, found = widened(array, dtype), widened(through("fp8", array, dtype, Part.K), dtype)
    scale = np.abs(numbers).max((0, 2), keepdims=True) / E4M3_MAX
    assert np.all(np.abs(found - numbers) <= np.abs(numbers) * (1 / 16 + 2 * EPSILON[dtype]) + scale * 2.0**-10)


@pytest.mark.parametrize(("name", "bits"), [("raw16", 16), ("fp8", 8), ("int8", 8), ("int4", 4)])
def test_sizes_are_what_their_names_say(name: str, bits: int) -> None:
    array = drawn((528, 8, 128), "bfloat16", 0)
    size = memoryview(codec(name).encode(array, "bfloat16", Part.V)).nbytes
    expected = array.size * bits / 8 + (LINK * 8 * 128 * 1.5 if name == "int4" else 0)
    assert expected <= size <= expected * (1.3 if name == "int4" else 1.05)


@pytest.mark.parametrize("name", LOSSY)
def test_the_same_numbers_have_the_same_bytes(name: str) -> None:
    array = drawn((40, 2, 64), "bfloat16", 1)
    assert bytes(codec(name).encode(array, "bfloat16", Part.K)) == bytes(
        codec(name).encode(array.copy(), "bfloat16", Part.K)
    )


@pytest.mark.parametrize("name", LOSSY)
@pytest.mark.parametrize("value", [0.0, 3.0, -3.0])
def test_equal_numbers_are_kept_as_they_are(name: str, value: float) -> None:
    array = np.full((33, 2, 4), value, np.float32)
    np.testing.assert_allclose(through(name, array, "float32", Part.K), array, rtol=1e-6)


@pytest.mark.parametrize("name", LOSSY)
def test_numbers_that_would_overflow_are_refused_by_lossy_codecs(name: str) -> None:
    array = np.full((33, 2, 4), np.finfo(np.float32).max, np.float32)
    with pytest.raises(StoreError, match="use raw16"):
        codec(name).encode(array, "float32", Part.K)


@pytest.mark.parametrize("name", PLAIN)
@pytest.mark.parametrize("change", [lambda data: data[:-1], lambda data: data + b"x", lambda data: b""])
def test_data_of_another_length_is_refused(name: str, change: Any) -> None:
    array = drawn((40, 2, 64), "bfloat16", 1)
    data = bytes(codec(name).encode(array, "bfloat16", Part.K))
    with pytest.raises(ValueError):
        codec(name).decode(change(data), array.shape, "bfloat16", Part.K)


def test_an_unknown_codec_lists_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="raw16, fp8, int8, int4.*got 'gzip'"):
        codec("gzip")


@pytest.mark.skipif(importlib.util.find_spec("zstandard") is None, reason="needs the package zstandard")
@pytest.mark.parametrize("name", PLAIN)
@pytest.mark.parametrize("dtype", STORED)
def test_zstd_changes_nothing_but_the_size(name: str, dtype: str) -> None:
    array = drawn((40, 2, 64), dtype, 2)
    plain, packed = (through(each, array, dtype, Part.V) for each in (name, f"{name}+zstd"))
    np.testing.assert_array_equal(plain, packed)
    data = bytearray(codec(f"{name}+zstd").encode(array, dtype, Part.V))
    for broken in (bytes(data[:-3]), b"noise", b""):
        with pytest.raises(ValueError):
            codec(f"{name}+zstd").decode(broken, array.shape, dtype, Part.V)


def test_every_code_of_e4m3_is_its_own_number() -> None:
    finite = [code for code in range(256) if np.isfinite(E4M3[code])]
    assert len(finite) == 254 and max(E4M3[finite]) == E4M3_MAX
    np.testing.assert_array_equal(to_e4m3(E4M3[finite].astype(np.float32)), np.array(finite, np.uint8))


@given(st.lists(st.floats(-600, 600, width=32), min_size=1, max_size=50))
def test_e4m3_is_the_nearest_number_and_the_even_code_of_two(numbers: list[float]) -> None:
    array = np.array(numbers, np.float32)
    finite = np.array([code for code in range(128) if np.isfinite(E4M3[code])])
    for number, code in zip(array.tolist(), to_e4m3(array).tolist(), strict=True):
        distance = np.abs(E4M3[finite].astype(np.float64) - min(abs(number), E4M3_MAX))
        near = finite[distance == distance.min()]
        assert code % 128 == min(near, key=lambda each: each % 2)
