"""`Node`: something that can be called in a workflow. Also what every node offers: map, sample, acall, ask, run.

A node is immutable. Calling it inside a workflow function adds a plan node and gives a Value; its type,
`Node[P, R]`, is that of the function it was made from, so editors and type checkers see plain Python.
"""

import copy
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Iterable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, Self, TypeVar, cast, overload

from flowserve.errors import GraphError, Problem
from flowserve.graphs import context, hints
from flowserve.graphs import settings as node_settings
from flowserve.graphs.declaration import ConstExpr, OutputExpr, ParamExpr
from flowserve.graphs.plan import Degradation, Kind, SampleSpec
from flowserve.graphs.settings import Settings
from flowserve.graphs.signature import Signature
from flowserve.graphs.stopping import Stop
from flowserve.graphs.trace import Trace, current
from flowserve.graphs.values import Value

if TYPE_CHECKING:
    from flowserve.graphs.workflow import Workflow

P = ParamSpec("P")
R = TypeVar("R")

DEFAULT_MAX_WIDTH = 10_000
MAX_BOUND = 1_000_000
"""Largest width, number of samples, iterations, steps or calls that may be declared."""


class Node(ABC, Generic[P, R]):
    """Something that can be called in a workflow."""

    settings: Settings
    setting_problems: tuple[Problem, ...] = ()

    # --- for authors --------------------------------------------------------------------------------

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        trace = current()
        if trace is None:
            return self._outside(args, kwargs)
        return cast(R, self.call_in(trace, args, kwargs))

    def acall(self, *args: P.args, **kwargs: P.kwargs) -> Awaitable[R]:
        """Call the node from a running @fs.dynamic function, and await its typed result."""
        caller, bound = self._from_inside(args, kwargs)
        return cast(Awaitable[R], caller.call(self.name, bound))

    def ask(self, *args: P.args, **kwargs: P.kwargs) -> "Awaitable[context.Answer[R]]":
        """As `acall`, for a function that can go on without the result: a failure is told and not raised, and so are the
        tokens that the call took."""
        caller, bound = self._from_inside(args, kwargs)
        return cast("Awaitable[context.Answer[R]]", caller.ask(self.name, bound))

    def map(
        self,
        items: Iterable[Any],
        *more: Iterable[Any],
        concurrency: int | None = None,
        max_width: int | None = None,
        **fixed: Any,
    ) -> list[R]:
        """One call per item, side by side; results in item order.

        `items` and `more` are zipped onto the leading parameters; `fixed` are arguments that all calls share.
        `max_width` bounds the number of items (a longer list fails the run), 10,000 when not given.
        """
        trace = current()
        if trace is None:
            raise _outside_error(self.name, f"{self.name}.map(...)")
        return cast(list[R], self._map_in(trace, (items, *more), concurrency, max_width, fixed))

    @overload
    def sample(
        self,
        n: int,
        *,
        vote: str,
        stop: Stop | None = None,
        wave: int | None = None,
        concurrency: int | None = None,
        least: int | None = None,
        harm: float | None = None,
    ) -> "Node[P, R]": ...

    @overload
    def sample(
        self,
        n: int,
        *,
        vote: None = None,
        stop: None = None,
        wave: None = None,
        concurrency: int | None = None,
        least: int | None = None,
        harm: float | None = None,
    ) -> "Node[P, list[R]]": ...

    def sample(
        self,
        n: int,
        *,
        vote: str | None = None,
        stop: Stop | None = None,
        wave: int | None = None,
        concurrency: int | None = None,
        least: int | None = None,
        harm: float | None = None,
    ) -> "Node[P, R] | Node[P, list[R]]":
        """The same call `n` times on the same input.

        `vote="field"` gives the sample whose field is most frequent, `vote=""` compares whole values; without a vote
        the result is the list of all samples. `stop` ends sampling early once the vote is certain enough:
        then only as many are begun as are sure to be needed, and more where engines have seats that nobody waits for. `wave`
        of them at least are under way, with 0 all. `least` samples, at a `harm` above 0 and at most 1, will do when the run would be late.
        """
        return Sampled(self, n, vote, stop, wave, concurrency, least, harm)

    def options(self, **changes: Any) -> Self:
        """The same node with other settings: name, retry, timeout, cache."""
        other = self._fresh_copy()
        other.settings, problems = node_settings.merged(self.settings, changes)
        other.setting_problems = (*self.setting_problems, *problems)
        return other

    def run(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Run this node alone, as a workflow of one node."""
        return self.alone.run(*args, **kwargs)

    async def arun(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Run this node alone, as a workflow of one node."""
        return await self.alone.arun(*args, **kwargs)

    @cached_property
    def alone(self) -> "Workflow[P, R]":
        """A workflow that calls only this node."""
        from flowserve.graphs.workflow import of_node

        return cast("Workflow[P, R]", of_node(cast(Any, self)))

    # --- for the language ---------------------------------------------------------------------------

    @cached_property
    @abstractmethod
    def signature(self) -> Signature:
        """What the node takes and gives."""

    @property
    def name(self) -> str:
        return self.settings.name or self.signature.name

    def problems(self) -> tuple[Problem, ...]:
        """What is wrong with the node itself, whoever calls it."""
        return (*self.setting_problems, *self.signature.problems)

    @abstractmethod
    def declare(self, trace: Trace, args: dict[str, object]) -> Value:
        """Add the node to the trace. `args` are complete but unchecked."""

    def call_in(self, trace: Trace, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Value:
        """A call inside a workflow function; everything wrong with it is noted."""
        trace.note(*self.problems())
        bound, wrong = self.signature.bind(args, kwargs)
        if wrong:
            trace.note(Problem(self.name, f"a call of {self.signature}", ", ".join(wrong), "Fix the arguments."))
        missing = {p.name: Value(ConstExpr(None), Any, self.name, bad=True) for p in self.signature.params}
        return self.declare(trace, {**missing, **bound})

    def _from_inside(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[context.Caller, dict[str, Any]]:
        """Who carries out a call of the running function, and its arguments by name."""
        caller = context.caller()
        bound, wrong = self.signature.bind(args, kwargs)
        if wrong:
            raise TypeError(f"{self.signature}: got {', '.join(wrong)}")
        if caller is None:
            problem = Problem(self.name, "a call from a running @fs.dynamic function", "a call from elsewhere", _RUN_IT)
            raise GraphError(self.name, [problem])
        return caller, bound

    def _outside(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> R:
        raise _outside_error(self.name, f"{self.name}(...)")

    def _fresh_copy(self) -> Self:
        other = copy.copy(self)
        for name in [n for n in vars(other) if isinstance(getattr(type(self), n, None), cached_property)]:
            del vars(other)[name]
        return other

    def _map_in(
        self,
        trace: Trace,
        sequences: tuple[Any, ...],
        concurrency: int | None,
        max_width: int | None,
        fixed: dict[str, Any],
    ) -> Value:
        trace.note(*self.problems())
        where = f"{self.name}.map"
        bound, wrong = self.signature.bind(sequences, fixed)
        if wrong:
            trace.note(Problem(where, f"arguments of {self.signature}", ", ".join(wrong), "Fix the arguments."))
        params = self.signature.params[: len(sequences)]
        args = {
            p.name: trace.lift(bound[p.name], Sequence[p.type], where, f"argument '{p.name}', a list")  # type: ignore[name-defined]
            for p in params
        }
        width = DEFAULT_MAX_WIDTH if max_width is None else bound_of(trace, where, "max_width", max_width)
        wide = 0 if concurrency is None else bound_of(trace, where, "concurrency", concurrency)
        node = trace.add(Kind.MAP, where, args, limit=width, concurrency=wide)
        with trace.body(node, "item", tuple(args)) as block:
            inner: dict[str, object] = {
                p.name: Value(ConstExpr(None), Any, where, bad=True) for p in self.signature.params
            }
            inner |= {n: v for n, v in bound.items() if n not in args}
            for i, p in enumerate(params):
                inner[p.name] = Value(ParamExpr(block, i), p.type, f"an item of {where}")
            result = self.declare(trace, inner)
            block.result, _ = trace.infer(result, where)
        return Value(OutputExpr(node), list[result._fs_type], node.name, result._fs_bad)  # type: ignore[name-defined]


class Sampled(Node[P, Any]):
    """`node.sample(...)`."""

    def __init__(
        self,
        inner: Node[P, Any],
        n: int,
        vote: str | None,
        stop: Stop | None,
        wave: int | None,
        concurrency: int | None,
        least: int | None,
        harm: float | None,
    ) -> None:
        self.inner = inner
        self.n = n
        self.vote = vote
        self.stop = stop
        self.wave = wave
        self.concurrency = concurrency
        self.least = least
        self.harm = harm
        self.settings = Settings()

    @cached_property
    def signature(self) -> Signature:
        of = self.inner.signature
        returns = of.returns if self.vote is not None else list[of.returns]  # type: ignore[name-defined]
        return Signature(f"{self.inner.name}.sample", of.params, returns, of.doc, of.problems)

    def problems(self) -> tuple[Problem, ...]:
        found = [*self.setting_problems, *self.inner.problems()]
        if self.vote:
            try:
                hints.attribute(self.inner.signature.returns, self.vote)
            except LookupError as error:
                expected = f"vote= a field of {hints.describe(self.inner.signature.returns)}"
                came = f"'{self.vote}', but {error.args[0]}"
                found.append(Problem(self.name, expected, came, 'Use a field, or vote="" for the whole value.'))
        if self.wave is not None and not (node_settings.is_count(self.wave, 0, MAX_BOUND) and self.stop is not None):
            expected = f"wave= a number from 0 to {MAX_BOUND:,}, with stop="
            came = f"wave={self.wave!r}"[:100] + ("" if self.stop is not None else " without stop=")
            remedy = (
                "Say how many samples are to be under way at least, 0 for all; leave it out for as many as are needed."
            )
            found.append(Problem(self.name, expected, came, remedy))
        if self.stop is not None and self.vote is None:
            found.append(
                Problem(
                    self.name,
                    "a vote when sampling may stop early",
                    "stop= without vote=",
                    'Add vote="field" or vote="".',
                )
            )
        return tuple(found)

    def declare(self, trace: Trace, args: dict[str, object]) -> Value:
        limit = bound_of(trace, self.name, "n", self.n)
        wide = 0 if self.concurrency is None else bound_of(trace, self.name, "concurrency", self.concurrency)
        rule, numbers = (self.stop.rule, self.stop.numbers) if self.stop else (None, ())
        spec = SampleSpec(self.vote, rule, numbers, self.wave)
        degrade = degradation_of(trace, self.name, self.least, self.harm, 1, limit)
        node = trace.add(
            Kind.SAMPLE, self.name, {}, spec, self.settings, limit=limit, concurrency=wide, degrade=degrade
        )
        with trace.body(node, "sample") as block:
            result = self.inner.declare(trace, args)
            block.result, _ = trace.infer(result, self.name)
        return Value(OutputExpr(node), self.signature.returns, node.name)


def bound_of(trace: Trace, where: str, what: str, value: Any) -> int:
    """`value` when it is a usable bound; else 1, and a problem."""
    if node_settings.is_count(value, 1, MAX_BOUND):
        return int(value)
    came = "none (the work would be unbounded)" if value in (0, None) else f"{what}={value!r}"
    trace.note(
        Problem(where, f"{what}= a number from 1 to {MAX_BOUND:,}", came, f"Say how much at most, e.g. {what}=8.")
    )
    return 1


def degradation_of(
    trace: Trace, where: str, least: int | None, harm: float | None, lowest: int, limit: int
) -> Degradation | None:
    """What the author allows to be given up of `limit`; None: nothing, or, after a note, what cannot be."""
    if least is None and harm is None:
        return None
    if least is None or harm is None:
        came = "harm= without least=" if least is None else "least= without harm="
        remedy = "Give both: how little will do, and what the result loses by it."
        trace.note(Problem(where, "least= and harm= together", came, remedy))
        return None
    problems = misfits(where, least, harm, lowest, limit)
    trace.note(*problems)
    return None if problems else Degradation(least, float(harm))


def misfits(where: str, least: Any, harm: Any, lowest: int, limit: int) -> list[Problem]:
    """What is wrong with the numbers of a degradation of a node that may do at most `limit`."""
    found = []
    if not node_settings.is_count(least, lowest, limit - 1):
        expected = f"least= a number from {lowest}, below {limit}"
        remedy = "Say how little will do; where nothing can be given up, leave least= and harm= out."
        found.append(Problem(where, expected, f"least={least!r}"[:100], remedy))
    if not node_settings.is_seconds(harm) or harm > 1:
        remedy = "Judge what the result loses, e.g. harm=0.2; of several degradations the least harmful is taken first."
        found.append(Problem(where, "harm= a number above 0, at most 1", f"harm={harm!r}"[:100], remedy))
    return found


_RUN_IT = "Call it inside an @fs.workflow function, or run it alone with .run(...) or .arun(...)."


def _outside_error(name: str, what: str) -> GraphError:
    return GraphError(name, [Problem(name, "a call inside a workflow function", f"{what} outside of one", _RUN_IT)])
