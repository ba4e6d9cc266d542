"""What a failure leads to: another try, or its way up.

A failure that is final climbs from the task to its frame and from there to the task that owns the frame: a
SAMPLE drops that sample, a RACE that arm, a DYNAMIC gets an exception from that call, any other owner fails with it. What reaches
frame 0 fails the run. An agent's tool call does not climb at all: the model is told.
"""

from flowserve.core import health, placement, runs, tasks
from flowserve.core.commands import Role, Status
from flowserve.core.engine_state import Engine
from flowserve.core.events import Code, Loss
from flowserve.core.retry import backoff_s, jitter, retry_delay_s, spend
from flowserve.core.state import Consequence, Frame, Phase, SchedulerState, Task, Todo
from flowserve.graphs.plan import Retry
from flowserve.ids import Seconds

LOSS_BACKOFF = Retry(backoff_s=0.5, max_backoff_s=8.0)
"""Pause after an engine was lost in a call and nobody else can take it, until the engine is back; doubles like any other."""

GONE = (Code.ENGINE_LOST, Code.STALLED)
"""The engine is at fault, or seems to be, and the call may go elsewhere."""
GOES_ON = (*GONE, Code.OVERLOADED, Code.MOVED)
"""A call that ends with one of these keeps what it has written, where it may."""


def failed(state: SchedulerState, task: Task, code: Code, retry_after_s: Seconds | None = None) -> None:
    """The present execution of `task` is over for the driver (reported, or stopped before this call)."""
    engine = task.place if isinstance(task.place, Engine) else None
    tasks.release(state, task)
    if engine is not None:
        health.judge(state, engine, code, retry_after_s)
    if task.role is Role.TOOL:
        final(state, task, code)
        return
    if engine is not None and code in GONE:
        lost(state, task, code, engine)
        return
    if engine is not None and code is Code.OVERLOADED and (retry_after_s or 0.0) <= state.config.max_retry_after_s:
        _turned_away(state, task, engine)
        return
    task.failures += 1
    delay = None if code in GONE else retry_delay_s(state, task, code, retry_after_s)
    if delay is None:
        final(state, task, code)
    else:
        spend(state, task.run)
        try_again(state, task, code, delay)


def engine_gone(state: SchedulerState, task: Task, code: Code) -> None:
    """The engine that ran `task` is down: stop the call, and put it back in the queue at once if it may."""
    engine = task.place
    assert isinstance(engine, Engine)
    tasks.stop(state, task)
    lost(state, task, code, engine, down=True)


def lost(state: SchedulerState, task: Task, code: Code, engine: Engine, down: bool = False) -> None:
    """`engine` did not finish the call. Losses use up no attempt of the node, but each call has a bound of its own.

    It waits for another engine at once. Where there is none and this one is still thought to be up, it pauses first.
    """
    call = task.call
    assert call is not None
    call.avoid = engine
    if task.losses >= state.config.max_engine_losses or (call.written and call.on_loss is Loss.FAIL):
        task.failures += 1
        final(state, task, code)
        return
    task.losses += 1
    delay = 0.0
    if not down and not _taken_elsewhere(state, task, engine):
        delay = backoff_s(LOSS_BACKOFF, task.losses, jitter(task.run.id, task.id, task.attempt))
    again(state, task, code, delay)


def _turned_away(state: SchedulerState, task: Task, engine: Engine) -> None:
    """`engine` had no room: the call waits for another, or until the pause that the engine asked for is over. The
    run's deadline bounds how often."""
    call = task.call
    assert call is not None
    call.avoid = engine
    again(state, task, Code.OVERLOADED, 0.0)


def _taken_elsewhere(state: SchedulerState, task: Task, engine: Engine) -> bool:
    model = task.run.shape.models[task.node.id]
    return any(other is not engine and placement.takes_calls(other) for other in state.serving.get(model, ()))


def again(state: SchedulerState, task: Task, code: Code, delay_s: Seconds) -> None:
    """The call goes on in another place with what it has written, where it may; else it begins anew."""
    call = task.call
    assert call is not None
    kept = not call.written or call.on_loss is Loss.CONTINUE
    goes_on = kept and (code is Code.MOVED or call.written > 0)
    try_again(state, task, code, delay_s, goes_on)


def timed_out(state: SchedulerState, task: Task) -> None:
    """The time limit of the present execution has passed."""
    tasks.stop(state, task)
    failed(state, task, Code.TIMEOUT)


def try_again(state: SchedulerState, task: Task, code: Code, delay_s: Seconds, goes_on: bool = False) -> None:
    """Start the next attempt in `delay_s` seconds. Whatever is still said about this one is stale."""
    tasks.move(task, Phase.RETRYING)
    tasks.mark(state, task, code, Status.CONTINUED if goes_on else None)
    task.attempt += 1
    if task.call is not None and not goes_on:
        task.call.written = 0
        if task.call.items:
            task.call.items = False
            state.agenda.append(Consequence(Todo.ITEMS_VOID, task))
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
