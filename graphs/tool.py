"""`@fs.tool`: a Python function, sync or async, as a node. Outside a workflow it stays the plain function."""

import inspect
from collections.abc import Callable, Coroutine
from functools import cached_property
from typing import Any, Protocol, cast, overload

from flowserve.errors import Problem
from flowserve.graphs import settings, signature
from flowserve.graphs.declaration import OutputExpr
from flowserve.graphs.nodes import Node, P, R
from flowserve.graphs.plan import Kind, Retry, ToolSpec
from flowserve.graphs.signature import Signature
from flowserve.graphs.trace import Trace
from flowserve.graphs.values import Value


class ToolNode(Node[P, R]):
    """One call of a registered function."""

    def __init__(self, fn: Callable[..., Any], effects: bool, **options: Any) -> None:
        self.fn = fn
        self.effects = effects
        self.settings, self.setting_problems = settings.read(**options)
        self.tool_name = self.settings.name or fn.__name__
        self.__doc__ = fn.__doc__
        self.__name__ = fn.__name__

    @cached_property
    def signature(self) -> Signature:
        return signature.read(self.fn, self.tool_name)

    def problems(self) -> tuple[Problem, ...]:
        return (*super().problems(), *self._read[1])

    @property
    def spec(self) -> ToolSpec:
        """Name, description and schemas; what a model and a spec see of the function."""
        return self._read[0]

    @cached_property
    def _read(self) -> tuple[ToolSpec, tuple[Problem, ...]]:
        sig = self.signature
        problems: list[Problem] = []
        params: dict[str, Any] = {"type": "object", "properties": {}}
        returns: dict[str, Any] = {}
        if inspect.isgeneratorfunction(self.fn) or inspect.isasyncgenfunction(self.fn):
            problems.append(
                Problem(
                    sig.name,
                    "a function that returns its result",
                    "a generator",
                    "Return a list, and report progress with fs.emit.",
                )
            )
        try:
            params, returns = sig.schema(), sig.returns_schema()
        except TypeError as error:
            remedy = "Use plain types, pydantic models or dataclasses: results must be written as JSON."
            problems.append(Problem(sig.name, "types that can be written as JSON", str(error), remedy))
        return ToolSpec(sig.name, sig.doc, params, returns, self.effects), tuple(problems)

    def register(self, trace: Trace) -> ToolSpec:
        """Make the function known to the trace and note what is wrong with it."""
        trace.note(*self.problems())
        trace.function(self.signature, self.fn)
        return self.spec

    def declare(self, trace: Trace, args: dict[str, object]) -> Value:
        spec = self.register(trace)
        exprs = trace.lift_all(self.signature, args)
        named_by = None if self.settings.name in (None, self.tool_name) else self
        node = trace.add(Kind.TOOL, self.name, exprs, spec, self.settings, named_by=named_by)
        return Value(OutputExpr(node), self.signature.returns, node.name)

    def _outside(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> R:
        return cast(R, self.fn(*args, **kwargs))


@overload
def tool(fn: Callable[P, Coroutine[Any, Any, R]], /) -> ToolNode[P, R]: ...


@overload
def tool(fn: Callable[P, R], /) -> ToolNode[P, R]: ...


@overload
def tool(
    *,
    name: str | None = None,
    retry: int | Retry = 0,
    timeout: float | None = None,
    cache: bool = False,
    effects: bool = True,
) -> "_Decorator": ...


def tool(
    fn: Callable[..., Any] | None = None,
    /,
    *,
    name: str | None = None,
    retry: int | Retry = 0,
    timeout: float | None = None,
    cache: bool = False,
    effects: bool = True,
) -> Any:
    """Declare a function as a tool. Its schema comes from its annotations, its description from the docstring.

    `effects=False` says that calling it twice or in vain does no harm. An async tool runs on the event loop, a
    plain one in a thread.
    """

    def declare(fn: Callable[..., Any]) -> ToolNode[..., Any]:
        return ToolNode(fn, effects, name=name, retry=retry, timeout=timeout, cache=cache)

    return declare if fn is None else declare(fn)


class _Decorator(Protocol):
    """Type of `tool(...)`, for type checkers: awaits of async functions are the runtime's."""

    @overload
    def __call__(self, fn: Callable[P, Coroutine[Any, Any, R]], /) -> ToolNode[P, R]: ...

    @overload
    def __call__(self, fn: Callable[P, R], /) -> ToolNode[P, R]: ...
