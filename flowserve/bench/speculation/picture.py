"""One request as a picture: searches above, writing below, commits and roll-backs between, for each way it was written."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

WIDTH, LEFT, RIGHT, ROW, TOP, GAP = 1000, 170, 20, 16, 64, 26
COLOURS = {"search": "#059669", "write": "#2563eb", "commit": "#111827", "rollback": "#dc2626"}
NAMES = {"search": "search", "write": "write", "commit": "commit", "rollback": "roll back"}
STYLE = "text{font:12px system-ui,sans-serif;fill:#1b1f24}.small{font-size:11px;fill:#57606a}"


def picture(timelines: Sequence[Mapping[str, Any]], title: str) -> str:
    """`timelines` as in the JSON: retriever, mode, seconds, spans. Returns an SVG document."""
    height = TOP + len(timelines) * (3 * ROW + GAP) + 8
    parts = [f'<text x="8" y="20">{escape(title)}</text>', *_legend()]
    longest: dict[str, float] = {}
    for line in timelines:
        longest[line["retriever"]] = max(longest.get(line["retriever"], 0.0), line["seconds"])
    for number, line in enumerate(timelines):
        parts += _line(line, TOP + number * (3 * ROW + GAP), longest[line["retriever"]])
    body = "\n".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}">\n'
        f'<style>{STYLE}</style>\n<rect width="100%" height="100%" fill="#ffffff"/>\n{body}\n</svg>\n'
    )


def _legend() -> list[str]:
    parts, x = [], 8
    for what, colour in COLOURS.items():
        parts.append(f'<rect x="{x}" y="32" width="10" height="10" fill="{colour}"/>')
        parts.append(f'<text x="{x + 14}" y="41" class="small">{NAMES[what]}</text>')
        x += 90
    return parts


def _line(line: Mapping[str, Any], y: int, most: float) -> list[str]:
    """Its retriever's timelines have one scale."""

    def across(seconds: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * seconds / max(most, 1e-9)

    parts = [
        f'<text x="8" y="{y + 12}">{escape(line["retriever"])}, {escape(line["mode"])}</text>',
        f'<text x="8" y="{y + 28}" class="small">{line["seconds"]:.2f} s</text>',
    ]
    for what, start, end, count in line["spans"]:
        x, width = across(start), max(across(end) - across(start), 0.8)
        if what in ("search", "write"):
            top = y if what == "search" else y + 2 * ROW
            told = f"{what} of {count}"
            parts.append(
                f'<rect x="{x:.1f}" y="{top}" width="{width:.1f}" height="{ROW - 3}" fill="{COLOURS[what]}" '
                f'fill-opacity="0.8"><title>{told}</title></rect>'
            )
        else:
            parts.append(
                f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{y + ROW}" y2="{y + 2 * ROW - 3}" stroke="{COLOURS[what]}" '
                f'stroke-width="{2 if what == "rollback" else 1}"/>'
            )
    return parts
