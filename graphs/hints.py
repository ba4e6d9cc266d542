"""Python types as the language sees them: do two fit, what fields has one, how is it called.

`fits` is generous where it cannot know (`Any`, type variables, unknown generics) and strict where a
person would be: it may miss a mistake, which the runtime's checks then find, but does not invent one.
"""

import collections.abc
import dataclasses
import types
import typing
from enum import Enum
from functools import lru_cache
from typing import Annotated, Any, Literal, Union, get_args, get_origin

_UNION = (Union, types.UnionType)
_SEQUENCES = (list, tuple, collections.abc.Sequence, collections.abc.Iterable, collections.abc.Collection)
_MAPPINGS = (dict, collections.abc.Mapping)


def plain(type_: Any) -> Any:
    """The type without Annotated, NewType and type variables."""
    while True:
        if get_origin(type_) is Annotated:
            type_ = get_args(type_)[0]
        elif isinstance(type_, typing.NewType):
            type_ = type_.__supertype__
        elif isinstance(type_, typing.TypeVar):
            return Any
        else:
            return type(None) if type_ is None else type_


def members(type_: Any) -> tuple[Any, ...]:
    """The alternatives of a union; of anything else, itself."""
    type_ = plain(type_)
    if get_origin(type_) in _UNION:
        return tuple(m for arg in get_args(type_) for m in members(arg))
    return (type_,)


def union(kinds: collections.abc.Iterable[Any]) -> Any:
    """The union of some types, without repetition; Any when one of them is unknown or there are none."""
    found: list[Any] = []
    for kind in kinds:
        for member in members(kind):
            if member not in found:
                found.append(member)
    if not found or Any in found:
        return Any
    return found[0] if len(found) == 1 else Union[tuple(found)]  # noqa: UP007 (built from a tuple)


def fits(came: Any, wants: Any) -> bool:
    """Whether every value of type `came` may stand where `wants` is declared."""
    wants, came = plain(wants), plain(came)
    if wants is Any or came is Any or wants is object or wants == came:
        return True
    if get_origin(came) in _UNION:
        return all(fits(member, wants) for member in members(came))
    if get_origin(came) is Literal and len(get_args(came)) > 1:
        return all(fits(Literal[value], wants) for value in get_args(came))
    if get_origin(wants) in _UNION:
        return any(fits(came, member) for member in members(wants))
    if get_origin(came) is Literal:
        if get_origin(wants) is Literal:
            return set(get_args(came)) <= set(get_args(wants))
        return all(fits(type(value), wants) for value in get_args(came))
    if get_origin(wants) is Literal:
        return False
    return _class_fits(came, wants)


def _class_fits(came: Any, wants: Any) -> bool:
    have, want = get_origin(came) or came, get_origin(wants) or wants
    if not isinstance(have, type) or not isinstance(want, type):
        return True  # forms that we do not model
    if want is float and have is int or want is complex and have in (int, float):
        return True
    if have is str and want in _SEQUENCES:
        return False  # a string is a sequence of strings to Python, and a mistake to everybody else
    try:
        if not issubclass(have, want):
            return False
    except TypeError:
        return True
    if issubclass(have, tuple) and issubclass(want, tuple):
        return _tuples_fit(came, wants)
    if want in _SEQUENCES:
        return fits(element(came), element(wants))
    if want in _MAPPINGS:
        return all(fits(a, b) for a, b in zip(_pair(came), _pair(wants), strict=True))
    a, b = get_args(came), get_args(wants)
    return have is not want or len(a) != len(b) or all(fits(x, y) for x, y in zip(a, b, strict=True))


def _tuples_fit(came: Any, wants: Any) -> bool:
    a, b = items(came), items(wants)
    if a is not None and b is not None:
        return len(a) == len(b) and all(fits(x, y) for x, y in zip(a, b, strict=True))
    if b is not None:
        return not get_args(came)
    return fits(element(came), element(wants))


def _pair(type_: Any) -> tuple[Any, Any]:
    args = get_args(type_)
    return (args[0], args[1]) if len(args) == 2 else (Any, Any)


def items(type_: Any) -> tuple[Any, ...] | None:
    """Types of the places of a fixed-length tuple, else None."""
    args = get_args(plain(type_))
    if get_origin(plain(type_)) is not tuple or not args or args[-1] is Ellipsis:
        return None
    return args


def is_sequence(type_: Any) -> bool:
    """Whether values may be mapped over: lists, tuples and other sequences, but not strings."""
    for member in members(type_):
        base = get_origin(member) or member
        if member is Any:
            continue
        if not isinstance(base, type) or issubclass(base, str | bytes | collections.abc.Mapping):
            return False
        if not issubclass(base, list | tuple) and base not in _SEQUENCES:
            return False
    return True


def element(type_: Any) -> Any:
    """Type of the elements of a sequence; Any when it does not say."""
    type_ = plain(type_)
    fixed = items(type_)
    if fixed is not None:
        return union(fixed)
    args = get_args(type_)
    return args[0] if args else Any


@lru_cache(maxsize=1024)
def _class_fields(cls: type) -> dict[str, Any] | None:
    model_fields = getattr(cls, "__pydantic_fields__", None)
    if isinstance(model_fields, dict) and not dataclasses.is_dataclass(cls):
        computed = getattr(cls, "__pydantic_computed_fields__", {}) or {}
        found = {name: info.annotation for name, info in model_fields.items()}
        return found | {name: getattr(info, "return_type", Any) for name, info in dict(computed).items()}
    if dataclasses.is_dataclass(cls):
        hints = _hints(cls)
        return {f.name: hints.get(f.name, Any) for f in dataclasses.fields(cls)}
    if issubclass(cls, tuple) and hasattr(cls, "_fields"):
        hints = _hints(cls)
        names: tuple[str, ...] = getattr(cls, "_fields", ())
        return {name: hints.get(name, Any) for name in names}
    return None


def _hints(owner: Any) -> dict[str, Any]:
    try:
        return typing.get_type_hints(owner, include_extras=True)
    except (NameError, TypeError):
        return {}


def fields(type_: Any) -> dict[str, Any] | None:
    """Fields of a model, dataclass or named tuple by name; None for types that have none."""
    type_ = plain(type_)
    base = get_origin(type_) or type_
    return _class_fields(base) if isinstance(base, type) else None


def attribute(type_: Any, name: str) -> Any:
    """Type of field `name`. Raises LookupError whose text lists what there is."""
    found: list[Any] = []
    for member in members(type_):
        if member is Any:
            return Any
        known = fields(member)
        if known is None:
            hint = " (a dict: use value['key'])" if (get_origin(member) or member) is dict else ""
            raise LookupError(f"{describe(member)} has no fields{hint}")
        if name not in known:
            raise LookupError(f"{describe(member)} has: {', '.join(known) or 'no fields'}")
        found.append(known[name])
    return union(found)


def item(type_: Any, key: str | int) -> Any:
    """Type of `value[key]`. Raises LookupError that says what can be indexed."""
    found: list[Any] = []
    for member in members(type_):
        base = get_origin(member) or member
        if member is Any or not isinstance(base, type):
            return Any
        if typing.is_typeddict(base):
            known = _hints(base)
            if key not in known:
                raise LookupError(f"{describe(member)} has: {', '.join(known)}")
            found.append(known[str(key)])
        elif issubclass(base, collections.abc.Mapping):
            found.append(_pair(member)[1])
        elif isinstance(key, int) and issubclass(base, list | tuple | collections.abc.Sequence) and base is not str:
            fixed = items(member)
            if fixed is None:
                found.append(element(member))
            elif -len(fixed) <= key < len(fixed):
                found.append(fixed[key])
            else:
                raise LookupError(f"{describe(member)} has {len(fixed)} items")
        else:
            raise LookupError(f"{describe(member)} cannot be indexed with {key!r}")
    return union(found)


def is_condition(type_: Any) -> bool:
    """Whether a value may decide a branch: only bool (or unknown), so that truthiness stays explicit."""
    return all(member in (bool, Any) or _literal_of(member, bool) for member in members(type_))


def _literal_of(type_: Any, kind: type) -> bool:
    return get_origin(type_) is Literal and all(isinstance(v, kind) for v in get_args(type_))


def closed_values(type_: Any) -> tuple[Any, ...] | None:
    """All values of a Literal, bool or Enum type; None when they cannot be listed."""
    found: list[Any] = []
    for member in members(type_):
        if get_origin(member) is Literal:
            found += get_args(member)
        elif member is bool:
            found += [True, False]
        elif isinstance(member, type) and issubclass(member, Enum):
            found += [e.value for e in member]
        else:
            return None
    return tuple(found)


def of_value(value: object) -> Any:
    """The type of a constant, its elements included."""
    if isinstance(value, list | tuple):
        kinds = [of_value(v) for v in value]
        if isinstance(value, tuple):
            return types.GenericAlias(tuple, tuple(kinds)) if kinds else tuple[Any, ...]
        return types.GenericAlias(list, (union(kinds),))
    if type(value) is dict:
        pair = (union(map(of_value, value)), union(map(of_value, value.values())))
        return types.GenericAlias(dict, pair) if value else dict[Any, Any]
    if isinstance(value, str) and not isinstance(value, Enum):
        return Literal[value]
    return type(value)


def widen(type_: Any) -> Any:
    """The type without its literal values: what a constant stands for when other values may follow it."""
    found: list[Any] = []
    for member in members(type_):
        found += [type(value) for value in get_args(member)] if get_origin(member) is Literal else [member]
    return union(found)


def describe(type_: Any) -> str:
    """How a person writes the type."""
    type_ = plain(type_)
    if type_ is type(None):
        return "None"
    if type_ is Ellipsis:
        return "..."
    if get_origin(type_) in _UNION:
        return " | ".join(describe(member) for member in get_args(type_))
    if get_origin(type_) is Literal:
        return f"Literal[{', '.join(map(repr, get_args(type_)))}]"
    name = getattr(get_origin(type_) or type_, "__name__", None) or str(type_).removeprefix("typing.")
    args = get_args(type_)
    return f"{name}[{', '.join(describe(a) for a in args)}]" if args else str(name)
