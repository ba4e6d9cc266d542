"""`FILE:WORKFLOW` on the command line, and a runtime for the length of one command."""

import sys
import tomllib
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from flowserve.assemble import Settings, load_workflows, make_runtime
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
