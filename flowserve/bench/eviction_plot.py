"""Hit rates of eviction policies over capacity, as a self-contained SVG: a panel per trace, a line per policy."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from flowserve.sim.plot import COLOURS, STYLE

PANEL, HEIGHT, LEFT, TOP, BOTTOM, LEGEND = 250, 300, 44, 52, 40, 90


def panels(title: str, rows: Sequence[Mapping[str, Any]]) -> str:
    """`rows` as the benchmark gives them: name, capacity, byte_hit_rate."""
    names = list(dict.fromkeys(row["name"] for row in rows))
    policies = list(dict.fromkeys(policy for row in rows for policy in row["byte_hit_rate"]))
    colours = {policy: COLOURS[number % len(COLOURS)] for number, policy in enumerate(policies)}
    width = LEFT + PANEL * len(names) + LEGEND
    parts = [f'<text x="{LEFT}" y="20" font-weight="600">{escape(title)}</text>']
    for number, name in enumerate(names):
        parts += _panel(LEFT + PANEL * number, name, [row for row in rows if row["name"] == name], colours)
    for number, (policy, colour) in enumerate(colours.items()):
        x, y = LEFT + PANEL * len(names), TOP + 8 + 20 * number
        parts.append(f'<line class="line" stroke="{colour}" x1="{x}" y1="{y}" x2="{x + 18}" y2="{y}"/>')
        parts.append(f'<text x="{x + 24}" y="{y + 4}">{escape(policy)}</text>')
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {HEIGHT}" width="{width}" height="{HEIGHT}" role="img">'
        f"<title>{escape(title)}</title><style>{STYLE}</style>{''.join(parts)}</svg>\n"
    )


def _panel(left: float, name: str, rows: Sequence[Mapping[str, Any]], colours: Mapping[str, str]) -> list[str]:
    capacities = sorted(row["capacity"] for row in rows)
    most = capacities[-1] if capacities else 1.0
    wide, high = PANEL - 40, HEIGHT - TOP - BOTTOM
    parts = [f'<text x="{left}" y="{TOP - 10}">{escape(name)}</text>']
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        y = TOP + high * (1 - share)
        parts.append(f'<line class="grid" x1="{left}" y1="{y:.1f}" x2="{left + wide}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{left - 6}" y="{y + 4:.1f}" text-anchor="end">{share:.0%}</text>')
    for capacity in capacities:
        x = left + wide * capacity / most
        parts.append(
            f'<text x="{x:.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle" font-size="11">{capacity:.0%}</text>'
        )
    for policy, colour in colours.items():
        points = " ".join(
            f"{left + wide * row['capacity'] / most:.1f},{TOP + high * (1 - row['byte_hit_rate'][policy]):.1f}"
            for row in sorted(rows, key=lambda row: row["capacity"])
        )
        parts.append(f'<polyline class="line" stroke="{colour}" points="{points}"/>')
    return parts
