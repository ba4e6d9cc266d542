"""`flowserve explain`: where the time of a recorded run went, and what one change would have given."""

import json
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from flowserve.cli.targets import say
from flowserve.errors import ConfigError, UnknownName
from flowserve.ids import RunId
from flowserve.sim.explain import Explanation
from flowserve.sim.gantt import gantt
from flowserve.sim.timeline import runs_of, timeline
from flowserve.sim.whatif import Outcome, what_if

ROWS = 40
"""Pieces of the critical path, and tasks with slack, that are shown at most."""


def explain(run: str, log: Path, out: Path | None, picture: Path | None, changes: bool) -> None:
    """Tables to stdout, figures to `out`, a picture of the run to `picture`."""
    lines = log.read_text(encoding="utf-8").splitlines()
    found = Explanation(timeline(lines, _chosen(run, lines)))
    line = found.timeline
    outcomes: list[Outcome] = []
    if changes and line.status == "completed":
        say("simulating changes")
        try:
            outcomes = list(what_if(lines, line.run, line.at + line.ended))
        except ConfigError as error:
            say(f"no changes are simulated: {error}")
    _show(found, outcomes)
    if out is not None:
        told = found.as_json() | {"changes": [_row(outcome) for outcome in outcomes]}
        out.write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")
    if picture is not None:
        picture.write_text(gantt(found), encoding="utf-8")


def _chosen(run: str, lines: list[str]) -> RunId:
    if run not in ("last", "slowest"):
        return RunId(run)
    ended = runs_of(lines)
    if not ended:
        raise UnknownName("run", run, [])
    return max(ended, key=lambda id: ended[id]) if run == "slowest" else list(ended)[-1]


def _row(outcome: Outcome) -> dict[str, Any]:
    return {"change": outcome.change, "seconds": outcome.seconds, "speedup": outcome.speedup}


def _show(found: Explanation, outcomes: list[Outcome]) -> None:
    line = found.timeline
    console = Console(width=110) if not Console().is_terminal else Console()
    console.print(
        f"{line.run}: {line.plan.name}, {line.status} in {line.ended:.3f} s ({line.policy}, {line.tier})",
        highlight=False,
    )
    for taken in found.degraded:
        console.print(
            f"degraded: {taken['node']}, {taken['to']} of {taken['from']} {taken['what']}, harm {taken['harm']:g}",
            highlight=False,
        )
    path = _table("critical path", "at", "for", "node", "what")
    for piece in found.path[:ROWS]:
        path.add_row(f"{piece.begin:.3f} s", f"{piece.seconds:.3f} s", piece.span.label, piece.what)
    path.caption = f"and {len(found.path) - ROWS} more" if len(found.path) > ROWS else None
    console.print(path)
    shares = _table("where the time went", "critical path", "share", "all tasks", "what")
    for what, total in found.totals.items():
        seconds = found.shares.get(what, 0.0)
        shares.add_row(f"{seconds:.3f} s", f"{seconds / max(line.ended, 1e-9):.0%}", f"{total:.3f} s", what)
    console.print(shares)
    loose = [span for span in found.work if found.slack.get(span.task, 0.0) > 0.001]
    if loose:
        slack = _table("could have ended later without delaying the run", "by", "ended at", "node", "")
        for span in sorted(loose, key=lambda span: -found.slack[span.task])[:ROWS]:
            slack.add_row(f"{found.slack[span.task]:.3f} s", f"{span.ended or 0.0:.3f} s", span.label, "")
        console.print(slack)
    if outcomes:
        first = outcomes[0]
        title = f"what one change would give, simulated (as recorded: {first.seconds:.3f} s, {first.seconds / line.ended - 1:+.0%} from the measurement)"
        table = _table(title, "seconds", "speedup", "change", "")
        for outcome in outcomes[1:]:
            table.add_row(f"{outcome.seconds:.3f} s", f"x{outcome.speedup:.2f}", outcome.change, "")
        console.print(table)


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", box=None, title_style="bold", caption_justify="left")
    for place, column in enumerate(columns):
        table.add_column(
            column, justify="right" if place < len(columns) - 2 or columns[-1] == "what" and place < 2 else "left"
        )
    return table
