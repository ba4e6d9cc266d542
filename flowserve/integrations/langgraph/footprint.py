"""What a function reads of its state and what it writes to it, read off its source; what is not certain is everything.

A node of a `StateGraph` declares neither. Its source often shows both: `state["question"]` reads one key, and
`return {"answer": ...}` writes one. A use that is not of this kind (the state is passed on, copied, walked, assigned to) makes
the reads unknown; a return that is not a literal makes the writes unknown. Unknown is `None` and is treated as all.
"""

import ast
import inspect
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

_ESCAPES = frozenset({"locals", "vars", "globals", "eval", "exec", "dir", "inspect", "sys"})
_Function = ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda


@dataclass(frozen=True, slots=True)
class Footprint:
    """Of one function. `reads`, `writes`: keys of the state, None when unknown. `commands`: it may say itself where to go next."""

    reads: frozenset[str] | None
    writes: frozenset[str] | None
    commands: bool
    interrupts: bool


UNKNOWN = Footprint(None, None, commands=True, interrupts=True)


def footprint(function: Callable[..., Any]) -> Footprint:
    """The footprint of a plain function (sync or async), `UNKNOWN` for anything whose source does not tell."""
    tree = _source(function)
    if tree is None:
        return UNKNOWN
    names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    attributes = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    if names & _ESCAPES or _is_generator(tree):
        return UNKNOWN
    returns = [_written(value) for value in _returned(tree)]
    known = [keys for keys in returns if keys is not None]
    whole = len(known) == len(returns)
    return Footprint(
        reads=_reads(tree),
        writes=frozenset().union(*known) if whole else None,
        commands=not whole,
        interrupts="interrupt" in names | attributes,
    )


def _source(function: Callable[..., Any]) -> _Function | None:
    if not inspect.isfunction(function) or hasattr(function, "__wrapped__"):
        return None
    try:
        parsed = ast.parse(textwrap.dedent(inspect.getsource(function)))
    except (OSError, SyntaxError, TypeError):
        return None
    code = function.__code__
    found = [node for node in ast.walk(parsed) if _is(node, code.co_name)]
    if len(found) != 1:  # two lambdas on a line: which one it is cannot be told
        return None
    tree = found[0]
    assert isinstance(tree, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
    decorated = not isinstance(tree, ast.Lambda) and bool(tree.decorator_list)
    return None if decorated or not (tree.args.posonlyargs + tree.args.args) else tree


def _is(node: ast.AST, name: str) -> bool:
    if isinstance(node, ast.Lambda):
        return name == "<lambda>"
    return isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name == name


def _reads(tree: _Function) -> frozenset[str] | None:
    """Keys read of the first argument, None when it is used in any other way than by a constant key."""
    state = (tree.args.posonlyargs + tree.args.args)[0].arg
    keys: set[str] = set()
    understood: set[ast.AST] = set()
    for node in ast.walk(tree):
        use = _use(node, state)
        if use is not None:
            keys.add(use[0])
            understood.add(use[1])
    mentions = {node for node in ast.walk(tree) if isinstance(node, ast.Name) and node.id == state}
    return frozenset(keys) if mentions <= understood else None


def _use(node: ast.AST, state: str) -> tuple[str, ast.AST] | None:
    """`state["key"]` read, or `state.get("key", ...)`: the key, and the mention of the state that it explains."""
    if isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Load):
        key, owner = node.slice, node.value
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "get" and node.args:
        key, owner = node.args[0], node.func.value
    else:
        return None
    if (
        isinstance(owner, ast.Name)
        and owner.id == state
        and isinstance(key, ast.Constant)
        and isinstance(key.value, str)
    ):
        return key.value, owner
    return None


def _own(tree: ast.AST) -> Iterator[ast.AST]:
    """Nodes of the function itself, without those of functions inside it."""
    for child in ast.iter_child_nodes(tree):
        yield child
        if not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda | ast.ClassDef):
            yield from _own(child)


def _is_generator(tree: _Function) -> bool:
    return any(isinstance(node, ast.Yield | ast.YieldFrom) for node in _own(tree))


def _returned(tree: _Function) -> Iterator[ast.expr | None]:
    if isinstance(tree, ast.Lambda):
        yield tree.body
        return
    for node in _own(tree):
        if isinstance(node, ast.Return):
            yield node.value


def _written(value: ast.expr | None) -> frozenset[str] | None:
    if value is None or isinstance(value, ast.Constant) and value.value is None:
        return frozenset()
    if not isinstance(value, ast.Dict):
        return None
    keys = [key.value for key in value.keys if isinstance(key, ast.Constant) and isinstance(key.value, str)]
    return frozenset(keys) if len(keys) == len(value.keys) else None
