"""What is the same in every round of a loop, for every item or in every sample, is done once, before.

Only out of bodies that are certain to run, or a call would be made in vain; and only where the rest of the body waits
for it anyhow, or the rest would begin later than before. Model calls stay in samples: who samples wants several, and engines
whose sums depend on the batch write several even where the likeliest token is taken.
"""

from flowserve.graphs.declaration import BlockDecl, ConstExpr, Declaration, NodeDecl, OpExpr, OutputExpr
from flowserve.graphs.passes.facts import ancestors, blocks, reads, repeatable
from flowserve.graphs.plan import Kind


def hoist(declaration: Declaration) -> list[str]:
    """Move such calls one block outwards."""
    found = []
    for block in list(blocks(declaration.root)):
        owner = block.owner
        if owner is None or not _certain(owner, block):
            continue
        for node in list(block.nodes):
            if _movable(node, owner) and _same_every_time(node, block) and _first(node, block):
                block.nodes.remove(node)
                owner.block.nodes.insert(owner.block.nodes.index(owner), node)
                node.block = owner.block
                found.append(f"{node.name} is called once, before {owner.name}")
    return found


def _movable(node: NodeDecl, owner: NodeDecl) -> bool:
    return repeatable(node) and (owner.kind is not Kind.SAMPLE or node.kind in (Kind.SEARCH, Kind.COMPUTE, Kind.TOOL))


def _certain(owner: NodeDecl, block: BlockDecl) -> bool:
    """Whether the body runs, and may run more than once."""
    match owner.kind:
        case Kind.SAMPLE:
            return True
        case Kind.LOOP:
            return block.until is None
        case Kind.MAP:
            sequence = owner.args[0][1]
            written = sequence.args if isinstance(sequence, OpExpr) and sequence.name in ("list", "tuple") else ()
            constant = sequence.value if isinstance(sequence, ConstExpr) else ()
            return bool(written) or isinstance(constant, list) and bool(constant)
    return False


def _same_every_time(node: NodeDecl, block: BlockDecl) -> bool:
    """It reads nothing of the body: neither its parameters nor its nodes."""
    return not any((leaf.node.block if isinstance(leaf, OutputExpr) else leaf.block) is block for leaf in reads(node))


def _first(node: NodeDecl, block: BlockDecl) -> bool:
    """All the rest of the body waits for it."""
    return all(node in ancestors(other) for other in block.nodes if other is not node)
