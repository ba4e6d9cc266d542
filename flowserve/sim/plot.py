"""Curves of latency as a self-contained SVG: which share of runs ended within how many seconds."""

from collections.abc import Mapping, Sequence
from html import escape
from math import ceil, floor, log10

from flowserve.ids import Seconds
from flowserve.sim.report import quantile

WIDTH, HEIGHT, LEFT, BOTTOM, TOP, RIGHT = 780, 400, 56, 46, 34, 250
COLOURS = ("#2563eb", "#dc2626", "#059669", "#d97706", "#7c3aed", "#0891b2", "#be185d", "#4d7c0f")
STYLE = (
    "text{font:13px ui-sans-serif,system-ui,sans-serif;fill:#111827}.grid{stroke:#d1d5db;stroke-width:1}"
    ".line{fill:none;stroke-width:2}"
    "@media(prefers-color-scheme:dark){text{fill:#e5e7eb}.grid{stroke:#374151}}"
)
POINTS = 200


def curves(title: str, samples: Mapping[str, Sequence[Seconds]]) -> str:
    """One curve per name over a logarithmic axis of seconds. Empty samples are left out."""
    drawn = {name: sorted(values) for name, values in samples.items() if values}
    least = min((values[0] for values in drawn.values()), default=0.1)
    most = max((values[-1] for values in drawn.values()), default=10.0)
    low = floor(log10(max(least, 1e-4)))
    high = max(low + 1, ceil(log10(max(most, 1e-3))))
    parts = [_axes(title, low, high)]
    for number, (name, values) in enumerate(drawn.items()):
        colour = COLOURS[number % len(COLOURS)]
        parts.append(f'<polyline class="line" stroke="{colour}" points="{_points(values, low, high)}"/>')
        y = TOP + 8 + 20 * number
        x = WIDTH - RIGHT + 14
        parts.append(f'<line class="line" stroke="{colour}" x1="{x}" y1="{y}" x2="{x + 18}" y2="{y}"/>')
        median, tail = quantile(values, 0.5), quantile(values, 0.95)
        parts.append(f'<text x="{x + 24}" y="{y + 4}">{escape(name)}: {median:.3g}, {tail:.3g}</text>')
    note = f'<text x="{WIDTH - RIGHT + 14}" y="{TOP - 12}">p50, p95 in s</text>' if drawn else ""
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" role="img">'
        f"<title>{escape(title)}</title><style>{STYLE}</style>{''.join(parts)}{note}</svg>\n"
    )


def _x(seconds: Seconds, low: int, high: int) -> float:
    share = (log10(max(seconds, 10.0**low)) - low) / (high - low)
    return LEFT + share * (WIDTH - LEFT - RIGHT)


def _y(share: float) -> float:
    return HEIGHT - BOTTOM - share * (HEIGHT - BOTTOM - TOP)


def _points(values: Sequence[Seconds], low: int, high: int) -> str:
    shares = [number / POINTS for number in range(POINTS + 1)]
    return " ".join(f"{_x(quantile(values, share), low, high):.1f},{_y(share):.1f}" for share in shares)


def _axes(title: str, low: int, high: int) -> str:
    parts = [f'<text x="{LEFT}" y="{TOP - 12}" font-weight="600">{escape(title)}</text>']
    for decade in range(low, high + 1):
        x = _x(10.0**decade, low, high)
        parts.append(f'<line class="grid" x1="{x:.1f}" y1="{_y(0):.1f}" x2="{x:.1f}" y2="{_y(1):.1f}"/>')
        parts.append(f'<text x="{x:.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{10.0**decade:g}</text>')
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        y = _y(share)
        parts.append(f'<line class="grid" x1="{LEFT}" y1="{y:.1f}" x2="{WIDTH - RIGHT}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{share:.0%}</text>')
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(f'<text x="{middle}" y="{HEIGHT - 8}" text-anchor="middle">seconds, submission to end</text>')
    return "".join(parts)
