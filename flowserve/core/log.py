"""A run of the scheduler as JSON lines: what it was told, when, and under which settings.

    {"flowserve_log": 1, "config": {...}}
    {"plan": {...}}                                       once per plan, before it is first named
    {"now": 12.5, "event": {"is": "RunSubmitted", "run": "a", "plan": "<digest>"}}
    {"now": 12.6, "event": {"is": "TaskFinished", "run": "a", "task": 1, "attempt": 1}}

The log holds no user content but what is written in the plans themselves. `replay` feeds it to a fresh scheduler: the
commands are those of the recorded run, in any process.
"""

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any, get_args

from flowserve.core.codec import TAG, decode, encode
from flowserve.core.commands import Command
from flowserve.core.config import Config
from flowserve.core.events import Event, Learned, RunSubmitted
from flowserve.core.state import SchedulerState
from flowserve.core.step import step
from flowserve.errors import StoreError
from flowserve.graphs.plan import Plan
from flowserve.ids import Seconds

VERSION = 1

_EVENTS: dict[str, type] = {cls.__name__: cls for cls in get_args(Event)}


class LogWriter:
    """Turns events into lines. `write` takes one line with its newline, and does the I/O."""

    def __init__(self, write: Callable[[str], object], config: Config) -> None:
        self._write = write
        self._plans: dict[str, None] = {}
        self._line({"flowserve_log": VERSION, "config": encode(config)})

    def record(self, now: Seconds, event: Event) -> None:
        """One event, as it was given to `step`."""
        if isinstance(event, RunSubmitted | Learned):
            digest = event.plan.digest
            if digest not in self._plans:
                self._plans[digest] = None
                self._line({"plan": encode(event.plan)})
            written = encode(replace(event, plan=_BY_DIGEST)) | {"plan": digest}
        else:
            written = encode(event)
        self._line({"now": now, "event": written})

    def _line(self, value: Any) -> None:
        self._write(json.dumps(value, ensure_ascii=True, separators=(",", ":")) + "\n")


_BY_DIGEST = Plan("", "", (), (), {}, {})
"""Stands for the plan while the event around it is encoded."""


def read(lines: Iterable[str]) -> tuple[Config, Iterator[tuple[Seconds, Event]]]:
    """Settings and events of a log. Raises StoreError, naming the line, for what is no log or is torn."""
    numbered = enumerate(lines, 1)
    number, first = next(numbered, (1, ""))
    head = _parse(number, first)
    if head.get("flowserve_log") != VERSION:
        raise StoreError(f"line 1: expected a log of version {VERSION}; got {first[:80]!r}")
    return decode(Config, head.get("config")), _events(numbered)


def _events(numbered: Iterator[tuple[int, str]]) -> Iterator[tuple[Seconds, Event]]:
    plans: dict[str, Plan] = {}
    for number, line in numbered:
        value = _parse(number, line)
        try:
            if "plan" in value:
                plan: Plan = decode(Plan, value["plan"])
                plans[plan.digest] = plan
                continue
            written = dict(value["event"])
            cls = _EVENTS[written.pop(TAG)]
            if cls in (RunSubmitted, Learned):
                plan = plans[written.pop("plan")]
                event: Event = replace(decode(cls, written | {"plan": encode(_BY_DIGEST)}), plan=plan)
            else:
                event = decode(cls, written)
            yield float(value["now"]), event
        except (KeyError, TypeError, ValueError, StoreError) as error:
            raise StoreError(f"line {number}: no event of a log: {error}") from error


def _parse(number: int, line: str) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except ValueError as error:
        raise StoreError(f"line {number}: expected a JSON object; got {line[:80]!r}") from error
    if not isinstance(value, dict):
        raise StoreError(f"line {number}: expected a JSON object; got {line[:80]!r}")
    return value


def replay(lines: Iterable[str]) -> Iterator[list[Command]]:
    """The commands of each step of a recorded run, by a fresh scheduler of the same settings."""
    config, events = read(lines)
    state = SchedulerState(config)
    for now, event in events:
        yield step(state, event, now)
