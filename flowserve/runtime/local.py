"""Work that needs no waiting: expressions, widths, arms, joins and votes, answered in the same drain."""

from dataclasses import asdict
from typing import Any

from flowserve.core import events as e
from flowserve.core.commands import Role
from flowserve.graphs import evaluate
from flowserve.graphs.plan import Kind
from flowserve.runtime.frames import Frame
from flowserve.runtime.items import same
from flowserve.runtime.records import reuse_data
from flowserve.runtime.run import Run, TaskState
from flowserve.runtime.votes import Key, answer_key, tally, winner

EVALUATED = frozenset({Kind.COMPUTE, Kind.MAP, Kind.SAMPLE, Kind.SWITCH, Kind.LOOP, Kind.RACE})
"""Kinds whose Dispatch is answered at once."""

NODE = Role.NODE
SHOWN_CHARS = 20_000
"""An output longer than this is left out of `node.completed`; the result of a run is always whole."""


def begin(run: Run, task: TaskState) -> e.Event:
    """Answer the Dispatch of a node that is evaluated here."""
    return _BEGIN[task.node.kind](run, task)


def _compute(run: Run, task: TaskState) -> e.Event:
    task.frame.values[task.node.id] = task.frame.value(task.node.args[0].source)
    return e.TaskFinished(run.id, task.id, task.attempt)


def _map(run: Run, task: TaskState) -> e.Evaluated:
    columns = task.frame.arguments(task.node)
    width = evaluate.width(task.node, columns)
    task.items = list(zip(*columns.values(), strict=True))
    return e.Evaluated(run.id, task.id, task.attempt, width)


def whole_list(run: Run, task: TaskState) -> e.Event:
    """Answer Evaluate of a map that began with items of a list that was being written: is the whole list that list?"""
    begun = task.frame.written.pop(task.node.id, [])
    width = _map(run, task)
    anew = len(begun) > len(task.items) or not all(same(a, b) for (a,), (b,) in zip(begun, task.items, strict=False))
    return e.Evaluated(run.id, task.id, task.attempt, width.choice, anew)


def _sample(run: Run, task: TaskState) -> e.Event:
    return e.Evaluated(run.id, task.id, task.attempt, task.node.limit)


def _race(run: Run, task: TaskState) -> e.Event:
    return e.Evaluated(run.id, task.id, task.attempt, len(task.node.bodies))


def _switch(run: Run, task: TaskState) -> e.Event:
    arm = evaluate.choose(task.node, task.frame.arguments(task.node))
    return e.Evaluated(run.id, task.id, task.attempt, arm)


def _loop(run: Run, task: TaskState) -> e.Event:
    task.state = task.frame.value(task.node.args[0].source)
    return _loop_choice(run, task)


def next_iteration(run: Run, task: TaskState, frame: Frame) -> e.Event:
    """Answer Evaluate: `frame` is the iteration that ended; its result is the loop's new state."""
    task.state = frame.result()
    return _loop_choice(run, task)


def _loop_choice(run: Run, task: TaskState) -> e.Event:
    plan = run.program.plan
    probe = Frame(plan, task.node.bodies[0], task.frame, task.id, 0, (task.state,))
    return e.Evaluated(run.id, task.id, task.attempt, int(evaluate.done(plan, task.node, probe)))


_BEGIN = {
    Kind.COMPUTE: _compute,
    Kind.MAP: _map,
    Kind.SAMPLE: _sample,
    Kind.SWITCH: _switch,
    Kind.LOOP: _loop,
    Kind.RACE: _race,
}


def frame_params(task: TaskState, index: int) -> tuple[Any, ...]:
    """Parameters of frame number `index` of `task`."""
    kind = task.node.kind
    if kind is Kind.MAP:
        return (task.items or task.frame.written[task.node.id])[index]
    if kind is Kind.LOOP:
        return (task.state,)
    if kind is Kind.DYNAMIC:
        return task.call_params.pop(index)
    return ()


def join(run: Run, task: TaskState, frames: list[Frame], stopped_by: str | None = None) -> e.Event:
    """Build the value of an expanded task from its frames; of samples, `stopped_by` is the rule that ended them early."""
    kind = task.node.kind
    value: Any
    if kind is Kind.MAP:
        value = [frame.result() for frame in frames]
    elif kind is Kind.SAMPLE:
        value = _vote(run, task, [frame.result() for frame in frames], stopped_by)
    elif kind is Kind.SWITCH or (kind is Kind.RACE and task.node.limit == 1):
        value = frames[0].result()
    elif kind is Kind.RACE:
        value = [frame.result() for frame in frames]
    elif kind is Kind.LOOP:
        value = frames[-1].result() if frames else task.state
    else:
        value = task.value
    task.frame.values[task.node.id] = value
    return e.TaskFinished(run.id, task.id, task.attempt)


def _vote(run: Run, task: TaskState, results: list[Any], stopped_by: str | None) -> Any:
    if run.program.plan.samples[task.node.target].vote is None:
        return results
    keys = [_key(run, task, result) for result in results]
    record = task.record
    asked = record.degraded["to"] if record.degraded is not None else task.node.limit
    record.votes = tally(keys, asked, stopped_by)
    return results[winner(keys)]


def label(run: Run, task: TaskState, frame: Frame) -> int:
    """The answer class of a finished sample: equal answers share a small integer, unusable ones are -1. Of the arm of a
    race 0 if its result counts, else -1."""
    if task.node.kind is Kind.RACE:
        plan = run.program.plan
        return 0 if evaluate.counts(plan, plan.blocks[frame.block], frame) else -1
    key = _key(run, task, frame.result())
    if key is None:
        return -1
    return task.labels.setdefault(key, len(task.labels))


def _key(run: Run, task: TaskState, result: Any) -> Key:
    vote = run.program.plan.samples[task.node.target].vote
    return answer_key(run.program.dump(evaluate.vote_key(result, vote)))


def completed_data(run: Run, task: TaskState) -> dict[str, Any]:
    """What `node.completed` tells: the output where it is short, how a vote went, and the tokens of a model call."""
    record = task.record
    data: dict[str, Any] = {}
    if task.role is NODE and task.node.id in task.frame.values and run.raw is None:
        shown = run.program.dump(task.frame.values[task.node.id])
        if _is_short(shown):
            data["output"] = shown
        else:
            data["output_omitted"] = f"longer than {SHOWN_CHARS} characters"
    if record.votes is not None:
        data["votes"] = asdict(record.votes)
    if record.tokens_in or record.tokens_out:
        data["usage"] = {
            "tokens_in": record.tokens_in,
            "tokens_out": record.tokens_out,
            "cached_tokens": record.cached_tokens,
            **reuse_data(record.provenance),
        }
    return data


def _is_short(shown: Any) -> bool:
    """Whether JSON data has about `SHOWN_CHARS` characters at most. Stops counting there: a result may be megabytes."""
    room, todo = SHOWN_CHARS, [shown]
    while todo and room >= 0:
        item = todo.pop()
        room -= len(item) if isinstance(item, str) else 4
        if isinstance(item, dict):
            room -= sum(map(len, item))
            todo += item.values()
        elif isinstance(item, list):
            todo += item
    return room >= 0
