"""Rates at the target as a picture: a row per setup, its ratio to first come first served with the interval, accuracy and tokens beside."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

WIDTH, LEFT, RIGHT, ROW, TOP = 860, 220, 250, 30, 58
STYLE = (
    "text{font:13px system-ui,sans-serif;fill:#1b1f24}.small{font-size:11px;fill:#57606a}.bar{fill:#9ec5f0}"
    ".interval{stroke:#0b3d78;stroke-width:2}.equal{stroke:#8c959f;stroke-dasharray:4 3}"
)


def picture(title: str, cases: Sequence[Mapping[str, Any]]) -> str:
    """`cases` as in the JSON, of one target. Returns an SVG document."""
    most: float = 1.05 * max(max(case["ci"][1], case["ratio_vs_fcfs"]) for case in cases)
    height = TOP + ROW * len(cases) + 14
    parts = [
        f'<text x="12" y="22">{escape(title)}</text>',
        '<text x="12" y="42" class="small">programs per second at the same p90, first come first served = 1; line: 95 % interval</text>',
    ]
    for number, case in enumerate(cases):
        y = TOP + ROW * number
        low, high, end = (_across(value, most) for value in (*case["ci"], case["ratio_vs_fcfs"]))
        note = f"{case['accuracy']:.1%} right, {case['tokens_per_program']:,.0f} tokens"
        parts += [
            f'<text x="12" y="{y + 15}">{escape(case["policy"])}</text>',
            f'<rect class="bar" x="{LEFT}" y="{y + 2}" width="{end - LEFT:.1f}" height="{ROW - 10}"/>',
            f'<line class="interval" x1="{low:.1f}" x2="{high:.1f}" y1="{y + 11}" y2="{y + 11}"/>',
            f'<text x="{WIDTH - RIGHT + 12}" y="{y + 15}">x{case["ratio_vs_fcfs"]:.2f}</text>',
            f'<text x="{WIDTH - RIGHT + 62}" y="{y + 15}" class="small">{note}</text>',
        ]
    one = _across(1.0, most)
    parts.append(f'<line class="equal" x1="{one:.1f}" x2="{one:.1f}" y1="{TOP - 4}" y2="{height - 10}"/>')
    body = "\n".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}">\n'
        f'<style>{STYLE}</style>\n<rect width="100%" height="100%" fill="#ffffff"/>\n{body}\n</svg>\n'
    )


def _across(value: float, most: float) -> float:
    return LEFT + max(0.0, value) / most * (WIDTH - LEFT - RIGHT)
