"""A Plan as a Declaration again: numbers become the objects that passes change. The inverse of compile.py."""

from flowserve.graphs.declaration import (
    AgentDecl,
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
from flowserve.graphs.plan import Const, Get, Kind, Node, Op, Output, Param, Plan, Source


def declaration_of(plan: Plan) -> Declaration:
    """A declaration that compiles to `plan`; nodes of a block stand in topological order."""
    blocks = [BlockDecl(block.name, block.params) for block in plan.blocks]
    nodes = [
        NodeDecl(
            name=node.name,
            kind=node.kind,
            block=blocks[node.block],
            payload=_payload(plan, node),
            bodies=[blocks[body] for body in node.bodies],
            limit=node.limit,
            concurrency=node.concurrency,
            retry=node.retry,
            timeout_s=node.timeout_s,
            cache=node.cache,
            degrade=node.degrade,
        )
        for node in plan.nodes
    ]

    def expr(source: Source) -> Expr:
        match source:
            case Const(index):
                return ConstExpr(plan.consts[index])
            case Param(block, index):
                return ParamExpr(blocks[block], index)
            case Output(node):
                return OutputExpr(nodes[node])
            case Get(of, key):
                return GetExpr(expr(of), key)
            case Op(name, args):
                return OpExpr(name, tuple(expr(arg) for arg in args))

    for node, made in zip(plan.nodes, nodes, strict=True):
        made.args = [(arg.name, expr(arg.source)) for arg in node.args]
        made.streams = None if node.streams is None else nodes[node.streams]
    for block, declared in zip(plan.blocks, blocks, strict=True):
        declared.nodes = [nodes[i] for i in block.nodes]
        declared.result = expr(block.result)
        declared.until = None if block.until is None else expr(block.until)
        declared.owner = None if block.parent is None else nodes[block.parent]
    return Declaration(plan.name, blocks[0], plan.input, plan.output, plan.slo, plan.budget, plan.description)


def _payload(plan: Plan, node: Node) -> Payload:
    match node.kind:
        case Kind.LLM:
            return plan.llms[node.target]
        case Kind.TOOL:
            return plan.tools[node.target]
        case Kind.SEARCH:
            return plan.searches[node.target]
        case Kind.SAMPLE:
            return plan.samples[node.target]
        case Kind.AGENT:
            agent = plan.agents[node.target]
            return AgentDecl(agent.name, agent.llm, tuple(plan.tools[i] for i in agent.tools), agent.max_parallel_tools)
        case Kind.DYNAMIC:
            return plan.dynamics[node.target]
        case _:
            return None
