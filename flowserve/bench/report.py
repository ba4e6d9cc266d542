"""How every benchmark reports: one JSON object per run, and a short table for people.

The object is `{"command", "commit", "machine", "date", "seed", "results"}`. A number without the machine and the
commit it was measured on is not a result.
"""

import json
import os
import platform
import subprocess
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any


def write(command: str, results: Mapping[str, Any], seed: int, path: Path | None) -> dict[str, Any]:
    """Print `results` as a table, and write the whole object to `path` unless that is None. Returns the object."""
    report = {
        "command": command,
        "commit": commit(),
        "machine": machine(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "seed": seed,
        "results": dict(results),
    }
    if path is not None:
        path.write_text(json.dumps(report, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    show(command, results)
    return report


def show(command: str, results: Mapping[str, Any]) -> None:
    """A table with a row per figure; mappings of mappings become a row per inner key and a column per outer key.

    Lists are for the file only.
    """
    from rich.console import Console
    from rich.table import Table

    table = Table(title=command, title_justify="left")
    nested = {name: value for name, value in results.items() if isinstance(value, Mapping)}
    if nested and len(nested) == len(results):
        table.add_column("")
        for name in nested:
            table.add_column(name, justify="right")
        for key in dict.fromkeys(key for value in nested.values() for key in value):
            table.add_row(str(key), *(_cell(value.get(key, "")) for value in nested.values()))
    else:
        table.add_column("figure")
        table.add_column("value", justify="right")
        for name, value in results.items():
            for key, item in value.items() if isinstance(value, Mapping) else (("", value),):
                table.add_row(f"{name} {key}".strip(), _cell(item))
    Console().print(table)


def _cell(value: object) -> str:
    if isinstance(value, list):
        return f"{len(value)} in the JSON"
    if isinstance(value, float):
        return f"{value:,.4g}" if abs(value) < 1000 else f"{value:,.0f}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def commit() -> str:
    """The checked-out commit, with `+` when files differ from it; `unknown` outside a repository."""
    here = Path(__file__).resolve().parent
    try:
        head = _git(here, "rev-parse", "HEAD")
        return head + ("+" if _git(here, "status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return "unknown"


def _git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, check=True, timeout=10)
    return done.stdout.strip()


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    return {
        "system": platform.system(),
        "arch": platform.machine(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next(
        (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.processor()
    )
