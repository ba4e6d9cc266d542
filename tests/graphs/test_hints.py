"""Which types fit where, in tables."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Annotated, Any, Literal, NamedTuple, NewType, TypedDict

import pytest
from pydantic import BaseModel, computed_field

from flowserve.graphs import hints
from flowserve.graphs.types import Doc


class Animal(BaseModel):
    name: str


class Dog(Animal):
    tail: bool | None

    @computed_field  # type: ignore[prop-decorator]
    @property
    def loud(self) -> bool:
        return True


@dataclass
class Point:
    x: int


class Pair(NamedTuple):
    a: int
    b: str


class Row(TypedDict):
    id: int


class Colour(Enum):
    RED = "red"


UserId = NewType("UserId", str)


@pytest.mark.parametrize(
    ("came", "wants"),
    [
        (str, str),
        (int, float),
        (bool, int),
        (str, Any),
        (Any, int),
        (int, int | None),
        (None, int | None),
        (int | None, int | str | None),
        (list[int], list[int]),
        (list[int], list[float]),
        (list[int], Sequence[int]),
        (tuple[int, int], Sequence[int]),
        (list[Dog], list[Animal]),
        (dict[str, int], dict[str, float]),
        (list, list[int]),
        (Literal["a"], Literal["a", "b"]),
        (Literal["a"], str),
        (Literal["a", 1], str | int),
        (Dog, Animal),
        (Annotated[int, "x"], int),
        (UserId, str),
        (tuple[int, str], tuple[float, str]),
        (tuple[int, ...], tuple[int, ...]),
        (Doc, Doc),
    ],
)
def test_these_fit(came: Any, wants: Any) -> None:
    assert hints.fits(came, wants)


@pytest.mark.parametrize(
    ("came", "wants"),
    [
        (str, int),
        (float, int),
        (int | None, int),
        (list[str], str),
        (str, list[str]),
        (str, Sequence[str]),
        (list[str], list[int]),
        (list[str | None], list[str]),
        (Animal, Dog),
        (Literal["c"], Literal["a", "b"]),
        (str, Literal["a"]),
        (dict[str, str], dict[str, int]),
        (tuple[int], tuple[int, int]),
        (Point, Animal),
        (list[Doc], list[str]),
    ],
)
def test_these_do_not(came: Any, wants: Any) -> None:
    assert not hints.fits(came, wants)


@pytest.mark.parametrize(
    ("type_", "found"),
    [
        (Dog, {"name": str, "tail": bool | None, "loud": bool}),
        (Point, {"x": int}),
        (Pair, {"a": int, "b": str}),
        (str, None),
        (dict[str, int], None),
    ],
)
def test_fields_of_records(type_: Any, found: Any) -> None:
    assert hints.fields(type_) == found


def test_items_and_attributes_have_types() -> None:
    assert hints.item(list[int], 0) is int
    assert hints.item(tuple[int, str], -1) is str
    assert hints.item(dict[str, int], "k") is int
    assert hints.item(Row, "id") is int
    assert hints.attribute(Dog | Animal, "name") is str
    for type_, key in [(str, 0), (tuple[int], 1), (Row, "x"), (Dog, 0)]:
        with pytest.raises(LookupError):
            hints.item(type_, key)
    with pytest.raises(LookupError, match=r"use value\['key'\]"):
        hints.attribute(dict[str, int], "k")


@pytest.mark.parametrize(
    ("type_", "text"),
    [
        (list[Doc], "list[Doc]"),
        (int | None, "int | None"),
        (Literal["a", 1], "Literal['a', 1]"),
        (dict[str, list[int]], "dict[str, list[int]]"),
        (tuple[int, ...], "tuple[int, ...]"),
        (Any, "Any"),
        (UserId, "str"),
    ],
)
def test_types_are_written_as_people_write_them(type_: Any, text: str) -> None:
    assert hints.describe(type_) == text


def test_closed_values_are_listed() -> None:
    assert hints.closed_values(Literal["a", "b"]) == ("a", "b")
    assert hints.closed_values(bool) == (True, False)
    assert hints.closed_values(Colour) == ("red",)
    assert hints.closed_values(str) is None
