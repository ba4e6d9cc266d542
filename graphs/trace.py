"""The trace: what is collected while a workflow function runs once with Values instead of results.

One Trace is current at a time (per context). It holds the declaration under construction, the names given so
far, the functions and models met, and every problem found. Nodes and combinators write to it.
"""

import dataclasses
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import pydantic

from flowserve.errors import GraphError, Problem, ValueInvalid
from flowserve.graphs import hints, shapes
from flowserve.graphs.declaration import (
    MAX_EXPR_DEPTH,
    BlockDecl,
    ConstExpr,
    Expr,
    NodeDecl,
    OpExpr,
    OutputExpr,
    Payload,
    depth,
    references,
)
from flowserve.graphs.plan import Degradation, Kind, LLMSpec, ToolSpec
from flowserve.graphs.settings import Settings
from flowserve.graphs.signature import Signature

_current: ContextVar["Trace | None"] = ContextVar("flowserve_trace", default=None)


def current() -> "Trace | None":
    """The trace in progress, or None outside a declaration."""
    return _current.get()


def require() -> "Trace":
    """The trace in progress; GraphError when a Value escaped from its workflow."""
    trace = _current.get()
    if trace is None:
        came = "a value that was kept from a declaration"
        remedy = "Use results only inside the workflow function that made them; run it with .run(...)."
        raise GraphError("?", [Problem("outside any workflow", "a known value", came, remedy)])
    return trace


class Trace:
    """A workflow (or prompt) while it is being declared."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.problems: dict[Problem, None] = {}
        self.block = BlockDecl(name)
        self.functions: dict[str, Callable[..., Any]] = {}
        """Tools and dynamics by name."""
        self.signatures: dict[str, Signature] = {}
        """Of the functions."""
        self.dynamics: set[str] = set()
        self.tools: dict[str, ToolSpec] = {}
        self.models: dict[str, tuple[LLMSpec, Any]] = {}
        """By unique name: the spec and the declared output type (`str` for text)."""
        self.active: list[tuple[object, str]] = []
        """Workflows and dynamics being inlined, outermost first; a second visit is a cycle."""
        self._scope = ""
        self._names: set[str] = set()
        self._named_by: dict[str, object] = {}
        self._counts: dict[str, int] = {}
        self._visits: set[tuple[str, int]] = set()

    # --- problems -----------------------------------------------------------------------------------

    def note(self, *problems: Problem) -> None:
        """Remember problems; equal ones once."""
        for problem in problems:
            self.problems.setdefault(problem)

    def first_visit(self) -> bool:
        """Whether the line that called (two frames up) asks for the first time."""
        frame = sys._getframe(2)
        place = (frame.f_code.co_filename, frame.f_lineno)
        first = place not in self._visits
        self._visits.add(place)
        return first

    def other_way(self) -> "Trace | None":
        """A fresh trace in which every `if` that was asked of a value answers False; None when none was."""
        if not self._visits:
            return None
        other = Trace(self.name)
        other._visits = set(self._visits)
        return other

    # --- building -----------------------------------------------------------------------------------

    def add(
        self,
        kind: Kind,
        name: str,
        args: Mapping[str, Expr],
        payload: Payload = None,
        settings: Settings | None = None,
        limit: int = 1,
        concurrency: int = 0,
        named_by: object = None,
        degrade: Degradation | None = None,
    ) -> NodeDecl:
        """Append a node to the current block under a name that is free; see `unique`."""
        settings = settings or Settings()
        node = NodeDecl(
            name=self.unique(name, named_by),
            kind=kind,
            block=self.block,
            args=list(args.items()),
            payload=payload,
            limit=limit,
            concurrency=concurrency,
            retry=settings.retry,
            timeout_s=settings.timeout_s,
            cache=settings.cache,
            degrade=degrade,
        )
        self.block.nodes.append(node)
        return node

    def unique(self, base: str, named_by: object = None) -> str:
        """`base` in the present scope, or with the first number that makes it new.

        `named_by`: the node whose author chose the name. Calls of it are numbered; another node must not have the name.
        """
        full = self._scope + base
        if named_by is not None and full in self._names and self._named_by.get(full) is not named_by:
            came = "a second node of that name"
            self.note(Problem(full, "a name of its own for every node", came, "Give another name= or none."))
        name, count = full, self._counts.get(full, 1)
        while name in self._names:
            count += 1
            name = f"{full}_{count}"
        self._counts[full] = count
        self._names.add(name)
        self._named_by.setdefault(full, named_by)
        return name

    @contextmanager
    def scope(self, name: str) -> Iterator[None]:
        """Names of nodes made inside begin with `name/`."""
        before = self._scope
        self._scope = self.unique(name) + "/"
        try:
            yield
        finally:
            self._scope = before

    @contextmanager
    def within(self, name: str) -> Iterator[None]:
        """Names of nodes made inside begin with the name of an existing node."""
        before = self._scope
        self._scope = name + "/"
        try:
            yield
        finally:
            self._scope = before

    @contextmanager
    def inside(self, thing: object, name: str) -> Iterator[bool]:
        """Visit a workflow or dynamic; yields False (and notes the cycle) when it is being visited already."""
        path = [n for _, n in self.active] + [name]
        if any(thing is other for other, _ in self.active):
            first = next(i for i, (other, _) in enumerate(self.active) if other is thing)
            remedy = "A graph has no recursion: use fs.loop, or make the inner call from an @fs.dynamic function that is not part of it."
            self.note(
                Problem(name, "workflows that do not call themselves", "the cycle " + " -> ".join(path[first:]), remedy)
            )
            yield False
            return
        self.active.append((thing, name))
        try:
            yield True
        finally:
            self.active.pop()

    @contextmanager
    def body(self, owner: NodeDecl, role: str, params: tuple[str, ...] = ()) -> Iterator[BlockDecl]:
        """Declare a body of `owner`: nodes made inside belong to it."""
        block = BlockDecl(f"{owner.name}/{role}", params, owner=owner)
        owner.bodies.append(block)
        outer, self.block = self.block, block
        try:
            yield block
        finally:
            self.block = outer

    def model(self, spec: LLMSpec, output: Any) -> LLMSpec:
        """`spec` under a name that no different model call of this workflow has."""
        base, count = spec.name, 1
        while spec.name in self.models:
            known, known_output = self.models[spec.name]
            if known == spec and known_output == output:
                return known
            count += 1
            spec = dataclasses.replace(spec, name=f"{base}_{count}")
        self.models[spec.name] = (spec, output)
        return spec

    def function(self, signature: Signature, fn: Callable[..., Any], dynamic: bool = False) -> None:
        """Register a tool or dynamic; two different functions of one name are a problem."""
        name = signature.name
        if self.functions.setdefault(name, fn) is not fn:
            came = f"two functions: {_place(self.functions[name])} and {_place(fn)}"
            self.note(Problem(name, "one function per tool name", came, "Rename one, or give it name=."))
            return
        self.signatures[name] = signature
        if dynamic:
            self.dynamics.add(name)

    # --- arguments ----------------------------------------------------------------------------------

    def lift_all(self, signature: Signature, bound: Mapping[str, object]) -> dict[str, Expr]:
        """Arguments as expressions, each checked against its parameter."""
        known = {p.name: p for p in signature.params}
        return {
            name: self.lift(value, known[name].type, signature.name, f"argument '{name}'")
            for name, value in bound.items()
        }

    def lift(self, value: object, wants: Any, where: str, label: str) -> Expr:
        """`value` as an expression of type `wants`; what does not fit is noted as a problem of `where`."""
        expr, came = self.infer(value, f"{where}: {label}")
        if came is Any:
            return expr
        if isinstance(expr, ConstExpr):
            wrong = self._constant_misfit(value, wants)
            if wrong is None:
                return expr
            shown = f"{value!r}"[:60] + f" ({wrong})"
        elif hints.fits(came, wants):
            return expr
        else:
            source = getattr(value, "_fs_what", "an expression")
            shown = f"{hints.describe(came)} from {source}"
        remedy = _remedy(came, wants)
        self.note(Problem(where, f"{label} of type {hints.describe(wants)}", shown, remedy))
        return expr

    def infer(self, value: object, where: str) -> tuple[Expr, Any]:
        """`value` as an expression, and its type."""
        from flowserve.graphs.values import Value

        if isinstance(value, Value):
            if value._fs_bad:
                return ConstExpr(None), Any
            self._check_reach(value._fs_expr, value._fs_what, where)
            return value._fs_expr, value._fs_type
        if _holds_values(value):
            return self._collect(value, where)
        try:
            return ConstExpr(shapes.jsonable(value)), hints.of_value(value)
        except ValueInvalid:
            remedy = "Pass plain data, models or dataclasses; code and open resources belong in a @fs.tool function."
            came = f"{type(value).__module__}.{type(value).__qualname__}"
            self.note(Problem(where, "a constant that can be written as JSON", came, remedy))
            return ConstExpr(None), Any

    def _collect(self, value: object, where: str) -> tuple[Expr, Any]:
        """A list, tuple or dict with Values somewhere in it."""
        if isinstance(value, dict):
            pairs = [(self.infer(k, where), self.infer(v, where)) for k, v in value.items()]
            if not all(isinstance(k, str) for k in value):
                came = "another key"
                self.note(Problem(where, "a dict with constant strings as keys", came, "Use strings as keys."))
            flat = tuple(e for (key, _), (item, _) in pairs for e in (key, item))
            return self._op("dict", flat, where), dict[str, hints.union(t for _, (_, t) in pairs)]  # type: ignore[misc]
        assert isinstance(value, list | tuple)
        items = [self.infer(v, where) for v in value]
        exprs, kinds = tuple(e for e, _ in items), [t for _, t in items]
        if isinstance(value, tuple):
            return self._op("tuple", exprs, where), tuple[tuple(kinds)]  # type: ignore[misc]
        return self._op("list", exprs, where), list[hints.union(kinds)]  # type: ignore[misc]

    def _op(self, name: str, args: tuple[Expr, ...], where: str) -> Expr:
        expr = OpExpr(name, args)
        if depth(expr) > MAX_EXPR_DEPTH:
            remedy = "Build the value in a @fs.tool function."
            self.note(Problem(where, f"expressions at most {MAX_EXPR_DEPTH} deep", "a deeper one", remedy))
            return ConstExpr(None)
        return expr

    def _check_reach(self, expr: Expr, what: str, where: str) -> None:
        """A value may be used in its own block and in blocks inside it, not outside."""
        for ref in references(expr):
            home = ref.node.block if isinstance(ref, OutputExpr) else ref.block
            block: BlockDecl | None = self.block
            while block is not None and block is not home:
                block = block.owner.block if block.owner else None
            if block is None:
                came = f"{what}, which exists only inside {home.name}"
                self.note(
                    Problem(
                        where,
                        "a value that exists here",
                        came,
                        "Return it from the branch or body, and use that result.",
                    )
                )

    def _constant_misfit(self, value: object, wants: Any) -> str | None:
        try:
            shapes.TypedShape(wants).load(value)
        except shapes.ShapeError as error:
            return str(error)
        except (pydantic.errors.PydanticUserError, pydantic.errors.PydanticUndefinedAnnotation):
            return None if hints.fits(hints.of_value(value), wants) else "another type"
        return None


def _remedy(came: Any, wants: Any) -> str:
    if hints.is_sequence(came) and came is not Any and hints.fits(hints.element(came), wants):
        return "It gives a list: use node.map(items), or take one item, e.g. [0]."
    if type(None) in hints.members(came) and hints.fits(
        hints.union(m for m in hints.members(came) if m is not type(None)), wants
    ):
        return "It may be None: accept None in the parameter, or decide with fs.when."
    fields = [name for name, kind in (hints.fields(came) or {}).items() if kind is not Any and hints.fits(kind, wants)]
    if fields:
        return f"Did you mean the field .{fields[0]}?"
    return "Change one of the two types, or convert in a @fs.tool function between them."


def _holds_values(value: object) -> bool:
    from flowserve.graphs.values import Value

    if isinstance(value, Value):
        return True
    if isinstance(value, list | tuple):
        return any(map(_holds_values, value))
    return isinstance(value, dict) and any(_holds_values(v) for pair in value.items() for v in pair)


def _place(fn: Callable[..., Any]) -> str:
    code = getattr(fn, "__code__", None)
    return f"{fn.__module__}:{code.co_firstlineno}" if code else str(fn.__module__)


@contextmanager
def tracing(trace: Trace) -> Iterator[Trace]:
    """Make `trace` the current one."""
    token = _current.set(trace)
    try:
        yield trace
    finally:
        _current.reset(token)
