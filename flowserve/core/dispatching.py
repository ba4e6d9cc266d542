"""Giving room to what is ready. Runs at the end of every step, whatever the event was.

Order: tasks that need no room, as they became ready; then model calls, the most urgent first over all models
that have room; then tools; then searches.
"""

from flowserve.core import placement, retry, tasks
from flowserve.core.commands import Dispatch, Mark, Role, Status
from flowserve.core.priority import engine_priority
from flowserve.core.queues import ReadyQueue
from flowserve.core.state import Engine, Expansion, Phase, SchedulerState, Task, Window
from flowserve.graphs.plan import Kind


def fill(state: SchedulerState) -> None:
    """Dispatch all that may be dispatched now."""
    if state.immediate:
        ready, state.immediate = state.immediate, []
        for task in ready:
            if task.phase is Phase.READY:
                dispatch(state, task, None)
    _fill_engines(state)
    _fill_window(state, state.tools)
    _fill_window(state, state.searches)


def dispatch(state: SchedulerState, task: Task, place: Engine | Window | None) -> None:
    """Start the next execution of `task` in `place`."""
    run = task.run
    if not run.started:
        run.started = True
        state.out.append(Mark(run.id, Status.RUNNING))
    if task.parent is not None and task.parent.phase is Phase.READY:
        _begin(state, task.parent, Phase.OPEN)
    _begin(state, task, Phase.RUNNING)
    if place is not None:
        task.place = place
        place.running[task] = None
        if task.attempt == 1:
            retry.earn(state, run)
    if task.kind is Kind.DYNAMIC:
        task.expansion = Expansion(task.node.limit)
    state.out.append(
        Dispatch(
            run.id,
            task.id,
            task.node.id,
            task.frame.id,
            task.attempt,
            task.role,
            task.index,
            task.parent.id if task.parent is not None else None,
            task.last,
            place.id if isinstance(place, Engine) else None,
            engine_priority(run.rank),
            max(0.0, task.deadline - state.now) if task.deadline < float("inf") else None,
        )
    )


def _begin(state: SchedulerState, task: Task, phase: Phase) -> None:
    """The clock of this execution starts. An agent's parts have no limit of their own but the agent's."""
    tasks.move(task, phase)
    limit = task.node.timeout_s if task.role is Role.NODE else None
    task.deadline = task.frame.deadline if task.parent is None else task.parent.deadline
    if limit is not None:
        state.timers.start(state.now + limit, task)
        task.deadline = min(task.deadline, state.now + limit)
    tasks.mark(state, task)


def _fill_window(state: SchedulerState, window: Window) -> None:
    while window.queue.size and len(window.running) < window.limit:
        dispatch(state, window.queue.pop(), window)


def _fill_engines(state: SchedulerState) -> None:
    while True:
        chosen: ReadyQueue | None = None
        engine: Engine | None = None
        best: tuple[float, int, float, int] | None = None
        for model, queue in state.models.items():
            if not queue.size:
                continue
            candidate = placement.place(state, model)
            lane = queue.head() if candidate is not None else None
            if lane is None:
                continue
            order, number, _ = lane.items[0]
            key = (lane.run.rank, lane.run.arrival, order, number)
            if best is None or key < best:
                chosen, engine, best = queue, candidate, key
        if chosen is None:
            return
        dispatch(state, chosen.pop(), engine)
