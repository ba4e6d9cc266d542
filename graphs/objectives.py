"""For whom each model call of a plan is made: for the reader of the result, or for a group that is joined.

Parrot (Lin et al., OSDI 2024, 5.2) walks a program backwards from the results that somebody asks for. What lies on a chain
to them is *latency-bound*: every second of it is a second of the reader's. Where calls side by side feed one consumer they are
a *task group*, and *throughput-bound*: the consumer begins when the last of them has ended, so that it matters when all
are done and not when each is. Before and behind the group the chain is latency-bound again.

The result of a plan is what its reader waits for, so the walk begins at block 0 and goes into bodies, which inherit what
their node is. Groups are

- the bodies of a MAP or SAMPLE that may have several frames at once;
- nodes of one block for which the same nodes wait, if two or more of them make model calls.

Of groups within groups the outermost counts: it is what somebody waits for. Arms of a RACE are no group, since the first to end
decides; neither are the calls of a DYNAMIC, which may wait for each of them. Parrot sees a program call by call as it
is submitted, and also takes a criterion from whoever reads; here the tier of a run says that (`core.priority`).
"""

from collections.abc import Iterator

from flowserve.graphs.plan import Block, Kind, Node, Plan
from flowserve.ids import NodeId


def groups(plan: Plan) -> tuple[NodeId | None, ...]:
    """For each node the first node of the group that it works for, which names the group; None: it is latency-bound."""
    calls = _calling(plan)
    found: list[NodeId | None] = [None] * len(plan.nodes)
    for block in plan.blocks:  # bodies have larger numbers than the blocks that hold them
        around = _inherited(plan, block, found)
        joined = dict(_joined(block, calls))
        for node in block.nodes:
            found[node] = around if around is not None else joined.get(node)
    return tuple(found)


def _inherited(plan: Plan, block: Block, found: list[NodeId | None]) -> NodeId | None:
    """The group of everything in `block`."""
    if block.parent is None:
        return None
    group = found[block.parent]
    return block.parent if group is None and _is_wide(plan.nodes[block.parent]) else group


def _is_wide(node: Node) -> bool:
    """May it have several frames at once, all of which are waited for?"""
    return node.kind in (Kind.MAP, Kind.SAMPLE) and node.limit > 1 and node.concurrency != 1


def _joined(block: Block, calls: list[bool]) -> Iterator[tuple[NodeId, NodeId]]:
    """Each node that shares its consumers with others, and the first of these."""
    feeding: dict[tuple[NodeId, ...], list[NodeId]] = {}
    for node, consumers in zip(block.nodes, block.dependents, strict=True):
        if consumers and calls[node]:
            feeding.setdefault(consumers, []).append(node)
    for members in feeding.values():
        if len(members) > 1:
            yield from ((node, members[0]) for node in members)


def _calling(plan: Plan) -> list[bool]:
    """By node: does it make model calls, itself or in its bodies?"""
    calls = [node.kind in (Kind.LLM, Kind.AGENT) for node in plan.nodes]
    for block in reversed(plan.blocks):
        if block.parent is not None and any(calls[node] for node in block.nodes):
            calls[block.parent] = True
    return calls
