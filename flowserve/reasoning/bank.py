"""Banks of recorded trajectories: whole chains of real models, with what they answered when they were asked in between.

A bank is a file of JSON lines, packed (.gz) or not; a user's own has the same fields:

    model, dataset, problem_id, seed        whose chain it is, and of what
    target, final_answer, final_correct     what is right, what the whole chain answered, and whether that was graded right
    tokens_used                             length of the whole chain
    finished_naturally                      optional; false: it was cut off
    probes                                  optional; [position, answer, certain, cost] each, by position
    trials                                  optional; [position, answer, confidence, cost] each, or with a fifth: closed

Positions count the chain's own tokens; a cost is what the fork wrote. What these are is told in `core/stopping/signals.py`.
"""

import gzip
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO, TypeVar

from flowserve.errors import StoreError
from flowserve.ids import Tokens

Record = TypeVar("Record")


@dataclass(frozen=True, slots=True)
class RecordedProbe:
    """An answer that was forced, without confidence."""

    position: Tokens
    answer: str
    certain: bool
    """It contained no word of doubt."""
    cost: Tokens


@dataclass(frozen=True, slots=True)
class RecordedTrial:
    """An answer that was forced, with confidence."""

    position: Tokens
    answer: str
    confidence: float
    cost: Tokens
    closed: bool = True
    """It ended its thinking by itself; a bank that does not say so has taken care of it in `confidence`."""


@dataclass(frozen=True, slots=True)
class Trajectory:
    """One chain."""

    model: str
    dataset: str
    problem: str
    seed: int
    target: str
    final_answer: str
    final_correct: bool
    """By the grader of those who recorded it."""
    tokens: Tokens
    finished: bool
    probes: tuple[RecordedProbe, ...] | None
    """None: no probes were recorded; empty: the chain was too short for one."""
    trials: tuple[RecordedTrial, ...] | None
    """As `probes`."""


def read_bank(path: Path) -> Iterator[Trajectory]:
    """The trajectories in the order of the file. Raises StoreError with file and line for what is none."""
    return records(path, _trajectory)


def records(path: Path, parse: Callable[[Mapping[str, Any]], Record]) -> Iterator[Record]:
    """Each line of a file of JSON objects, parsed; empty lines are passed over. `parse` raises ValueError with what it expected."""
    try:
        with _opened(path) as file:
            for number, line in enumerate(file, 1):
                if not line.strip():
                    continue
                try:
                    record = parse(_object(line))
                except ValueError as error:
                    raise StoreError(f"{path}, line {number}: {error}") from error
                yield record
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise StoreError(f"{path}: expected a file of JSON lines, packed or not; reading it failed: {error}") from error


@contextmanager
def _opened(path: Path) -> Iterator[TextIO]:
    with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as file:
        yield file


def _object(line: str) -> Mapping[str, Any]:
    match json.loads(line):
        case dict(value):
            return value
        case other:
            raise ValueError(f"expected a JSON object; got {_shown(other)}")


def _trajectory(value: Mapping[str, Any]) -> Trajectory:
    return Trajectory(
        model=field(value, "model", str),
        dataset=field(value, "dataset", str),
        problem=str(field(value, "problem_id", int, str)),
        seed=field(value, "seed", int),
        target=str(field(value, "target", str, int, float)),
        final_answer=field(value, "final_answer", str),
        final_correct=field(value, "final_correct", bool),
        tokens=_positive(field(value, "tokens_used", int), "tokens_used"),
        finished=field(value, "finished_naturally", bool) if "finished_naturally" in value else True,
        probes=_forced(value, "probes", _probe),
        trials=_forced(value, "trials", _trial),
    )


Forced = TypeVar("Forced", RecordedProbe, RecordedTrial)


def _forced(
    value: Mapping[str, Any], name: str, parse: Callable[[list[Any]], Forced | None]
) -> tuple[Forced, ...] | None:
    """The list under `name`; None where there is none."""
    if name not in value:
        return None
    found: list[Forced] = []
    for number, item in enumerate(field(value, name, list)):
        forced = parse(item) if isinstance(item, list) else None
        if forced is None:
            raise ValueError(f"'{name}'[{number}]: expected {_FORMS[name]}; got {_shown(item)}")
        if found and forced.position <= found[-1].position:
            raise ValueError(
                f"'{name}'[{number}]: expected a position after {found[-1].position}; got {forced.position}. Sort them"
            )
        found.append(forced)
    return tuple(found)


def _probe(item: list[Any]) -> RecordedProbe | None:
    match item:
        case [int(position), str(answer), bool(certain), int(cost)] if position >= 0 and cost >= 0:
            return RecordedProbe(position, answer, certain, cost)
    return None


def _trial(item: list[Any]) -> RecordedTrial | None:
    match item:
        case [int(position), str(answer), int(confidence) | float(confidence), int(cost), *closed] if (
            position >= 0 and 0 <= confidence <= 1 and cost >= 0 and closed in ([], [True], [False])
        ):
            return RecordedTrial(position, answer, float(confidence), cost, *closed)
    return None


_FORMS = {
    "probes": "[position, answer, certain, cost]: int, str, bool, int",
    "trials": "[position, answer, confidence, cost], or with closed: int, str, 0 to 1, int, bool",
}


def field(value: Mapping[str, Any], name: str, *kinds: type) -> Any:
    """`value[name]`, which has to be of one of `kinds`; a bool is no int. Raises ValueError."""
    expected = " or ".join(kind.__name__ for kind in kinds)
    if name not in value:
        raise ValueError(f"expected a field '{name}' ({expected}); there is none")
    if not isinstance(value[name], kinds) or (isinstance(value[name], bool) and bool not in kinds):
        raise ValueError(f"'{name}': expected {expected}; got {_shown(value[name])}")
    return value[name]


def _positive(number: int, name: str) -> int:
    if number < 1:
        raise ValueError(f"'{name}': expected 1 or more; got {number}")
    return number


def _shown(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
