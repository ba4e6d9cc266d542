"""`@fs.dynamic`: the escape hatch. Ordinary async Python whose calls of nodes are still scheduled.

Inside it nodes are awaited: `await answer.acall(question)`. What it may call, and how often at most, is declared.
"""

import inspect
from collections.abc import Callable, Coroutine, Sequence
from functools import cached_property
from typing import Any

from flowserve.errors import Problem
from flowserve.graphs import settings, signature
from flowserve.graphs.declaration import OutputExpr, ParamExpr
from flowserve.graphs.nodes import Node, P, R, bound_of
from flowserve.graphs.plan import DynamicSpec, Kind, Retry
from flowserve.graphs.signature import Signature
from flowserve.graphs.trace import Trace
from flowserve.graphs.values import Value


class DynamicNode(Node[P, R]):
    """One execution of an async function that calls nodes."""

    def __init__(self, fn: Callable[..., Any], calls: Sequence[Node[..., Any]], max_calls: int, **options: Any) -> None:
        self.fn = fn
        self.calls = tuple(calls)
        self.max_calls = max_calls
        self.settings, self.setting_problems = settings.read(**options)
        self.function_name = self.settings.name or fn.__name__
        self.__doc__ = fn.__doc__
        self.__name__ = fn.__name__

    @cached_property
    def signature(self) -> Signature:
        return signature.read(self.fn, self.function_name)

    def problems(self) -> tuple[Problem, ...]:
        return (*super().problems(), *self._read[1])

    @property
    def spec(self) -> DynamicSpec:
        """Name, schemas and callees."""
        return self._read[0]

    @cached_property
    def _read(self) -> tuple[DynamicSpec, tuple[Problem, ...]]:
        sig = self.signature
        problems: list[Problem] = []
        if not inspect.iscoroutinefunction(self.fn):
            came = f"'def {self.fn.__name__}'"
            problems.append(
                Problem(sig.name, "an async function", came, "Write `async def` and await node.acall(...).")
            )
        for callee in self.calls:
            if not isinstance(callee, Node):
                came = getattr(callee, "__name__", type(callee).__name__)
                problems.append(
                    Problem(sig.name, "calls= nodes", str(came), "Decorate it with @fs.llm, @fs.tool or @fs.workflow.")
                )
        names = tuple(c.name for c in self.calls if isinstance(c, Node))
        for name in sorted({n for n in names if names.count(n) > 1}):
            remedy = "Give one of them another name with .options(name=...)."
            problems.append(Problem(sig.name, "calls= nodes with different names", f"'{name}' twice", remedy))
        params: dict[str, Any] = {"type": "object", "properties": {}}
        returns: dict[str, Any] | None = None
        try:
            params, returns = sig.schema(), sig.returns_schema()
        except TypeError as error:
            remedy = "Use plain types, pydantic models or dataclasses."
            problems.append(Problem(sig.name, "types that can be written as JSON", str(error), remedy))
        return DynamicSpec(sig.name, params, returns, names), tuple(problems)

    def declare(self, trace: Trace, args: dict[str, object]) -> Value:
        sig = self.signature
        exprs = trace.lift_all(sig, args)
        limit = bound_of(trace, sig.name, "max_calls", self.max_calls)
        trace.function(sig, self.fn, dynamic=True)
        named_by = None if self.settings.name in (None, self.function_name) else self
        node = trace.add(Kind.DYNAMIC, self.name, exprs, self.spec, self.settings, limit=limit, named_by=named_by)
        with trace.inside(self, sig.name) as fresh:
            if fresh:
                self._declare_callees(trace, node)
        return Value(OutputExpr(node), sig.returns, node.name)

    def _declare_callees(self, trace: Trace, node: Any) -> None:
        for callee in self.calls:
            if not isinstance(callee, Node):
                continue
            trace.note(*callee.problems())
            params = callee.signature.params
            with trace.within(node.name), trace.body(node, callee.name, tuple(p.name for p in params)) as block:
                stand_ins: dict[str, object] = {
                    p.name: Value(ParamExpr(block, i), p.type, f"{callee.name}: parameter '{p.name}'")
                    for i, p in enumerate(params)
                }
                result = callee.declare(trace, stand_ins)
                block.result, _ = trace.infer(result, callee.name)


def dynamic(
    *,
    calls: Sequence[Node[..., Any]],
    max_calls: int = 0,
    name: str | None = None,
    retry: int | Retry = 0,
    timeout: float | None = None,
) -> Callable[[Callable[P, Coroutine[Any, Any, R]]], DynamicNode[P, R]]:
    """Declare an async function that may call the nodes in `calls`, `max_calls` times in all (required).

    It may do anything Python can; what it awaits with `.acall(...)` is scheduled with the rest of the workflow.
    """

    def declare(fn: Callable[P, Coroutine[Any, Any, R]]) -> DynamicNode[P, R]:
        return DynamicNode(fn, calls, max_calls, name=name, retry=retry, timeout=timeout)

    return declare
