"""A Program: a Plan and everything needed to run it with Python values.

The Plan says what depends on what; the Program adds the functions that its names stand for and the
shapes that convert and check values. The runtime calls it at every border: input, model output,
tool arguments and results, the final result. It does no I/O.

Read next: graphs/evaluate.py (values of expressions), graphs/template.py (prompts).
"""

import dataclasses
import inspect
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar

from flowserve.errors import InputError, OutputInvalid, ToolError, UnknownName
from flowserve.graphs.plan import Node, Plan
from flowserve.graphs.shapes import Shape, ShapeError, jsonable, pointer
from flowserve.ids import NodeId

if TYPE_CHECKING:
    from flowserve.graphs.passes import Rewritten

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Shapes:
    """The types of a program. `None` for a model means plain text."""

    inputs: Mapping[str, Shape] = field(default_factory=dict)
    """By workflow parameter."""
    defaults: Mapping[str, Any] = field(default_factory=dict)
    """Of the workflow's optional parameters, as typed values."""
    models: Mapping[str, Shape | None] = field(default_factory=dict)
    """By `LLMSpec.name`, agents' included."""
    params: Mapping[str, Mapping[str, Shape]] = field(default_factory=dict)
    """By function name (tools and dynamics), then parameter."""
    returns: Mapping[str, Shape | None] = field(default_factory=dict)
    """By function name (tools and dynamics); None is not checked."""
    optional: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """By function name: defaults of the parameters that may be left out."""


@dataclass(frozen=True)
class Program:
    """A workflow ready to run in this process. Equal when the plans are equal."""

    plan: Plan
    functions: Mapping[str, Callable[..., Any]] = field(default_factory=dict, compare=False, repr=False)
    """Tools by `ToolSpec.name`; sync or async."""
    dynamics: Mapping[str, Callable[..., Awaitable[Any]]] = field(default_factory=dict, compare=False, repr=False)
    """Async functions by `DynamicSpec.name`."""
    shapes: Shapes = field(default_factory=Shapes, compare=False, repr=False)
    declared: "Program | None" = field(default=None, compare=False, repr=False)
    """Of a program that passes have rewritten: what its author wrote."""

    @property
    def name(self) -> str:
        return self.plan.name

    @property
    def version(self) -> str:
        """`Plan.digest` of what the author wrote: passes make no new version."""
        return (self.declared or self).plan.digest

    @cached_property
    def rewriting(self) -> "Rewritten":
        """What the passes of `graphs/passes` make of the plan, and what they changed."""
        from flowserve.graphs.passes import rewrite  # reads templates, and declaring needs none of that

        return rewrite(self.plan)

    @cached_property
    def rewritten(self) -> "Program":
        """The same program with its plan rewritten; itself, if there is nothing to change."""
        if self.declared is not None or not self.rewriting.changes:
            return self
        return dataclasses.replace(self, plan=self.rewriting.plan, declared=self)

    @cached_property
    def streams(self) -> Mapping[NodeId, tuple[Node, ...]]:
        """By LLM node: the maps that take items of its list while it is being written."""
        found: dict[NodeId, tuple[Node, ...]] = {}
        for node in self.plan.nodes:
            if node.streams is not None:
                found[node.streams] = (*found.get(node.streams, ()), node)
        return found

    def bind_input(self, data: Mapping[str, Any]) -> tuple[Any, ...]:
        """The parameters of block 0, in order, from arguments by name (Python values or parsed JSON).

        Raises InputError with a JSON pointer for every argument that is missing, unknown or does not fit.
        """
        if not isinstance(data, Mapping):
            raise InputError(
                f"workflow '{self.name}': expected an object of arguments; got {type(data).__name__}",
                [("", "expected an object")],
            )
        values: list[Any] = []
        problems: list[tuple[str, str]] = []
        names = self.plan.blocks[0].params
        for name in names:
            if name in data:
                values.append(_load(self.shapes.inputs.get(name), data[name], (name,), problems))
            elif name in self.shapes.defaults:
                values.append(self.shapes.defaults[name])
            else:
                problems.append((pointer([name]), "is required"))
        listed = ", ".join(names) or "none"
        problems += [
            (pointer([str(key)]), f"there is no such parameter; there are: {listed}")
            for key in data
            if key not in names
        ]
        if problems:
            shown = "; ".join(f"{where}: {what}" for where, what in problems)
            raise InputError(f"the input does not fit workflow '{self.name}': {shown}", problems)
        return tuple(values)

    def parse_output(self, name: str, text: str) -> Any:
        """What the text of model call `name` (`LLMSpec.name`) says, as its declared type. Raises OutputInvalid."""
        if name not in self.shapes.models:
            raise UnknownName("model call", name, list(self.shapes.models))
        shape = self.shapes.models[name]
        if shape is None:
            return text
        try:
            return shape.loads(text)
        except ShapeError as error:
            raise OutputInvalid(f"{name}: the model's text does not fit the declared output: {error}") from error

    def dump(self, value: object) -> Any:
        """`value` as plain JSON data. Raises ValueInvalid for what JSON cannot hold (NaN, foreign objects)."""
        return jsonable(value)

    def arguments(self, name: str, data: Mapping[str, Any]) -> dict[str, Any]:
        """Arguments of tool or dynamic `name`, checked, converted and completed with defaults. Raises ToolError."""
        shapes = self._of(name, self.shapes.params)
        optional = self.shapes.optional.get(name, {})
        problems: list[tuple[str, str]] = []
        values = {key: _load(shapes.get(key), data[key], (key,), problems) for key in data if key in shapes}
        problems += [(pointer([str(key)]), "there is no such parameter") for key in data if key not in shapes]
        for key in shapes:
            if key not in data:
                if key in optional:
                    values[key] = optional[key]
                else:
                    problems.append((pointer([key]), "is required"))
        if problems:
            shown = "; ".join(f"{where}: {what}" for where, what in problems)
            raise ToolError(f"{name}({', '.join(shapes)}): the arguments do not fit: {shown}")
        return values

    def checked(self, name: str, value: object) -> Any:
        """`value` as tool or dynamic `name` declares its result. Raises ToolError."""
        shape = self._of(name, self.shapes.returns)
        if shape is None:
            return value
        try:
            return shape.load(value)
        except ShapeError as error:
            raise ToolError(f"{name}: returned something else than it declares: {error}") from error

    def is_async(self, name: str) -> bool:
        """Whether tool `name` must be awaited (else the runtime runs it in a thread)."""
        return name in self._awaited

    @cached_property
    def _awaited(self) -> frozenset[str]:
        return frozenset(name for name, fn in self.functions.items() if inspect.iscoroutinefunction(fn))

    def _of(self, name: str, table: Mapping[str, T]) -> T:
        if name not in table:
            raise UnknownName("function", name, list(table))
        return table[name]


def _load(shape: Shape | None, value: object, path: tuple[str, ...], problems: list[tuple[str, str]]) -> Any:
    """The typed value, or None after noting what is wrong with it."""
    if shape is None:
        return value
    try:
        return shape.load(value)
    except ShapeError as error:
        problems += [(pointer(path) + where, what) for where, what in error.problems]
        return None
