"""A map over the results of a map is one map: an item goes on when its own first half is done, not when all are.

Not where the second half has effects, which would then come before a failure of the first half that prevents them today;
nor where it waits for something that the first half does not wait for.
"""

from flowserve.graphs.declaration import BlockDecl, Declaration, Expr, NodeDecl, OutputExpr, ParamExpr, references
from flowserve.graphs.passes.facts import ancestors, blocks, expressions, harmless, needs, rewrite_all
from flowserve.graphs.passes.merge import same_value
from flowserve.graphs.plan import Kind, Retry


def fuse(declaration: Declaration) -> list[str]:
    """Join two maps at a time."""
    found = []
    for block in list(blocks(declaration.root)):
        for second in list(block.nodes):
            first = _joinable(declaration.root, second)
            if first is not None:
                _join(first, second)
                found.append(f"{second.name} goes on item by item with {first.name}")
    return found


def _joinable(root: BlockDecl, second: NodeDecl) -> NodeDecl | None:
    """The map whose results `second` maps over, if the two can be one."""
    if not _plain(second) or not harmless(second):
        return None
    over = [expr.node for _, expr in second.args if isinstance(expr, OutputExpr)]
    for first in over:
        if not _plain(first) or first.block is not second.block or first.concurrency != second.concurrency:
            continue
        known = [expr for _, expr in first.args]
        aligned = all(_is(expr, first) or any(same_value(expr, k) for k in known) for _, expr in second.args)
        if aligned and needs(second) - {first} <= ancestors(first) and _only_reader(root, first, second):
            return first
    return None


def _plain(node: NodeDecl) -> bool:
    return node.kind is Kind.MAP and node.retry == Retry() and node.timeout_s is None and not node.cache


def _is(expr: Expr, node: NodeDecl) -> bool:
    return isinstance(expr, OutputExpr) and expr.node is node


def _only_reader(root: BlockDecl, first: NodeDecl, second: NodeDecl) -> bool:
    """Whether all that reads `first` are whole arguments of `second`."""
    uses = sum(
        isinstance(leaf, OutputExpr) and leaf.node is first
        for block in blocks(root)
        for expr in expressions(block)
        for leaf in references(expr)
    )
    return uses == sum(_is(expr, first) for _, expr in second.args)


def _join(first: NodeDecl, second: NodeDecl) -> None:
    """`second` becomes the whole; `first` goes."""
    half, other = first.bodies[0], second.bodies[0]
    known = [expr for _, expr in first.args]
    item: list[Expr] = [
        half.result
        if _is(expr, first)
        else ParamExpr(half, next(place for place, k in enumerate(known) if same_value(expr, k)))
        for _, expr in second.args
    ]
    rewrite_all(other, lambda e: item[e.index] if isinstance(e, ParamExpr) and e.block is other else e)
    for node in other.nodes:
        node.block = half
    half.nodes += other.nodes
    half.result, half.name, half.owner = other.result, other.name, second
    second.bodies, second.args, second.limit = [half], first.args, min(first.limit, second.limit)
    first.block.nodes.remove(first)
