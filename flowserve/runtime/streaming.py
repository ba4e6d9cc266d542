"""Which nodes produce the text that a run returns: their tokens can be streamed to the client as they come."""

from flowserve.graphs.plan import Kind, Output, Plan, Source
from flowserve.ids import NodeId


def result_nodes(plan: Plan) -> frozenset[NodeId]:
    """LLM nodes with a text result that *is* the run's result, through branches but not through joins or fields."""
    found: set[NodeId] = set()
    _follow(plan, plan.blocks[0].result, found)
    return frozenset(found)


def _follow(plan: Plan, source: Source, found: set[NodeId]) -> None:
    if not isinstance(source, Output):
        return
    node = plan.nodes[source.node]
    if node.kind is Kind.LLM and plan.llms[node.target].output is None and plan.llms[node.target].stream:
        found.add(node.id)
    elif node.kind is Kind.SWITCH:
        for body in node.bodies:
            _follow(plan, plan.blocks[body].result, found)
    elif node.kind is Kind.COMPUTE and node.args:
        _follow(plan, node.args[0].source, found)
