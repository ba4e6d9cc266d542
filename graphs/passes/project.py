"""Items of lists, tuples and dicts that are written out are taken at once.

A nested workflow that returns two results makes a tuple of them; whoever reads one would wait for both.
"""

from typing import Any

from flowserve.graphs.declaration import ConstExpr, Declaration, Expr, GetExpr, OpExpr
from flowserve.graphs.passes.facts import blocks, expressions, rewrite_all


def project(declaration: Declaration) -> list[str]:
    """Fold `[a, b][0]` to `a`, `{"k": a}["k"]` to `a`, `len([a, b])` to 2, and the same of constants."""
    before = _gets(declaration)
    rewrite_all(declaration.root, _folded)
    folded = before - _gets(declaration)
    return (
        [f"{folded} item{'s' if folded > 1 else ''} of values that are written out, taken directly"] if folded else []
    )


def _gets(declaration: Declaration) -> int:
    """How often something is taken out of something, or counted."""
    found = 0
    stack = [expr for block in blocks(declaration.root) for expr in expressions(block)]
    while stack:
        match stack.pop():
            case GetExpr(of, _):
                found += 1
                stack.append(of)
            case OpExpr(name, args):
                found += name == "len"
                stack.extend(args)
    return found


def _folded(expr: Expr) -> Expr:
    match expr:
        case GetExpr(OpExpr("list" | "tuple", args), int() as place) if -len(args) <= place < len(args):
            return args[place]
        case GetExpr(OpExpr("dict", args), str() as key):
            values = [
                v for k, v in zip(args[::2], args[1::2], strict=True) if isinstance(k, ConstExpr) and k.value == key
            ]
            return values[-1] if values else expr
        case GetExpr(ConstExpr(value), key) if _has(value, key):
            return ConstExpr(value[key])
        case OpExpr("len", (OpExpr("list" | "tuple", args),)):
            return ConstExpr(len(args))
    return expr


def _has(value: Any, key: str | int) -> bool:
    if isinstance(value, dict):
        return key in value
    return isinstance(value, list | tuple) and isinstance(key, int) and -len(value) <= key < len(value)
