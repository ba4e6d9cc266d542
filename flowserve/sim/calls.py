"""Model calls of recorded data, as questions to predictors of lengths and their answers in order of time.

Foreign recordings tell lengths and neither limits nor ends, so all of their calls get the same limit, and `AT_ONCE` programs go
on in turns: who asks does not know yet what the others write that are at work with it. In a log of FlowServe calls are asked
about when they were measured and answered when they ended, as it was.
"""

import json
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

from flowserve.core.learning import Answered, Overheard
from flowserve.core.log import read
from flowserve.core.predict.base import Call
from flowserve.core.state import SchedulerState
from flowserve.core.step import step
from flowserve.errors import StoreError
from flowserve.ids import NodeId, Tokens
from flowserve.sim.programs import Recorded
from flowserve.sim.traces import azure, mooncake, opened

LIMIT: Tokens = 32_768
"""Of a call whose recording does not tell it: what the longest of the recorded reasoning models were given."""

AT_ONCE = 16
"""Programs of a foreign recording that are at work."""


Story = Iterator[Call | Answered]
"""A `Call` is a question; its answer comes later, or never."""
Program = Sequence[Answered]
"""Calls of which each is asked when the one before it is answered."""


def in_turns(programs: Iterable[Program]) -> Story:
    """A call is answered when its program's turn comes again."""
    at_work: deque[tuple[Iterator[Answered], Answered]] = deque()
    waiting = map(iter, programs)
    while True:
        program = next(waiting, None) if len(at_work) < AT_ONCE else None
        if program is None:
            if not at_work:
                return
            program, answer = at_work.popleft()
            yield answer
        following = next(program, None)
        if following is not None:
            at_work.append((program, following))
            yield following.call


def _requests(path: Path) -> Iterator[Program]:
    """Azure's and Mooncake's traces: one node, one tenant."""
    reader = azure if ".csv" in path.suffixes else mooncake
    for arrival in reader(path, path.name, 1.0, 0):
        assert isinstance(arrival.program, Recorded)
        size = arrival.program.call
        yield [Answered(Call(path.name, NodeId(0), "", size.prompt, LIMIT), size.output)]


def _reasoning(path: Path) -> Iterator[Program]:
    """A bank of trajectories: a program is the samples of a problem, one after the other; models are plans, data sets tenants.
    Prompts were not recorded."""
    rows = _rows(path, ("model", "dataset", "problem_id", "seed", "tokens_used"))
    problem = itemgetter("model", "dataset", "problem_id")
    for (model, dataset, _), samples in groupby(sorted(rows, key=lambda row: (*problem(row), row["seed"])), problem):
        lengths = [row["tokens_used"] for row in samples]
        yield [
            Answered(Call(model, NodeId(0), dataset, 0, LIMIT, siblings=_mean(lengths[:number])), tokens)
            for number, tokens in enumerate(lengths)
        ]


def _agents(path: Path) -> Iterator[Program]:
    """Programs that call tools: what stands between two tools is a step of an agent."""
    for row in _rows(path, ("segments",)):
        prompts = [segment["prompt_tokens"] for segment in row["segments"]]
        lengths = [segment["completion_tokens"] for segment in row["segments"]]
        yield [
            Answered(Call(path.name, NodeId(0), "", prompts[step], LIMIT, step, _mean(lengths[:step])), tokens)
            for step, tokens in enumerate(lengths)
        ]


def log(path: Path) -> Story:
    """What the predictor of a recorded scheduler was asked and told."""
    with opened(path) as file:
        config, events = read(file)
        state = SchedulerState(config)
        state.lengths.predictor = overheard = Overheard(state.lengths.predictor)
        for now, event in events:
            step(state, event, now)
            yield from overheard.told
            overheard.told.clear()


def _mean(written: Sequence[Tokens]) -> Tokens:
    return round(sum(written) / len(written)) if written else 0


def _rows(path: Path, wanted: Sequence[str]) -> Iterator[dict[str, Any]]:
    """JSON lines that have the fields that are `wanted`."""
    with opened(path) as file:
        for number, line in enumerate(file, 1):
            try:
                row = json.loads(line)
                if lacking := [name for name in wanted if name not in row]:
                    raise ValueError(f"it has no {', '.join(lacking)}")
            except (ValueError, TypeError) as error:
                raise StoreError(
                    f"{path}, line {number}: expected an object with {', '.join(wanted)}: {error}"
                ) from error
            yield row


KINDS: dict[str, Callable[[Path], Iterator[Program]]] = {
    "TIMESTAMP": _requests,
    "hash_ids": _requests,
    "tokens_used": _reasoning,
    "segments": _agents,
}
"""By a word of the first line that no other kind has."""


def recorded(path: Path) -> Story:
    """Calls of a file of any of these kinds. Raises StoreError for another."""
    with opened(path) as file:
        first = file.readline()
    for word, reader in KINDS.items():
        if word in first:
            return in_turns(reader(path))
    raise StoreError(
        f"{path}: expected a trace of Azure or Mooncake, or JSON lines with tokens_used or segments; got {first[:80]!r}"
    )
