"""What a task is called when a person reads it."""

from flowserve.core.commands import Role
from flowserve.graphs.plan import Kind, Node, Plan
from flowserve.runtime.frames import Frame

NODE, STEP, AGENT_TOOL = Role.NODE, Role.STEP, Role.TOOL
"""Asked of every task; an attribute of an Enum takes as long as five of a module (CPython 3.11)."""

_NUMBERED = frozenset({Kind.MAP, Kind.SAMPLE, Kind.LOOP, Kind.DYNAMIC})
"""Kinds whose frames are told apart by number."""


def label_of(plan: Plan, node: Node, frame: Frame | None, role: Role, index: int) -> str:
    """`answer`, `summarise[3]` inside the fourth item of a map, `[3][0]` deeper; `agent.2` for its third step,
    `agent.tool[1]` for the second tool call of a step."""
    numbers: list[str] = []
    while frame is not None:
        parent = plan.blocks[frame.block].parent
        if parent is not None and plan.nodes[parent].kind in _NUMBERED:
            numbers.append(f"[{frame.index}]")
        frame = frame.parent
    label = node.name + "".join(reversed(numbers))
    if role is STEP:
        return f"{label}.{index}"
    if role is AGENT_TOOL:
        return f"{label}.tool[{index}]"
    return label


def kind_of(node: Node, role: Role) -> str:
    """Lower-case name of the node's kind, or of the part of an agent."""
    return node.kind.name.lower() if role is NODE else role.value
