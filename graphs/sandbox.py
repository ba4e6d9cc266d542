"""The Jinja2 environment of prompts: data in, text out, nothing else.

Authors are trusted a little, uploaded specs not at all. A template may read fields of models and dataclasses,
keys of mappings, items of sequences and public plain attributes; it may call nothing but a few helpers. There are
no macros, recursion or includes, and texts, numbers and iterations are bounded, so every render ends soon.
Undefined names are errors, output is deterministic.
"""

import dataclasses
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence, Sized
from contextvars import ContextVar
from functools import lru_cache, wraps
from types import GeneratorType
from typing import Any

from jinja2 import StrictUndefined, Template, nodes
from jinja2.compiler import CodeGenerator, Frame
from jinja2.exceptions import SecurityError
from jinja2.runtime import LoopContext
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Cycler, Joiner, Namespace
from pydantic import BaseModel

from flowserve.graphs.shapes import jsonable

MAX_OUTPUT_CHARS = 8_000_000
"""Of one rendered prompt, and of every text or list that an operator or filter makes."""
MAX_ITERATIONS = 1_000_000
"""Of all loops of one render together."""
MAX_WIDTH = 10_000
"""Largest number that a filter may be given."""
MAX_SOURCE_CHARS = 1_000_000
FILTERS = frozenset(
    [
        "abs",
        "batch",
        "capitalize",
        "center",
        "count",
        "d",
        "default",
        "dictsort",
        "first",
        "float",
        "format",
        "groupby",
        "indent",
        "int",
        "items",
        "join",
        "last",
        "length",
        "list",
        "lower",
        "map",
        "max",
        "min",
        "reject",
        "rejectattr",
        "replace",
        "reverse",
        "round",
        "select",
        "selectattr",
        "slice",
        "sort",
        "string",
        "sum",
        "title",
        "tojson",
        "trim",
        "truncate",
        "unique",
        "upper",
        "urlencode",
        "wordcount",
        "wordwrap",
    ]
)
_COUNTED = "fs_counted"
_budget: ContextVar[list[int] | None] = ContextVar("flowserve_template_budget", default=None)


class _Code(CodeGenerator):
    """Jinja's compiler, with `~` bounded like every other operator."""

    def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:
        self.write("environment.concatenate((")
        for part in node.nodes:
            self.visit(part, frame)
            self.write(", ")
        self.write("))")


class PromptEnvironment(ImmutableSandboxedEnvironment):
    """See the module."""

    code_generator_class = _Code
    intercepted_binops = frozenset({"*", "**", "%", "+"})

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree = super()._parse(source, name, filename)
        for loop in tree.find_all(nodes.For):
            loop.iter = nodes.Filter(loop.iter, _COUNTED, [], [], None, None, lineno=loop.lineno)
        return tree

    def concatenate(self, parts: Iterable[Any]) -> str:
        """What `a ~ b` gives."""
        return str(bounded("".join(map(str, parts))))

    def getattr(self, obj: Any, attribute: str) -> Any:
        """A field, a key or a public attribute that is no method."""
        if isinstance(obj, Mapping):
            return obj[attribute] if attribute in obj else self.undefined(obj=obj, name=attribute)
        if attribute.startswith("_"):
            return self.unsafe_undefined(obj, attribute)
        if isinstance(obj, BaseModel) and attribute not in _fields(type(obj)):
            return self.undefined(obj=obj, name=attribute)
        try:
            value = getattr(obj, attribute)
        except AttributeError:
            return self.undefined(obj=obj, name=attribute)
        if callable(value) and not isinstance(obj, LoopContext | Cycler):
            return self.unsafe_undefined(obj, attribute)
        return value

    def getitem(self, obj: Any, argument: Any) -> Any:
        """An item of a mapping or sequence, or a field of a record by its name."""
        if isinstance(obj, Mapping | Sequence):
            try:
                return obj[argument]
            except (LookupError, TypeError):
                return self.undefined(obj=obj, name=argument)
        return self.getattr(obj, argument) if isinstance(argument, str) else self.undefined(obj=obj, name=argument)

    def is_safe_callable(self, obj: Any) -> bool:
        """Jinja's own helpers, and the mark that template.py puts at the end of iterations."""
        if isinstance(obj, Joiner) or getattr(type(obj), "is_prompt_mark", False):
            return True
        if isinstance(getattr(obj, "__self__", None), LoopContext | Cycler):
            return True
        return any(obj is helper for helper in (dict, Namespace, Cycler, Joiner, self.globals.get("range")))

    def unsafe_undefined(self, obj: Any, attribute: str) -> Any:
        text = (
            f"'{attribute}' of {type(obj).__name__} is a method or private; templates read fields only. "
            "Use a filter, e.g. {{ text|upper }} or {{ mapping|items }}."
        )
        return self.undefined(text, obj=obj, name=attribute, exc=SecurityError)

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """Operators that can make something huge, measured first."""
        if operator == "%" and isinstance(left, str):
            return _format(left, *(right if isinstance(right, tuple) else (right,)))
        if operator == "*":
            for many, times in ((left, right), (right, left)):
                if isinstance(many, Sized) and isinstance(times, int):
                    _check(len(many) * times, MAX_OUTPUT_CHARS, "repetition")
            if isinstance(left, int) and isinstance(right, int):
                _check(left.bit_length() + right.bit_length(), 4096, "product")
        if operator == "+" and isinstance(left, Sized) and isinstance(right, Sized):
            _check(len(left) + len(right), MAX_OUTPUT_CHARS, "sum")
        if operator == "**" and not (_small(left, 1e6) and _small(right, 64)):
            raise SecurityError("a power in the template is too large")
        return super().call_binop(context, operator, left, right)


def bounded(value: Any) -> Any:
    """`value`, unless it is too long."""
    if isinstance(value, str | list | tuple):
        _check(len(value), MAX_OUTPUT_CHARS, "text or list")
    return value


def _check(size: int, limit: int, what: str) -> None:
    if size > limit:
        raise SecurityError(f"a {what} in the template is too large ({size:,}; at most {limit:,})")


def _small(value: Any, bound: float) -> bool:
    return isinstance(value, int | float) and abs(value) <= bound


@lru_cache(maxsize=1024)
def _fields(cls: type[BaseModel]) -> frozenset[str]:
    return frozenset(cls.model_fields) | frozenset(cls.model_computed_fields)


def shown(value: Any) -> Any:
    """How a value is written into a prompt: records, lists and mappings as JSON, the rest as Jinja does."""
    if isinstance(value, GeneratorType | range):
        value = list(value)
    if isinstance(value, BaseModel | Mapping | list | tuple) or dataclasses.is_dataclass(value):
        return json.dumps(jsonable(value), ensure_ascii=False)
    return value


# --- filters ----------------------------------------------------------------------------------------------


def _measured(name: str, filter_: Callable[..., Any]) -> Callable[..., Any]:
    """A filter whose numbers and result are bounded. `wraps` keeps Jinja's marks (pass_environment and so on)."""

    @wraps(filter_)
    def call(*args: Any, **kwargs: Any) -> Any:
        if name not in ("abs", "default", "d", "float", "int", "max", "min", "sort", "string", "sum", "unique"):
            for number in (*args, *kwargs.values()):
                if isinstance(number, int | float) and not isinstance(number, bool):
                    _check(int(min(abs(number), 1e12)), MAX_WIDTH, f"number given to '{name}'")
        return bounded(filter_(*args, **kwargs))

    return call


def _format(value: str, *args: Any, **kwargs: Any) -> str:
    """printf-style formatting without wide fields."""
    if "*" in value or any(len(digits) > 4 for digits in re.findall(r"\d+", value)):
        raise SecurityError("a field width in the template is too large")
    return str(bounded(str(value) % (kwargs or args)))


def _replace(value: Any, old: str, new: str, count: int | None = None) -> str:
    text = str(value)
    _check(len(text) + text.count(old) * len(new), MAX_OUTPUT_CHARS, "text")
    return text.replace(old, new, -1 if count is None else count)


def _indent(value: Any, width: int = 4, first: bool = False, blank: bool = False) -> str:
    text = str(value)
    _check(width, 200, "width")
    _check(len(text) + text.count("\n") * width, MAX_OUTPUT_CHARS, "text")
    lines = [" " * width + line if line or blank else line for line in text.split("\n")]
    return "\n".join(lines if first else [text.split("\n", 1)[0], *lines[1:]])


def _counted(value: Any) -> Any:
    """What a loop walks over; its length is taken from the budget of the render."""
    items = value if isinstance(value, Sized) else list(value)
    left = _budget.get()
    if left is not None:
        left[0] -= len(items)
        if left[0] < 0:
            raise SecurityError(f"the loops of the template take more than {MAX_ITERATIONS:,} turns")
    return items


def _range(*args: int) -> range:
    found = range(*args)
    _check(len(found), MAX_ITERATIONS // 10, "range")
    return found


def join(env: PromptEnvironment) -> Callable[..., Any]:
    """Jinja's `join` filter with its result measured first."""
    plain = env.filters["join"]

    @wraps(plain)
    def call(eval_ctx: Any, value: Iterable[Any], d: str = "", attribute: str | int | None = None) -> Any:
        items = list(value)
        _check(sum(len(i) if isinstance(i, str) else 1 for i in items) + len(d) * len(items), MAX_OUTPUT_CHARS, "text")
        return bounded(plain(eval_ctx, items, d, attribute))

    return call


@lru_cache(maxsize=1)
def environment() -> PromptEnvironment:
    """The one environment of this process. Whitespace is kept exactly as written."""
    env = PromptEnvironment(undefined=StrictUndefined, keep_trailing_newline=True, finalize=shown, cache_size=0)
    env.globals.pop("lipsum", None)
    env.globals["range"] = _range
    filters = {name: _measured(name, env.filters[name]) for name in FILTERS}
    own = {"format": _format, "replace": _replace, "indent": _indent, "join": join(env)}
    env.filters = {**filters, **own, _COUNTED: _counted}
    return env


def written_over(node: nodes.Node) -> nodes.Node:
    """The expression that a loop was written over."""
    return node.node if isinstance(node, nodes.Filter) and node.name == _COUNTED and node.node is not None else node


@lru_cache(maxsize=4096)
def compiled(source: str) -> Template:
    """A template of `environment()`, compiled once. Raises jinja2.TemplateSyntaxError."""
    return environment().from_string(source)


def start_budget() -> None:
    """Begin a render: loops may take MAX_ITERATIONS turns from here."""
    _budget.set([MAX_ITERATIONS])
