"""How much sooner the first token is there, as a picture: a row per way, a bar from full prefill on, divergence and loss beside."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

WIDTH, LEFT, RIGHT, ROW, TOP = 900, 300, 250, 26, 58
STYLE = (
    "text{font:13px system-ui,sans-serif;fill:#1b1f24}.small{font-size:11px;fill:#57606a}.bar{fill:#9ec5f0}.slower{fill:#f0b49e}"
    ".equal{stroke:#8c959f;stroke-dasharray:4 3}"
)


def picture(title: str, cases: Sequence[Mapping[str, Any]]) -> str:
    """`cases` as in the JSON. Returns an SVG document."""
    most = 1.05 * max(1.0, *(case["speedup_vs_full"] for case in cases))
    height = TOP + ROW * len(cases) + 14
    parts = [
        f'<text x="12" y="22">{escape(title)}</text>',
        '<text x="12" y="42" class="small">time to the first token, full prefill / this way; KL: nats of the first token</text>',
    ]
    for number, case in enumerate(cases):
        y, speedup = TOP + ROW * number, case["speedup_vs_full"]
        kind = "bar" if speedup >= 1.0 else "slower"
        where = f"{case['chunks']}x{case['chunk_tokens']}" + (f", {case['tier']}" if case["tier"] else "")
        notes = [f"{case['ttft_ms_p50']:,.0f} ms"]
        notes += [] if case["kl_mean"] is None else [f"KL {case['kl_mean']:.3f}"]
        notes += [] if case["loss_vs_full"] is None else [f"loss {case['loss_vs_full']:+.3f}"]
        parts += [
            f'<text x="12" y="{y + 15}">{escape(_short(case["policy"]))} <tspan class="small">{escape(where)}</tspan></text>',
            f'<rect class="{kind}" x="{LEFT}" y="{y + 3}" width="{_across(speedup, most) - LEFT:.1f}" height="{ROW - 9}"/>',
            f'<text x="{WIDTH - RIGHT + 12}" y="{y + 15}">x{speedup:.2f}</text>',
            f'<text x="{WIDTH - RIGHT + 66}" y="{y + 15}" class="small">{", ".join(notes)}</text>',
        ]
    one = _across(1.0, most)
    parts.append(f'<line class="equal" x1="{one:.1f}" x2="{one:.1f}" y1="{TOP - 4}" y2="{height - 10}"/>')
    body = "\n".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}">\n'
        f'<style>{STYLE}</style>\n<rect width="100%" height="100%" fill="#ffffff"/>\n{body}\n</svg>\n'
    )


def _short(policy: str) -> str:
    """Without what is usual."""
    return policy.replace(",check_layer=1", "").replace(",metric=v_l2", "").replace("ratio=", "")


def _across(value: float, most: float) -> float:
    return LEFT + value / most * (WIDTH - LEFT - RIGHT)
