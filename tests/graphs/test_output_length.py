"""Lengths that a JSON Schema allows: by hand, and against answers that are made up for it."""

import json
import math
from random import Random
from typing import Any

import pytest

from flowserve.graphs.output_length import CHARS_PER_TOKEN, LONGEST_TOKEN, Length, of_schema

OPEN = {"type": "string"}


def chars(least: float, expected: float, most: float | None) -> Length:
    """Of an answer of so many characters."""
    return Length(
        math.ceil(least / LONGEST_TOKEN), round(expected / CHARS_PER_TOKEN), None if most is None else int(most)
    )


@pytest.mark.parametrize(
    ("schema", "length"),
    [
        ({"type": "boolean"}, Length(1, 1, 5)),
        ({"type": "null"}, Length(1, 1, 4)),
        ({"enum": ["yes", "undecided"]}, chars(5, 8, 11)),
        ({"const": "x" * 40}, chars(42, 42, 42)),
        ({"type": "integer"}, Length(1, 1, None)),
        ({"type": "integer", "minimum": 0, "maximum": 10}, Length(1, 1, 2)),
        ({"type": "integer", "minimum": -1000, "maximum": -100}, Length(1, 1, 5)),
        ({"type": "number", "minimum": 0, "maximum": 1}, Length(1, 1, None)),
        (OPEN, chars(2, 62, None)),
        ({"type": "string", "maxLength": 20}, chars(2, 22, 22)),
        ({"type": "string", "minLength": 100, "maxLength": 200}, chars(102, 102, 202)),
        ({"type": "array", "items": {"type": "boolean"}}, chars(2, 4 * 4.5 + 8, None)),
        ({"type": "array", "items": {"type": "boolean"}, "maxItems": 3}, chars(2, 3 * 4.5 + 6, 3 * 5 + 6)),
        ({"type": "array", "items": {"const": 1}, "minItems": 30, "maxItems": 30}, chars(90, 90, 90)),
        ({"type": "array", "prefixItems": [OPEN, {"const": 1}], "minItems": 2, "maxItems": 2}, chars(7, 67, None)),
        ({"anyOf": [{"const": "ab"}, {"type": "null"}]}, Length(1, 1, 4)),
        ({"type": ["string", "null"], "maxLength": 8}, chars(2, 7, 10)),
        ({"allOf": [{"const": "x" * 40}]}, chars(42, 42, 42)),
        ({}, Length(1, 17, None)),
        ({"type": "object", "additionalProperties": {"type": "boolean"}}, chars(2, 4 * (15 + 2 + 4.5) + 8, None)),
    ],
)
def test_lengths_by_hand(schema: dict[str, Any], length: Length) -> None:
    assert of_schema(schema) == length


def test_an_object_has_its_names_and_what_may_be_left_out_counts_for_the_most_alone() -> None:
    fields = {"yes": {"type": "boolean"}, "why": {"type": "string", "maxLength": 50}}
    schema = {"type": "object", "properties": fields, "required": ["yes"]}
    most = len(json.dumps({"yes": False, "why": "x" * 50}))
    assert of_schema(schema) == chars(len(json.dumps({"yes": True})), most - 0.5, most)


def test_definitions_are_followed_and_one_that_names_itself_has_no_bound() -> None:
    tree = {
        "$ref": "#/$defs/node",
        "$defs": {"node": {"type": "object", "properties": {"next": {"$ref": "#/$defs/node"}}, "required": []}},
    }
    assert of_schema(tree).most is None
    flat = {"type": "array", "items": {"$ref": "#/$defs/word"}, "maxItems": 2, "$defs": {"word": {"const": "ab"}}}
    assert of_schema(flat) == chars(2, 12, 12)


def test_several_answers_are_so_many_times_as_long() -> None:
    assert Length(1, 3, 7).times(4) == Length(4, 12, 28)
    assert Length(1, 3, None).times(2) == Length(2, 6, None)


def some_schema(rnd: Random, depth: int = 0) -> dict[str, Any]:
    """With bounds everywhere, so that there is a most."""
    kind = rnd.choice(["boolean", "integer", "string", "enum", *(["array", "object", "anyOf"] if depth < 3 else [])])
    least = rnd.randint(0, 3)
    match kind:
        case "integer":
            low = rnd.randint(-2000, 2000)
            return {"type": kind, "minimum": low, "maximum": low + rnd.randint(0, 3000)}
        case "string":
            return {"type": kind, "minLength": least, "maxLength": least + rnd.randint(0, 30)}
        case "enum":
            return {"enum": [rnd.choice([None, "a", "longer", 12, 1.5, [1, 2]]) for _ in range(rnd.randint(1, 4))]}
        case "array":
            items = some_schema(rnd, depth + 1)
            return {"type": kind, "items": items, "minItems": least, "maxItems": least + rnd.randint(0, 3)}
        case "object":
            fields = {f"f{number}": some_schema(rnd, depth + 1) for number in range(rnd.randint(0, 4))}
            required = [name for name in fields if rnd.random() < 0.7]
            return {"type": kind, "properties": fields, "required": required, "additionalProperties": False}
        case "anyOf":
            return {"anyOf": [some_schema(rnd, depth + 1) for _ in range(rnd.randint(1, 3))]}
        case _:
            return {"type": kind}


def some_value(rnd: Random, schema: dict[str, Any]) -> Any:
    """Of `some_schema`; ASCII without anything that is escaped."""
    if "enum" in schema:
        return rnd.choice(schema["enum"])
    if "anyOf" in schema:
        return some_value(rnd, rnd.choice(schema["anyOf"]))
    match schema["type"]:
        case "integer":
            return rnd.choice([schema["minimum"], schema["maximum"], rnd.randint(schema["minimum"], schema["maximum"])])
        case "string":
            return "x" * rnd.randint(schema["minLength"], schema["maxLength"])
        case "array":
            count = rnd.randint(schema["minItems"], schema["maxItems"])
            return [some_value(rnd, schema["items"]) for _ in range(count)]
        case "object":
            kept = [name for name in schema["properties"] if name in schema["required"] or rnd.random() < 0.5]
            return {name: some_value(rnd, schema["properties"][name]) for name in kept}
        case _:
            return rnd.random() < 0.5


@pytest.mark.parametrize("seed", range(200))
def test_what_satisfies_a_schema_is_as_long_as_it_says(seed: int) -> None:
    rnd = Random(seed)
    schema = some_schema(rnd)
    length = of_schema(schema)
    assert length.most is not None and length.least <= max(1, length.expected)
    for _ in range(20):
        written = len(json.dumps(some_value(rnd, schema)))
        assert length.least <= math.ceil(written / LONGEST_TOKEN) and written <= length.most, schema
