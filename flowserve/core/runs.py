"""The life of a run: accepted or rejected, and its three ways to end.

Whatever ends, ends through `forget`: nothing of it stays in any table.
"""

from collections import deque
from math import inf

from flowserve.core import admission, degradation, estimates, heads, quotas, readiness, service, tasks
from flowserve.core.budgets import Doom
from flowserve.core.commands import Cancel, Complete, Fail, Mark, Reject, Status
from flowserve.core.engine_state import Engine
from flowserve.core.estimates import PlanFigures
from flowserve.core.events import CancelRequested, Code, RunSubmitted
from flowserve.core.priority import level
from flowserve.core.shapes import PlanShape, shape_plan
from flowserve.core.state import Phase, Run, SchedulerState
from flowserve.core.story import story
from flowserve.errors import InternalError
from flowserve.ids import BlockId, TaskId


def submitted(state: SchedulerState, event: RunSubmitted) -> None:
    """Accept the run (QUEUED, and unless it is held: frame 0 opened, its first tasks READY), or reject it."""
    if event.run in state.runs:
        raise InternalError(f"run {event.run!r} was submitted twice", story(state, event.run))
    refused = admission.over_quota(state, event) or admission.full(state, event.run)
    if refused is not None:
        state.out.append(refused)
        return
    shape = state.shapes.get(event.plan.digest)
    if shape is None:
        shape = shape_plan(event.plan)
    outage = admission.outage(state, shape)
    if outage is not None:
        state.out.append(Reject(event.run, outage, outage=True))
        return
    run = _run(state, event, shape)
    late = admission.hopeless(state, run)
    if late is not None:
        expected, wait = late
        state.out.append(Reject(event.run, admission.within_bounds(state, wait), expected_s=expected, wait_s=wait))
        return
    state.shapes[event.plan.digest] = shape
    shape.runs += 1
    state.arrivals += 1
    state.runs[run.id] = run
    service.accept(state, run)
    quotas.accepted(state, run)
    if run.deadline < inf:
        state.timers.start(run.deadline, run)
    state.out.append(Mark(run.id, Status.QUEUED))
    if quotas.must_wait(run.share):
        quotas.hold(state, run)
    else:
        _begin(state, run)


def _begin(state: SchedulerState, run: Run) -> None:
    """Open frame 0; its first tasks are READY."""
    service.begin(state, run)
    frame = readiness.enter(state, run, BlockId(0), None, 0)
    for position in frame.block.roots:
        tasks.create(state, frame, position)


def _run(state: SchedulerState, event: RunSubmitted, shape: PlanShape) -> Run:
    """As it would be accepted now; it stands in no table yet."""
    config = state.config
    run = Run(event.run, state.arrivals + 1, shape, state.now, level(event.tier, event.priority, config))
    run.tenant, run.session = event.tenant, event.session
    run.may_degrade = event.degrade
    run.budget = event.budget
    run.width = max(1.0, state.width)
    run.usual_kv_tokens = state.lengths.kv_tokens.mean
    run.history = deque((state.now, event), maxlen=2 * config.story_length)
    limit = event.deadline_s if event.deadline_s is not None else config.default_deadline_s
    if limit is not None:
        run.deadline = state.now + limit
    known = estimates.begin(state, shape)
    _expect(state, run, known)
    run.taken = degradation.wanted(state, run)
    if run.taken:
        _expect(state, run, estimates.lessened(known, run.taken))
    return run


def _expect(state: SchedulerState, run: Run, known: PlanFigures) -> None:
    """What lies before `run`, and where it therefore stands."""
    run.tails, run.by_tail = state.policy.paths(known)
    run.works, run.work, run.sure = known.works, known.work, known.sure
    run.rank = state.policy.rank(run, state.config)


def cancel_requested(state: SchedulerState, event: CancelRequested) -> None:
    """Somebody wants the run to end; one that has ended already is left alone."""
    run = state.runs.get(event.run)
    if run is None:
        state.stale += 1
    else:
        end(state, run, Status.CANCELLED)


def completed(state: SchedulerState, run: Run) -> None:
    """Frame 0 is done."""
    spent = run.spent.told()
    run.shape.figures.tokens.add(spent.prompt + spent.output)
    run.shape.figures.money.add(run.spent.money)
    state.out.append(Complete(run.id, spent))
    forget(state, run)


def doomed(state: SchedulerState) -> None:
    """End the runs that cannot go on, though none of their tasks has failed."""
    while state.doomed:
        run = next(iter(state.doomed))
        doom = state.doomed.pop(run)
        if not run.over:
            end(state, run, Status.FAILED, doom.task.id, doom.code, doom)


def end(
    state: SchedulerState,
    run: Run,
    status: Status,
    task: TaskId | None = None,
    code: Code | None = None,
    doom: Doom | None = None,
) -> None:
    """End `run` without a result: cancel every execution in order of task id, then Fail.

    Frames are not closed one by one: the end of the run is the end of all of them.
    """
    for live in list(run.tasks.values()):
        engine = live.place.id if isinstance(live.place, Engine) else None
        at_work = live.phase in tasks.AT_WORK
        live.expansion = None
        live.parent = None
        tasks.release(state, live)
        if at_work:
            state.out.append(Cancel(run.id, live.id, live.attempt, engine))
        tasks.move(live, Phase.CANCELLED)
        tasks.mark(state, live)
    run.tasks.clear()
    heads.drop_of(state, run)
    over, expected_s = (doom.over, doom.expected_s) if doom is not None else (None, None)
    state.out.append(Fail(run.id, status, task, code, run.spent.told(), over, expected_s))
    forget(state, run)


def forget(state: SchedulerState, run: Run) -> None:
    """Take `run` out of every table; one that waited for its tenant begins."""
    run.over = True
    del state.runs[run.id]
    if not run.held:
        service.end(state, run)
    service.forget(state, run)
    quotas.ended(state, run)
    for lane in run.lanes.values():
        lane.queue.drop(lane)
    run.lanes.clear()
    run.frames.clear()
    if run.timer is not None:
        state.timers.cancel(run)
    run.shape.runs -= 1
    if not run.shape.runs:
        del state.shapes[run.plan.digest]
    state.ended.append(state.now)
    state.rejected = 0
    following = quotas.next_held(state, run.share)
    if following is not None:
        _begin(state, following)
