"""What a decorated function takes and gives, read once from its signature.

Problems found on the way are kept, not raised: the workflow that uses the function reports them with
all its others.
"""

import inspect
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pydantic

from flowserve.errors import Problem
from flowserve.graphs import hints, shapes

_ADD_TYPE = "Annotate it, e.g. `text: str`; `Any` is allowed."


@dataclass(frozen=True, slots=True)
class Parameter:
    """One parameter. `default` means nothing when it is required."""

    name: str
    type: Any
    required: bool = True
    default: Any = None


@dataclass(frozen=True, slots=True)
class Signature:
    """Parameters, result and documentation of a callable of the language."""

    name: str
    params: tuple[Parameter, ...]
    returns: Any
    doc: str = ""
    problems: tuple[Problem, ...] = field(default=(), compare=False)

    def __str__(self) -> str:
        shown = [
            p.name + ": " + hints.describe(p.type) + ("" if p.required else f" = {p.default!r}") for p in self.params
        ]
        return f"{self.name}({', '.join(shown)}) -> {hints.describe(self.returns)}"

    def bind(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
        """Arguments by parameter name, defaults filled in, and what is wrong with the call."""
        wrong: list[str] = []
        bound = dict(zip((p.name for p in self.params), args, strict=False))
        if len(args) > len(self.params):
            wrong.append(f"{len(args)} positional arguments")
        known = {p.name for p in self.params}
        for name, value in kwargs.items():
            if name in bound:
                wrong.append(f"'{name}' given twice")
            elif name not in known:
                wrong.append(f"an unknown argument '{name}'")
            else:
                bound[name] = value
        for param in self.params:
            if param.name not in bound:
                if param.required:
                    wrong.append(f"no argument '{param.name}'")
                else:
                    bound[param.name] = param.default
        return {p.name: bound[p.name] for p in self.params if p.name in bound}, wrong

    def schema(self) -> dict[str, Any]:
        """JSON Schema of the arguments. Raises TypeError for a type without one."""
        fields: dict[str, tuple[Any, bool, Any]] = {}
        for p in self.params:
            self._has_schema(p.name, p.type)
            fields[p.name] = (p.type, p.required, None if p.required else shapes.jsonable(p.default))
        return shapes.object_schema(fields)

    def returns_schema(self, accepted: bool = False) -> dict[str, Any]:
        """JSON Schema of the result as it is written, or (`accepted`) as it may be read. TypeError when there is none."""
        self._has_schema("return", self.returns)
        return shapes.schema_of(self.returns, output=not accepted)

    def _has_schema(self, name: str, type_: Any) -> None:
        try:
            shapes.schema_of(type_)
        except (pydantic.errors.PydanticUserError, pydantic.errors.PydanticUndefinedAnnotation) as error:
            raise TypeError(f"{name}: {hints.describe(type_)} cannot be written as JSON ({error.message})") from None


def read(fn: Callable[..., Any], name: str | None = None) -> Signature:
    """The signature of a plain function. Never raises for what the author of `fn` did wrong; see `problems`."""
    name = name or fn.__name__
    problems: list[Problem] = []
    try:
        annotations = typing.get_type_hints(fn, include_extras=True)
    except (NameError, TypeError) as error:
        annotations = {k: v for k, v in getattr(fn, "__annotations__", {}).items() if not isinstance(v, str)}
        remedy = "Define the types at module level, before the function is used."
        problems.append(Problem(name, "annotations that can be resolved", str(error), remedy))
    unresolved = bool(problems)
    params: list[Parameter] = []
    for p in inspect.signature(fn).parameters.values():
        if p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD, p.POSITIONAL_ONLY):
            remedy = "Give each parameter its own name: values travel by name."
            problems.append(Problem(name, "parameters that can be passed by name", f"'{p}'", remedy))
            continue
        if p.name not in annotations and not unresolved:
            problems.append(Problem(name, f"a type for parameter '{p.name}'", "no annotation", _ADD_TYPE))
        required = p.default is p.empty
        params.append(Parameter(p.name, annotations.get(p.name, Any), required, None if required else p.default))
    if "return" not in annotations and not unresolved:
        problems.append(Problem(name, "a return type", "no annotation", "Annotate it, e.g. `-> str`."))
    returns = annotations.get("return", Any)
    return Signature(name, tuple(params), returns, inspect.getdoc(fn) or "", tuple(problems))
