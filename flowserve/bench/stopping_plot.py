"""What stopping saves against what it loses, as a self-contained SVG: one line per rule family."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

from flowserve.sim.plot import BOTTOM, COLOURS, HEIGHT, LEFT, RIGHT, STYLE, TOP, WIDTH

WORST_PP, BEST_PP = -5.0, 1.0
"""What loses more is not drawn: nobody would use it."""
MOST_PCT = 60
LABELS = 20


@dataclass(frozen=True, slots=True)
class Point:
    """One setting of a rule family."""

    saved_pct: float
    change_pp: float


def pareto(title: str, fronts: Mapping[str, Sequence[Point]]) -> str:
    """`fronts`: per family its settings by what they save, each better than all that save more."""
    parts = [_axes(title)]
    for number, (name, front) in enumerate(fronts.items()):
        colour = COLOURS[number % len(COLOURS)]
        seen = [(_x(point.saved_pct), _y(point.change_pp)) for point in front if _is_drawn(point)]
        corners = " ".join(f"{x:.1f},{y:.1f}" for x, y in seen)
        parts.append(f'<polyline class="line" stroke="{colour}" points="{corners}"/>')
        parts += [f'<circle fill="{colour}" cx="{x:.1f}" cy="{y:.1f}" r="3"/>' for x, y in seen]
        x, y = WIDTH - RIGHT + 14, TOP + 8 + LABELS * number
        parts.append(f'<line class="line" stroke="{colour}" x1="{x}" y1="{y}" x2="{x + 18}" y2="{y}"/>')
        parts.append(f'<text x="{x + 24}" y="{y + 4}">{escape(name)}</text>')
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" role="img">'
        f"<title>{escape(title)}</title><style>{STYLE}</style>{''.join(parts)}</svg>\n"
    )


def _is_drawn(point: Point) -> bool:
    return WORST_PP <= point.change_pp <= BEST_PP and 0 <= point.saved_pct <= MOST_PCT


def _x(saved_pct: float) -> float:
    return LEFT + saved_pct / MOST_PCT * (WIDTH - LEFT - RIGHT)


def _y(change_pp: float) -> float:
    return TOP + (BEST_PP - change_pp) / (BEST_PP - WORST_PP) * (HEIGHT - BOTTOM - TOP)


def _axes(title: str) -> str:
    parts = [f'<text x="{LEFT}" y="{TOP - 12}" font-weight="600">{escape(title)}</text>']
    for saved in range(0, MOST_PCT + 1, 10):
        x = _x(saved)
        parts.append(f'<line class="grid" x1="{x:.1f}" y1="{_y(BEST_PP):.1f}" x2="{x:.1f}" y2="{_y(WORST_PP):.1f}"/>')
        parts.append(f'<text x="{x:.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{saved} %</text>')
    for change in range(int(WORST_PP), int(BEST_PP) + 1):
        y = _y(change)
        parts.append(f'<line class="grid" x1="{LEFT}" y1="{y:.1f}" x2="{WIDTH - RIGHT}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{change:+d}</text>')
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(
        f'<text x="{middle}" y="{HEIGHT - 8}" text-anchor="middle">tokens saved; upwards: points of accuracy</text>'
    )
    return "".join(parts)
