"""Numbers about a Plan: prior costs, critical paths, which nodes nobody needs.

The priors are guesses that order work before anything has been measured; the scheduler replaces them by
what it learns (flowserve/core/estimates.py). Everything here is linear in the size of the plan.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from flowserve.graphs.plan import AgentSpec, Block, Const, Get, Kind, LLMSpec, Node, Op, Output, Param, Plan, Source
from flowserve.ids import NodeId, Seconds

LLM_BASE_S = 0.2
LLM_TOKEN_S = 0.02
TOOL_S = 0.2
SEARCH_S = 0.05
ASSUMED_WIDTH = 8
"""Items of a map, while nobody knows."""
ASSUMED_TURNS = 4
"""Iterations of a loop, steps of an agent or calls of a dynamic, while nobody knows."""


def llm_cost(spec: LLMSpec) -> Seconds:
    """Prior of one generation."""
    return LLM_BASE_S + LLM_TOKEN_S * spec.max_tokens


def prior_s(node: Node, llms: Sequence[LLMSpec], agents: Sequence[AgentSpec]) -> Seconds:
    """Prior of one execution of a node without bodies."""
    match node.kind:
        case Kind.LLM:
            return llm_cost(llms[node.target])
        case Kind.TOOL:
            return TOOL_S
        case Kind.SEARCH:
            return SEARCH_S
        case Kind.AGENT:
            return min(node.limit, ASSUMED_TURNS) * (llm_cost(agents[node.target].llm) + TOOL_S)
        case _:
            return 0.0


def prior_count(node: Node) -> int:
    """How many frames a node with bodies is thought to open, or calls to make, while nobody knows."""
    match node.kind:
        case Kind.MAP:
            return min(node.limit, ASSUMED_WIDTH)
        case Kind.LOOP | Kind.DYNAMIC:
            return min(node.limit, ASSUMED_TURNS)
        case _:
            return node.limit


def expanded_s(node: Node, count: float, bodies: Sequence[Seconds], shares: Sequence[float] = ()) -> Seconds:
    """One execution of a node with bodies, which have these critical paths. `count`: of frames or calls; `shares`: how
    often each arm of a SWITCH is taken; none: the longest counts."""
    match node.kind:
        case Kind.MAP | Kind.SAMPLE:
            return (math.ceil(count / node.concurrency) if node.concurrency else 1) * bodies[0]
        case Kind.LOOP:
            return count * bodies[0]
        case Kind.RACE:
            return sorted(bodies)[node.limit - 1]
        case Kind.SWITCH if shares:
            return sum(share * path for share, path in zip(shares, bodies, strict=True))
        case Kind.DYNAMIC:
            return count * max(bodies, default=0.0)
        case _:
            return max(bodies, default=0.0)


def prior_costs(
    nodes: Sequence[Node], blocks: Sequence[Block], llms: Sequence[LLMSpec], agents: Sequence[AgentSpec]
) -> tuple[list[Seconds], list[Seconds]]:
    """`costs` before anything has been seen."""

    def cost(node: Node, bodies: Sequence[Seconds]) -> Seconds:
        return expanded_s(node, prior_count(node), bodies) if node.bodies else prior_s(node, llms, agents)

    return costs(nodes, blocks, cost)


def costs(
    nodes: Sequence[Node], blocks: Sequence[Block], cost_of: Callable[[Node, Sequence[Seconds]], Seconds]
) -> tuple[list[Seconds], list[Seconds]]:
    """Per node its cost, and its path to the end of its own block (its cost included). `cost_of` a node, given the
    critical paths of its bodies.

    Bodies have larger numbers than the blocks that hold them, so one pass from the last block to the first does it.
    """
    cost = [0.0] * len(nodes)
    local = [0.0] * len(nodes)
    paths = [0.0] * len(blocks)
    for block in reversed(blocks):
        for place in range(len(block.nodes) - 1, -1, -1):
            i = block.nodes[place]
            cost[i] = cost_of(nodes[i], [paths[body] for body in nodes[i].bodies])
            local[i] = cost[i] + max((local[d] for d in block.dependents[place]), default=0.0)
        paths[block.id] = max((local[i] for i in block.nodes), default=0.0)
    return cost, local


def tails(
    nodes: Sequence[Node], blocks: Sequence[Block], cost: Sequence[Seconds], local: Sequence[Seconds]
) -> tuple[Seconds, ...]:
    """Per node, estimated seconds from its start to the end of the run."""
    found = [0.0] * len(nodes)
    for block in blocks:
        after = 0.0 if block.parent is None else found[block.parent] - cost[block.parent]
        for i in block.nodes:
            found[i] = local[i] + after
    return tuple(found)


def by_tail(root: Block, tail: Sequence[Seconds]) -> tuple[NodeId, ...]:
    """Nodes of the root block, longest tail first, ties by id."""
    return tuple(sorted(root.nodes, key=lambda i: (-tail[i], i)))


@dataclass(frozen=True, slots=True)
class Chains:
    """Model calls that are made one after the other, loops, agents and dynamics at their bounds."""

    own: tuple[int, ...]
    """By node: in one execution of it."""
    rest: tuple[int, ...]
    """By node: from its start to the end of its block, on the longest chain."""
    blocks: tuple[int, ...]
    """By block: on its longest chain."""


def llm_chains(plan: Plan) -> Chains:
    """The longest chains of model calls of a plan."""
    blocks = [0] * len(plan.blocks)
    own = [0] * len(plan.nodes)
    rest = [0] * len(plan.nodes)
    for block in reversed(plan.blocks):
        for place in range(len(block.nodes) - 1, -1, -1):
            i = block.nodes[place]
            own[i] = _chain(plan.nodes[i], blocks)
            rest[i] = own[i] + max((rest[d] for d in block.dependents[place]), default=0)
        blocks[block.id] = max((rest[i] for i in block.nodes), default=0)
    return Chains(tuple(own), tuple(rest), tuple(blocks))


def llm_calls_on_path(plan: Plan) -> int:
    """Model calls one after the other on the longest chain of the whole plan."""
    return llm_chains(plan).blocks[0]


def _chain(node: Node, paths: Sequence[int]) -> int:
    longest = max((paths[b] for b in node.bodies), default=0)
    if node.kind in (Kind.LOOP, Kind.DYNAMIC):
        return node.limit * longest
    return node.limit if node.kind == Kind.AGENT else longest + (node.kind == Kind.LLM)


def leaves(source: Source) -> Iterator[Param | Output]:
    """The parameters and results that an expression reads."""
    stack: list[Source] = [source]
    while stack:
        match stack.pop():
            case Param() | Output() as leaf:
                yield leaf
            case Get(of):
                stack.append(of)
            case Op(_, args):
                stack.extend(args)
            case Const():
                pass


def outputs_of(source: Source) -> list[NodeId]:
    """The nodes whose results an expression reads."""
    return [leaf.node for leaf in leaves(source) if isinstance(leaf, Output)]


def unused(plan: Plan) -> tuple[Node, ...]:
    """Nodes whose result nothing reads."""
    read = {d for node in plan.nodes for d in node.deps}
    for block in plan.blocks:
        read.update(outputs_of(block.result))
        if block.until is not None:
            read.update(outputs_of(block.until))
    return tuple(node for node in plan.nodes if node.id not in read)
