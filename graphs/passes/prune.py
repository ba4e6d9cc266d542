"""What nobody reads is neither waited for nor made."""

from flowserve.graphs import split
from flowserve.graphs.declaration import (
    AgentDecl,
    BlockDecl,
    ConstExpr,
    Declaration,
    NodeDecl,
    OutputExpr,
    references,
)
from flowserve.graphs.passes.facts import blocks, harmless, readers, reads
from flowserve.graphs.plan import LLMSpec, Template


def prune(declaration: Declaration) -> list[str]:
    """Drop values that a prompt does not read, then calls without effects that nothing reads."""
    return _unread_values(declaration) + _unread_calls(declaration)


def _unread_values(declaration: Declaration) -> list[str]:
    found = []
    for block in blocks(declaration.root):
        for node in block.nodes:
            template = _template(node)
            for place, (name, expr) in enumerate(node.args):
                if template is not None and any(references(expr)) and not _read(template, name):
                    node.args[place] = (name, ConstExpr(None))
                    found.append(f"{node.name} does not wait for '{name}', which its prompt does not read")
    return found


def _template(node: NodeDecl) -> Template | None:
    match node.payload:
        case LLMSpec() as spec:
            return spec.template
        case AgentDecl() as agent:
            return agent.llm.template
    return None


def _read(template: Template, name: str) -> bool:
    sources = (template.source, template.system_source)
    return template.history == name or any(name in split.variables(source) for source in sources)


def _unread_calls(declaration: Declaration) -> list[str]:
    uses = readers(declaration.root)
    gone: set[BlockDecl] = set()
    found: list[str] = []
    todo = [node for block in blocks(declaration.root) for node in block.nodes if not uses[node]]
    while todo:
        node = todo.pop()
        if node.block in gone or not harmless(node):
            continue
        node.block.nodes.remove(node)
        gone.update(inside for body in node.bodies for inside in blocks(body))
        found.append(f"{node.name} is not called: nothing reads its result")
        for leaf in reads(node):
            if isinstance(leaf, OutputExpr):
                uses[leaf.node] -= 1
                if not uses[leaf.node]:
                    todo.append(leaf.node)
    return found
