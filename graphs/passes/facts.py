"""What passes ask about nodes, and how they put one expression in the place of another."""

from collections import Counter
from collections.abc import Callable, Iterator

from flowserve.graphs.declaration import (
    AgentDecl,
    BlockDecl,
    Expr,
    GetExpr,
    NodeDecl,
    OpExpr,
    OutputExpr,
    ParamExpr,
    references,
)
from flowserve.graphs.plan import Kind, LLMSpec, ToolSpec

Leaf = ParamExpr | OutputExpr


def repeatable(node: NodeDecl) -> bool:
    """Equal inputs give equal results: a model that takes the likeliest token, a search, an expression, and what its
    author marked `cache=True`."""
    match node.kind:
        case Kind.LLM:
            return isinstance(node.payload, LLMSpec) and node.payload.temperature == 0
        case Kind.SEARCH | Kind.COMPUTE:
            return True
        case Kind.TOOL | Kind.AGENT | Kind.DYNAMIC:
            return node.cache
        case Kind.RACE:
            return False  # who comes first may differ
        case _:
            return all(repeatable(inner) for body in node.bodies for inner in body.nodes)


def harmless(node: NodeDecl) -> bool:
    """Nobody but the readers of its result can tell whether it ran."""
    match node.payload:
        case ToolSpec() as tool:
            return not tool.effects
        case AgentDecl() as agent:
            return not any(tool.effects for tool in agent.tools)
    return node.kind is not Kind.DYNAMIC and all(harmless(inner) for body in node.bodies for inner in body.nodes)


def blocks(root: BlockDecl) -> Iterator[BlockDecl]:
    """A block and all inside it, outer ones first."""
    yield root
    for node in root.nodes:
        for body in node.bodies:
            yield from blocks(body)


def expressions(block: BlockDecl) -> Iterator[Expr]:
    """Every expression of a block itself: arguments of its nodes, its result, its condition."""
    for node in block.nodes:
        for _, expr in node.args:
            yield expr
    yield block.result
    if block.until is not None:
        yield block.until


def reads(node: NodeDecl) -> Iterator[Leaf]:
    """What a node reads, its bodies included: also what stands inside them."""
    for _, expr in node.args:
        yield from references(expr)
    for body in node.bodies:
        for inside in blocks(body):
            for expr in expressions(inside):
                yield from references(expr)


def readers(root: BlockDecl) -> Counter[NodeDecl]:
    """How often the result of each node is read."""
    return Counter(
        leaf.node
        for block in blocks(root)
        for expr in expressions(block)
        for leaf in references(expr)
        if isinstance(leaf, OutputExpr)
    )


def needs(node: NodeDecl) -> set[NodeDecl]:
    """The nodes of its own block that a node waits for."""
    return {leaf.node for leaf in reads(node) if isinstance(leaf, OutputExpr) and leaf.node.block is node.block}


def ancestors(node: NodeDecl) -> set[NodeDecl]:
    """The nodes of its own block that have ended when it starts."""
    found: set[NodeDecl] = set()
    stack = list(needs(node))
    while stack:
        one = stack.pop()
        if one not in found:
            found.add(one)
            stack.extend(needs(one))
    return found


def rewritten(expr: Expr, change: Callable[[Expr], Expr]) -> Expr:
    """`expr` with `change` applied to every part of it, inner ones first. What does not change stays the same object."""
    if isinstance(expr, GetExpr):
        of = rewritten(expr.of, change)
        return change(expr if of is expr.of else GetExpr(of, expr.key))
    if isinstance(expr, OpExpr):
        args = tuple(rewritten(arg, change) for arg in expr.args)
        same = all(new is old for new, old in zip(args, expr.args, strict=True))
        return change(expr if same else OpExpr(expr.name, args))
    return change(expr)


def rewrite_all(root: BlockDecl, change: Callable[[Expr], Expr]) -> None:
    """Apply `change` to every expression of a block and of all inside it."""
    for block in blocks(root):
        for node in block.nodes:
            node.args = [(name, rewritten(expr, change)) for name, expr in node.args]
        block.result = rewritten(block.result, change)
        if block.until is not None:
            block.until = rewritten(block.until, change)
