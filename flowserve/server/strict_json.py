"""The one place where JSON from outside becomes Python values, for every door.

A body is counted while it arrives, scanned as bytes before any object is built, and parsed with hooks that
refuse what later layers could not hold: numbers that are not finite or not exact in other languages, lone
surrogates, NUL, repeated keys. The scan is a handful of passes in C over the bytes, so that a hostile body costs
milliseconds; big bodies are handled in a thread.

What is not JSON is 400, what is JSON and refused is 422.
"""

import asyncio
import json
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, NoReturn

from flowserve.server.errors import BadRequest
from flowserve.server.settings import ServerSettings

SAFE_INTEGER = 2**53
"""Integers beyond this are not exact in JavaScript and other readers of JSON."""


@dataclass(frozen=True, slots=True)
class Limits:
    """How large one JSON document may be."""

    depth: int = 64
    keys: int = 10_000
    values: int = 100_000

    @classmethod
    def of(cls, settings: ServerSettings) -> "Limits":
        return cls(settings.max_json_depth, settings.max_json_keys, settings.max_json_values)


async def read_body(stream: AsyncIterator[bytes], headers: "dict[str, str]", settings: ServerSettings) -> bytes:
    """The whole body. Raises 413 above the limit (before reading, when the length is announced), 415 for an encoding
    that is not identity, 408 when it does not come in time. Header names are in lower case."""
    encoding = headers.get("content-encoding", "identity").strip().lower()
    if encoding != "identity":
        raise BadRequest(415, "unsupported_encoding", f"expected Content-Encoding identity, got {encoding[:40]}")
    announced = headers.get("content-length", "")
    if (
        announced.isascii()
        and announced.isdigit()
        and (len(announced) > 18 or int(announced) > settings.max_body_bytes)
    ):
        raise _too_large(settings)
    chunks: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(settings.body_timeout_s):
            async for chunk in stream:
                size += len(chunk)
                if size > settings.max_body_bytes:
                    raise _too_large(settings)
                chunks.append(chunk)
    except TimeoutError:
        raise BadRequest(408, "body_timeout", f"the body did not arrive within {settings.body_timeout_s:g} s") from None
    return b"".join(chunks)


def _too_large(settings: ServerSettings) -> BadRequest:
    return BadRequest(413, "body_too_large", f"expected a body of at most {settings.max_body_bytes} bytes")


def check_content_type(value: str | None) -> None:
    """Raise 415 unless the type is application/json or ends in +json, in UTF-8."""
    kind, _, parameters = (value or "").partition(";")
    kind = kind.strip().lower()
    if kind != "application/json" and not (kind.startswith("application/") and kind.endswith("+json")):
        raise BadRequest(
            415, "unsupported_media_type", f"expected Content-Type application/json, got {kind[:80] or 'none'}"
        )
    for parameter in parameters.split(";"):
        name, _, given = parameter.partition("=")
        if name.strip().lower() == "charset" and given.strip().strip('"').lower() not in ("utf-8", "utf8", "us-ascii"):
            raise BadRequest(415, "unsupported_charset", f"expected charset utf-8, got {given.strip()[:40]}")


async def parse(body: bytes, settings: ServerSettings) -> Any:
    """`loads` under the settings' limits, in a thread when the body is big."""
    limits = Limits.of(settings)
    if len(body) > settings.thread_body_bytes:
        return await asyncio.to_thread(loads, body, limits)
    return loads(body, limits)


def loads(body: bytes, limits: Limits = Limits()) -> Any:
    """The value of a JSON document. Raises BadRequest, which says what was expected."""
    scan(body, limits)
    try:
        return _DECODER.decode(body.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise BadRequest(400, "invalid_utf8", f"expected UTF-8; byte {error.start} is not") from None
    except json.JSONDecodeError as error:
        raise BadRequest(400, "invalid_json", f"expected JSON; {error.msg} at character {error.pos}") from None
    except RecursionError:
        raise _too_deep(limits) from None


_ESCAPED_BACKSLASH = (b"\\\\", b"__")
_ESCAPED_QUOTE = (b'\\"', b"__")
_SURROGATE_PAIR = re.compile(rb"\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}")
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F][0-9a-fA-F]{2}")
_NOT_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))


def scan(body: bytes, limits: Limits) -> None:
    """Refuse by counting, before an object is built: depth, keys, values, and escapes that stand for no character.

    Exact for JSON, and for whatever part of other input a parser would get through before it gives up.
    """
    plain = body.replace(*_ESCAPED_BACKSLASH)
    if b"\\u" in plain:
        if b"\\u0000" in plain:
            raise BadRequest(422, "nul_character", "expected text without NUL characters, got \\u0000")
        lone = _SURROGATE.search(_SURROGATE_PAIR.sub(b"", plain))
        if lone is not None:
            raise BadRequest(
                422, "lone_surrogate", f"expected Unicode text, got the lone surrogate {lone.group().decode()}"
            )
    plain = plain.replace(*_ESCAPED_QUOTE)
    if plain.count(b'"') > 2 * (limits.keys + limits.values):
        raise _too_many("values", limits.values)
    outside = b"".join(plain.split(b'"')[::2])  # what stands outside of strings
    if outside.count(b":") > limits.keys:
        raise _too_many("keys", limits.keys)
    if outside.count(b",") + outside.count(b"[") + outside.count(b"{") > limits.values:
        raise _too_many("values", limits.values)
    depth = 0
    for bracket in outside.translate(None, _NOT_BRACKETS):
        if bracket in b"[{":
            depth += 1
            if depth > limits.depth:
                raise _too_deep(limits)
        else:
            depth -= 1


def _too_many(what: str, limit: int) -> BadRequest:
    return BadRequest(422, f"too_many_{what}", f"expected at most {limit} {what} in one body")


def _too_deep(limits: Limits) -> BadRequest:
    return BadRequest(422, "too_deep", f"expected at most {limits.depth} levels of nesting")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise BadRequest(422, "duplicate_key", f"expected every key once, got {key[:80]!r} twice in one object")
            seen.add(key)
    return found


def _integer(digits: str) -> int:
    if len(digits) <= 17 and -SAFE_INTEGER <= (value := int(digits)) <= SAFE_INTEGER:
        return value
    shown = digits if len(digits) <= 24 else f"{digits[:20]}... ({len(digits)} digits)"
    raise BadRequest(
        422, "integer_out_of_range", f"expected integers from -2^53 to 2^53, got {shown}; write longer ones as strings"
    )


def _float(text: str) -> float:
    value = float(text)
    if value in (float("inf"), float("-inf")):
        raise BadRequest(422, "number_not_finite", f"expected a finite number, got {text[:40]}")
    return value


def _constant(name: str) -> NoReturn:
    raise BadRequest(422, "number_not_finite", f"expected JSON, which has no {name}")


_DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_int=_integer, parse_float=_float, parse_constant=_constant)
