"""What a failure leads to: another try, or its way up.

A failure that is final climbs from the task to its frame and from there to the task that owns the frame: a
SAMPLE drops that sample, a DYNAMIC gets an exception from that call, any other owner fails with it. What reaches
frame 0 fails the run. An agent's tool call does not climb at all: the model is told.
"""

from flowserve.core import runs, tasks
from flowserve.core.commands import Role, Status
from flowserve.core.events import Code
from flowserve.core.retry import backoff_s, jitter, retry_delay_s, spend
from flowserve.core.state import Consequence, Frame, Phase, SchedulerState, Task, Todo
from flowserve.graphs.plan import Retry
from flowserve.ids import Seconds

LOSS_BACKOFF = Retry(backoff_s=0.5, max_backoff_s=8.0)
"""Pause after an engine was lost in a call, until the pool has noticed too; doubles like any other."""


def failed(state: SchedulerState, task: Task, code: Code, retry_after_s: Seconds | None = None) -> None:
    """The present execution of `task` is over for the driver (reported, or stopped before this call)."""
    tasks.release(state, task)
    if task.role is Role.TOOL:
        final(state, task, code)
        return
    if code is Code.ENGINE_LOST and task.losses < state.config.max_engine_losses:
        task.losses += 1
        share = jitter(task.run.id, task.id, task.attempt)
        try_again(state, task, code, backoff_s(LOSS_BACKOFF, task.losses, share))
        return
    task.failures += 1
    delay = None if code is Code.ENGINE_LOST else retry_delay_s(state, task, code, retry_after_s)
    if delay is None:
        final(state, task, code)
    else:
        spend(state, task.run)
        try_again(state, task, code, delay)


def engine_gone(state: SchedulerState, task: Task) -> None:
    """The engine that ran `task` is down: stop the call, and put it back in the queue at once if it may."""
    tasks.stop(state, task)
    if task.losses < state.config.max_engine_losses:
        task.losses += 1
        try_again(state, task, Code.ENGINE_LOST, 0.0)
    else:
        final(state, task, Code.ENGINE_LOST)


def timed_out(state: SchedulerState, task: Task) -> None:
    """The time limit of the present execution has passed."""
    tasks.stop(state, task)
    failed(state, task, Code.TIMEOUT)


def try_again(state: SchedulerState, task: Task, code: Code, delay_s: Seconds) -> None:
    """Start the next attempt in `delay_s` seconds. Whatever is still said about this one is stale."""
    tasks.move(task, Phase.RETRYING)
    tasks.mark(state, task, code)
    task.attempt += 1
    if delay_s > 0:
        state.timers.start(state.now + delay_s, task)
    else:
        tasks.requeue(state, task)


def final(state: SchedulerState, task: Task, code: Code, origin: Task | None = None) -> None:
    """`task` has failed for good. `origin` is the task where it began, if that is another."""
    tasks.retire(state, task, Phase.FAILED, code)
    origin = origin if origin is not None else task
    if task.role is Role.TOOL:
        assert task.parent is not None
        state.agenda.append(Consequence(Todo.TOOL_OVER, task.parent))
    elif task.role is Role.STEP:
        assert task.parent is not None
        state.agenda.append(Consequence(Todo.AGENT_FAILED, task.parent, code, origin))
    elif task.frame.owner is None:
        runs.end(state, task.run, Status.FAILED, origin.id, code)
    else:
        state.agenda.append(Consequence(Todo.FRAME_FAILED, task.frame, code, origin))


def part_failed(state: SchedulerState, task: Task, code: Code, origin: Task) -> None:
    """Something that works for `task` failed for good, and the task cannot do without it."""
    tasks.stop(state, task)
    final(state, task, code, origin)


def unserved(state: SchedulerState, item: Consequence) -> None:
    """The task wants a model that no engine has: nothing to wait for."""
    task = item.subject
    assert isinstance(task, Task)
    if task.lane is not None and not task.run.over:
        final(state, task, Code.REQUEST)


def agent_failed(state: SchedulerState, item: Consequence) -> None:
    """A step has failed for good, and its agent with it."""
    agent, code, origin = item.subject, item.code, item.origin
    assert isinstance(agent, Task) and code is not None and origin is not None
    if agent.expansion is not None and not agent.run.over:
        part_failed(state, agent, code, origin)


def is_live(frame: Frame) -> bool:
    """Is the frame still at work? Consequences may come after its end."""
    return not frame.run.over and frame.id in frame.run.frames
