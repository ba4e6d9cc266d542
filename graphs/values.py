"""`Value`: what stands for a result while a workflow is declared.

A Value knows its type and where it comes from, nothing else. Fields, constant items and comparisons make
new Values; anything that needs the value itself (`if`, arithmetic, iteration, `len`, text) is noted as a
problem of the workflow and the trace goes on with a stand-in, so that all problems are found at once.
"""

from collections.abc import Iterator
from typing import Any

from flowserve.errors import Problem
from flowserve.graphs import hints
from flowserve.graphs.declaration import ConstExpr, Expr, GetExpr, OpExpr
from flowserve.graphs.trace import require

_SIGNS = {"eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">="}


class Value:
    """A result that does not exist yet."""

    __slots__ = ("_fs_bad", "_fs_expr", "_fs_type", "_fs_what")

    _fs_expr: Expr
    _fs_type: Any
    _fs_what: str
    """For people: `answer.text` or `parameter 'question'`."""
    _fs_bad: bool
    """Made after a problem: what is done with it is not reported again."""

    def __init__(self, expr: Expr, type_: Any, what: str, bad: bool = False) -> None:
        object.__setattr__(self, "_fs_expr", expr)
        object.__setattr__(self, "_fs_type", type_)
        object.__setattr__(self, "_fs_what", what)
        object.__setattr__(self, "_fs_bad", bad)

    def __repr__(self) -> str:
        return f"<value of {self._fs_what}: {hints.describe(self._fs_type)}, not known yet>"

    # --- what a value can do ------------------------------------------------------------------------

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        if self._fs_bad:
            return self
        try:
            type_ = hints.attribute(self._fs_type, name)
        except LookupError as error:
            code = "ethods and other code belong in a @fs.tool or @fs.dynamic function."
            remedy = f"Use one of these fields; m{code}" if hints.fields(self._fs_type) else f"M{code}"
            return self._problem(f"a field of {hints.describe(self._fs_type)}", f".{name}, but {error.args[0]}", remedy)
        return Value(GetExpr(self._fs_expr, name), type_, f"{self._fs_what}.{name}")

    def __getitem__(self, key: Any) -> Any:
        if self._fs_bad:
            return self
        if isinstance(key, bool) or not isinstance(key, int | str):
            came = "a slice" if isinstance(key, slice) else f"[{key!r}]"
            return self._problem("a constant index or key", came, "Take the part in a @fs.tool function.")
        try:
            type_ = hints.item(self._fs_type, key)
        except LookupError as error:
            remedy = "Index lists with constants and dicts with known keys."
            return self._problem("an item that exists", f"[{key!r}], but {error.args[0]}", remedy)
        return Value(GetExpr(self._fs_expr, key), type_, f"{self._fs_what}[{key!r}]")

    def __eq__(self, other: object) -> Any:
        return self._compare("eq", other)

    def __ne__(self, other: object) -> Any:
        return self._compare("ne", other)

    def __lt__(self, other: object) -> Any:
        return self._compare("lt", other)

    def __le__(self, other: object) -> Any:
        return self._compare("le", other)

    def __gt__(self, other: object) -> Any:
        return self._compare("gt", other)

    def __ge__(self, other: object) -> Any:
        return self._compare("ge", other)

    def __and__(self, other: object) -> Any:
        return self._logic("and", other)

    def __or__(self, other: object) -> Any:
        return self._logic("or", other)

    __rand__ = __and__
    __ror__ = __or__

    def __invert__(self) -> Any:
        return self._logic("not")

    __hash__ = object.__hash__

    # --- what it cannot do --------------------------------------------------------------------------

    def __bool__(self) -> bool:
        # Both ways are walked once where the value is asked, so a `while` ends; the place is reported once.
        first = require().first_visit()
        if first:
            remedy = (
                "Use fs.when(...) or fs.loop(...), combine conditions with & | ~, "
                "or move the code into an @fs.dynamic function."
            )
            came = "`if`, `while`, `and`, `or` or `not` on it"
            self._problem("a value that is known while the workflow is declared", came, remedy)
        return first

    def __iter__(self) -> Iterator[Any]:
        fixed = hints.items(self._fs_type)
        if fixed is not None and not self._fs_bad:
            return iter([self[i] for i in range(len(fixed))])
        self._problem(
            "a value that is known while the workflow is declared", "iteration over it", "Use node.map(items)."
        )
        return iter([Value(self._fs_expr, Any, self._fs_what, bad=True)])

    def __len__(self) -> int:
        self._problem("a value that is known while the workflow is declared", "len() of it", "Use fs.length(items).")
        return 1

    def __contains__(self, item: object) -> bool:
        self._problem(
            "a value that is known while the workflow is declared", "`in` on it", "Use fs.contains(items, item)."
        )
        return True

    def __str__(self) -> str:
        self._text("str(), an f-string or print")
        return ""

    def __format__(self, spec: str) -> str:
        self._text("an f-string or format()")
        return ""

    def __call__(self, *args: object, **kwargs: object) -> Any:
        return self._problem(
            "a node or function to call", "a call of a value", "Call code in a @fs.tool or @fs.dynamic function."
        )

    def __setattr__(self, name: str, value: object) -> None:
        self._problem(
            "a value that is only read", f"an assignment to .{name}", "Build a new value in a @fs.tool function."
        )

    def __setitem__(self, key: object, value: object) -> None:
        self._problem(
            "a value that is only read", "an assignment to an item", "Build a new value in a @fs.tool function."
        )

    def _arithmetic(self, *_: object) -> Any:
        remedy = "Compute it in a @fs.tool function, or move the code into an @fs.dynamic function."
        return self._problem("a value that is known while the workflow is declared", "arithmetic with it", remedy)

    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __truediv__ = __rtruediv__ = _arithmetic
    __floordiv__ = __rfloordiv__ = __mod__ = __rmod__ = __pow__ = __rpow__ = __neg__ = __pos__ = __abs__ = _arithmetic
    __xor__ = __rxor__ = __lshift__ = __rshift__ = __matmul__ = __round__ = _arithmetic

    def _number(self) -> Any:
        self._arithmetic()
        return 0

    __int__ = __index__ = _number

    def __float__(self) -> float:
        self._arithmetic()
        return 0.0

    # --- helpers ------------------------------------------------------------------------------------

    def _text(self, how: str) -> None:
        remedy = 'Write the name into the template, "{{ name }}", or build the text in a @fs.tool function.'
        self._problem("a value that is known while the workflow is declared", f"{how} with it", remedy)

    def _problem(self, expected: str, came: str, remedy: str) -> "Value":
        if not self._fs_bad:
            require().note(Problem(self._fs_what, expected, came, remedy))
        return Value(self._fs_expr, Any, self._fs_what, bad=True)

    def _compare(self, op: str, other: object) -> Any:
        if self._fs_bad or isinstance(other, Value) and other._fs_bad:
            return self
        expr, type_ = require().infer(other, self._fs_what)
        if op not in ("eq", "ne") and not _comparable(self._fs_type, type_):
            came = f"{hints.describe(self._fs_type)} compared with {hints.describe(type_)}"
            return self._problem("two numbers or two strings", came, "Compare fields of the same kind.")
        shown = other._fs_what if isinstance(other, Value) else repr(other)[:40]
        return Value(OpExpr(op, (self._fs_expr, expr)), bool, f"{self._fs_what} {_SIGNS[op]} {shown}")

    def _logic(self, op: str, *others: object) -> Any:
        if self._fs_bad:
            return self
        args = [self._fs_expr]
        for value, type_ in [(self, self._fs_type), *((o, None) for o in others)]:
            if value is not self:
                expr, type_ = require().infer(value, self._fs_what)
                args.append(expr)
            if not hints.is_condition(type_):
                return self._problem("a bool", hints.describe(type_), "Compare it first, e.g. (x.score >= 8) & x.done.")
        return Value(OpExpr(op, tuple(args)), bool, f"a condition over {self._fs_what}")


def _comparable(a: Any, b: Any) -> bool:
    def kinds(type_: Any) -> set[str]:
        return {
            "any" if m is Any else "text" if m is str else "number" if m in (int, float, bool) else "other"
            for m in hints.members(hints.widen(type_))
        }

    both = kinds(a) | kinds(b)
    return "other" not in both and not {"text", "number"} <= both


def constant(value: object) -> Value:
    """A known value in the clothes of an unknown one."""
    return Value(ConstExpr(value), hints.of_value(value), repr(value)[:40])
