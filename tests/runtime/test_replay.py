"""A live run's log, replayed elsewhere, gives the very same commands."""

import asyncio
import hashlib
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

import flowserve as fs
from flowserve import errors
from flowserve.core.events import Learned
from flowserve.core.learning import lessons
from flowserve.core.log import replay
from flowserve.core.step import step
from flowserve.engines.fake import FakeEngine
from flowserve.runtime import driver
from flowserve.runtime.records import SubmitOptions
from flowserve.runtime.runner import Runtime

REPLAY = """
import hashlib, sys
from flowserve.core.log import replay
digest = hashlib.sha256()
for commands in replay(open(sys.argv[1])):
    digest.update(repr(commands).encode())
print(digest.hexdigest())
"""


@fs.llm(retry=2)
def say(text: str) -> str:
    fs.prompt("{{ text }}")


@fs.tool
def words(text: str) -> list[str]:
    """Split a text."""
    return text.split()


@fs.dynamic(calls=[say], max_calls=3)
async def twice(text: str) -> str:
    return await say.acall(await say.acall(text))


@fs.workflow()
def mixed(text: str, loud: bool) -> str:
    votes = say.sample(5, vote="", stop=fs.certaindex(threshold=0.8, min_samples=2))(text)
    parts = say.map(words(text), concurrency=2)
    return fs.when(
        loud,
        then=lambda: fs.loop(say, votes, until=lambda t: t == "ok", max_iters=3),
        otherwise=lambda: twice(parts[0]),
    )


def digest(lines: list[str]) -> str:
    found = hashlib.sha256()
    for commands in replay(lines):
        found.update(repr(commands).encode())
    return found.hexdigest()


async def live_log(monkeypatch: pytest.MonkeyPatch, learned: Sequence[Learned] = ()) -> tuple[list[str], str]:
    """Lines of a live log, and the digest of the commands the live scheduler gave."""
    seen = hashlib.sha256()

    def watched(state: Any, event: Any, now: float) -> Any:
        commands = step(state, event, now)
        seen.update(repr(commands).encode())
        return commands

    monkeypatch.setattr(driver, "step", watched)
    lines: list[str] = []
    replies = ["ok", errors.EngineError("hiccup"), "b", "ok", "c"] * 40
    runtime = Runtime([FakeEngine({"say": replies})], log_line=lines.append)
    runtime.learn(learned)
    await runtime.start()
    runs = []
    for number in range(12):
        inputs = {"text": f"one two {number}", "loud": number % 2 == 0}
        runs.append(await runtime.submit(mixed.program, inputs, SubmitOptions(priority=number % 3)))
    runs[3].cancel()
    for run in runs:
        await run.wait()
    await runtime.aclose()
    return lines, seen.hexdigest()


async def test_a_live_log_replays_to_identical_commands_in_another_process(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    lines, live = await live_log(monkeypatch)
    assert len(lines) > 200
    assert digest(lines) == live
    file = tmp_path / "log.jsonl"
    file.write_text("".join(lines))
    for seed in ("1", "4711"):
        done = await asyncio.to_thread(
            subprocess.run,
            [sys.executable, "-c", REPLAY, str(file)],
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "PYTHONHASHSEED": seed},
        )
        assert done.stdout.strip() == live


async def test_what_a_live_log_teaches_is_in_the_log_of_the_next_server_which_replays_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first, _ = await live_log(monkeypatch)
    taught = lessons(first)
    assert taught and taught[0].answers
    second, live = await live_log(monkeypatch, taught)
    assert digest(second) == live
    assert lessons(second)[0].figures[0].seen > taught[0].figures[0].seen


async def test_a_log_holds_nothing_that_a_user_wrote(monkeypatch: pytest.MonkeyPatch) -> None:
    lines, _ = await live_log(monkeypatch)
    events = [line for line in lines if '"plan":{' not in line]
    assert not [line for line in events if "one two" in line or "hiccup" in line]
