"""Branches, loops and conditions over values that do not exist yet.

Outside a workflow function (inside a @fs.dynamic one, say) they do at once what their names say.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from enum import Enum
from types import GenericAlias
from typing import Any, TypeVar, cast

from flowserve.errors import Problem
from flowserve.graphs import hints
from flowserve.graphs.declaration import ConstExpr, Expr, OpExpr, OutputExpr, ParamExpr
from flowserve.graphs.nodes import Node, bound_of, degradation_of
from flowserve.graphs.plan import Kind
from flowserve.graphs.trace import Trace, current
from flowserve.graphs.values import Value

T = TypeVar("T")
K = TypeVar("K")


def when(cond: bool, then: Callable[[], T], otherwise: Callable[[], T]) -> T:
    """The result of `then` if `cond` is true, else of `otherwise`. Only the chosen arm runs."""
    trace = current()
    if trace is None:
        return then() if cond else otherwise()
    expr, came = trace.infer(cond, "when")
    if not hints.is_condition(came):
        remedy = "Compare it, e.g. x.score >= 8, or x.name == 'a'."
        trace.note(Problem("when", "a condition of type bool", hints.describe(came), remedy))
    return cast(T, _switch(trace, "when", {"value": expr}, [("then", then), ("otherwise", otherwise)]))


def match(value: K, cases: Mapping[K, Callable[[], T]], otherwise: Callable[[], T] | None = None) -> T:
    """The result of the case that equals `value`, else of `otherwise`. Only the chosen arm runs.

    `otherwise` may be left out when the type of `value` lists all its values (Literal, Enum, bool).
    """
    trace = current()
    if trace is None:
        arm = cases.get(value, otherwise)
        if arm is None:
            raise LookupError(f"no case equals {value!r}")
        return arm()
    expr, came = trace.infer(value, "match")
    keys = [k.value if isinstance(k, Enum) else k for k in cases]
    for key in keys:
        if not isinstance(key, str | int | bool | None):
            trace.note(
                Problem(
                    "match", "cases that are strings, numbers, bools or None", repr(key), "Compare a simpler field."
                )
            )
    listed = hints.closed_values(came)
    if listed is not None:
        for key in keys:
            if key not in listed:
                expected = f"cases among {', '.join(map(repr, listed))}"
                trace.note(Problem("match", expected, repr(key), "Correct the case: it can never be chosen."))
    if not keys:
        trace.note(Problem("match", "at least one case", "none", "Add a case."))
    if otherwise is None and (listed is None or not set(listed) <= set(keys)):
        missing = ", ".join(repr(v) for v in listed or () if v not in keys) or "any other value"
        trace.note(Problem("match", "an arm for every value", f"none for {missing}", "Add otherwise=lambda: ..."))
    arms: list[tuple[str, Any]] = [(str(key), arm) for key, arm in zip(keys, cases.values(), strict=True)]
    if otherwise is not None:
        arms.append(("otherwise", otherwise))
    constant, _ = trace.infer(list(keys), "match")
    return cast(T, _switch(trace, "match", {"value": expr, "cases": constant}, arms))


def _switch(trace: Trace, name: str, args: dict[str, Expr], arms: list[tuple[str, Any]]) -> Value:
    node = trace.add(Kind.SWITCH, name, args)
    kinds: list[Any] = []
    for role, arm in arms:
        with trace.body(node, role) as block:
            if not callable(arm) or isinstance(arm, Value):
                came = f"{role}={type(arm).__name__}"
                trace.note(
                    Problem(
                        node.name, "arms that are functions", came, "Write `lambda: ...` so that only one arm runs."
                    )
                )
                continue
            block.result, kind = trace.infer(arm(), f"{node.name}: {role}")
            kinds.append(hints.widen(kind))
    return Value(OutputExpr(node), hints.union(kinds), node.name)


def race(*arms: Callable[[], T], valid: Callable[[T], bool] | None = None) -> T:
    """The result of the arm that ends well first; the others are cancelled, in their engines too.

    An arm that fails, or whose result `valid(result)` does not hold for, is out; when all are, the node fails. Which arm wins
    depends on time, so a race is for arms whose results serve equally.
    """
    trace = current()
    if trace is None:
        return _first(1, arms, valid)[0]
    return cast(T, _race(trace, "race", 1, arms, valid))


def quorum(count: int, *arms: Callable[[], T], valid: Callable[[T], bool] | None = None) -> list[T]:
    """The results of the first `count` arms that end well, in the order of the arms; as `race`, which is for one."""
    trace = current()
    if trace is None:
        return _first(count, arms, valid)
    if isinstance(count, bool) or not isinstance(count, int) or not 2 <= count <= len(arms):
        remedy = "Ask for at least two and at most all of them; for one write fs.race(...)."
        trace.note(Problem("quorum", f"a count from 2 to the number of arms ({len(arms)})", repr(count)[:100], remedy))
        count = 2
    return cast(list[T], _race(trace, "quorum", count, arms, valid))


def _first(count: int, arms: Sequence[Callable[[], T]], valid: Callable[[T], bool] | None) -> list[T]:
    found: list[T] = []
    last: Exception | None = None
    for arm in arms:
        try:
            value = arm()
        except Exception as error:  # noqa: BLE001  # a failure of one arm is what the others are for
            last = error
            continue
        if valid is None or valid(value):
            found.append(value)
        if len(found) == count:
            return found
    raise last or LookupError(f"{len(found)} of {len(arms)} arms gave a valid result; expected {count}")


def _race(trace: Trace, name: str, count: int, arms: Sequence[Any], valid: Any) -> Value:
    if len(arms) < 2:
        trace.note(Problem(name, "at least two arms", str(len(arms)), f"Write fs.{name}(lambda: a(x), lambda: b(x))."))
    node = trace.add(Kind.RACE, name, {}, limit=count)
    kinds: list[Any] = []
    for number, arm in enumerate(arms, 1):
        with trace.body(node, str(number)) as block:
            if not callable(arm) or isinstance(arm, Value):
                came = f"arm {number} is {type(arm).__name__}"
                remedy = "Write `lambda: ...` around each of them."
                trace.note(Problem(node.name, "arms that are functions", came, remedy))
                continue
            block.result, kind = trace.infer(arm(), f"{node.name}: arm {number}")
            kinds.append(hints.widen(kind))
            if valid is not None:
                result = Value(block.result, kinds[-1], f"the result of arm {number} of '{node.name}'")
                block.until = _condition(trace, node.name, "valid", valid, result)
    kind = hints.union(kinds)
    return Value(OutputExpr(node), kind if count == 1 else GenericAlias(list, (kind,)), node.name)


def loop(
    body: Callable[[T], T],
    init: T,
    *,
    until: Callable[[T], bool] | None = None,
    max_iters: int = 0,
    least: int | None = None,
    harm: float | None = None,
) -> T:
    """`body` applied again and again, beginning with `init`.

    `until(state)` is checked before every iteration, on `init` too; when it is true the state is the result. After
    `max_iters` iterations (required) the last state is the result. `least` iterations, at a `harm` above 0 and at most
    1, will do when the run would be late.
    """
    trace = current()
    if trace is None:
        state = init
        for _ in range(max_iters):
            if until is not None and until(state):
                break
            state = body(state)
        return state
    return cast(T, _loop(trace, "loop", body, init, until, max_iters, least, harm))


def optional(body: Callable[[T], T], otherwise: T, *, harm: float) -> T:
    """`body(otherwise)`, or `otherwise` itself when the run would be late; `harm`, above 0 and at most 1, is what the
    result loses without `body`. A loop of one iteration of which none will do."""
    trace = current()
    if trace is None:
        return body(otherwise)
    name = f"{body.name}.optional" if isinstance(body, Node) else "optional"
    return cast(T, _loop(trace, name, body, otherwise, None, 1, 0, harm))


def _loop(
    trace: Trace,
    name: str,
    body: Any,
    init: Any,
    until: Any,
    max_iters: int,
    least: int | None,
    harm: float | None,
) -> Value:
    expr, came = trace.infer(init, name)
    takes = hints.widen(came)
    if isinstance(body, Node) and body.signature.params:
        takes = body.signature.params[0].type
        trace.lift(init, takes, name, f"init, as {body.name} takes it,")
    limit = bound_of(trace, name, "max_iters", max_iters)
    degrade = degradation_of(trace, name, least, harm, 0, limit)
    node = trace.add(Kind.LOOP, name, {"init": expr}, limit=limit, degrade=degrade)
    with trace.body(node, "iteration", ("state",)) as block:
        state = Value(ParamExpr(block, 0), takes, f"the state of '{node.name}'")
        block.result, gives = trace.infer(body(state), node.name)
        if not hints.fits(gives, takes):
            remedy = "The body's result is its next argument: make the two types equal."
            expected = f"a body that gives {hints.describe(takes)}, as it takes"
            trace.note(Problem(node.name, expected, hints.describe(gives), remedy))
        if until is not None:
            block.until = _until(trace, node.name, until, state)
    result = hints.union((hints.widen(came), gives)) if came is not Any else gives
    return Value(OutputExpr(node), result, node.name)


def _until(trace: Trace, where: str, until: Any, state: Value) -> Expr | None:
    expr = _condition(trace, where, "until", until, state)
    return None if isinstance(expr, ConstExpr) and expr.value is False else expr


def _condition(trace: Trace, where: str, word: str, condition: Any, value: Value) -> Expr | None:
    """What `condition(value)` computes; None, after a note, if it calls a node."""
    before = len(trace.block.nodes)
    told = condition(value)
    if len(trace.block.nodes) != before:
        del trace.block.nodes[before:]
        remedy = "Let the body compute what decides, and compare a field of it."
        trace.note(Problem(where, f"{word}= a condition without calls", "a call of a node in it", remedy))
        return None
    expr, kind = trace.infer(told, f"{where}: {word}")
    if not hints.is_condition(kind):
        trace.note(
            Problem(where, f"{word}= a condition of type bool", hints.describe(kind), "Compare it, e.g. d.score >= 8.")
        )
    return expr


# --- expressions ------------------------------------------------------------------------------------------


def length(items: Collection[Any]) -> int:
    """`len(items)`, also of a value that does not exist yet; for conditions."""
    return cast(int, _operation("len", (items,), int, lambda: len(items)))


def contains(items: Collection[Any], item: object) -> bool:
    """`item in items`, also for values that do not exist yet; for conditions."""
    return cast(bool, _operation("in", (item, items), bool, lambda: item in items))


def all_of(*conditions: bool) -> bool:
    """Whether all conditions hold; the same as `a & b`, with types that every checker knows."""
    return cast(bool, _operation("and", conditions, bool, lambda: all(conditions)))


def any_of(*conditions: bool) -> bool:
    """Whether one of the conditions holds; the same as `a | b`."""
    return cast(bool, _operation("or", conditions, bool, lambda: any(conditions)))


def negate(condition: bool) -> bool:
    """Whether the condition does not hold; the same as `~a`, which checkers refuse on bool."""
    return cast(bool, _operation("not", (condition,), bool, lambda: not condition))


def _operation(op: str, args: tuple[Any, ...], gives: type, at_once: Callable[[], object]) -> object:
    trace = current()
    if trace is None or not any(isinstance(a, Value) for a in args):
        return at_once()
    pairs = [trace.infer(arg, f"fs.{op}") for arg in args]
    if op in ("and", "or", "not"):
        for _, kind in pairs:
            if not hints.is_condition(kind):
                trace.note(
                    Problem(
                        trace.name, "conditions of type bool", hints.describe(kind), "Compare first, e.g. x.score >= 8."
                    )
                )
    return Value(OpExpr(op, tuple(e for e, _ in pairs)), gives, f"a condition ({op})")
