"""How a node is executed: name, retry, timeout, cache. Read from decorator arguments, checked once."""

import dataclasses
import math
import re
from dataclasses import dataclass, field
from typing import Any

from flowserve.errors import Problem
from flowserve.graphs.plan import Retry
from flowserve.ids import Seconds

_NAME = re.compile(r"[^\W\d][\w\-]{0,99}\Z")


@dataclass(frozen=True, slots=True)
class Settings:
    """What every kind of node can be told."""

    name: str | None = None
    """Given by the author; None: the function's."""
    retry: Retry = field(default_factory=Retry)
    timeout_s: Seconds | None = None
    cache: bool = False


def read(
    name: str | None = None, retry: int | Retry = 0, timeout: float | None = None, cache: bool = False
) -> tuple[Settings, tuple[Problem, ...]]:
    """Settings from what the author wrote, and what is wrong with it."""
    where = name if isinstance(name, str) else "node"
    problems: list[Problem] = []
    if name is not None and not is_name(name):
        problems.append(Problem(where, "a name of letters, digits, _ and -", f"name={name!r}", "Choose a plain name."))
        name = None
    if (
        isinstance(retry, bool)
        or not isinstance(retry, int | Retry)
        or (isinstance(retry, int) and not 0 <= retry <= 100)
    ):
        problems.append(
            Problem(
                where, "a number of retries from 0 to 100, or fs.Retry(...)", f"retry={retry!r}", "Use e.g. retry=2."
            )
        )
        retry = 0
    if isinstance(retry, Retry):
        problems += check_retry(retry, where)
    if timeout is not None and not is_seconds(timeout):
        problems.append(Problem(where, "a positive number of seconds", f"timeout={timeout!r}", "Use e.g. timeout=20."))
        timeout = None
    attempts = retry if isinstance(retry, Retry) else Retry(attempts=retry + 1)
    return Settings(name, attempts, None if timeout is None else float(timeout), bool(cache)), tuple(problems)


def check_retry(retry: Retry, where: str) -> list[Problem]:
    """What is wrong with the numbers of a Retry."""
    good = (
        is_count(retry.attempts, 1, 101)
        and is_seconds(retry.backoff_s, zero=True)
        and is_seconds(retry.max_backoff_s, zero=True)
        and isinstance(retry.on, tuple)
        and all(isinstance(code, str) for code in retry.on)
    )
    if good:
        return []
    expected = "attempts from 1 to 101, seconds from 0, and a tuple of failure codes"
    return [Problem(where, expected, repr(retry), "Use e.g. fs.Retry(attempts=3, backoff_s=0.5, on=('timeout',)).")]


def is_name(name: object) -> bool:
    """Whether `name` may be a node's or workflow's name."""
    return isinstance(name, str) and _NAME.match(name) is not None


def is_seconds(value: Any, zero: bool = False) -> bool:
    """Whether `value` is a usable duration."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return False
    return value >= 0 if zero else value > 0


def is_count(value: Any, low: int, high: int) -> bool:
    """Whether `value` is an integer between `low` and `high`."""
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def merged(old: Settings, new: dict[str, Any]) -> tuple[Settings, tuple[Problem, ...]]:
    """`old` with the settings named in `new` replaced."""
    read_new, problems = read(**new)
    renamed = {"timeout": "timeout_s"}
    changes = {renamed.get(key, key): getattr(read_new, renamed.get(key, key)) for key in new}
    return dataclasses.replace(old, **changes), problems
