"""Values of expressions: pure functions of a Source and what it refers to."""

import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from enum import Enum
from typing import Any, Protocol

from pydantic import BaseModel

from flowserve.errors import ValueInvalid
from flowserve.graphs import hints
from flowserve.graphs.plan import Block, Const, Get, Kind, Node, Op, Output, Param, Plan, Source
from flowserve.ids import BlockId, NodeId


class Lookup(Protocol):
    """Where the values of a frame are; the runtime's frames are this."""

    def param(self, block: BlockId, index: int) -> Any:
        """Parameter `index` of this frame or the enclosing one of `block`."""
        ...

    def output(self, node: NodeId) -> Any:
        """The result of `node`, of this frame or an enclosing one."""
        ...


def evaluate(source: Source, consts: Sequence[Any], lookup: Lookup) -> Any:
    """The value of an expression. Raises ValueInvalid that names the field or item that is not there."""
    match source:
        case Const(index):
            return consts[index]
        case Param(block, index):
            return lookup.param(block, index)
        case Output(node):
            return lookup.output(node)
        case Get(of, key):
            return get(evaluate(of, consts, lookup), key)
        case Op("and", args):
            return all(_truth(evaluate(a, consts, lookup)) for a in args)
        case Op("or", args):
            return any(_truth(evaluate(a, consts, lookup)) for a in args)
        case Op(name, args):
            return _operate(name, [evaluate(a, consts, lookup) for a in args])


def arguments(plan: Plan, node: Node, lookup: Lookup) -> dict[str, Any]:
    """The arguments of a node by name. Raises ValueInvalid that names the argument too."""
    values: dict[str, Any] = {}
    for arg in node.args:
        try:
            values[arg.name] = evaluate(arg.source, plan.consts, lookup)
        except ValueInvalid as error:
            raise ValueInvalid(f"{node.name}: argument '{arg.name}': {error}") from None
    return values


def width(node: Node, values: Mapping[str, Any]) -> int:
    """Items of a MAP, from its arguments. Raises ValueInvalid for unequal or unsuitable sequences."""
    lengths: dict[str, int] = {}
    for name, value in values.items():
        if not isinstance(value, list | tuple):
            raise ValueInvalid(
                f"{node.name}: argument '{name}': expected a list to map over; got {type(value).__name__}"
            )
        lengths[name] = len(value)
    if len(set(lengths.values())) > 1:
        shown = ", ".join(f"{name} has {count}" for name, count in lengths.items())
        raise ValueInvalid(f"{node.name}: expected lists of equal length; {shown}")
    return next(iter(lengths.values()))


def choose(node: Node, values: Mapping[str, Any]) -> int:
    """The arm of a SWITCH, from its arguments. Raises ValueInvalid when no arm is for the value."""
    value = _bare(values["value"])
    if "cases" not in values:
        return 0 if _truth(value) else 1
    cases = values["cases"]
    for arm, case in enumerate(cases):
        if type(value) is type(case) and value == case:
            return arm
    if len(node.bodies) > len(cases):
        return len(cases)
    raise ValueInvalid(f"{node.name}: expected one of {', '.join(map(repr, cases))}; got {value!r:.100}")


def done(plan: Plan, node: Node, lookup: Lookup) -> bool:
    """Whether a LOOP stops; `lookup` gives the state as parameter 0 of its body."""
    until = plan.blocks[node.bodies[0]].until
    if node.kind is not Kind.LOOP or until is None:
        return False
    try:
        return _truth(evaluate(until, plan.consts, lookup))
    except ValueInvalid as error:
        raise ValueInvalid(f"{node.name}: until: {error}") from None


def counts(plan: Plan, block: Block, lookup: Lookup) -> bool:
    """Whether the result of a RACE's body counts; `lookup` gives what is in its frame."""
    try:
        return block.until is None or _truth(evaluate(block.until, plan.consts, lookup))
    except ValueInvalid:
        return False


def get(value: Any, key: str | int) -> Any:
    """A field of a record, a key of a mapping or an item of a sequence."""
    if isinstance(value, Mapping):
        if key in value:
            return value[key]
        raise ValueInvalid(f"expected the key {key!r}; the object has: {_listed(map(str, value))}")
    if isinstance(key, int):
        if not isinstance(value, list | tuple):
            raise ValueInvalid(f"expected a list to take item {key} of; got {type(value).__name__}")
        try:
            return value[key]
        except IndexError:
            raise ValueInvalid(f"expected an item {key}; the list has {len(value)}") from None
    known = hints.fields(type(value))
    if known is None:
        raise ValueInvalid(
            f"expected a value with the field '{key}'; got {'None' if value is None else type(value).__name__}"
        )
    if key not in known:
        raise ValueInvalid(f"expected the field '{key}'; {type(value).__name__} has: {_listed(known)}")
    return getattr(value, key)


def vote_key(value: Any, vote: str | None) -> Any:
    """What a sample votes for, as JSON-comparable data: a field, or the whole value for `""`."""
    return value if not vote else get(value, vote)


def _listed(names: Iterable[str]) -> str:
    return ", ".join(list(names)[:20]) or "nothing"


def _bare(value: Any) -> Any:
    return value.value if isinstance(value, Enum) else value


def _truth(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueInvalid(f"expected true or false; got {type(value).__name__}")
    return value


_COMPARE: dict[str, Callable[[Any, Any], Any]] = {
    "lt": operator.lt,
    "le": operator.le,
    "gt": operator.gt,
    "ge": operator.ge,
}


def _operate(name: str, args: list[Any]) -> Any:
    match name:
        case "list":
            return args
        case "tuple":
            return tuple(args)
        case "dict":
            return dict(zip(args[::2], args[1::2], strict=True))
        case "not":
            return not _truth(args[0])
        case "eq":
            return _equal(*args)
        case "ne":
            return not _equal(*args)
    try:
        if name == "len":
            return len(args[0])
        if name == "in":
            return _bare(args[0]) in args[1]
        return bool(_COMPARE[name](_bare(args[0]), _bare(args[1])))
    except TypeError:
        kinds = " and ".join(type(a).__name__ for a in args)
        raise ValueInvalid(f"expected values that '{name}' can be asked of; got {kinds}") from None


def _equal(a: Any, b: Any) -> bool:
    a, b = _bare(a), _bare(b)
    if isinstance(a, BaseModel) != isinstance(b, BaseModel):  # a record against the constant it was written as
        a, b = (x.model_dump(mode="json") if isinstance(x, BaseModel) else x for x in (a, b))
    return bool(a == b)
