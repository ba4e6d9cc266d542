"""`flowserve run`: one run, with its nodes on a screen while they work."""

import asyncio
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from flowserve.assemble import Settings
from flowserve.cli.targets import find_workflow, running
from flowserve.errors import InputError, RunError
from flowserve.graphs.workflow import Workflow
from flowserve.runtime.records import NodeRecord, SubmitOptions
from flowserve.runtime.run import Run

COLOURS = {"completed": "green", "failed": "red", "running": "yellow", "retrying": "magenta", "cancelled": "dim"}
ROWS = 24
"""Nodes shown at once; the newest."""


def run(target: str, input: str, settings: Settings, seed: int | None, timeout: float | None) -> int:
    """Exit code of the run. Its result goes to stdout as JSON."""
    workflow = find_workflow(target)
    inputs = read_input(input)
    return asyncio.run(_run(workflow, inputs, settings, SubmitOptions(seed=seed, timeout_s=timeout)))


def read_input(text: str) -> dict[str, Any]:
    """Arguments from JSON text, `@FILE` or `-`. Raises InputError that shows where the JSON breaks."""
    if text == "-":
        text = sys.stdin.read()
    elif text.startswith("@"):
        text = _read(Path(text[1:]))
    try:
        data = json.loads(text)
    except ValueError as error:
        raise InputError(f'--input: expected a JSON object such as \'{{"question": "..."}}\'; {error}') from None
    if not isinstance(data, dict):
        raise InputError(f"--input: expected a JSON object of arguments; got {type(data).__name__}")
    return data


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"--input: expected a file of JSON in UTF-8; {file}: {error}") from None


async def _run(workflow: Workflow[..., Any], inputs: dict[str, Any], settings: Settings, options: SubmitOptions) -> int:
    console = Console(stderr=True)
    async with running(settings, workflow) as runtime:
        run = await runtime.submit(workflow.program, inputs, options)
        try:
            await _watch(run, console)
            print(json.dumps(run.program.dump(await run.result()), ensure_ascii=False, indent=2))
        except RunError as error:
            console.print(Text(type(error).__name__, "red"), Text(str(error)), soft_wrap=True)
            return 1
        finally:
            run.cancel()
    return 0


async def _watch(run: Run, console: Console) -> None:
    """Follow the run to its end: a live table on a terminal, a line per finished node elsewhere."""
    if console.is_terminal:
        with Live(console=console, refresh_per_second=8, get_renderable=lambda: node_table(run)):
            async for _ in run.events():
                pass
        return
    async for event in run.events():
        if event.type in ("node.completed", "node.degraded", "node.failed", "node.retrying", "node.cancelled"):
            console.print(Text(f"{event.type[5:]:>9} {event.node}"), soft_wrap=True)


def node_table(run: Run) -> Table:
    """The run's nodes with their times."""
    snapshot = run.snapshot()
    table = Table(title=f"{snapshot.workflow} {snapshot.status}", title_justify="left", box=None)
    for column in ("node", "kind", "status", "wait", "work", "tokens"):
        table.add_column(column, justify="right" if column in ("wait", "work", "tokens") else "left")
    for record in snapshot.nodes[-ROWS:]:
        table.add_row(*_row(record))
    if len(snapshot.nodes) > ROWS:
        table.caption = f"and {len(snapshot.nodes) - ROWS} earlier"
    return table


def _row(record: NodeRecord) -> tuple[str | Text, ...]:
    status = Text(record.status.value, COLOURS.get(record.status.value, "white"))
    if record.degraded is not None:
        status.append(", {to} of {from} {what}".format_map(record.degraded), "magenta")
    if record.votes is not None:
        votes = record.votes
        status.append(f", {votes.drawn} of {votes.asked} samples, certainty {votes.certainty:.2f}", "dim")
    wait = _seconds(record.ready_s, record.started_s)
    work = _seconds(record.started_s, record.ended_s)
    tokens = f"{record.tokens_in}+{record.tokens_out}" if record.tokens_in else ""
    if record.provenance is not None and record.provenance.pasted:
        status.append(
            ", {exact} exact, {pasted} pasted, {recomputed} recomputed".format_map(asdict(record.provenance)), "cyan"
        )
    return Text(record.label), record.kind, status, wait, work, tokens


def _seconds(start: float | None, end: float | None) -> str:
    return "" if start is None or end is None else f"{end - start:.3f} s"
