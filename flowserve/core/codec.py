"""Frozen dataclasses <-> JSON-ready values, by their annotations.

Written: an object of the fields that differ from their defaults. Read: by the declared type of each field, so
tuples, enums and nested dataclasses come back as what they were. Where a field may hold one of several
dataclasses (`plan.Source`), the object carries its class name under "is". Fields declared `Any` or `dict` are
JSON values already and pass as they are.
"""

import types
from dataclasses import MISSING, fields, is_dataclass
from enum import Enum
from functools import cache
from typing import Any, NewType, Union, get_args, get_origin, get_type_hints

from flowserve.errors import StoreError

TAG = "is"


def encode(value: Any) -> Any:
    """JSON-ready form of a dataclass instance, or of anything that its fields hold."""
    if is_dataclass(value) and not isinstance(value, type):
        known = _defaults(type(value))
        written = {name: getattr(value, name) for name in known}
        return {TAG: type(value).__name__} | {
            name: encode(item)
            for name, item in written.items()
            if known[name] is MISSING or type(item) is not type(known[name]) or item != known[name]
        }
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, tuple | list):
        return [encode(item) for item in value]
    if isinstance(value, dict):
        return {key: encode(item) for key, item in value.items()}
    return value


def decode(hint: Any, value: Any) -> Any:
    """The value of declared type `hint` that `encode` wrote as `value`. Raises StoreError for what does not fit."""
    if isinstance(hint, NewType):
        return decode(hint.__supertype__, value)
    if get_origin(hint) in (Union, types.UnionType):
        return _decode_union(get_args(hint), value)
    if is_dataclass(hint) and isinstance(hint, type):
        return _decode_object(hint, value)
    if get_origin(hint) is tuple:
        return _decode_tuple(get_args(hint), value)
    if isinstance(hint, type) and issubclass(hint, Enum):
        try:
            return hint(value)
        except ValueError as error:
            raise StoreError(f"expected a {hint.__name__}; got {value!r}") from error
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if hint in (str, int, float, bool, types.NoneType) and type(value) is not hint:
        raise StoreError(f"expected {hint.__name__}; got {value!r}")
    return value


def _decode_object(cls: type, value: Any) -> Any:
    hints = _hints(cls)
    if not isinstance(value, dict):
        raise StoreError(f"expected a {cls.__name__} as an object; got {value!r}")
    given = {name: item for name, item in value.items() if name != TAG}
    unknown = [name for name in given if name not in hints]
    missing = [name for name, default in _defaults(cls).items() if default is MISSING and name not in given]
    if unknown or missing:
        raise StoreError(f"{cls.__name__}: unknown fields {unknown}, missing fields {missing}")
    return cls(**{name: decode(hints[name], item) for name, item in given.items()})


def _decode_tuple(parts: tuple[Any, ...], value: Any) -> tuple[Any, ...]:
    if not isinstance(value, list):
        raise StoreError(f"expected a list; got {value!r}")
    if len(parts) == 2 and parts[1] is ...:
        return tuple(decode(parts[0], item) for item in value)
    if len(parts) != len(value):
        raise StoreError(f"expected a list of {len(parts)}; got {value!r}")
    return tuple(decode(part, item) for part, item in zip(parts, value, strict=True))


def _decode_union(parts: tuple[Any, ...], value: Any) -> Any:
    if value is None and types.NoneType in parts:
        return None
    if isinstance(value, dict):
        for part in parts:
            if is_dataclass(part) and isinstance(part, type) and part.__name__ == value.get(TAG):
                return _decode_object(part, value)
    for part in parts:
        if isinstance(part, type) and part is not types.NoneType and isinstance(value, part):
            return value
    rest = [part for part in parts if part is not types.NoneType]
    if len(rest) == 1:
        return decode(rest[0], value)
    if float in rest and isinstance(value, int):
        return float(value)
    raise StoreError(f"expected one of {parts}; got {value!r}")


@cache
def _hints(cls: type) -> dict[str, Any]:
    return get_type_hints(cls)


@cache
def _defaults(cls: type) -> dict[str, Any]:
    """Field name -> default, or MISSING. Defaults made by a function are made once, to compare with."""
    return {
        field.name: field.default_factory() if field.default_factory is not MISSING else field.default
        for field in fields(cls)
    }
