"""A Plan drawn for people: Mermaid text for READMEs, SVG for pages, an outline for terminals."""

import re
from dataclasses import dataclass
from functools import cached_property

from flowserve.graphs.analysis import outputs_of
from flowserve.graphs.passes import Rewritten
from flowserve.graphs.plan import Block, Const, Get, Kind, Node, Op, Output, Param, Plan, Source

KIND_COLOURS = {
    Kind.LLM: "#3b82f6",
    Kind.TOOL: "#d97706",
    Kind.SEARCH: "#059669",
    Kind.COMPUTE: "#6b7280",
    Kind.MAP: "#7c3aed",
    Kind.SAMPLE: "#db2777",
    Kind.SWITCH: "#ca8a04",
    Kind.LOOP: "#0891b2",
    Kind.AGENT: "#4f46e5",
    Kind.DYNAMIC: "#be123c",
    Kind.RACE: "#0d9488",
}


@dataclass(frozen=True)
class Drawing:
    """A plan as pictures; each is made when it is asked for."""

    plan: Plan

    @cached_property
    def mermaid(self) -> str:
        """Mermaid flowchart; bodies are subgraphs."""
        return mermaid(self.plan)

    @cached_property
    def svg(self) -> str:
        """A self-contained SVG document."""
        from flowserve.graphs.svg import svg

        return svg(self.plan)

    @cached_property
    def text(self) -> str:
        """An indented outline: one line per node, with what it waits for."""
        return outline(self.plan)

    def __str__(self) -> str:
        return self.text

    def _repr_svg_(self) -> str:
        return self.svg

    def _repr_mimebundle_(self, **_: object) -> dict[str, str]:
        return {"image/svg+xml": self.svg, "text/plain": self.text}


def detail(plan: Plan, node: Node) -> str:
    """The few words beside a node's kind: what it uses, its bound, and how little will do."""
    words = _bound(plan, node)
    if node.degrade is None:
        return words
    return f"{words}, " + (f"at least {node.degrade.least}" if node.degrade.least else "or none")


def _bound(plan: Plan, node: Node) -> str:
    match node.kind:
        case Kind.LLM:
            llm = plan.llms[node.target]
            words = f"{llm.max_tokens} tokens" + (f", {llm.any_order} in any order" if llm.any_order else "")
            words += f", looks into {llm.retrieve_from} every {llm.retrieve_every}" if llm.retrieve_every else ""
            return words + (", approximate: may end early" if llm.exit is not None else "")
        case Kind.SEARCH:
            search = plan.searches[node.target]
            index = search.index + "".join(f", {name}={value}" for name, value in search.where)
            return index if node.degrade is None else f"{index}, {node.limit} passages"
        case Kind.MAP:
            return f"up to {node.limit:,}" + (", as they are written" if node.streams is not None else "")
        case Kind.SAMPLE:
            spec = plan.samples[node.target]
            return f"{node.limit} samples" + (f", {spec.rule}" if spec.rule else "")
        case Kind.SWITCH:
            return describe(plan, node.args[-1].source) + "?" if len(node.args) == 1 else describe(plan, _value(node))
        case Kind.LOOP:
            until = plan.blocks[node.bodies[0]].until
            return f"up to {node.limit}" + (f", until {describe(plan, until)}" if until is not None else "")
        case Kind.RACE:
            first = "first" if node.limit == 1 else f"first {node.limit}"
            valid = plan.blocks[node.bodies[0]].until
            return f"{first} of {len(node.bodies)}" + (f", where {describe(plan, valid)}" if valid is not None else "")
        case Kind.AGENT:
            tools = [plan.tools[i].name for i in plan.agents[node.target].tools]
            return f"up to {node.limit} steps" + (f", {', '.join(tools)}" if tools else "")
        case Kind.DYNAMIC:
            return f"up to {node.limit} calls"
        case Kind.TOOL:
            return "" if plan.tools[node.target].name == node.name else plan.tools[node.target].name
        case Kind.COMPUTE:
            return describe(plan, node.args[0].source)


def _value(node: Node) -> Source:
    return next(arg.source for arg in node.args if arg.name == "value")


_SIGNS = {"eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">=", "and": "and", "or": "or", "in": "in"}


def describe(plan: Plan, source: Source) -> str:
    """An expression as a person writes it."""
    match source:
        case Const(index):
            return repr(plan.consts[index])[:40]
        case Param(block, index):
            return plan.blocks[block].params[index]
        case Output(node):
            return plan.nodes[node].name
        case Get(of, key):
            return f"{describe(plan, of)}.{key}" if isinstance(key, str) else f"{describe(plan, of)}[{key}]"
        case Op(name, args):
            parts = [describe(plan, a) for a in args]
            if name in _SIGNS:
                return f" {_SIGNS[name]} ".join(parts)
            return f"{name} {parts[0]}" if name == "not" else f"{name}({', '.join(parts)})"


def body_label(plan: Plan, node: Node, place: int) -> str:
    """What a body of a node is: `then`, a case, `each item`, `again`."""
    role = plan.blocks[node.bodies[place]].name.removeprefix(node.name + "/")
    if node.kind is Kind.RACE:
        return f"arm {role}"
    return {"item": "each item", "sample": "each sample", "iteration": "each round"}.get(role, role)


def outline(plan: Plan) -> str:
    """One line per node."""
    lines = [f"{plan.name}({', '.join(plan.blocks[0].params)})"]

    def walk(block: Block, indent: str) -> None:
        for i in block.nodes:
            node = plan.nodes[i]
            after = ", ".join(plan.nodes[d].name for d in node.deps)
            words = detail(plan, node)
            what = node.kind.name.lower() + (f", {words}" if words else "")
            lines.append(f"{indent}{node.name}  [{what}]" + (f"  after {after}" if after else ""))
            for place, body in enumerate(node.bodies):
                lines.append(f"{indent}  {body_label(plan, node, place)}:")
                walk(plan.blocks[body], indent + "    ")
        if block.id:
            lines.append(f"{indent}= {describe(plan, block.result)}")

    walk(plan.blocks[0], "  ")
    lines.append(f"  = {describe(plan, plan.blocks[0].result)}")
    return "\n".join(lines)


def mermaid(plan: Plan) -> str:
    """Mermaid flowchart text."""
    lines, edges = _flow(plan, "")
    return "\n".join(["flowchart TD", *lines, *edges, *_styles(plan)]) + "\n"


def mermaid_of_passes(rewritten: Rewritten, declared: Plan) -> str:
    """One chart: what was declared, and beside it what the passes have made of it; what they did stands in comments."""
    lines, edges = ["flowchart TD", *(f"  %% {change}" for change in rewritten.changes)], []
    for mark, title, plan in (("d", "declared", declared), ("r", "rewritten", rewritten.plan)):
        inner, ends = _flow(plan, mark)
        lines += [f'  subgraph {mark}["{title}"]', *inner, "  end"]
        edges += ends
    return "\n".join([*lines, *edges, *_styles(declared, rewritten.plan)]) + "\n"


def _flow(plan: Plan, mark: str) -> tuple[list[str], list[str]]:
    """Lines of nodes, and of edges. `mark` begins every id."""
    root = plan.blocks[0]
    lines = [f'  {mark}input(["{_quoted(", ".join(root.params) or "start")}"])']
    edges: list[str] = []

    def walk(block: Block, indent: str) -> None:
        for i in block.nodes:
            node = plan.nodes[i]
            if node.bodies:
                lines.append(f'{indent}subgraph {mark}n{i}["{_quoted(label(plan, node))}"]')
                for place, body in enumerate(node.bodies):
                    lines.append(f'{indent}  subgraph {mark}b{body}["{_quoted(body_label(plan, node, place))}"]')
                    if plan.blocks[body].nodes:
                        walk(plan.blocks[body], indent + "    ")
                    else:
                        lines.append(
                            f'{indent}    {mark}v{body}["{_quoted(describe(plan, plan.blocks[body].result))}"]'
                        )
                    lines.append(f"{indent}  end")
                lines.append(f"{indent}end")
            else:
                lines.append(f'{indent}{mark}n{i}["{_quoted(label(plan, node))}"]:::{node.kind.name.lower()}')
            edges.extend(f"  {mark}n{d} --> {mark}n{i}" for d in node.deps)

    walk(root, "  ")
    lines.append(f'  {mark}output(["result"])')
    edges += [f"  {mark}input --> {mark}n{i}" for i in entries(plan, root)]
    edges += [f"  {mark}n{i} --> {mark}output" for i in sorted(set(outputs_of(root.result)))]
    if not root.nodes:
        edges.append(f"  {mark}input --> {mark}output")
    return lines, edges


def _styles(*plans: Plan) -> list[str]:
    used = sorted({n.kind for plan in plans for n in plan.nodes if not n.bodies})
    return [f"  classDef {k.name.lower()} fill:{KIND_COLOURS[k]},stroke:none,color:#fff" for k in used]


def entries(plan: Plan, block: Block) -> list[int]:
    """Nodes of a block that wait for no other."""
    return [i for i in block.nodes if not plan.nodes[i].deps]


def label(plan: Plan, node: Node) -> str:
    """Two lines: name, then kind and detail."""
    words = detail(plan, node)
    return f"{node.name}\n{node.kind.name.lower()}" + (f" · {words}" if words else "")


def _quoted(text: str) -> str:
    """Text inside a Mermaid string: entities instead of what Mermaid or HTML would read."""
    safe = re.sub(r"[^\w \n.,:·=!?()\[\]+/-]", lambda m: f"#{ord(m[0])};", text)
    return safe.replace("\n", "<br/>")
