"""How long an answer that follows a JSON Schema can be and may be expected to be, before any was seen.

Engines write JSON in one form, with `, ` and `: ` and no other blanks, so that a schema bounds its length: names of fields,
choices and numbers are given, `maxLength` and `maxItems` bound the rest. Lengths are added up in characters, as (least,
expected, most), and told in tokens. What is expected of open text and open lists is a guess that only stands until
answers were seen; what is counted in tokens is an estimate, since tokenisers differ: text outside of ASCII may take more than
a token for a character. So these figures order and reserve; nothing is cut off by them.
"""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from flowserve.ids import Tokens

CHARS_PER_TOKEN = 3.5
"""Of JSON with English text. Assumed: vocabularies of 32,000 to 256,000 pieces have 3 to 4.5."""
LONGEST_TOKEN = 16
"""Characters of the longest piece that is usual."""
TEXT = 60
"""Characters of a text that the schema says nothing of."""
ITEMS = 4
"""Items of a list, or entries of an object, likewise."""
DIGITS = 3
"""Of a number, likewise."""
SEPARATOR = 2
"""Characters of `, ` and of `: `."""
BRACKETS = 2
"""Also the quotes of a text."""
DEEPEST = 32
"""Levels of a schema that are looked at; what lies deeper counts as anything."""


@dataclass(frozen=True, slots=True)
class Length:
    """Of an answer."""

    least: Tokens
    expected: Tokens
    most: Tokens | None
    """None: there is no bound."""

    def times(self, count: int) -> "Length":
        """Of so many answers together."""
        return Length(count * self.least, count * self.expected, None if self.most is None else count * self.most)


class Span(NamedTuple):
    """Characters."""

    least: float
    expected: float
    most: float


ANYTHING = Span(1, TEXT, math.inf)


def of_schema(schema: Mapping[str, Any]) -> Length:
    """Of an answer that satisfies `schema`, which must be a JSON Schema."""
    span = _span(schema, schema, 0)
    most = None if span.most == math.inf else math.ceil(span.most)
    expected = max(1, round(span.expected / CHARS_PER_TOKEN))
    return Length(math.ceil(span.least / LONGEST_TOKEN), expected, most)


def _span(schema: Any, root: Mapping[str, Any], depth: int) -> Span:
    if not isinstance(schema, Mapping) or depth > DEEPEST:
        return ANYTHING
    inner = depth + 1
    if "$ref" in schema:
        return _span(_resolved(schema["$ref"], root), root, inner)
    if "const" in schema:
        return _one_of([schema["const"]])
    if "enum" in schema:
        return _one_of(schema["enum"])
    for word in ("anyOf", "oneOf"):
        if word in schema:
            return _either([_span(part, root, inner) for part in schema[word]])
    if "allOf" in schema:
        return _all([_span(part, root, inner) for part in schema["allOf"]])
    kind = schema.get("type")
    if isinstance(kind, Sequence) and not isinstance(kind, str):
        return _either([_span({**schema, "type": one}, root, inner) for one in kind])
    match kind:
        case "boolean":
            return _one_of([True, False])
        case "null":
            return _one_of([None])
        case "integer" | "number":
            return _number(schema, kind)
        case "string":
            return _text(schema)
        case "array":
            return _array(schema, root, inner)
        case "object":
            return _object(schema, root, inner)
        case _:
            return ANYTHING


def _resolved(ref: str, root: Mapping[str, Any]) -> Any:
    """What `#/$defs/name` stands for; None: it is not in this schema."""
    found: Any = root
    for step in ref.split("/")[1:] if ref.startswith("#") else [ref]:
        found = found.get(step) if isinstance(found, Mapping) else None
    return found


def _one_of(values: Iterable[Any]) -> Span:
    lengths = [len(json.dumps(value, ensure_ascii=False)) for value in values]
    return Span(min(lengths), sum(lengths) / len(lengths), max(lengths)) if lengths else ANYTHING


def _either(spans: Sequence[Span]) -> Span:
    """Alternatives count alike."""
    least, expected, most = zip(*spans, strict=True)
    return Span(min(least), sum(expected) / len(spans), max(most))


def _all(spans: Sequence[Span]) -> Span:
    least, expected, most = zip(*spans, strict=True)
    return _within(Span(max(least), max(expected), min(most)))


def _within(span: Span) -> Span:
    return Span(span.least, max(span.least, min(span.expected, span.most)), span.most)


def _number(schema: Mapping[str, Any], kind: str) -> Span:
    """A number with a fraction may have any number of digits; a whole one has no more than its bounds."""
    low, high = schema.get("minimum", -math.inf), schema.get("maximum", math.inf)
    low, high = schema.get("exclusiveMinimum", low), schema.get("exclusiveMaximum", high)
    if kind == "number" or math.inf in (-low, high):
        return Span(1, DIGITS, math.inf)
    ends = (len(str(math.ceil(low))), len(str(math.floor(high))))
    least = 1 if low <= 9 and high >= 0 else min(ends)
    return _within(Span(least, DIGITS, max(ends)))


def _text(schema: Mapping[str, Any]) -> Span:
    least, most = schema.get("minLength", 0), schema.get("maxLength", math.inf)
    return _within(Span(least + BRACKETS, TEXT + BRACKETS, most + BRACKETS))


def _array(schema: Mapping[str, Any], root: Mapping[str, Any], depth: int) -> Span:
    """Items before those of `items` stand in `prefixItems`."""
    first = [_span(part, root, depth) for part in schema.get("prefixItems", ())]
    closed = schema.get("items") is False
    least = max(0, schema.get("minItems", 0) - len(first))
    most = 0 if closed else max(0, schema.get("maxItems", math.inf) - len(first))
    item = _span(schema.get("items", {}), root, depth) if most else Span(0, 0, 0)
    usual = min(max(ITEMS, least), most) if not first else least
    return _row(
        [*first, _repeated(item, least, usual, most)], len(first) + least, len(first) + usual, len(first) + most
    )


def _object(schema: Mapping[str, Any], root: Mapping[str, Any], depth: int) -> Span:
    """Fields that may be left out are expected to be there: models fill in what they see, and seldom add what they do not."""
    fields, required = schema.get("properties", {}), schema.get("required", ())
    parts = []
    for name, value in fields.items():
        key = len(json.dumps(name, ensure_ascii=False)) + SEPARATOR
        least, expected, most = _span(value, root, depth)
        parts.append(Span(key + least if name in required else 0, key + expected, key + most))
    more = schema.get("additionalProperties", not fields)
    if more is False or (fields and more is True):
        return _row(parts, len(required), len(fields), len(fields))
    value = _span(more, root, depth)
    entry = Span(BRACKETS + SEPARATOR + value.least, TEXT / 4 + SEPARATOR + value.expected, math.inf)
    return _row([*parts, _repeated(entry, 0, ITEMS, math.inf)], len(required), len(fields) + ITEMS, math.inf)


def _repeated(span: Span, least: float, usual: float, most: float) -> Span:
    return Span(least * span.least, usual * span.expected, most * span.most if most else 0)


def _row(parts: Sequence[Span], least: float, usual: float, most: float) -> Span:
    """So many parts in brackets, with separators between."""
    counts = [BRACKETS + SEPARATOR * max(0, count - 1) for count in (least, usual, most)]
    sums = [sum(lengths) for lengths in zip(*parts, strict=True)] or [0, 0, 0]
    return Span(*(count + total for count, total in zip(counts, sums, strict=True)))
