"""`flowserve gate stopping`: certificates for the recorded models, and what was refused why."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from flowserve.clock import SystemClock
from flowserve.errors import ConfigError
from flowserve.reasoning.bank import read_bank
from flowserve.reasoning.calibrate import Figures, Refused, Risk
from flowserve.reasoning.certificates import Certificate, Certificates
from flowserve.reasoning.gate import Judged, certificate_of, judge
from flowserve.reasoning.replay import label_all

FIGURES = ("problems", "harmed", "rescued", "change", "at worst", "saved")
DETAILS = {"problems", "harmed", "rescued"}
"""Figures that a narrow terminal does without; `--json` has everything."""
WIDE = 120
"""Characters from which a terminal has room for all of them."""


def stopping(
    bank: Path,
    out: Path,
    rules: Sequence[str],
    risk_points: float,
    confidence: float,
    template: str,
    tasks: Sequence[str],
    days: int,
    as_json: bool,
) -> int:
    """Exit code: 0 if anything was certified. A certificate of a rule that is refused now is revoked."""
    risk = Risk(risk_points / 100, round(1 - confidence, 12))
    classes = classes_of(tasks)
    judged = judge(label_all(read_bank(bank)), rules, risk, template, classes)
    if not judged:
        raise ConfigError(f"--bank: {bank} has no trajectories")
    store, digest = Certificates(out), sha256(bank.read_bytes()).hexdigest()
    created = datetime.fromtimestamp(int(SystemClock().wall()), UTC)
    for each in judged:
        certificate = certificate_of(each, risk, digest, created, days)
        if certificate is not None:
            store.write(certificate)
        elif isinstance(each.verdict, Refused):
            _revoke(store, each, each.verdict, created)
    if as_json:
        print(json.dumps([_row(each, store) for each in judged], indent=2))
    else:
        _show(judged)
    return 0 if any(not isinstance(each.verdict, Refused) for each in judged) else 1


def _revoke(store: Certificates, judged: Judged, refused: Refused, now: datetime) -> None:
    """What an earlier bank allowed, if it is a rule that this one refuses; a certificate of another rule stays."""
    held = store.lookup(judged.subject, now)
    if isinstance(held, Certificate) and held.rule in judged.rules:
        store.revoke(judged.subject, f"refused on {now.date()}: {refused.reason}")


def classes_of(tasks: Sequence[str]) -> dict[str, str]:
    """Class by dataset, of `CLASS=SET,SET`. Raises ConfigError."""
    found: dict[str, str] = {}
    for item in tasks:
        name, equals, sets = (part.strip() for part in item.partition("="))
        datasets = [each.strip() for each in sets.split(",")]
        if not name or not equals or not all(datasets):
            raise ConfigError(f"--task: expected CLASS=SET or CLASS=SET,SET, such as math=math500,amc23; got '{item}'")
        for dataset in datasets:
            if found.setdefault(dataset, name) != name:
                raise ConfigError(f"--task: {dataset} is in '{found[dataset]}' and in '{name}'; a set has one class")
    return found


def _row(judged: Judged, store: Certificates) -> dict[str, Any]:
    verdict = judged.verdict
    candidate = verdict.failed if isinstance(verdict, Refused) else verdict.candidate
    row: dict[str, Any] = {
        **asdict(judged.subject),
        "rules": list(judged.rules),
        "certified": not isinstance(verdict, Refused),
        "reason": verdict.reason if isinstance(verdict, Refused) else None,
        "candidate": None if candidate is None else {"rule": candidate.rule, "args": dict(candidate.args)},
        "figures": None if verdict.figures is None else asdict(verdict.figures),
    }
    if not isinstance(verdict, Refused):
        row |= {"cross_fit": asdict(verdict.cross_fit), "file": str(store.path(judged.subject))}
    return row


def _show(judged: Sequence[Judged]) -> None:
    """One row each; reasons and parameters below, where there is room for them."""
    console = Console()
    shown = [name for name in FIGURES if console.width >= WIDE or name not in DETAILS]
    table = Table(box=box.SIMPLE_HEAD, header_style="bold")
    table.add_column("model", overflow="fold")
    for name in ("task", "rule", "verdict"):
        table.add_column(name, no_wrap=True)
    for name in shown:
        table.add_column(name, justify="right", no_wrap=True)
    for each in judged:
        verdict = each.verdict
        candidate = verdict.failed if isinstance(verdict, Refused) else verdict.candidate
        name = ", ".join(each.rules) if candidate is None else candidate.rule
        told = "REFUSED" if isinstance(verdict, Refused) else "certified"
        cells = _cells(verdict.figures)
        table.add_row(each.subject.model, each.subject.task, name, told, *(cells[figure] for figure in shown))
    console.print(table)
    for each in judged:
        verdict = each.verdict
        subject = f"{each.subject.model}, {each.subject.task}"
        if isinstance(verdict, Refused):
            print(f"{subject}: refused: {verdict.reason}")
        else:
            print(f"{subject}: {_numbers(verdict.candidate.rule, verdict.candidate.args)}")


def _numbers(rule: str, args: Mapping[str, float]) -> str:
    return f"{rule}, " + ", ".join(f"{name} {value:g}" for name, value in args.items())


def _cells(figures: Figures | None) -> dict[str, str]:
    if figures is None:
        return dict.fromkeys(FIGURES, "")
    return {
        "problems": str(figures.num_problems),
        "harmed": str(figures.harmed),
        "rescued": str(figures.rescued),
        "change": f"{100 * figures.change:+.2f}",
        "at worst": f"{100 * figures.change_low:+.2f}",
        "saved": f"{100 * figures.saved:.1f} %",
    }
