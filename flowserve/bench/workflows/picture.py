"""Speedups as a picture: a row per workload, its mean with the interval, its p95, and the line at which nothing is gained."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

WIDTH, LEFT, RIGHT, ROW, TOP = 720, 150, 90, 34, 56
STYLE = (
    "text{font:13px system-ui,sans-serif;fill:#1b1f24}.small{font-size:11px;fill:#57606a}"
    ".interval{stroke:#0b63b0;stroke-width:2}.equal{stroke:#8c959f;stroke-dasharray:4 3}.grid{stroke:#eaeef2}"
)


def picture(rows: Sequence[Mapping[str, Any]], title: str) -> str:
    """`rows` as in the JSON: name, speedup_mean, speedup_p95, ci. Returns an SVG document."""
    most: float = max(1.2, *(max(row["ci"][1], row["speedup_mean"], row["speedup_p95"]) for row in rows)) * 1.05
    least: float = min(0.8, *(min(row["ci"][0], row["speedup_p95"]) for row in rows)) * 0.95

    def across(value: float) -> float:
        return LEFT + (value - least) / (most - least) * (WIDTH - LEFT - RIGHT)

    height = TOP + ROW * len(rows) + 36
    bottom = height - 30
    parts = [f'<text x="12" y="22">{escape(title)}</text>']
    parts.append(
        '<text x="12" y="40" class="small">dot: mean with its 95 % interval; diamond: p95; right of the line is faster</text>'
    )
    tick = 0.5 if most - least > 1.5 else 0.25
    value = tick * int(least / tick + 1)
    while value < most:
        x = across(value)
        kind = "equal" if abs(value - 1.0) < 1e-9 else "grid"
        parts.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{TOP - 8}" y2="{bottom}" class="{kind}"/>')
        parts.append(f'<text x="{x:.1f}" y="{bottom + 16}" text-anchor="middle" class="small">x{value:g}</text>')
        value += tick
    for number, row in enumerate(rows):
        y = TOP + ROW * number + ROW / 2
        low, high = (across(bound) for bound in row["ci"])
        mean, p95 = across(row["speedup_mean"]), across(row["speedup_p95"])
        parts.append(f'<text x="12" y="{y + 4:.1f}">{escape(row["name"])}</text>')
        parts.append(f'<line x1="{low:.1f}" x2="{high:.1f}" y1="{y:.1f}" y2="{y:.1f}" class="interval"/>')
        parts.append(f'<circle cx="{mean:.1f}" cy="{y:.1f}" r="5" fill="#0b63b0"/>')
        parts.append(
            f'<rect x="{p95 - 4:.1f}" y="{y - 4:.1f}" width="8" height="8" fill="none" stroke="#b35900" '
            f'transform="rotate(45 {p95:.1f} {y:.1f})"/>'
        )
        parts.append(f'<text x="{WIDTH - RIGHT + 12}" y="{y + 4:.1f}">x{row["speedup_mean"]:.2f}</text>')
    body = "\n".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}">\n'
        f'<style>{STYLE}</style>\n<rect width="100%" height="100%" fill="#ffffff"/>\n{body}\n</svg>\n'
    )
