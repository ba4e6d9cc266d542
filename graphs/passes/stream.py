"""A map over the list that a model call writes takes each item as soon as it is written.

What is begun that way may be dropped and begun again: the call may be repeated, or write something that does not fit its
type. So nothing in the body may have effects; and the map has no retry and no time limit of its own, whose clock would start
before its list is there. What it maps over must be an array by the call's schema, at the top or under names of objects.
"""

from typing import Any

from flowserve.graphs.declaration import Declaration, Expr, GetExpr, NodeDecl, OutputExpr
from flowserve.graphs.passes.facts import blocks, harmless, reads
from flowserve.graphs.plan import Kind, LLMSpec, Retry
from flowserve.graphs.shapes import schema_at


def stream(declaration: Declaration) -> list[str]:
    """Set `NodeDecl.streams` of every map, anew each time: other passes may have moved what stood beside it."""
    found = []
    for block in blocks(declaration.root):
        for node in block.nodes:
            before, node.streams = node.streams, _writer(node)
            if node.streams is not None and node.streams is not before:
                found.append(f"{node.name} takes items of {node.streams.name} while they are written")
    return found


def _writer(node: NodeDecl) -> NodeDecl | None:
    """The call that writes the list of a map, if the map may begin before its end."""
    if node.kind is not Kind.MAP or len(node.args) != 1 or not harmless(node):
        return None
    if node.retry != Retry() or node.timeout_s is not None or node.cache:
        return None
    found = _path(node.args[0][1])
    if found is None:
        return None
    writer, path = found
    if writer.block is not node.block or not isinstance(writer.payload, LLMSpec) or writer.payload.output is None:
        return None
    if sum(isinstance(leaf, OutputExpr) and leaf.node is writer for leaf in reads(node)) > 1:
        return None  # the body reads more of the output than its item
    schema = writer.payload.output
    return writer if _is_array(schema_at(schema, path, schema)) else None


def _path(expr: Expr) -> tuple[NodeDecl, tuple[str, ...]] | None:
    """The node and the names under which a value stands in its output; None for anything else."""
    path: list[str] = []
    while isinstance(expr, GetExpr):
        if not isinstance(expr.key, str):
            return None
        path.append(expr.key)
        expr = expr.of
    return (expr.node, tuple(reversed(path))) if isinstance(expr, OutputExpr) else None


def _is_array(schema: dict[str, Any] | None) -> bool:
    """Of items that are all alike."""
    return schema is not None and schema.get("type") == "array" and isinstance(schema.get("items"), dict)
