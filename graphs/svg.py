"""The SVG of a Plan: a layered layout, small and without dependencies.

Each block is laid out alone: longest-path layers from top to bottom, order inside a layer by the mean place of
what it waits for. A node with bodies is a frame around their pictures, side by side.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape

from flowserve.graphs.analysis import outputs_of
from flowserve.graphs.draw import KIND_COLOURS, body_label, describe, detail
from flowserve.graphs.passes import Rewritten
from flowserve.graphs.plan import Block, Node, Plan

CHAR_W, LINE_H, PAD, GAP_X, GAP_Y = 7.2, 18.0, 14.0, 26.0, 44.0
MAX_LABEL = 44

_STYLE = """
text{font:13px ui-sans-serif,system-ui,sans-serif;fill:#111827}
.small{font-size:11px;fill:#6b7280}
.node{fill:#fff;stroke-width:1.6}.frame{fill:none;stroke-width:1.2;stroke-dasharray:5 3}
.end{fill:#f3f4f6;stroke:#9ca3af}.edge{fill:none;stroke:#9ca3af;stroke-width:1.4}.tip{fill:#9ca3af}
@media(prefers-color-scheme:dark){text{fill:#e5e7eb}.small{fill:#9ca3af}.node{fill:#111827}.end{fill:#1f2937}}
"""


@dataclass(slots=True)
class _Box:
    """A picture of a node or block with its size; `x` and `y` are of its upper left corner in its parent."""

    width: float
    height: float
    parts: list[str] = field(default_factory=list)
    children: list["_Box"] = field(default_factory=list)
    x: float = 0.0
    y: float = 0.0

    def render(self) -> str:
        inner = "".join(self.parts) + "".join(child.render() for child in self.children)
        return f'<g transform="translate({self.x:.1f},{self.y:.1f})">{inner}</g>'


def svg(plan: Plan) -> str:
    """A self-contained SVG document."""
    return _document(plan.name, _block(plan, plan.blocks[0], ends=True))


def svg_of_passes(rewritten: Rewritten, declared: Plan) -> str:
    """What was declared and what the passes have made of it, side by side; below, what they did."""
    before, after = (_titled(title, plan) for title, plan in (("declared", declared), ("rewritten", rewritten.plan)))
    after.x = before.width + 2 * GAP_X
    base = max(before.height, after.height) + 2 * LINE_H
    notes = [str(change) for change in rewritten.changes] or ["the passes found nothing to change"]
    said = [f'<text class="small" y="{base + LINE_H * i:.1f}">{_text(note)}</text>' for i, note in enumerate(notes)]
    width = max(after.x + after.width, max(map(len, notes)) * CHAR_W)
    return _document(declared.name, _Box(width, base + LINE_H * (len(notes) - 1), said, [before, after]))


def _titled(title: str, plan: Plan) -> _Box:
    inside = _block(plan, plan.blocks[0], ends=True)
    inside.y = LINE_H
    caption = f'<text class="small" y="0">{title}</text>'
    return _Box(max(inside.width, len(title) * CHAR_W), inside.height + LINE_H, [caption], [inside])


def _document(title: str, box: _Box) -> str:
    width, height = box.width + 2 * PAD, box.height + 2 * PAD
    box.x = box.y = PAD
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{height:.0f}" '
        f'viewBox="0 0 {width:.0f} {height:.0f}" role="img"><title>{_text(title)}</title><style>{_STYLE}</style>'
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        f'<path class="tip" d="M0 0L8 4L0 8z"/></marker></defs>{box.render()}</svg>\n'
    )


def _block(plan: Plan, block: Block, ends: bool = False) -> _Box:
    """A block: its nodes in layers, edges between them; with `ends`, its parameters above and its result below."""
    boxes: dict[int, _Box] = {i: _node(plan, plan.nodes[i]) for i in block.nodes}
    layers = _layers(plan, block)
    start, end = -1, -2
    edges: list[tuple[int, int]] = [(d, i) for i in block.nodes for d in plan.nodes[i].deps]
    if ends:
        boxes[start] = _pill(", ".join(block.params) or "start")
        boxes[end] = _pill("result")
        results = sorted(set(outputs_of(block.result)))
        edges += [(start, i) for i in block.nodes if not plan.nodes[i].deps]
        edges += [(i, end) for i in results] or [(start, end)]
        layers = [[start], *layers, [end]]
    elif not block.nodes:
        return _pill(describe(plan, block.result))
    _place(layers, boxes, edges)
    width = max(box.x + box.width for box in boxes.values())
    height = max(box.y + box.height for box in boxes.values())
    return _Box(width, height, [_edge(boxes[a], boxes[b]) for a, b in edges], list(boxes.values()))


def _layers(plan: Plan, block: Block) -> list[list[int]]:
    level: dict[int, int] = {}
    for i in block.nodes:
        level[i] = max((level[d] + 1 for d in plan.nodes[i].deps), default=0)
    layers: list[list[int]] = [[] for _ in range(max(level.values(), default=-1) + 1)]
    for i in block.nodes:
        layers[level[i]].append(i)
    return layers


def _place(layers: Sequence[list[int]], boxes: dict[int, _Box], edges: Sequence[tuple[int, int]]) -> None:
    """Give every box its corner."""
    above: dict[int, list[int]] = {}
    for a, b in edges:
        above.setdefault(b, []).append(a)
    widths = [sum(boxes[i].width for i in layer) + GAP_X * (len(layer) - 1) for layer in layers]
    widest = max(widths)
    y = 0.0
    for layer, width in zip(layers, widths, strict=True):
        middles = {i: [boxes[a].x + boxes[a].width / 2 for a in above.get(i, ())] for i in layer}
        layer.sort(key=lambda i: (sum(middles[i]) / len(middles[i]) if middles[i] else 0.0, i))
        x = (widest - width) / 2
        for i in layer:
            boxes[i].x, boxes[i].y = x, y
            x += boxes[i].width + GAP_X
        y += max(boxes[i].height for i in layer) + GAP_Y


def _edge(a: _Box, b: _Box) -> str:
    x1, y1, x2, y2 = a.x + a.width / 2, a.y + a.height, b.x + b.width / 2, b.y - 2
    bend = min(30.0, (y2 - y1) / 2)
    return f'<path class="edge" marker-end="url(#tip)" d="M{x1:.1f} {y1:.1f}C{x1:.1f} {y1 + bend:.1f} {x2:.1f} {y2 - bend:.1f} {x2:.1f} {y2:.1f}"/>'


def _node(plan: Plan, node: Node) -> _Box:
    colour = KIND_COLOURS[node.kind]
    words = detail(plan, node)
    second = _short(node.kind.name.lower() + (f" · {words}" if words else ""))
    first = _short(node.name)
    width = max(len(first), len(second)) * CHAR_W + 2 * PAD
    texts = [
        f'<text x="{PAD}" y="{PAD + 8}">{_text(first)}</text>',
        f'<text class="small" x="{PAD}" y="{PAD + 8 + LINE_H}">{_text(second)}</text>',
        f"<title>{_text(node.name)} ({_text(second)})</title>",
    ]
    height = PAD + 2 * LINE_H + 4
    if not node.bodies:
        shape = f'<rect class="node" rx="7" width="{width:.1f}" height="{height:.1f}" stroke="{colour}"/>'
        return _Box(width, height, [shape, *texts])
    bodies = [_block(plan, plan.blocks[b]) for b in node.bodies]
    x = PAD
    for place, body in enumerate(bodies):
        title = _short(body_label(plan, node, place))
        texts.append(f'<text class="small" x="{x:.1f}" y="{height + 10:.1f}">{_text(title)}</text>')
        body.x, body.y = x, height + LINE_H
        x += max(body.width, len(title) * CHAR_W) + GAP_X
    width = max(width, x - GAP_X + PAD)
    height += LINE_H + max(body.height for body in bodies) + PAD
    shape = f'<rect class="frame" rx="9" width="{width:.1f}" height="{height:.1f}" stroke="{colour}"/>'
    return _Box(width, height, [shape, *texts], bodies)


def _pill(text: str) -> _Box:
    text = _short(text)
    width, height = len(text) * CHAR_W + 2 * PAD, LINE_H + 8
    shape = f'<rect class="end" rx="{height / 2:.1f}" width="{width:.1f}" height="{height:.1f}"/>'
    return _Box(width, height, [shape, f'<text x="{PAD}" y="{LINE_H - 1}">{_text(text)}</text>'])


def _short(text: str) -> str:
    return text if len(text) <= MAX_LABEL else text[: MAX_LABEL - 3] + "..."


def _text(text: str) -> str:
    """Text that any XML reader takes: escaped, without control characters or lone surrogates."""
    return escape(
        "".join(c if c >= " " and not "\ud800" <= c <= "\udfff" and c not in "\ufffe\uffff" else "?" for c in text)
    )
