"""`FILE:WORKFLOW` on the command line, and a runtime for the length of one command."""

import sys
import tomllib
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from flowserve.assemble import Settings, load_workflows, make_runtime
from flowserve.assemble.limits import made
from flowserve.config import Price, TenantLimits
from flowserve.core.events import Learned
from flowserve.errors import ConfigError, StoreError, UnknownName
from flowserve.graphs.workflow import Workflow
from flowserve.runtime.runner import Runtime


def find_workflow(target: str) -> Workflow[..., Any]:
    """The workflow that `FILE:NAME` means; the name may be left out where the file has only one."""
    file, _, name = target.rpartition(":") if ":" in target and not Path(target).exists() else (target, "", "")
    workflows = {workflow.name: workflow for workflow in load_workflows(Path(file))}
    if not name:
        if len(workflows) > 1:
            raise ConfigError(f"{file} has several workflows ({', '.join(workflows)}); say {file}:NAME")
        return next(iter(workflows.values()))
    if name not in workflows:
        raise UnknownName("workflow", name, list(workflows))
    return workflows[name]


@asynccontextmanager
async def running(settings: Settings, *workflows: Workflow[..., Any]) -> AsyncIterator[Runtime]:
    """A started runtime, closed at the end."""
    runtime = make_runtime(settings, workflows)
    await runtime.start()
    try:
        yield runtime
    finally:
        await runtime.aclose()


def engine_args(given: Sequence[str]) -> dict[str, Any]:
    """`name=value` pairs; values are TOML (numbers, true, "text", {tables}), and what is none is text.

    Raises ConfigError for anything without a name.
    """
    found: dict[str, Any] = {}
    for item in given:
        name, equals, text = item.partition("=")
        name = name.strip().removeprefix("--").replace("-", "_")
        if not equals or not name.isidentifier():
            raise ConfigError(f"--engine-arg: expected name=value, such as max_num_seqs=64; got '{item}'")
        try:
            found[name] = tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            found[name] = text
    return found


def weights(given: Sequence[str]) -> tuple[tuple[str, float], ...]:
    """`TENANT=NUMBER` pairs. Raises ConfigError for anything else; whether the number is a share is for the scheduler."""
    found: dict[str, float] = {}
    for item in given:
        tenant, _, text = item.rpartition("=")
        try:
            found[tenant] = float(text)
        except ValueError:
            tenant = ""
        if not tenant:
            raise ConfigError(f"--weight: expected TENANT=NUMBER, such as team-a=2; got '{item}'")
    return tuple(found.items())


def limits(given: Sequence[str]) -> tuple[tuple[str, TenantLimits], ...]:
    """`TENANT.NAME=NUMBER`, several of one tenant together. Raises ConfigError for anything else."""
    found: dict[str, dict[str, float]] = {}
    for item in given:
        place, _, text = item.rpartition("=")
        tenant, dot, name = place.rpartition(".")
        number = _number(text)
        if not dot or number is None:
            raise ConfigError(f"--limit: expected TENANT.NAME=NUMBER, such as team-a.live_runs=8; got '{item}'")
        found.setdefault(tenant, {})[name] = number
    return tuple((tenant, made(TenantLimits, table, f"--limit {tenant}")) for tenant, table in found.items())


def reuse(
    store: Path | None,
    bytes: int | None,
    gates: Path | None,
    policies: Sequence[str],
    shadow_share: float | None = None,
) -> dict[str, Any]:
    """Fields of ReuseSettings from options; empty where none was given. Raises ConfigError for a class that has no policy."""
    given: dict[str, Any] = {"disk": store, "host_bytes": bytes, "gates": gates, "shadow_share": shadow_share}
    for text in policies:
        name, equals, policy = text.partition("=")
        if name not in ("balanced", "fast") or not equals:
            raise ConfigError(f"--reuse-policy: expected balanced=POLICY or fast=POLICY; got {text!r}")
        given[name] = policy
    return {name: value for name, value in given.items() if value is not None}


def prices(given: Sequence[str]) -> tuple[tuple[str, Price], ...]:
    """`MODEL=INPUT/OUTPUT` or `MODEL=INPUT/OUTPUT/CACHED`. Raises ConfigError for anything else."""
    found: dict[str, Price] = {}
    for item in given:
        model, _, text = item.rpartition("=")
        amounts = [number for part in text.split("/") if (number := _number(part)) is not None]
        if not model or len(amounts) != text.count("/") + 1 or len(amounts) not in (2, 3):
            raise ConfigError(f"--price: expected MODEL=INPUT/OUTPUT, such as large=2.5/10; got '{item}'")
        found[model] = Price(*amounts)
    return tuple(found.items())


def _number(text: str) -> float | None:
    """A whole number as one; None: it is no number."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return None


def say(text: str) -> None:
    """A message to the person, beside the result."""
    print(text, file=sys.stderr, flush=True)


def lessons_of(log: Path | None) -> list[Learned]:
    """What the scheduler of a recorded log knew in the end; None: nothing is learned beforehand."""
    if log is None:
        return []
    from flowserve.core.learning import lessons

    try:
        with log.open(encoding="utf-8") as file:
            return lessons(file)
    except StoreError as error:
        raise ConfigError(f"--learn: {log}: {error}") from error
