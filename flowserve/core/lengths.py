"""How much model calls are expected to write: asks the predictor before a call, tells it afterwards, and keeps account of its errors.

Only calls that were measured and have a limit count. What no predictor knows is expected to be as long as calls are on
the whole, in shares of their limits; that is asked for when it is needed, so that it is never old (`load.output_tokens`).
"""

from typing import TYPE_CHECKING

from flowserve.core.commands import Role
from flowserve.core.estimates import Figure
from flowserve.core.predict.base import Call
from flowserve.core.predict.shares import Prior
from flowserve.core.predict.table import PREDICTORS
from flowserve.errors import ConfigError
from flowserve.graphs.output_length import Length
from flowserve.graphs.plan import Kind
from flowserve.ids import Seconds, Tokens

if TYPE_CHECKING:
    from flowserve.core.engine_state import ModelCall
    from flowserve.core.events import Learned, Measured
    from flowserve.core.state import Run, SchedulerState, Task


class Lengths:
    """The predictor of a scheduler and its errors, as running means that forget."""

    __slots__ = ("covered", "error", "kv_tokens", "name", "predictor", "prior", "tokens")

    def __init__(self, name: str) -> None:
        if name not in PREDICTORS:
            raise ConfigError(f"predictor: expected one of {', '.join(sorted(PREDICTORS))}; got {name!r}")
        self.name = name
        self.predictor = PREDICTORS[name]()
        self.prior = Prior()
        """Of all calls."""
        self.error = Figure()
        """Of predictions, in tokens, whatever their sign."""
        self.tokens = Figure()
        """What the calls wrote that were predicted."""
        self.covered = Figure()
        """1 for a call that wrote no more than its p90, else 0."""
        self.kv_tokens = Figure()
        """Prompt and output of calls that ended."""

    def figures(self) -> dict[str, float]:
        """For people and metrics; none before the first predicted call has ended."""
        if not self.error.seen:
            return {}
        return {"error_tokens": self.error.mean, "tokens": self.tokens.mean, "p90_coverage": self.covered.mean}


def expect(state: "SchedulerState", task: "Task", measured: "Measured") -> None:
    """`task` is about to wait: what it may write is known, and what that means for its run."""
    call, run = task.call, task.run
    assert call is not None
    call.about = about(task, measured)
    call.limit = call.about.limit
    call.predicted = state.lengths.predictor.predict(call.about) if measured.limit else None
    call.longer_s = _longer_s(task, call)
    call.kv_tokens = measured.tokens + round(expected(state, call))
    _count(state, run, call, 1)


def expected(state: "SchedulerState", call: "ModelCall") -> float:
    """Tokens of output in all; 0 for a call that was not measured or has no limit."""
    if call.predicted is not None:
        return call.predicted.mean
    return state.lengths.prior.expected(call.about) if call.about is not None else 0.0


def forget(state: "SchedulerState", task: "Task") -> None:
    """`task` is over: its run no longer counts it."""
    if task.call is not None and task.call.about is not None:
        _count(state, task.run, task.call, -1)


def _count(state: "SchedulerState", run: "Run", call: "ModelCall", sign: int) -> None:
    run.longer_s += sign * call.longer_s
    run.kv_tokens += sign * call.kv_tokens
    if state.policy.by_calls:
        state.served[run] = None


def moved(state: "SchedulerState", task: "Task") -> None:
    """`task` waits again, and less of it remains by what it has written."""
    call, run = task.call, task.run
    assert call is not None
    before, call.longer_s = call.longer_s, _longer_s(task, call)
    lengthen(state, run, call.longer_s - before)


def lengthen(state: "SchedulerState", run: "Run", seconds: Seconds) -> None:
    """So much more is left of `run` than was thought."""
    run.longer_s += seconds
    if state.policy.by_calls:
        state.served[run] = None


def _longer_s(task: "Task", call: "ModelCall") -> Seconds:
    """What remains of it beyond the seconds of its node, in proportion to tokens; an agent's steps are not told apart there."""
    usual = task.run.shape.figures.written.get(task.node.id)
    if call.predicted is None or usual is None or task.kind is not Kind.LLM:
        return 0.0
    remains = max(0.0, call.predicted.mean - call.written)
    return task.run.works[task.node.id] * (remains / max(1.0, usual.mean) - 1.0)


def about(task: "Task", measured: "Measured") -> Call:
    """All that predictors may know of it."""
    run = task.run
    calls, tokens = run.wrote.get(task.node.id, (0, 0))
    step = task.index if task.role is Role.STEP else 0
    siblings = round(tokens / calls) if calls else 0
    answer = _answer(task, measured.choices)
    limit = measured.limit
    if answer is not None and answer.most is not None and limit:
        limit = min(limit, max(1, answer.most))
    return Call(run.plan.digest, task.node.id, run.tenant, measured.tokens, limit, step, siblings, answer)


def _answer(task: "Task", choices: int) -> Length | None:
    """What the schema of a node says of so many answers. None as well where they were longer than it allows: then something else
    is written beside them, such as thoughts."""
    shape = task.run.shape
    one, seen = shape.answers[task.node.id], shape.figures.written.get(task.node.id)
    if one is None:
        return None
    answer = one.times(choices)
    return None if seen is not None and answer.most is not None and seen.mean > answer.most else answer


def wrote(state: "SchedulerState", task: "Task", tokens: Tokens) -> None:
    """A model call has ended well after so many."""
    call, run, lengths = task.call, task.run, state.lengths
    assert call is not None
    if call.about is None or not call.limit:
        return
    if call.predicted is not None:
        lengths.error.add(abs(tokens - call.predicted.mean))
        lengths.tokens.add(tokens)
        lengths.covered.add(float(tokens <= call.predicted.p90))
    _show(lengths, call.about, tokens)
    run.shape.figures.written.setdefault(task.node.id, Figure()).add(tokens)
    calls, before = run.wrote.get(task.node.id, (0, 0))
    run.wrote[task.node.id] = (calls + 1, before + tokens)


def learned(state: "SchedulerState", event: "Learned") -> None:
    """What calls of an earlier scheduler wrote; predictions that it made are not judged."""
    for call, tokens in event.answers:
        _show(state.lengths, call, tokens)


def _show(lengths: Lengths, call: Call, tokens: Tokens) -> None:
    lengths.predictor.observe(call, tokens)
    lengths.prior.observe(call, tokens)
    lengths.kv_tokens.add(call.prompt + tokens)
