"""`@fs.workflow`: a function of nodes, traced once into a Program, and the object that users run."""

import copy
import dataclasses
import inspect
import re
from collections.abc import AsyncIterator, Callable, Iterator
from functools import cached_property
from typing import TYPE_CHECKING, Any, Self, cast, overload

import pydantic

from flowserve.errors import GraphError, Problem
from flowserve.graphs import hints, settings, signature
from flowserve.graphs.declaration import ConstExpr, Declaration, Expr, ParamExpr
from flowserve.graphs.nodes import Node, P, R
from flowserve.graphs.plan import SLO, Budget
from flowserve.graphs.program import Program, Shapes
from flowserve.graphs.runner import Handle, Runner, current_runner
from flowserve.graphs.shapes import Shape, TypedShape
from flowserve.graphs.signature import Signature
from flowserve.graphs.trace import Trace, require, tracing
from flowserve.graphs.values import Value

if TYPE_CHECKING:
    from flowserve.graphs.draw import Drawing

TIERS = ("interactive", "standard", "batch")


class Workflow(Node[P, R]):
    """A typed dataflow graph. Call it inside another workflow to make it a part of that one."""

    def __init__(
        self,
        fn: Callable[..., Any],
        slo: SLO | None = None,
        name: str | None = None,
        description: str | None = None,
        budget: Budget | None = None,
    ) -> None:
        self.fn = fn
        self.settings, problems = settings.read(name=name)
        self.slo, slo_problems = _checked_slo(slo, name or fn.__name__)
        self.budget = budget if budget is not None else Budget()
        self.setting_problems = (*problems, *slo_problems, *_wrong_budget(self.budget, name or fn.__name__))
        self.description = description
        self.run_options: dict[str, Any] = {}
        self.__doc__ = fn.__doc__
        self.__name__ = fn.__name__

    def __repr__(self) -> str:
        return f"Workflow({self.signature})"

    # --- running ------------------------------------------------------------------------------------

    def run(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Run and wait for the result."""
        runner, inputs = self._ready(args, kwargs)
        return cast(R, runner.run(self.program, inputs, **self.run_options))

    async def arun(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Run and await the result."""
        runner, inputs = self._ready(args, kwargs)
        return cast(R, await runner.arun(self.program, inputs, **self.run_options))

    def stream(self, *args: P.args, **kwargs: P.kwargs) -> Iterator[Any]:
        """Run and iterate over its events (`runtime.records.RunEvent`)."""
        runner, inputs = self._ready(args, kwargs)
        return runner.stream(self.program, inputs, **self.run_options)

    def astream(self, *args: P.args, **kwargs: P.kwargs) -> AsyncIterator[Any]:
        """As `stream`, with `async for`."""
        runner, inputs = self._ready(args, kwargs)
        return runner.astream(self.program, inputs, **self.run_options)

    def submit(self, *args: P.args, **kwargs: P.kwargs) -> Handle:
        """Start a run; the handle tells its status, cancels it and waits for its result."""
        runner, inputs = self._ready(args, kwargs)
        return runner.submit(self.program, inputs, **self.run_options)

    def options(self, **changes: Any) -> Self:
        """The same workflow with options of its runs: timeout_s, budget, priority, tier, seed, overrides, metadata, ..."""
        other = copy.copy(self)
        if "name" in changes:
            other.settings, problems = settings.merged(self.settings, {"name": changes.pop("name")})
            other.setting_problems = (*self.setting_problems, *problems)
            vars(other).pop("program", None)
            vars(other)["signature"] = dataclasses.replace(self.signature, name=other.name)
        other.run_options = {**self.run_options, **changes}
        return other

    # --- looking ------------------------------------------------------------------------------------

    @cached_property
    def program(self) -> Program:
        """Traced and compiled, once. Raises GraphError with every problem."""
        return trace_workflow(self)

    def graph(self) -> "Drawing":
        """The graph for people: `.mermaid`, `.svg`, `.text`."""
        from flowserve.graphs.draw import Drawing

        return Drawing(self.program.plan)

    def check(self) -> tuple[Problem, ...]:
        """What could be better. Raises GraphError for what is wrong."""
        from flowserve.graphs.lint import lint

        return lint(self.program.plan)

    def spec(self) -> dict[str, Any]:
        """The workflow as a versioned JSON document without code."""
        from flowserve.graphs.codec import to_spec

        return to_spec(self.program)

    # --- for the language ---------------------------------------------------------------------------

    @cached_property
    def signature(self) -> Signature:
        return signature.read(self.fn, self.settings.name)

    def declare(self, trace: Trace, args: dict[str, object]) -> Value:
        sig = self.signature
        trace.lift_all(sig, args)
        with trace.inside(self, sig.name) as fresh:
            if not fresh:
                return Value(ConstExpr(None), Any, sig.name, bad=True)
            with trace.scope(sig.name):
                returned = self.fn(**args)
        expr = _lifted(trace, sig, returned)
        bad = isinstance(returned, Value) and returned._fs_bad
        return Value(expr, sig.returns, sig.name, bad)

    def _ready(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Runner, dict[str, Any]]:
        """The runner and the arguments by name; a wrong call is told before a runner is made."""
        bound, wrong = self.signature.bind(args, kwargs)
        if wrong:
            raise TypeError(f"{self.signature}: got {', '.join(wrong)}")
        return current_runner(), bound


def of_node(node: Node[..., Any]) -> "Workflow[..., Any]":
    """A workflow that calls `node` and nothing else."""

    def call(**kwargs: Any) -> Any:
        return node.call_in(require(), (), kwargs)

    name = re.sub(r"\W", "_", node.name)
    workflow: Workflow[..., Any] = Workflow(call, name=name)
    vars(workflow)["signature"] = dataclasses.replace(node.signature, name=name, problems=())
    workflow.__doc__ = node.signature.doc
    return workflow


def _checked_slo(slo: SLO | None, where: str) -> tuple[SLO, tuple[Problem, ...]]:
    if slo is None:
        return SLO(), ()
    times = {"ttft": slo.ttft, "e2e": slo.e2e, "tpot": slo.tpot}
    problems = [
        Problem(where, f"{key}= a positive number of seconds", repr(value), "Correct the SLO.")
        for key, value in times.items()
        if value is not None and not settings.is_seconds(value)
    ]
    if slo.tier not in TIERS:
        problems.append(Problem(where, f"tier= one of {', '.join(TIERS)}", repr(slo.tier), "Correct the SLO."))
    if slo.binding and slo.e2e is None:
        problems.append(Problem(where, "e2e= beside binding=True", "none", "Say by when the whole result is promised."))
    if problems:
        return SLO(), tuple(problems)
    seconds = {key: None if value is None else float(value) for key, value in times.items()}
    return SLO(**seconds, tier=slo.tier, binding=bool(slo.binding)), ()


def _wrong_budget(budget: Budget, where: str) -> tuple[Problem, ...]:
    return tuple(Problem(where, expected, came, "Correct the Budget.") for expected, came in budget.problems())


def trace_workflow(workflow: Workflow[..., Any]) -> Program:
    """Run the workflow function once with Values and compile what it declares. Raises GraphError."""
    from flowserve.graphs.compile import compile_declaration

    sig = workflow.signature
    trace = Trace(sig.name)
    trace.note(*workflow.problems())
    if not settings.is_name(sig.name):
        trace.note(Problem(sig.name, "a name of letters, digits, _ and -", sig.name, "Use `def`, or give name=."))
    trace.block.params = tuple(p.name for p in sig.params)
    cause: Exception | None = None
    with tracing(trace), trace.inside(workflow, sig.name):
        try:
            if inspect.iscoroutinefunction(workflow.fn):
                remedy = "Write `def`: it only connects nodes. Code that awaits belongs in @fs.dynamic."
                raise GraphError(sig.name, [Problem(sig.name, "a plain function", "'async def'", remedy)])
            returned = workflow.fn(**_stand_ins(sig, trace))
            trace.block.result = _lifted(trace, sig, returned)
        except GraphError as error:
            trace.note(*error.problems)
        except Exception as error:  # noqa: BLE001 (whatever the author's function raises becomes a problem)
            cause = error
            if not trace.problems:
                trace.note(_raised(sig.name, error))
    input_schema, output_schema = _schemas(sig, trace)
    if trace.problems:
        trace.note(*_problems_of_the_other_way(workflow, trace))
        raise GraphError(sig.name, list(trace.problems)) from cause
    text = sig.doc if workflow.description is None else workflow.description
    declaration = Declaration(sig.name, trace.block, input_schema, output_schema, workflow.slo, workflow.budget, text)
    plan = compile_declaration(declaration)
    functions = {name: fn for name, fn in trace.functions.items() if name not in trace.dynamics}
    dynamics = {name: trace.functions[name] for name in trace.functions if name in trace.dynamics}
    return Program(plan, functions, dynamics, _shapes(sig, trace))


def _lifted(trace: Trace, sig: Signature, returned: object) -> Expr:
    """What the function returned, as a result of the declared type."""
    if returned is None and not hints.fits(type(None), sig.returns):
        expected = f"a result of type {hints.describe(sig.returns)}"
        trace.note(
            Problem(sig.name, expected, "None", "Has the function a `return`? Give back the last node's result.")
        )
        return ConstExpr(None)
    return trace.lift(returned, sig.returns, sig.name, "a result")


def _raised(name: str, error: Exception) -> Problem:
    """The function's own code failed while it was traced."""
    if isinstance(error, pydantic.ValidationError):
        came = f"{error.title}(...) made of values that are not known yet"
        remedy = f"Write a @fs.tool function that takes the parts and returns {error.title}."
    else:
        came = f"{type(error).__name__}: {error}"
        remedy = (
            "The function runs once, without results, to declare the graph; code belongs in @fs.tool or @fs.dynamic."
        )
    return Problem(name, "a function that only connects nodes", came, remedy)


def _stand_ins(sig: Signature, trace: Trace) -> dict[str, Value]:
    """The parameters of a workflow function while it is traced."""
    return {p.name: Value(ParamExpr(trace.block, i), p.type, f"parameter '{p.name}'") for i, p in enumerate(sig.params)}


def _problems_of_the_other_way(workflow: Workflow[..., Any], trace: Trace) -> tuple[Problem, ...]:
    """A wrong workflow that asked `if` of a value took one way; what is wrong on the other should be said too."""
    other = trace.other_way()
    if other is None:
        return ()
    other.block.params = trace.block.params
    with tracing(other), other.inside(workflow, workflow.signature.name):
        try:
            workflow.fn(**_stand_ins(workflow.signature, other))
        except GraphError as error:
            other.note(*error.problems)
        except Exception:  # noqa: BLE001, S110 (told once, by the first way)
            pass
    return tuple(other.problems)


def _schemas(sig: Signature, trace: Trace) -> tuple[dict[str, Any], dict[str, Any]]:
    try:
        return sig.schema(), sig.returns_schema()
    except TypeError as error:
        remedy = "Use plain types, pydantic models or dataclasses."
        trace.note(Problem(sig.name, "types that can be written as JSON", str(error), remedy))
        return {}, {}


def _shapes(sig: Signature, trace: Trace) -> Shapes:
    def shape(type_: Any) -> Shape | None:
        return None if hints.plain(type_) in (str, Any) else TypedShape(type_)

    return Shapes(
        inputs={p.name: TypedShape(p.type) for p in sig.params},
        defaults={p.name: p.default for p in sig.params if not p.required},
        models={name: shape(output) for name, (_, output) in trace.models.items()},
        params={name: {p.name: TypedShape(p.type) for p in s.params} for name, s in trace.signatures.items()},
        returns={name: TypedShape(s.returns) for name, s in trace.signatures.items()},
        optional={
            name: {p.name: p.default for p in s.params if not p.required} for name, s in trace.signatures.items()
        },
    )


@overload
def workflow(fn: Callable[P, R], /) -> Workflow[P, R]: ...


@overload
def workflow(
    *,
    slo: SLO | None = None,
    name: str | None = None,
    description: str | None = None,
    budget: Budget | None = None,
) -> Callable[[Callable[P, R]], Workflow[P, R]]: ...


def workflow(
    fn: Callable[P, R] | None = None,
    /,
    *,
    slo: SLO | None = None,
    name: str | None = None,
    description: str | None = None,
    budget: Budget | None = None,
) -> Workflow[P, R] | Callable[[Callable[P, R]], Workflow[P, R]]:
    """Declare a workflow: a function that connects nodes. It is traced when the workflow is first used."""

    def declare(fn: Callable[P, R]) -> Workflow[P, R]:
        return Workflow(fn, slo, name, description, budget)

    return declare if fn is None else declare(fn)
