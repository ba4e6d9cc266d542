"""The scheduler: `step(state, event, now) -> commands`. Nothing else changes its state.

Theory of operation
-------------------
A *run* executes a plan. A *frame* is one instance of a block of the plan: frame 0 the workflow's own body, the others
the items, samples, arms, iterations and calls of nodes that have bodies. A *task* is one node at work in one frame, or
one step or tool call of an agent. A node gets its task when the last node it waits for is done (`readiness`); nodes
that still wait are only a number in their frame.

A task goes through phases. What may follow what stands in `tasks.TRANSITIONS`, which `mermaid()` draws:

| phase     | what it means                                               | it leaves when                           |
|-----------|-------------------------------------------------------------|------------------------------------------|
| READY     | its inputs exist; it is measured (LLM nodes, agent steps) and waits for room, or for the step's end | Dispatch |
| RUNNING   | dispatched, or evaluating again; the driver owes an answer  | TaskFinished, TaskFailed, Evaluated      |
| OPEN      | frames, or an agent's parts, are at work for it             | the last is done: Join; a LOOP: Evaluate |
| JOINING   | the driver builds its value from the frames                 | TaskFinished, TaskFailed                 |
| RETRYING  | failed; the next attempt begins when its back-off is over   | its timer                                |
| COMPLETED, FAILED, CANCELLED | over; it has left all tables             |                                          |

A MAP may be OPEN before all it waits for is done, with items of a list that is still being written: see `early`.

LLM nodes and agent steps wait for an engine that serves their model, tools and agent tools for the tool window,
searches for the search window; all other kinds go at the end of the step. When a task begins to retry, its attempt is
counted up, so that everything still said about the old one is stale. A model call that its engine lost, or that the
scheduler moves, retries too; where it may, it goes on with what it has written (Mark CONTINUED, Dispatch.resume).

Engines have a life of their own, drawn in `engines`: the scheduler fills them (`placement`), judges them by what happens
to their calls (`health`), and asks for Probe, Restart and Close.

A frame is at work from OpenFrame until all its nodes are done, when it leaves the tables and its owner keeps its id for
the Join; or until it is killed, because a node in it failed for good or nobody needs it any more. CloseFrame follows
when nobody will read it. A run is QUEUED until its first dispatch, then RUNNING, and ends with Complete or Fail; then
nothing of it remains. One whose tenant has as many at work as it may have is held before frame 0 is opened (`quotas`).

A run that has spent its budget, or would go beyond it or its deadline with its next call, is put on `state.doomed` and ended
before anything else is followed up, so that no call of it is dispatched in vain.

Consequences that reach other parts (a frame is done, a frame failed, an agent goes on) are not called but put on
`state.agenda`, and followed up first in, first out. When it is empty, room is given out (`dispatching`). So every
event ends in the same place, and what a failure frees is used in the same step.

Order of commands
-----------------
1. What the event itself does: Marks, Cancels, CloseFrames, Returns, Joins; for each opened frame OpenFrame, then Mark
   READY of its first tasks in node order. The parts of a cancelled task come before it.
2. The same for its consequences, in the order in which they arose.
3. Dispatches: tasks that need no room in order of readiness, then model calls, tools and searches, each the most
   urgent first. Before a Dispatch stand Mark RUNNING of the run and of the agent, if it is their first, and of the task, DropHead
   of what it displaces, and Degrade, if it is a search for fewer passages; after it Fork, if it may end early, and MeasureHead
   of prompts that now wait for nothing else.
4. At most one WakeAt: when a timer is due before the latest one promised, or that one was answered by a Tick.

Determinism: no clock, no randomness, no sets walked; ties end in arrival numbers. The same events at the same times
give the same commands, in any process.

Stale events (an unknown or ended run, a task that is over, another attempt, a call or label out of turn) are ignored
and counted in `state.stale`. An event that contradicts the contract, e.g. TaskFinished for a task never dispatched,
raises InternalError with the run's story, and changes nothing.
"""

from collections.abc import Callable
from typing import Any

from flowserve.core import (
    agents,
    dispatching,
    early,
    engines,
    estimates,
    exits,
    expansion,
    failing,
    heads,
    health,
    hedging,
    lengths,
    load,
    placement,
    readiness,
    runs,
    spending,
    tasks,
)
from flowserve.core.commands import Command, Mark, Role, Status, WakeAt
from flowserve.core.engine_state import Engine
from flowserve.core.events import (
    Called,
    CancelRequested,
    DrainRequested,
    EngineChanged,
    EngineReported,
    Evaluated,
    Event,
    HeadComputed,
    HeadMeasured,
    Items,
    KVChanged,
    Learned,
    Measured,
    Probed,
    ResumeRequested,
    RunSubmitted,
    SampleLabelled,
    SessionEnded,
    TaskFailed,
    TaskFinished,
    Tick,
    TokensProduced,
    TrialAnswered,
)
from flowserve.core.state import Consequence, Phase, Run, SchedulerState, Task, Todo, Width
from flowserve.core.story import tell
from flowserve.errors import InternalError
from flowserve.graphs.plan import Kind
from flowserve.ids import EngineId, Seconds

JOINING, RUNNING, NODE, STEP = Phase.JOINING, Phase.RUNNING, Role.NODE, Role.STEP
"""Asked of every task; an attribute of an Enum takes as long as five of a module (CPython 3.11)."""

PLAIN = (Status.READY, Status.RUNNING, Status.COMPLETED)
"""Marks that a story can do without."""

JOINS = (Kind.MAP, Kind.SAMPLE, Kind.SWITCH, Kind.LOOP, Kind.AGENT, Kind.RACE)
"""Kinds whose value is built by a Join."""


def step(state: SchedulerState, event: Event, now: Seconds) -> list[Command]:
    """Take in one event that happened at `now`; say what is to be done, in order.

    `now` must not go back; if it does, the latest known time counts. Raises InternalError: see the module's
    docstring; if the message says that the state is broken, it must not be used again.
    """
    state.now = max(state.now, now)
    about: Any = getattr(event, "run", None)
    run = state.runs.get(about)
    if run is not None and type(event) is not TokensProduced:
        run.history.append(state.now)
        run.history.append(event)
    try:
        HANDLERS[type(event)](state, event)
        if type(event) is not TokensProduced or state.stirred:
            _settle(state)
    except InternalError:
        raise
    except Exception as error:
        told = tell(run) if run is not None else ""
        raise InternalError(f"the scheduler's state is broken: {event!r} led to {error!r}", told) from error
    out, state.out = state.out, []
    _remember(state, out)
    return out


def _settle(state: SchedulerState) -> None:
    """Follow up everything that arose, give room, and promise the next wake-up."""
    _follow_up(state)
    dispatching.fill(state)
    while state.served or state.doomed:  # calls were pushed out, or one was not sent where there was room
        _follow_up(state)
        dispatching.fill(state)
    state.stirred = False
    due = state.timers.earliest()
    if due is not None and (state.wake_at is None or due < state.wake_at):
        state.wake_at = due
        state.out.append(WakeAt(due))


def _follow_up(state: SchedulerState) -> None:
    """End the runs that are to end, and do what follows from what was done; then every rank is up to date."""
    agenda, doomed = state.agenda, state.doomed
    while doomed or agenda:
        if doomed:
            runs.doomed(state)
        else:
            item = agenda.popleft()
            CONSEQUENCES[item.todo](state, item)
    _rerank(state)


def _rerank(state: SchedulerState) -> None:
    """Runs whose calls left engines have had more service; what calls are expected to write is known now."""
    served, state.served = state.served, {}
    for run in served:
        readiness.rerank(state, run)


def _remember(state: SchedulerState, commands: list[Command]) -> None:
    """Add commands to the stories of the runs they speak of, as far as these are still live.

    Marks that only accompany an event or a Dispatch would push the rest out, and are left out.
    """
    now, about, run = state.now, None, None
    for command in commands:
        if type(command) is WakeAt or (type(command) is Mark and command.status in PLAIN):
            continue
        named: Any = getattr(command, "run", None)
        if named is not about:
            about = named
            run = state.runs.get(about)
        if run is not None:
            run.history.append(now)
            run.history.append(command)


# --- one handler per event ----------------------------------------------------------------------------


def _measured(state: SchedulerState, event: Measured) -> None:
    task = state.find(event.run, event.task, event.attempt)
    if task is None:
        return
    call = task.call
    if task.phase is not Phase.READY or call is None or call.measured or task.lane is not None:
        raise _impossible(event, task)
    call.measured = True
    state.measuring -= 1
    call.tokens, call.limit, call.choices = event.tokens, event.limit, event.choices
    call.on_loss, call.prefix, call.passages = event.on_loss, event.prefix, event.passages
    call.told = (event.rule, event.rule_args)
    lengths.expect(state, task, event)
    tasks.wait_for_engine(state, task)


def _evaluated(state: SchedulerState, event: Evaluated) -> None:
    task = state.find(event.run, event.task, event.attempt)
    if task is None:
        return
    if task.expansion is not None and task.expansion.sure is Width.ASKED:
        early.settled(state, task, event)
        return
    if task.phase is not Phase.RUNNING or task.kind not in JOINS or task.kind is Kind.AGENT:
        raise _impossible(event, task)
    expansion.evaluated(state, task, event.choice)


def _items(state: SchedulerState, event: Items) -> None:
    task = state.find(event.run, event.task, event.attempt)
    if task is not None:
        if task.phase is not Phase.RUNNING or task.run.plan.nodes[event.map].streams != task.node.id:
            raise _impossible(event, task)
        early.items(state, task, event)


def _finished(state: SchedulerState, event: TaskFinished) -> None:
    task = state.find(event.run, event.task, event.attempt)
    if task is None:
        return
    joins = task.role is NODE and task.kind in JOINS
    if task.phase is not (JOINING if joins else RUNNING):
        raise _impossible(event, task)
    if task.call is not None and not joins:
        if not _at(state, task, event.engine):
            return
        if isinstance(task.place, Engine):
            spending.answered(state, task, event.tokens_in, event.cached_tokens, event.tokens_out)
        dispatching.finished(state, task, event.prefix, event.tokens_out)
    if task.role is NODE:
        tasks.complete(state, task)
    elif task.role is STEP:
        agents.step_finished(state, task, len(event.tools))
    else:
        assert task.parent is not None
        tasks.retire(state, task, Phase.COMPLETED)
        state.agenda.append(Consequence(Todo.TOOL_OVER, task.parent))


def _failed(state: SchedulerState, event: TaskFailed) -> None:
    task = state.find(event.run, event.task, event.attempt)
    if task is None:
        return
    if task.phase is Phase.READY and task.call is not None and task.lane is None:
        failing.final(state, task, event.code)  # it could not be measured: there can be no such call
        return
    if task.phase not in tasks.AT_WORK:
        raise _impossible(event, task)
    if task.call is None or _ends(state, task, event):
        failing.failed(state, task, event.code, event.retry_after_s)


def _ends(state: SchedulerState, task: Task, event: TaskFailed) -> bool:
    """Does the failure end the execution? One of two engines may fail; the other goes on."""
    call, place = task.call, task.place
    assert call is not None
    if call.rival is None:
        return _at(state, task, event.engine)
    assert isinstance(place, Engine)
    failed = call.rival if event.engine == call.rival.id else place
    other = place if failed is call.rival else call.rival
    health.judge(state, failed, event.code, event.retry_after_s)
    hedging.choose(state, task, other)
    return False


def _at(state: SchedulerState, task: Task, engine: EngineId | None) -> bool:
    """Is it the engine that has the call? Of two, the one that speaks first is chosen; what others say is stale."""
    call, place = task.call, task.place
    if engine is None or call is None or not isinstance(place, Engine):
        return True
    if call.rival is not None and engine in (place.id, call.rival.id):
        hedging.choose(state, task, place if engine == place.id else call.rival)
        return True
    if engine != place.id:
        state.stale += 1
        return False
    return True


def _tokens(state: SchedulerState, event: TokensProduced) -> None:
    """Progress of a call and of its engine; what comes for an execution that is over is counted."""
    task = state.find(event.run, event.task, event.attempt)
    if task is None or task.call is None or not isinstance(task.place, Engine):
        return
    if not _at(state, task, event.engine):
        return
    if event.trial:
        load.tried(state, task, task.place, event.count)
    else:
        load.progressed(state, task, task.place, event.count)


def _trial_answered(state: SchedulerState, event: TrialAnswered) -> None:
    task = state.find(event.run, event.task, event.attempt)
    if task is None:
        return
    call = task.call
    if task.phase is not Phase.RUNNING or call is None or call.fork_at is None or event.position < call.fork_at:
        raise _impossible(event, task)
    exits.answered(state, task, event)


def _called(state: SchedulerState, event: Called) -> None:
    task = state.find(event.run, event.task, event.attempt)
    if task is not None:
        if task.phase is not Phase.RUNNING or task.kind is not Kind.DYNAMIC:
            raise _impossible(event, task)
        expansion.called(state, task, event)


def _learned(state: SchedulerState, event: Learned) -> None:
    estimates.learned(state, event)
    lengths.learned(state, event)


def _tick(state: SchedulerState, event: Tick) -> None:
    """Fire what is due: ends of runs, time limits, back-offs."""
    state.wake_at = None
    while (subject := state.timers.pop_due(state.now)) is not None:
        if isinstance(subject, Run):
            runs.end(state, subject, Status.TIMED_OUT)
        elif isinstance(subject, Engine):
            engines.due(state, subject)
        elif subject.phase is Phase.RETRYING:
            tasks.requeue(state, subject)
        elif subject.phase is Phase.READY:
            tasks.wait_anywhere(state, subject)
        else:
            failing.timed_out(state, subject)


def _impossible(event: Event, task: Task) -> InternalError:
    return InternalError(f"{event!r} cannot happen to {task!r}", tell(task.run))


HANDLERS: dict[type[Event], Callable[[SchedulerState, Any], None]] = {
    RunSubmitted: runs.submitted,
    Measured: _measured,
    HeadMeasured: heads.measured,
    HeadComputed: heads.computed,
    Evaluated: _evaluated,
    Items: _items,
    TaskFinished: _finished,
    TaskFailed: _failed,
    TokensProduced: _tokens,
    TrialAnswered: _trial_answered,
    SampleLabelled: expansion.labelled,
    Called: _called,
    CancelRequested: runs.cancel_requested,
    EngineChanged: engines.changed,
    EngineReported: engines.reported,
    KVChanged: engines.kv_changed,
    Probed: engines.probed,
    DrainRequested: engines.drain_requested,
    ResumeRequested: engines.resume_requested,
    SessionEnded: placement.session_ended,
    Learned: _learned,
    Tick: _tick,
}
"""What is done with each type of event."""

CONSEQUENCES: dict[Todo, Callable[[SchedulerState, Consequence], None]] = {
    Todo.FRAME_DONE: expansion.frame_done,
    Todo.FRAME_FAILED: expansion.frame_failed,
    Todo.START_AGENT: agents.start,
    Todo.AGENT_FAILED: failing.agent_failed,
    Todo.TOOL_OVER: agents.tool_over,
    Todo.UNSERVED: failing.unserved,
    Todo.LIST_WHOLE: early.whole,
    Todo.ITEMS_VOID: early.void,
}
"""What is done with each sort of consequence."""


def mermaid() -> str:
    """The phases of a task as a Mermaid state diagram, from the table that the scheduler obeys."""
    lines = ["stateDiagram-v2", "    [*] --> READY"]
    for phase, following in tasks.TRANSITIONS.items():
        lines += [f"    {phase.name} --> {later.name}" for later in following]
        if not following:
            lines.append(f"    {phase.name} --> [*]")
    return "\n".join(lines) + "\n"
