"""The life of one task: which phase may follow which, and what each change does to tables and observers.

Every dispatched execution ends in exactly one of three ways: the driver reports it (TaskFinished, TaskFailed), or
Cancel ends it, or the driver reported a number (Evaluated) and the task lives on with its frames. An agent's own
task counts as dispatched from its first step on.
"""

from flowserve.core import estimates, heads, hedging, lengths, load, readiness
from flowserve.core.commands import Cancel, CloseFrame, Mark, Measure, Role, Status
from flowserve.core.engine_state import Engine, ModelCall
from flowserve.core.events import Code
from flowserve.core.placement import is_known
from flowserve.core.queues import ReadyQueue
from flowserve.core.state import Consequence, Frame, Phase, SchedulerState, Task, Todo
from flowserve.graphs.plan import Kind
from flowserve.ids import TaskId

STEP, AGENT_TOOL, LLM, TOOL, COMPLETED = Role.STEP, Role.TOOL, Kind.LLM, Kind.TOOL, Phase.COMPLETED
"""Asked of every task; an attribute of an Enum takes as long as five of a module (CPython 3.11)."""

TRANSITIONS: dict[Phase, tuple[Phase, ...]] = {
    Phase.READY: (Phase.RUNNING, Phase.OPEN, Phase.FAILED, Phase.CANCELLED),
    Phase.RUNNING: (Phase.OPEN, Phase.COMPLETED, Phase.RETRYING, Phase.FAILED, Phase.CANCELLED),
    Phase.OPEN: (Phase.RUNNING, Phase.JOINING, Phase.RETRYING, Phase.FAILED, Phase.CANCELLED),
    Phase.JOINING: (Phase.COMPLETED, Phase.RETRYING, Phase.FAILED, Phase.CANCELLED),
    Phase.RETRYING: (Phase.READY, Phase.CANCELLED),
    Phase.COMPLETED: (),
    Phase.FAILED: (),
    Phase.CANCELLED: (),
}
"""What may follow what. `step.mermaid` draws it."""

STATUS = {
    Phase.READY: Status.READY,
    Phase.RUNNING: Status.RUNNING,
    Phase.OPEN: Status.RUNNING,
    Phase.RETRYING: Status.RETRYING,
    Phase.COMPLETED: Status.COMPLETED,
    Phase.FAILED: Status.FAILED,
    Phase.CANCELLED: Status.CANCELLED,
}
"""What observers are told. JOINING is not told: the task is still RUNNING to them."""

AT_WORK = (Phase.RUNNING, Phase.OPEN, Phase.JOINING)
"""Phases in which the driver holds something for the task."""


def move(task: Task, phase: Phase) -> None:
    """Change the phase; the table decides whether that is possible."""
    assert phase in TRANSITIONS[task.phase], f"{task!r} cannot become {phase.name}"
    task.phase = phase


def mark(state: SchedulerState, task: Task, code: Code | None = None, status: Status | None = None) -> None:
    """Tell observers the present phase, or a `status` that says more."""
    state.out.append(
        Mark(
            task.run.id,
            status if status is not None else STATUS[task.phase],
            task.id,
            task.node.id,
            task.frame.id,
            task.attempt,
            task.role,
            task.index,
            code,
        )
    )


def create(
    state: SchedulerState,
    frame: Frame,
    position: int,
    role: Role = Role.NODE,
    parent: Task | None = None,
    index: int = 0,
    last: bool = False,
) -> Task:
    """A task whose inputs exist: Mark READY, and let it wait for its room."""
    run = frame.run
    run.last_task += 1
    id = TaskId(run.last_task)
    task = Task(id, frame, frame.block.nodes[position], role, parent, index)
    task.last = last
    run.tasks[id] = task
    if parent is None:
        frame.nodes[position] = task
    else:
        assert parent.expansion is not None
        parent.expansion.parts[id] = task
    mark(state, task)
    enqueue(state, task)
    return task


def enqueue(state: SchedulerState, task: Task) -> None:
    """Put a READY task where it waits: a model's queue, a window's queue, or the end of this step.

    A model call is measured first, where the configuration says so; then it waits in no queue until that is answered.
    """
    kind = task.kind
    if task.role is STEP or kind is LLM:
        if task.call is None:
            task.call = ModelCall()
            if state.config.measure:
                state.measuring += 1
                state.out.append(_measure(task))
                return
        wait_for_engine(state, task)
    elif task.role is AGENT_TOOL or kind is TOOL:
        wait_in(state, task, state.tools.queue)
    elif kind is Kind.SEARCH:
        wait_in(state, task, state.searches.queue)
    elif kind is Kind.AGENT:
        state.agenda.append(Consequence(Todo.START_AGENT, task))
    else:
        state.immediate.append(task)


def being_measured(state: SchedulerState, task: Task) -> bool:
    """The driver owes its size."""
    return state.config.measure and task.call is not None and not task.call.measured


def _measure(task: Task) -> Measure:
    parent = task.parent.id if task.parent is not None else None
    where = (task.node.id, task.frame.id, task.role, task.index, parent)
    return Measure(task.run.id, task.id, *where, last=task.last)


def wait_for_engine(state: SchedulerState, task: Task) -> None:
    """A model call whose size is known, or is not asked, waits for an engine that serves its model."""
    model = task.run.shape.models[task.node.id]
    if model not in state.serving and not is_known(state, model):
        state.agenda.append(Consequence(Todo.UNSERVED, task))
    wait_in(state, task, state.queue_of(model))
    state.urgent.append(task)


def wait_in(state: SchedulerState, task: Task, queue: ReadyQueue) -> None:
    queue.push(task, state.policy.order(task), state.policy.behind(task, state.config))


def wait_anywhere(state: SchedulerState, task: Task) -> None:
    """It has waited for one engine; now any will do."""
    assert task.lane is not None
    task.lane.queue.take(task)
    if task.timer is not None:
        state.timers.cancel(task)
    wait_in(state, task, state.queue_of(task.run.shape.models[task.node.id]))


def requeue(state: SchedulerState, task: Task) -> None:
    """The back-off has passed: READY again."""
    move(task, Phase.READY)
    mark(state, task)
    enqueue(state, task)


def release(state: SchedulerState, task: Task) -> None:
    """Take from `task` whatever its present execution holds: parts, time limit, room, place in a queue."""
    if task.expansion is not None:
        drop_parts(state, task)
    if task.timer is not None:
        state.timers.cancel(task)
    if isinstance(task.place, Engine):
        hedging.drop_rival(task)
        load.leave(state, task, task.place)
        task.place = None
    elif task.place is not None:
        del task.place.running[task]
        task.place = None
    elif task.lane is not None:
        task.lane.queue.withdraw(task)
    elif being_measured(state, task):
        state.measuring -= 1


def drop_parts(state: SchedulerState, task: Task) -> None:
    """Cancel what is at work for `task`, and close every frame that it still keeps."""
    expansion = task.expansion
    assert expansion is not None
    if expansion.longer_s:
        lengths.lengthen(state, task.run, -expansion.longer_s)
    for frame in list(expansion.live.values()):
        kill_frame(state, frame)
    for part in list(expansion.parts.values()):
        cancel(state, part)
    for frame_id in expansion.closing():
        state.out.append(CloseFrame(task.run.id, frame_id))
    task.expansion = None


def retire(state: SchedulerState, task: Task, phase: Phase, code: Code | None = None) -> None:
    """End `task` for good in `phase`: it leaves every table, and observers are told."""
    release(state, task)
    lengths.forget(state, task)
    move(task, phase)
    del task.run.tasks[task.id]
    if task.parent is not None:
        assert task.parent.expansion is not None
        del task.parent.expansion.parts[task.id]
    mark(state, task, code)


def stop(state: SchedulerState, task: Task) -> None:
    """Tell the driver to drop the present execution, if it has one; its parts go first."""
    if task.phase in AT_WORK:
        engine = task.place.id if isinstance(task.place, Engine) else None
        release(state, task)
        state.out.append(Cancel(task.run.id, task.id, task.attempt, engine))


def cancel(state: SchedulerState, task: Task) -> None:
    """Nobody needs `task` any more."""
    stop(state, task)
    retire(state, task, Phase.CANCELLED)


def complete(state: SchedulerState, task: Task) -> None:
    """A node's value exists: the task ends, and what waited for it may become ready."""
    estimates.completed(state, task)
    retire(state, task, COMPLETED)
    for position in readiness.node_done(state, task.frame, task.node.id):
        create(state, task.frame, position)


def kill_frame(state: SchedulerState, frame: Frame) -> None:
    """Nobody needs the frame any more: cancel its tasks in the order of the block's nodes, then close it."""
    for task in frame.nodes:
        if isinstance(task, Task) and task.phase < Phase.COMPLETED:
            cancel(state, task)
    heads.drop_of(state, frame.run, frame)
    readiness.leave(frame)
    state.out.append(CloseFrame(frame.run.id, frame.id))
