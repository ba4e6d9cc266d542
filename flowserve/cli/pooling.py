"""`flowserve pool ...`: the engines of a running server, as a table; draining one, having it back."""

import asyncio
import json
import os
from typing import Any

import aiohttp
from rich import box
from rich.console import Console
from rich.table import Table

from flowserve.errors import ConfigError, RequestError

KEY = "FLOWSERVE_API_KEY"
"""Environment variable with a key of the tenant `operator`, for servers that ask for one."""
COLUMNS = {
    "engine": "left", "models": "left", "state": "left", "calls": "right", "running": "right", "waiting": "right",
    "window": "right", "kv": "right", "backlog": "right", "ahead": "right", "hit rate": "right", "ms/token": "right",
    "what happened": "left",
}  # fmt: skip

DETAILS = {"running", "waiting", "window", "backlog", "ahead"}
"""Columns that a narrow terminal does without; `--json` has everything."""
WIDE = 110
"""Characters from which a terminal has room for all of them."""


def status(url: str, as_json: bool) -> None:
    rows = asyncio.run(_ask("GET", f"{url}/v1/pool"))["data"]
    if as_json:
        print(json.dumps(rows, indent=2))
        return
    console = Console()
    shown = [name for name in COLUMNS if console.width >= WIDE or name not in DETAILS]
    table = Table(box=box.SIMPLE_HEAD, header_style="bold")
    for name in shown:
        right = COLUMNS[name] == "right"
        table.add_column(name, justify="right" if right else "left", no_wrap=right or name in ("engine", "state"))
    for row in rows:
        told = dict(zip(COLUMNS, cells(row), strict=True))
        table.add_row(*(told[name] for name in shown))
    console.print(table)
    for row in rows:
        if row["reason"]:
            print(f"{row['id']}: {row['reason']}")


def drain(engine: str, replace: bool, url: str) -> None:
    row = asyncio.run(_ask("POST", f"{url}/v1/pool/{engine}/drain", {"replace": replace}))
    print(f"{engine}: {row['calls']} calls to end or move; then it is {'started anew' if replace else 'closed'}")


def resume(engine: str, url: str) -> None:
    row = asyncio.run(_ask("POST", f"{url}/v1/pool/{engine}/resume"))
    print(f"{engine}: {row['state']}")


def cells(row: dict[str, Any]) -> list[str]:
    """A row of the server as a row of the table."""
    names = [*row["models"], *(f"@{role}" for role in row["roles"])]
    state = row["state"] + (" (draining)" if row["draining"] else "")
    rate, pace = row.get("prefix_hit_rate"), row.get("ms_per_token")
    happened = ", ".join(f"{count} {name}" for name, count in sorted(row["events"].items()))
    return [
        row["id"],
        ", ".join(names),
        state,
        str(row.get("calls", 0)),
        str(row["running"]),
        str(row["waiting"]),
        str(row["window"]),
        f"{row['kv_used']:.0%}",
        f"{row.get('backlog_tokens', 0):,}",
        f"{row.get('outstanding_tokens', 0):,}",
        "" if rate is None else f"{rate:.0%}",
        "" if pace is None else f"{pace:.1f}",
        happened,
    ]


async def _ask(method: str, url: str, body: dict[str, Any] | None = None) -> Any:
    key = os.environ.get(KEY)
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    try:
        async with (
            aiohttp.ClientSession(headers=headers) as session,
            session.request(method, url, json=body) as response,
        ):
            answer = await response.json(content_type=None)
    except (aiohttp.ClientError, ValueError) as error:
        raise ConfigError(f"{url}: expected a running FlowServe server; {type(error).__name__}: {error}") from error
    if response.status != 200:
        raise RequestError(f"{url}: {response.status}: {answer.get('detail', answer)}")
    return answer
