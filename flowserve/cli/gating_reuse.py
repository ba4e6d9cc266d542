"""`flowserve gate reuse`: which measured policies may be used for which model, and what was refused why."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from flowserve.bench.reuse.quality import figures, read_cases, write_cases
from flowserve.cachestore.gatefiles import Gates
from flowserve.cachestore.gates import Gate, Thresholds
from flowserve.clock import SystemClock
from flowserve.errors import ConfigError


def reuse(files: Sequence[Path], out: Path, score: str, limits: Thresholds, days: int, as_json: bool) -> int:
    """Exit code: 0 if any passed. A gate that is refused now is shut; refused ones are not written."""
    store, created = Gates(out), datetime.fromtimestamp(int(SystemClock().wall()), UTC)
    gates = [_gate(path, score, limits, created, days) for path in files]
    for gate in gates:
        if gate.refusal is None:
            store.write(gate)
        else:
            store.revoke(gate.subject, f"refused on {created.date()}: {gate.refusal}")
    if as_json:
        print(json.dumps([_row(gate, store) for gate in gates], indent=2))
    else:
        _show(gates)
    return 0 if any(gate.refusal is None for gate in gates) else 1


def cases_of(
    files: Sequence[Path], model: str | None, data: Path | None, policies: Sequence[str], limit: int | None, out: Path
) -> list[Path]:
    """Files of cases: those that are given, or those measured now, which stay in `out`. Raises ConfigError."""
    if files and not (model or data or policies or limit):
        return list(files)
    if files or model is None or data is None or not policies:
        given = ", ".join(
            name
            for name, value in (("--cases", files), ("--model", model), ("--data", data), ("--policy", policies))
            if value
        )
        raise ConfigError(
            f"gate reuse: expected --cases FILE, or --model, --data and --policy for a measurement; got {given or 'neither'}"
        )
    from flowserve.assemble import model_folder
    from flowserve.bench.reuse.embedded import measured_cases

    out.mkdir(parents=True, exist_ok=True)
    found: list[Path] = []
    for measured, cases in measured_cases(model_folder(model), Path(model).name, data, policies, limit):
        path = Gates(out).path(measured.subject).with_suffix("").with_suffix(".cases.jsonl")
        write_cases(path, measured, cases)
        found.append(path)
    return found


def _gate(path: Path, score: str, limits: Thresholds, created: datetime, days: int) -> Gate:
    measured, cases = read_cases(path)
    return Gate(
        subject=measured.subject,
        name=measured.name,
        figures=figures(cases, score, limits),
        thresholds=limits,
        dataset=measured.dataset,
        dataset_sha256=measured.dataset_sha256,
        created=created,
        expires=created + timedelta(days=days),
        versions=measured.versions,
    )


def _row(gate: Gate, store: Gates) -> dict[str, Any]:
    subject = gate.subject
    return {
        "model": subject.model,
        "name": gate.name,
        "revision": subject.revision,
        "policy": str(subject.policy),
        "codec": subject.codec,
        "passed": gate.refusal is None,
        "reason": gate.refusal,
        "figures": {**asdict(gate.figures), "loss": gate.figures.loss},
        "file": str(store.path(subject)) if gate.refusal is None else None,
    }


def _show(gates: Sequence[Gate]) -> None:
    table = Table(box=box.SIMPLE_HEAD, header_style="bold")
    for name in ("model", "policy"):
        table.add_column(name, overflow="fold")
    for name in ("codec", "verdict"):
        table.add_column(name, no_wrap=True)
    for name in ("cases", "full", "policy's", "at worst", "KL"):
        table.add_column(name, justify="right", no_wrap=True)
    for gate in gates:
        found, subject = gate.figures, gate.subject
        numbers = (found.score_full, found.score_policy, found.score_full - found.loss_high, found.kl_mean)
        verdict = "passed" if gate.refusal is None else "REFUSED"
        cells = (str(found.n), *(f"{number:.3f}" for number in numbers))
        table.add_row(gate.name, str(subject.policy), subject.codec, verdict, *cells)
    Console().print(table)
    for gate in gates:
        if gate.refusal is not None:
            print(f"{gate.name}, {gate.subject.policy}: refused: {gate.refusal}")
