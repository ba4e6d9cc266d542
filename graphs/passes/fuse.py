"""A map over the results of a map is one map: an item goes on when its own first half is done, not when all are.

Not where the second half has effects, which would then come before a failure of the first half that prevents them today;
nor where it waits for something that the first half does not wait for.
"""

from collections import Counter

from flowserve.graphs.declaration import Declaration, Expr, GetExpr, NodeDecl, OpExpr, OutputExpr, ParamExpr
from flowserve.graphs.passes.facts import ancestors, blocks, harmless, needs, readers, rewrite_all
from flowserve.graphs.passes.merge import same_value
from flowserve.graphs.plan import Kind, Retry


def fuse(declaration: Declaration) -> list[str]:
    """Join two maps at a time."""
    found = []
    uses = readers(declaration.root)
    for block in list(blocks(declaration.root)):
        for second in list(block.nodes):
            first = _joinable(second, uses)
            if first is not None:
                _join(first, second)
                uses = readers(declaration.root)
                found.append(f"{second.name} goes on item by item with {first.name}")
    return found


def _joinable(second: NodeDecl, uses: Counter[NodeDecl]) -> NodeDecl | None:
    """The map whose results `second` maps over, if the two can be one. `uses`: how often each node is read."""
    if not _plain(second) or not harmless(second):
        return None
    over = [expr.node for _, expr in second.args if isinstance(expr, OutputExpr)]
    for first in over:
        if not _plain(first) or first.block is not second.block or first.concurrency != second.concurrency:
            continue
        if not _is_short(first.bodies[0].result):
            continue
        if uses[first] != sum(_is(expr, first) for _, expr in second.args):
            continue
        known = [expr for _, expr in first.args]
        aligned = all(_is(expr, first) or any(same_value(expr, k) for k in known) for _, expr in second.args)
        others = needs(second) - {first}
        if aligned and (not others or others <= ancestors(first)):
            return first
    return None


LONGEST = 8
"""Fields taken of fields, at most, in a result that stands for an item."""


def _is_short(expr: Expr) -> bool:
    """It will stand wherever the second half reads its item: what is written out there would be multiplied map by map."""
    for _ in range(LONGEST):
        if not isinstance(expr, GetExpr):
            return not isinstance(expr, OpExpr)
        expr = expr.of
    return False


def _plain(node: NodeDecl) -> bool:
    return node.kind is Kind.MAP and node.retry == Retry() and node.timeout_s is None and not node.cache


def _is(expr: Expr, node: NodeDecl) -> bool:
    return isinstance(expr, OutputExpr) and expr.node is node


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
