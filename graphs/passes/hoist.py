"""What is the same in every round of a loop, for every item or in every sample is done once, before.

Only out of bodies that are certain to run, or a call would be made in vain; and only where the rest of the body waits
for it anyhow, or the rest would begin later than before. Model calls stay in samples: who samples wants several, and engines
whose sums depend on the batch write several even where the likeliest token is taken.
"""

from flowserve.graphs.declaration import BlockDecl, ConstExpr, Declaration, NodeDecl, OpExpr, ParamExpr
from flowserve.graphs.passes.facts import blocks, needs, reads, repeatable
from flowserve.graphs.plan import Kind


def hoist(declaration: Declaration) -> list[str]:
    """Move such calls outwards; from the innermost body on, so that one may pass several."""
    found = []
    for block in reversed(list(blocks(declaration.root))):
        owner = block.owner
        if owner is not None and _certain(owner, block):
            for node in _leading(owner, block):
                block.nodes.remove(node)
                owner.block.nodes.insert(owner.block.nodes.index(owner), node)
                node.block = owner.block
                found.append(f"{node.name} is called once, before {owner.name}")
    return found


def _leading(owner: NodeDecl, block: BlockDecl) -> list[NodeDecl]:
    """Nodes that may go, in order. All the rest waits for a node that reads no other just when it is the only such node."""
    waits = {node: needs(node) for node in block.nodes}
    waiting: dict[NodeDecl, list[NodeDecl]] = {node: [] for node in block.nodes}
    for node, needed in waits.items():
        for one in needed:
            waiting[one].append(node)
    first = [node for node, needed in waits.items() if not needed]
    found: list[NodeDecl] = []
    while len(first) == 1 and _movable(first[0], owner) and _same_every_time(first[0], block):
        node = first.pop()
        found.append(node)
        for later in waiting[node]:
            waits[later].discard(node)
            if not waits[later]:
                first.append(later)
    return found


def _movable(node: NodeDecl, owner: NodeDecl) -> bool:
    return repeatable(node) and (owner.kind is not Kind.SAMPLE or node.kind in (Kind.SEARCH, Kind.COMPUTE, Kind.TOOL))


def _certain(owner: NodeDecl, block: BlockDecl) -> bool:
    """Whether the body runs, and may run more than once."""
    match owner.kind:
        case Kind.SAMPLE:
            return True
        case Kind.LOOP:
            return block.until is None and (owner.degrade is None or owner.degrade.least > 0)
        case Kind.MAP:
            sequence = owner.args[0][1]
            written = sequence.args if isinstance(sequence, OpExpr) and sequence.name in ("list", "tuple") else ()
            constant = sequence.value if isinstance(sequence, ConstExpr) else ()
            return bool(written) or isinstance(constant, list) and bool(constant)
    return False


def _same_every_time(node: NodeDecl, block: BlockDecl) -> bool:
    """It reads no parameter of the body."""
    return not any(isinstance(leaf, ParamExpr) and leaf.block is block for leaf in reads(node))
