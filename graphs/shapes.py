"""Shapes: what turns JSON into a value of a declared type and says what was wrong with it.

`TypedShape` knows a Python type (through pydantic), `SchemaShape` only a JSON Schema: the first serves
workflows declared in this process, the second those loaded from a spec. Both are strict: `"5"` is no
integer. JSON Schemas of types and of whole signatures are made here too.
"""

import copy
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, Protocol, cast

import pydantic
from pydantic_core import PydanticSerializationError, to_jsonable_python

from flowserve.errors import ValueInvalid
from flowserve.graphs import hints

Mismatch = tuple[str, str]
"""(JSON pointer, what is wrong there)."""


class ShapeError(ValueError):
    """A value does not have the shape. `problems` are (JSON pointer, message) pairs."""

    def __init__(self, problems: Sequence[Mismatch]) -> None:
        super().__init__("; ".join(f"{pointer or '/'}: {message}" for pointer, message in problems))
        self.problems = tuple(problems)


class Shape(Protocol):
    """Checks and converts values of one type."""

    def load(self, value: object) -> Any:
        """The typed value for a Python object or parsed JSON. Raises ShapeError."""
        ...

    def loads(self, text: str) -> Any:
        """The typed value for a JSON text. Raises ShapeError."""
        ...

    def items(self, path: Sequence[str]) -> "Shape | None":
        """The shape of each item of the list that stands under these names; None where there is no such list."""
        ...


def pointer(path: Sequence[str | int]) -> str:
    """RFC 6901 pointer of a path."""
    return "".join("/" + str(part).replace("~", "~0").replace("/", "~1") for part in path)


MAX_DEPTH = 200
"""Deeper values are refused: pydantic and JSON readers give up near there, and what holds itself has no end."""

_PLAIN = frozenset({str, bool, int, type(None)})


def not_finite(value: object) -> str | None:
    """Pointer of a NaN or infinity in parsed JSON, or None. Raises RecursionError for what is too deep."""
    return None if type(value) in _PLAIN or _is_finite(value, MAX_DEPTH) else _place_of_nan(value)


def _is_finite(value: object, depth: int) -> bool:
    if isinstance(value, float):
        return math.isfinite(value)
    if isinstance(value, Mapping):
        parts: Iterable[object] = value.values()
    elif isinstance(value, list | tuple):
        parts = value
    else:
        return True
    if depth == 0:
        raise RecursionError
    return all(_is_finite(part, depth - 1) for part in parts if type(part) not in _PLAIN)


def _place_of_nan(value: object) -> str | None:
    stack: list[tuple[object, tuple[str | int, ...]]] = [(value, ())]
    while stack:
        item, path = stack.pop()
        if isinstance(item, float) and not math.isfinite(item):
            return pointer(path)
        if isinstance(item, Mapping):
            stack += [(v, (*path, str(k))) for k, v in item.items()]
        elif isinstance(item, list | tuple):
            stack += [(v, (*path, i)) for i, v in enumerate(item)]
    return None


def parse_json(text: str) -> Any:
    """Parsed JSON; ShapeError for what is no JSON, NaN and infinity included."""
    try:
        return json.loads(text, parse_constant=_refuse_constant)
    except RecursionError:
        raise ShapeError([("", "the JSON is nested too deeply")]) from None
    except ValueError as error:
        raise ShapeError([("", f"not valid JSON: {error}")]) from None


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON number")


@lru_cache(maxsize=4096)
def _cached_adapter(key: "_Key") -> pydantic.TypeAdapter[Any]:
    return pydantic.TypeAdapter(key.type, config=None)


@dataclass(frozen=True, slots=True, eq=False)
class _Key:
    """A type as dictionary key: `list[int]` made twice is equal, `int | str` and `str | int` are not the same schema."""

    type: Any

    def __hash__(self) -> int:
        return hash(repr(self.type))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Key) and repr(self.type) == repr(other.type) and bool(self.type == other.type)


def adapter(type_: Any) -> pydantic.TypeAdapter[Any]:
    """The pydantic adapter of a type, made once. Raises PydanticUserError or PydanticSchemaGenerationError."""
    return _cached_adapter(_Key(type_))


@dataclass(frozen=True)
class TypedShape:
    """The shape of a Python type."""

    type: Any

    def load(self, value: object) -> Any:
        try:
            self._check_finite(value)
            loaded = self._adapter.validate_python(value, strict=True)
        except pydantic.ValidationError:
            loaded = self._from_json(value)
        except RecursionError:
            raise ShapeError([("", "the value is nested too deeply")]) from None
        if loaded is not value:
            self._check_finite(loaded)
        return loaded

    def loads(self, text: str) -> Any:
        return self._from_json(parse_json(text))

    def items(self, path: Sequence[str]) -> "Shape | None":
        found = self.type
        try:
            for name in path:
                found = hints.attribute(found, name) if hints.fields(found) else hints.item(found, name)
        except LookupError:
            return None
        if not hints.is_sequence(found) or hints.items(found) is not None:
            return None
        return TypedShape(hints.element(found))

    @cached_property
    def _adapter(self) -> pydantic.TypeAdapter[Any]:
        return adapter(self.type)

    def _from_json(self, value: object) -> Any:
        """JSON has no tuples, dates or models, so strict validation of JSON accepts lists, strings and objects for them."""
        try:
            # The text goes through ASCII escapes: a lone surrogate in a string is then judged by pydantic, not by UTF-8.
            text = json.dumps(to_jsonable_python(value, inf_nan_mode="constants"), allow_nan=False)
            loaded = self._adapter.validate_json(text, strict=True)
            self._check_finite(loaded)
        except pydantic.ValidationError as error:
            raise ShapeError([(pointer(e["loc"]), _message(e)) for e in error.errors(include_url=False)]) from None
        except ShapeError:
            raise
        except RecursionError:
            raise ShapeError([("", "the value is nested too deeply")]) from None
        except (PydanticSerializationError, ValueError, TypeError) as error:
            raise ShapeError([("", f"expected JSON: {error}")]) from None
        return loaded

    def _check_finite(self, value: object) -> None:
        where = not_finite(value)
        if where is not None:
            raise ShapeError([(where, "NaN and infinity are no JSON numbers")])


def _message(error: Any) -> str:
    came = error.get("input")
    shown = repr(came) if isinstance(came, str | int | float | bool | None) else type(came).__name__
    if error["type"] in ("missing", "extra_forbidden", "json_invalid"):
        return str(error["msg"])
    return f"{error['msg']}; got {shown[:80]}"


@dataclass(frozen=True)
class SchemaShape:
    """The shape of a JSON Schema: values stay dicts, lists, strings and numbers."""

    schema: dict[str, Any]
    root: dict[str, Any] | None = None
    """The document that its references point into; None: itself."""

    def load(self, value: object) -> Any:
        try:
            value = jsonable(value)
            problems = sorted(self._validator.iter_errors(value), key=lambda e: [str(p) for p in e.absolute_path])
        except (ValueInvalid, RecursionError) as error:
            raise ShapeError([("", str(error))]) from None
        if problems:
            raise ShapeError([(pointer(list(e.absolute_path)), e.message[:300]) for e in problems[:20]])
        return with_defaults(value, self.schema, self.root or self.schema)

    def loads(self, text: str) -> Any:
        return self.load(parse_json(text))

    def items(self, path: Sequence[str]) -> "Shape | None":
        root = self.root or self.schema
        found = schema_at(self.schema, path, root) or {}
        item = found.get("items")
        return SchemaShape(item, root) if found.get("type") == "array" and isinstance(item, dict) else None

    @cached_property
    def _validator(self) -> Any:
        from jsonschema import Draft202012Validator
        from referencing import Registry

        # An empty registry: a schema from outside must not make us fetch anything.
        return Draft202012Validator(self.root or self.schema, registry=Registry()).evolve(schema=self.schema)


def with_defaults(value: Any, schema: Any, root: Mapping[str, Any]) -> Any:
    """`value`, which fits `schema`, with the declared defaults of properties that were left out, as a model would have."""
    if not isinstance(schema, dict) or not isinstance(value, dict | list):
        return value
    schema = _followed(schema, root)
    if isinstance(value, list):
        return [with_defaults(item, schema.get("items"), root) for item in value]
    filled = dict(value)
    for name, sub in schema.get("properties", {}).items():
        if name in value:
            filled[name] = with_defaults(value[name], sub, root)
        elif isinstance(sub, dict) and "default" in sub:
            filled[name] = copy.deepcopy(sub["default"])
    return filled


def schema_at(schema: dict[str, Any], path: Sequence[str], root: Mapping[str, Any]) -> dict[str, Any] | None:
    """The schema of what stands under these names in an object of `schema`; None where it names no such property."""
    found = _followed(schema, root)
    for name in path:
        properties = found.get("properties")
        inner = properties.get(name) if isinstance(properties, dict) else None
        if not isinstance(inner, dict):
            return None
        found = _followed(inner, root)
    return found


def _followed(schema: dict[str, Any], root: Mapping[str, Any]) -> dict[str, Any]:
    """The schema behind references and behind the one alternative of an optional that is not null."""
    for _ in range(100):
        ref = schema.get("$ref")
        alternatives = [s for s in schema.get("anyOf", ()) if s != {"type": "null"}]
        found: Any = None
        if isinstance(ref, str) and ref.startswith("#/"):
            found = root
            for part in ref[2:].split("/"):
                found = found.get(part.replace("~1", "/").replace("~0", "~")) if isinstance(found, dict) else None
        elif len(alternatives) == 1:
            found = alternatives[0]
        if not isinstance(found, dict):
            break
        schema = found
    return schema


def jsonable(value: object) -> Any:
    """`value` as plain JSON data: models, dataclasses, enums and dates converted. Raises ValueInvalid."""
    if value is None or isinstance(value, str | bool | int):
        return to_jsonable_python(value) if type(value) not in _PLAIN else value
    try:
        data = to_jsonable_python(value, inf_nan_mode="constants", by_alias=True)
        where = not_finite(data)
    except (PydanticSerializationError, ValueError, RecursionError) as error:
        raise ValueInvalid(
            f"expected a value that can be written as JSON; got {type(value).__name__}: {error}"
        ) from None
    if where is not None:
        raise ValueInvalid(f"expected finite numbers; got NaN or infinity at '{where or '/'}'")
    return data


# --- JSON Schemas -------------------------------------------------------------------------------------


def schema_of(type_: Any, *, output: bool = False) -> dict[str, Any]:
    """JSON Schema of a type. `output`: of what it is written as, else of what it is read from."""
    return adapter(type_).json_schema(mode="serialization" if output else "validation")


def object_schema(fields: Mapping[str, tuple[Any, bool, Any]]) -> dict[str, Any]:
    """JSON Schema of keyword arguments: name -> (type, required, JSON-ready default)."""
    inputs: list[tuple[str, Any, pydantic.TypeAdapter[Any]]] = [
        (name, "validation", adapter(type_)) for name, (type_, _, _) in fields.items()
    ]
    found, shared = pydantic.TypeAdapter.json_schemas(inputs)
    properties: dict[str, Any] = {}
    for name, (_, required, default) in fields.items():
        # A reference may have neighbours in this dialect, so a default can stand beside $ref.
        properties[name] = dict(found[(name, "validation")]) | ({} if required else {"default": default})
    schema: dict[str, Any] = {"type": "object", "properties": properties, "additionalProperties": False}
    required_names = [name for name, (_, required, _) in fields.items() if required]
    if required_names:
        schema["required"] = required_names
    if "$defs" in shared:
        schema["$defs"] = shared["$defs"]
    return cast(dict[str, Any], json.loads(json.dumps(schema)))


def property_shapes(schema: Mapping[str, Any]) -> dict[str, Shape]:
    """A shape for each property of an object schema, shared definitions included."""
    defs = {"$defs": schema["$defs"]} if "$defs" in schema else {}
    properties = schema.get("properties", {})
    return {
        name: SchemaShape({**sub, **defs} if isinstance(sub, dict) else {"not": {}}) for name, sub in properties.items()
    }
