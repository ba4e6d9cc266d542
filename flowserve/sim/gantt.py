"""A run as a picture: one bar per task, coloured by what its time went to, the critical path marked."""

from html import escape
from math import floor, log10

from flowserve.ids import Seconds
from flowserve.sim.explain import AGAIN, DECODE, OWN, PREFILL, SEARCH, TOOL, WAIT, Explanation, pieces
from flowserve.sim.timeline import Span

COLOURS = {
    WAIT: "#d1d5db",
    AGAIN: "#f87171",
    PREFILL: "#93c5fd",
    DECODE: "#2563eb",
    TOOL: "#d97706",
    SEARCH: "#059669",
    OWN: "#6b7280",
}
ROW, LEFT, WIDTH, TOP, BOTTOM, NAME = 18, 230, 1000, 58, 24, 32
MOST = 200
"""Bars; of a longer run those on the critical path and the longest others."""
STYLE = (
    "text{font:12px ui-sans-serif,system-ui,sans-serif;fill:#111827}.grid{stroke:#e5e7eb}.slack{stroke:#9ca3af;"
    "stroke-dasharray:2 3}.critical{font-weight:700}"
    "@media(prefers-color-scheme:dark){text{fill:#e5e7eb}.grid{stroke:#374151}}"
)


def gantt(found: Explanation) -> str:
    """A self-contained SVG document. Names of tasks on the critical path are bold; a dotted line is slack."""
    line = found.timeline
    work = _shown(found)
    height = TOP + ROW * len(work) + BOTTOM
    title = escape(f"{line.plan.name}: {line.ended:.3f} s, {line.status}")
    parts = [f'<text x="8" y="18" class="critical">{title}</text>', *_legend(found), *_axis(line.ended, height)]
    for row, span in enumerate(work):
        parts += _bar(found, span, TOP + ROW * row)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" role="img">'
        f"<title>{escape(line.plan.name)}</title><style>{STYLE}</style>{''.join(parts)}</svg>\n"
    )


def _shown(found: Explanation) -> list[Span]:
    critical = {piece.span.task for piece in found.path}
    longest = sorted(found.work, key=lambda s: (s.task not in critical, s.ready - (s.ended or found.timeline.ended)))
    kept = {span.task for span in longest[:MOST]}
    return [span for span in found.work if span.task in kept]


def _x(seconds: Seconds, most: Seconds) -> float:
    return LEFT + (WIDTH - LEFT - 20) * seconds / max(most, 1e-9)


def _legend(found: Explanation) -> list[str]:
    parts, x = [], 8.0
    for what in found.totals:
        parts.append(f'<rect x="{x:.0f}" y="28" width="10" height="10" fill="{COLOURS[what]}"/>')
        parts.append(f'<text x="{x + 14:.0f}" y="37">{escape(what)}</text>')
        x += 30 + 6.4 * len(what)
    return parts


def _axis(most: Seconds, height: int) -> list[str]:
    """Lines at 1, 2 or 5 times a power of ten, four to ten of them."""
    power = 10.0 ** floor(log10(max(most, 1e-6) / 4))
    step = next(factor * power for factor in (5, 2, 1) if factor * power <= max(most, 1e-6) / 4)
    parts = []
    for number in range(floor(most / step) + 1):
        x = _x(number * step, most)
        parts.append(f'<line class="grid" x1="{x:.1f}" y1="{TOP - 6}" x2="{x:.1f}" y2="{height - 20}"/>')
        parts.append(f'<text x="{x:.1f}" y="{height - 6}" text-anchor="middle">{number * step:g} s</text>')
    return parts


def _bar(found: Explanation, span: Span, y: int) -> list[str]:
    most = found.timeline.ended
    name = span.label if len(span.label) <= NAME else "..." + span.label[3 - NAME :]
    bold = ' class="critical"' if any(piece.span is span for piece in found.path) else ""
    parts = [f'<text x="{LEFT - 8}" y="{y + 10}" text-anchor="end"{bold}>{escape(name)}</text>']
    end = most if span.ended is None else span.ended
    for piece in pieces(span, end):
        x, told = _x(piece.begin, most), escape(f"{span.label}: {piece.what}, {piece.seconds:.3f} s")
        parts.append(
            f'<rect x="{x:.1f}" y="{y + 1}" width="{max(0.5, _x(piece.end, most) - x):.1f}" height="{ROW - 5}" '
            f'fill="{COLOURS[piece.what]}"><title>{told}</title></rect>'
        )
    begin, until, middle = _x(end, most), _x(end + found.slack.get(span.task, 0.0), most), y + ROW / 2 - 1
    if until > begin + 1:
        parts.append(f'<line class="slack" x1="{begin:.1f}" y1="{middle}" x2="{until:.1f}" y2="{middle}"/>')
    return parts
