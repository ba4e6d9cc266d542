"""Giving room to what is ready. Runs at the end of every step, whatever the event was.

Order: tasks that need no room, as they became ready; then model calls, the most urgent first over all models
that have room; then tools; then searches.

This is the pool's one assign function: it runs alike after an arrival, a departure and a failure, and what it decides is
carried out afterwards. When the most urgent call of a queue finds no room, those behind it wait too: a large call is
not starved by small ones that would still fit. What may go before it for a moment, and why, says `passing`.
"""

from flowserve.core import (
    admission,
    budgets,
    degradation,
    engines,
    exits,
    heads,
    health,
    lengths,
    load,
    moving,
    passing,
    placement,
    retry,
    service,
    tasks,
)
from flowserve.core.commands import Dispatch, Mark, Role, Status
from flowserve.core.engine_state import Engine
from flowserve.core.priority import engine_priority
from flowserve.core.queues import ReadyQueue
from flowserve.core.state import Expansion, Phase, SchedulerState, Task, Window
from flowserve.graphs.plan import Kind
from flowserve.ids import Seconds, Tokens

RUNNING, DYNAMIC, SEARCH, STEP, NODE = Phase.RUNNING, Kind.DYNAMIC, Kind.SEARCH, Role.STEP, Role.NODE
"""Asked of every task; an attribute of an Enum takes as long as five of a module (CPython 3.11)."""

MOST_HOMES = 65_536
"""Sessions whose engine is remembered; the least recently used goes first."""


def fill(state: SchedulerState) -> None:
    """Dispatch all that may be dispatched now."""
    if state.immediate:
        ready, state.immediate = state.immediate, []
        for task in ready:
            if task.phase is Phase.READY:
                dispatch(state, task, None)
    if state.draining:
        engines.settle_drains(state)
    _fill_engines(state)
    if state.urgent and _let_in(state):
        _fill_engines(state)
    _fill_window(state, state.tools)
    _fill_window(state, state.searches)


def dispatch(state: SchedulerState, task: Task, place: Engine | Window | None) -> None:
    """Start the next execution of `task` in `place`."""
    run = task.run
    if not run.started:
        service.start(run)
        state.out.append(Mark(run.id, Status.RUNNING))
    if task.parent is not None and task.parent.phase is Phase.READY:
        begin(state, task.parent, Phase.OPEN)
    if task.timer is not None:
        state.timers.cancel(task)
    begin(state, task, RUNNING)
    call = task.call
    resume = call is not None and call.written > 0
    if place is not None:
        task.place = place
        if isinstance(place, Engine):
            _take(state, task, place)
        else:
            place.running[task] = None
        if task.attempt == 1:
            retry.earn(state, run)
    if task.kind is DYNAMIC:
        task.expansion = Expansion(task.node.limit)
    task.reduced = None
    if task.kind is SEARCH:
        _bound(state, task)
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
            engine_priority(state.policy.rank_of(task, state.config)),
            max(0.0, task.deadline - state.now) if task.deadline < float("inf") else None,
            resume,
            _keep_s(state, task),
            task.reduced,
        )
    )
    exits.begun(state, task)
    heads.begun(state, task)


def _bound(state: SchedulerState, search: Task) -> None:
    """A search asks for fewer passages where the run would else be late."""
    degrade = search.node.degrade
    if degrade is not None and degradation.due(state, search):
        degradation.take(state, search, degrade.least)


def _send(state: SchedulerState, task: Task, engine: Engine) -> None:
    """Dispatch a model call, unless its run ends by it: nobody pays for what cannot be finished, or not in time."""
    run = task.run
    if run in state.doomed:
        return
    doom = admission.too_late(state, task)
    if doom is None and run.budget is not None:
        doom = budgets.before(state, task, run.budget, engine, placement.resident(state, engine, task))
    if doom is None:
        dispatch(state, task, engine)
    else:
        state.doomed[run] = doom


def _take(state: SchedulerState, task: Task, engine: Engine) -> None:
    heads.call_at(state, task, engine)
    placement.took(state, task, engine)
    passing.went(state, task, engine)
    load.take(state, task, engine, placement.resident(state, engine, task))
    if engine.can_restart:
        config = state.config.pool
        waits = [health.patience_s(state, engine), config.first_token_s, config.hedge_after_s]
        health.watch(state, engine, state.now + min(wait for wait in waits if wait))


def _keep_s(state: SchedulerState, task: Task) -> Seconds:
    """An agent's next step begins with this one's prompt and answer, after its tools."""
    return state.config.pool.keep_s if task.role is STEP and not task.last else 0.0


def begin(state: SchedulerState, task: Task, phase: Phase) -> None:
    """The clock of this execution starts. An agent's parts have no limit of their own but the agent's."""
    tasks.move(task, phase)
    task.began_at = state.now
    limit = task.node.timeout_s if task.role is NODE else None
    task.deadline = task.frame.deadline if task.parent is None else task.parent.deadline
    if limit is not None:
        state.timers.start(state.now + limit, task)
        task.deadline = min(task.deadline, state.now + limit)
    tasks.mark(state, task)


def _fill_window(state: SchedulerState, window: Window) -> None:
    while window.queue.size and len(window.running) < window.limit:
        dispatch(state, window.queue.pop(), window)


def _fill_engines(state: SchedulerState) -> None:
    open_queues: dict[ReadyQueue, list[Engine]] = {}
    for model, waiting in state.models.items():
        if waiting.size and model in state.serving:
            open_queues[waiting] = state.serving[model]
    if state.parked:
        parked = [engine for engine in state.engines.values() if engine.queue.size]
        open_queues.update((engine.queue, [engine]) for engine in parked)
        state.parked = bool(parked)
    while open_queues and (queue := _most_urgent(open_queues)) is not None:
        candidates = open_queues[queue]
        ahead = passing.ahead(state, queue, candidates)
        if ahead is not None:
            _send_ahead(state, queue, *ahead)
            continue
        task = queue.first()
        found = placement.place(state, candidates, task)
        home = placement.home(state, candidates, task) if found is not None else None
        if found is None:
            del open_queues[queue]
        elif home is None:
            _send(state, queue.pop(), found)
        else:
            _wait_for(state, queue.pop(), home)
            open_queues[home.queue] = [home]


def _send_ahead(state: SchedulerState, queue: ReadyQueue, task: Task, engine: Engine) -> None:
    """`task` goes before the first of the queue, if it is not that itself."""
    call = queue.first().call
    assert call is not None
    if call is not task.call and call.passed_at is None:
        call.passed_at = state.now
    queue.take(task)
    _send(state, task, engine)


def _most_urgent(queues: dict[ReadyQueue, list[Engine]]) -> ReadyQueue | None:
    """The queue whose first task goes before those of the others; queues without any are dropped."""
    if len(queues) == 1:
        [only] = queues
        return only if only.size else None
    chosen: ReadyQueue | None = None
    best: tuple[float, int, float, int] | None = None
    for queue in list(queues):
        lane = queue.head() if queue.size else None
        if lane is None:
            del queues[queue]
            continue
        order, number, _ = lane.items[0]
        key = (lane.rank, lane.run.arrival, order, number)
        if best is None or key < best:
            chosen, best = queue, key
    return chosen


def _wait_for(state: SchedulerState, task: Task, home: Engine) -> None:
    """`task` waits for the engine that holds its prompt, but not for longer than the prompt is worth."""
    assert task.call is not None
    task.call.waited = True
    state.parked = True
    tasks.wait_in(state, task, home.queue)
    state.timers.start(state.now + placement.patience_s(state, home, task), task)


def _let_in(state: SchedulerState) -> bool:
    """Model calls that found no room may push less urgent tiers out. Whether any did."""
    urgent, state.urgent = state.urgent, []
    pushed = False
    for task in urgent if state.config.pool.preempt else ():
        if task.phase is Phase.READY and task.lane is not None and not task.run.over:
            engine = moving.make_room(state, task)
            if engine is not None:
                task.lane.queue.take(task)
                _send(state, task, engine)
                pushed = True
    state.urgent = []
    return pushed


def finished(state: SchedulerState, task: Task, prefix: tuple[int, ...], tokens_out: Tokens) -> None:
    """A model call was answered: learn from it, and remember what the engine holds now."""
    call, engine = task.call, task.place
    if call is None or not isinstance(engine, Engine):
        return
    health.judge(state, engine, None)
    lengths.wrote(state, task, tokens_out)
    if state.placement.ended is not None:
        state.placement.ended(tokens_out, state.placed)
    engine.resident.add(prefix)
    key = placement.session_of(task)
    if key is not None:
        state.homes.pop(key, None)
        state.homes[key] = (engine, call.tokens + tokens_out)
        if len(state.homes) > MOST_HOMES:
            del state.homes[next(iter(state.homes))]
