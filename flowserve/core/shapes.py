"""What the scheduler knows about a plan, as arrays: computed once per plan, shared by all its runs.

A `Plan` names nodes by plan-wide ids and looks dependents up by id. The hot path wants positions inside
a block and counts that can be copied, so they are laid out here when the plan's first run arrives.
"""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from flowserve.graphs.objectives import groups
from flowserve.graphs.output_length import Length, of_schema
from flowserve.graphs.plan import Kind, Node, Plan
from flowserve.ids import BlockId, NodeId, Seconds

if TYPE_CHECKING:
    from flowserve.core.estimates import PlanFigures
    from flowserve.core.state import Task


@dataclass(slots=True, eq=False)
class BlockShape:
    """One block as arrays over positions (a node's place in `Block.nodes`)."""

    id: BlockId
    nodes: tuple[Node, ...]
    counts: "list[int | Task | None]"
    """Per position: how many nodes of the block it waits for. Frames start with a copy."""
    dependents: tuple[tuple[int, ...], ...]
    """Per position: positions that wait for it."""
    roots: tuple[int, ...]
    """Positions that wait for nothing."""


@dataclass(slots=True, eq=False)
class PlanShape:
    """One plan as arrays."""

    plan: Plan
    blocks: tuple[BlockShape, ...]
    position: list[int]
    """Per node id: its place in its block."""
    tails: tuple[Seconds, ...]
    """Per node id: the remaining critical path from its start, as the compiler guessed. Zeros for a plan without estimates."""
    by_tail: tuple[NodeId, ...]
    """Nodes of block 0, longest tail first."""
    models: tuple[str, ...]
    """Per node id: which model an LLM or AGENT node calls; "" is the default, also for nodes that call none."""
    called: tuple[str, ...]
    """Models that nodes of block 0 call, each once: what no run of the plan can do without."""
    degradable: tuple[NodeId, ...]
    """Nodes with a `degrade`, the least harmful first."""
    answers: tuple[Length | None, ...]
    """Per node id: what an LLM node's schema says of the length of its answers; None: nothing."""
    groups: tuple[NodeId | None, ...]
    """Per node id: the node that names the group it works for; None: none. See `graphs.objectives`."""
    figures: "PlanFigures" = field(init=False)
    """What was seen of its nodes; there from the plan's first accepted run on."""
    runs: int = 0
    """Live runs of this plan; at 0 the shape is forgotten."""


def shape_plan(plan: Plan) -> PlanShape:
    """Lay `plan` out as arrays. Plans were checked by the compiler; nothing is checked again here."""
    position = [0] * len(plan.nodes)
    for block in plan.blocks:
        for place, node in enumerate(block.nodes):
            position[node] = place
    tails = plan.tails or (0.0,) * len(plan.nodes)
    return PlanShape(
        plan=plan,
        blocks=tuple(_shape_block(plan, BlockId(number), position) for number in range(len(plan.blocks))),
        position=position,
        tails=tails,
        by_tail=plan.by_tail or tuple(sorted(plan.blocks[0].nodes, key=lambda node: (-tails[node], node))),
        models=tuple(_model(plan, node) for node in plan.nodes),
        called=tuple(dict.fromkeys(_model(plan, node) for node in plan.nodes if node.block == 0 and _calls(node))),
        degradable=_degradable(plan),
        answers=_answers(plan),
        groups=groups(plan),
    )


def _shape_block(plan: Plan, number: BlockId, position: list[int]) -> BlockShape:
    nodes = tuple(plan.nodes[node] for node in plan.blocks[number].nodes)
    dependents: list[list[int]] = [[] for _ in nodes]
    for place, node in enumerate(nodes):
        for dep in node.deps:
            dependents[position[dep]].append(place)
    return BlockShape(
        id=number,
        nodes=nodes,
        counts=[len(node.deps) for node in nodes],
        dependents=tuple(map(tuple, dependents)),
        roots=tuple(place for place, node in enumerate(nodes) if not node.deps),
    )


def _degradable(plan: Plan) -> tuple[NodeId, ...]:
    harms = [(node.degrade.harm, node.id) for node in plan.nodes if node.degrade is not None]
    return tuple(id for _, id in sorted(harms))


def _answers(plan: Plan) -> tuple[Length | None, ...]:
    known = [of_schema(llm.output) if llm.output is not None else None for llm in plan.llms]
    return tuple(known[node.target] if node.kind is Kind.LLM else None for node in plan.nodes)


def _calls(node: Node) -> bool:
    return node.kind in (Kind.LLM, Kind.AGENT)


def _model(plan: Plan, node: Node) -> str:
    if node.kind is Kind.LLM:
        return plan.llms[node.target].model or ""
    if node.kind is Kind.AGENT:
        return plan.agents[node.target].llm.model or ""
    return ""
