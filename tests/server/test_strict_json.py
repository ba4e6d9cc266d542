"""What the edge refuses, and what it leaves alone."""

import json
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowserve.server.errors import BadRequest
from flowserve.server.settings import ServerSettings
from flowserve.server.strict_json import SAFE_INTEGER, Limits, check_content_type, loads, read_body, scan

REFUSED: dict[str, tuple[bytes, int, str]] = {
    "NaN": (b'{"a": NaN}', 422, "number_not_finite"),
    "Infinity": (b'{"a": [Infinity]}', 422, "number_not_finite"),
    "minus Infinity": (b"-Infinity", 422, "number_not_finite"),
    "a float over the top": (b'{"a": 1e999}', 422, "number_not_finite"),
    "a negative float over the top": (b'{"a": -1e999}', 422, "number_not_finite"),
    "a lone high surrogate": (rb'{"a": "\ud800"}', 422, "lone_surrogate"),
    "a lone low surrogate": (rb'{"a": "x\uDC00y"}', 422, "lone_surrogate"),
    "surrogates the wrong way round": (rb'{"a": "\udc00\ud800"}', 422, "lone_surrogate"),
    "surrogates kept apart by a backslash": (rb'{"a": "\ud83d\\\ude00"}', 422, "lone_surrogate"),
    "a surrogate in a key": (rb'{"\ud800": 1}', 422, "lone_surrogate"),
    "NUL": (rb'{"a": "x\u0000"}', 422, "nul_character"),
    "NUL after an escaped backslash": (rb'{"a": "\\\u0000"}', 422, "nul_character"),
    "raw NUL": (b'{"a": "\x00"}', 400, "invalid_json"),
    "an integer over 2^63": (b'{"a": 9223372036854775808}', 422, "integer_out_of_range"),
    "an integer over 2^53": (b'{"a": 9007199254740993}', 422, "integer_out_of_range"),
    "an integer under -2^53": (b'{"a": -9007199254740993}', 422, "integer_out_of_range"),
    "5000 digits": (b'{"a": ' + b"9" * 5000 + b"}", 422, "integer_out_of_range"),
    "invalid UTF-8": (b'{"a": "\xff"}', 400, "invalid_utf8"),
    "a surrogate in UTF-8": (b'{"a": "\xed\xa0\x80"}', 400, "invalid_utf8"),
    "UTF-16": ('{"a": 1}'.encode("utf-16"), 400, "invalid_utf8"),
    "65 levels": (b"[" * 65 + b"]" * 65, 422, "too_deep"),
    "100000 levels": (b"[" * 100_000, 422, "too_deep"),
    "deep objects": (b'{"a":' * 2000 + b"1" + b"}" * 2000, 422, "too_deep"),
    "a key twice": (b'{"a": 1, "b": 2, "a": 3}', 422, "duplicate_key"),
    "a key twice, once escaped": (rb'{"a": 1, "\u0061": 2}', 422, "duplicate_key"),
    "a key twice, further in": (b'{"x": [{"a": 1, "a": 1}]}', 422, "duplicate_key"),
    "10001 keys": (json.dumps({str(i): 1 for i in range(10_001)}).encode(), 422, "too_many_keys"),
    "keys spread over objects": (json.dumps([{"a": 1}] * 10_001).encode(), 422, "too_many_keys"),
    "a million values": (b"[" + b"1," * 1_000_000 + b"1]", 422, "too_many_values"),
    "a million arrays": (b"[" + b"[]," * 1_000_000 + b"[]]", 422, "too_many_values"),
    "a million strings": (b"[" + b'"",' * 1_000_000 + b'""]', 422, "too_many_values"),
    "nothing": (b" ", 400, "invalid_json"),
    "two documents": (b"{} {}", 400, "invalid_json"),
    "a comment": (b"{} // no", 400, "invalid_json"),
    "single quotes": (b"{'a': 1}", 400, "invalid_json"),
    "a trailing comma": (b'{"a": 1,}', 400, "invalid_json"),
    "an open string": (b'{"a": "b', 400, "invalid_json"),
    "a raw newline in a string": (b'{"a": "b\nc"}', 400, "invalid_json"),
    "a byte order mark": (b"\xef\xbb\xbf{}", 400, "invalid_json"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_later_layers_could_not_hold_is_refused_with_its_code(name: str) -> None:
    body, status, code = REFUSED[name]
    with pytest.raises(BadRequest) as refused:
        loads(body)
    assert (refused.value.status, refused.value.code) == (status, code)
    assert len(str(refused.value)) < 300


@pytest.mark.parametrize(
    "text",
    [
        '{"a": "\\ud83d\\ude00"}',
        '{"a": "\\\\ud800 is an escape, not a character"}',
        '{"a": "\\\\u0000"}',
        '{"a": "[[[[[[ {{{{ :::: ,,,,"}',
        '{"a": "\\"[{\\\\"}',
        '{"a": 9007199254740992, "b": -9007199254740992, "c": 1e300, "d": 0.1, "e": -0.0}',
        '{"": {"": null}}',
        "[" * 64 + "]" * 64,
        '"just text"',
        '{"é": "日本語 \\u65e5"}',
        "[]" + " " * 1000,
    ],
)
def test_ordinary_json_is_left_alone(text: str) -> None:
    assert loads(text.encode()) == json.loads(text)


_JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-SAFE_INTEGER, SAFE_INTEGER)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])),
    lambda inner: (
        st.lists(inner)
        | st.dictionaries(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])), inner)
    ),
    max_leaves=30,
)


@given(value=_JSON, ascii_only=st.booleans(), indent=st.sampled_from([None, 1]))
def test_every_value_that_can_be_held_comes_back(value: Any, ascii_only: bool, indent: int | None) -> None:
    assert loads(json.dumps(value, ensure_ascii=ascii_only, indent=indent).encode()) == value


@given(value=_JSON)
def test_the_scan_counts_exactly_what_the_parser_builds(value: Any) -> None:
    body = json.dumps(value).encode()
    depth, keys = _depth(value), _keys(value)
    scan(body, Limits(depth=depth, keys=keys))
    if depth:
        with pytest.raises(BadRequest, match="levels"):
            scan(body, Limits(depth=depth - 1, keys=keys))
    if keys:
        with pytest.raises(BadRequest, match="keys"):
            scan(body, Limits(depth=depth, keys=keys - 1))


def _depth(value: Any) -> int:
    if isinstance(value, dict):
        return 1 + max(map(_depth, value.values()), default=0)
    return 1 + max(map(_depth, value), default=0) if isinstance(value, list) else 0


def _keys(value: Any) -> int:
    if isinstance(value, dict):
        return len(value) + sum(map(_keys, value.values()))
    return sum(map(_keys, value)) if isinstance(value, list) else 0


@given(body=st.binary(max_size=200) | st.text(alphabet='{}[]":,\\u0dD8 1e', max_size=200).map(str.encode))
def test_any_bytes_are_a_value_or_a_clean_refusal(body: bytes) -> None:
    try:
        value = loads(body)
    except BadRequest as error:
        assert error.status in (400, 422)
    else:
        json.dumps(value, allow_nan=False).encode()


@pytest.mark.parametrize("fill", [b"[[],", b'{"a":1},', b'"\\u0041",', b'"aaaa",', b"1e1,", b'\\"', b"\\u12", b"    "])
def test_a_full_sized_hostile_body_costs_a_bounded_amount_of_work(fill: bytes) -> None:
    body = b"[" + fill * (4_000_000 // len(fill))
    start = time.process_time()
    with pytest.raises(BadRequest):
        loads(body)
    assert time.process_time() - start < 1.0  # about 0.02 s here; a second means that it grows with what it holds


async def _chunks(*parts: bytes) -> AsyncIterator[bytes]:
    for part in parts:
        yield part


async def test_a_body_is_counted_while_it_comes() -> None:
    settings = ServerSettings(max_body_bytes=10)
    assert await read_body(_chunks(b"12345", b"67890"), {}, settings) == b"1234567890"
    with pytest.raises(BadRequest) as refused:
        await read_body(_chunks(b"12345", b"67890", b"1"), {}, settings)
    assert refused.value.status == 413


@pytest.mark.parametrize("length", ["11", "99999999999999999999999999"])
async def test_an_announced_length_over_the_limit_is_refused_before_a_byte_is_read(length: str) -> None:
    async def never() -> AsyncIterator[bytes]:
        raise AssertionError("read")
        yield b""

    with pytest.raises(BadRequest) as refused:
        await read_body(never(), {"content-length": length}, ServerSettings(max_body_bytes=10))
    assert refused.value.status == 413


@pytest.mark.parametrize("encoding", ["gzip", "br", "deflate, identity", "x"])
async def test_an_encoded_body_is_refused(encoding: str) -> None:
    with pytest.raises(BadRequest) as refused:
        await read_body(_chunks(b"{}"), {"content-encoding": encoding}, ServerSettings())
    assert refused.value.status == 415


@pytest.mark.parametrize(
    ("value", "fine"),
    [
        ("application/json", True),
        ("Application/JSON; charset=UTF-8", True),
        ("application/problem+json", True),
        ('application/json; charset="utf-8"', True),
        ("application/json; charset=utf-16", False),
        ("text/plain", False),
        ("text/json", False),
        ("application/jsonx", False),
        ("multipart/form-data", False),
        ("", False),
        (None, False),
    ],
)
def test_only_json_in_utf8_is_json(value: str | None, fine: bool) -> None:
    if fine:
        check_content_type(value)
    else:
        with pytest.raises(BadRequest) as refused:
            check_content_type(value)
        assert refused.value.status == 415
