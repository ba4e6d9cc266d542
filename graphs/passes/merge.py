"""Equal calls are made once: the same node, settings and values, in one block, where repeating gives nothing new.

Calls are named by what they compute (value numbering): a call's name is made of the names of what it reads. Bodies are
compared as they are written, their own parameters and nodes by place.
"""

import json
from collections.abc import Hashable

from flowserve.graphs.declaration import (
    BlockDecl,
    ConstExpr,
    Declaration,
    Expr,
    GetExpr,
    NodeDecl,
    OpExpr,
    OutputExpr,
    ParamExpr,
    Payload,
)
from flowserve.graphs.passes.facts import repeatable, rewrite_all
from flowserve.graphs.plan import SampleSpec, SearchSpec

Places = dict[BlockDecl | NodeDecl, int]
"""Blocks and nodes inside what is being compared, by the order in which they are met."""


def merge(declaration: Declaration) -> list[str]:
    """Let the first of equal calls stand for all of them."""
    same: dict[NodeDecl, NodeDecl] = {}
    _visit(declaration.root, same)
    if not same:
        return []
    for node in same:
        node.block.nodes.remove(node)
    rewrite_all(
        declaration.root, lambda e: OutputExpr(same[e.node]) if isinstance(e, OutputExpr) and e.node in same else e
    )
    return [f"{node.name} is {kept.name}: equal calls" for node, kept in same.items()]


def _visit(block: BlockDecl, same: dict[NodeDecl, NodeDecl]) -> None:
    first: dict[Hashable, NodeDecl] = {}
    for node in block.nodes:  # in topological order: what it reads has its name already
        if repeatable(node):
            kept = first.setdefault(_call(node, same, {}), node)
            if kept is not node:
                same[node] = kept
                continue
        for body in node.bodies:
            _visit(body, same)


def _call(node: NodeDecl, same: dict[NodeDecl, NodeDecl], places: Places) -> Hashable:
    return (
        node.kind,
        _target(node.payload),
        node.limit,
        node.concurrency,
        node.retry,
        node.timeout_s,
        node.cache,
        node.degrade,
        tuple((name, _value(expr, same, places)) for name, expr in node.args),
        tuple(_body(body, same, places) for body in node.bodies),
    )


def _target(payload: Payload) -> Hashable:
    """Names of models, tools and functions are unique in a workflow."""
    if payload is None or isinstance(payload, SampleSpec | SearchSpec):
        return payload
    return payload.name


def _body(block: BlockDecl, same: dict[NodeDecl, NodeDecl], places: Places) -> Hashable:
    places[block] = len(places)
    nodes = []
    for node in block.nodes:
        nodes.append(_call(node, same, places))
        places[node] = len(places)
    until = None if block.until is None else _value(block.until, same, places)
    return len(block.params), tuple(nodes), _value(block.result, same, places), until


def _value(expr: Expr, same: dict[NodeDecl, NodeDecl], places: Places) -> Hashable:
    match expr:
        case ConstExpr(value):
            return "const", json.dumps(value, sort_keys=True)
        case ParamExpr(block, index):
            return "param", places.get(block, block), index
        case OutputExpr(node):
            node = same.get(node, node)
            return "output", places.get(node, node)
        case GetExpr(of, key):
            return "get", _value(of, same, places), type(key), key
        case OpExpr(name, args):
            return "op", name, tuple(_value(arg, same, places) for arg in args)


def same_value(one: Expr, other: Expr) -> bool:
    """Whether two expressions are always equal, as far as they are written alike."""
    return _value(one, {}, {}) == _value(other, {}, {})
