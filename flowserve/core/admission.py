"""What a client is told that finds no room, or asks for what cannot be: an honest guess, at once."""

from collections.abc import Sequence
from math import inf

from flowserve.core import quotas
from flowserve.core.budgets import Doom
from flowserve.core.commands import Reject, Role
from flowserve.core.estimates import lessened
from flowserve.core.events import Code, RunSubmitted
from flowserve.core.shapes import PlanShape
from flowserve.core.state import Run, SchedulerState, Task
from flowserve.graphs.plan import Kind
from flowserve.ids import RunId, Seconds


def retry_after_s(state: SchedulerState, ended: Sequence[Seconds], rejected: int) -> Seconds:
    """Seconds until a place should be free for one more client, within the configured bounds.

    The latest endings give the time between two free places, the silence since the last one included. Clients
    rejected since then stand before this one, so that not all of them come back for the same place.
    """
    if len(ended) < 2:
        between = state.config.min_reject_s
    else:
        between = (state.now - ended[0]) / (len(ended) - 1)
    return within_bounds(state, between * (rejected + 1))


def full(state: SchedulerState, run: RunId) -> Reject | None:
    """The answer to a run for which there is no place; None: there is one. Runs that are held take none."""
    if len(state.runs) - state.held < state.config.max_live_runs:
        return None
    state.rejected += 1
    return Reject(run, retry_after_s(state, state.ended, state.rejected - 1))


def over_quota(state: SchedulerState, event: RunSubmitted) -> Reject | None:
    """The answer to a run whose tenant has what it may have; None: it may have this too. It takes nothing from others, nor
    does it make them wait longer."""
    found = quotas.over(state, event)
    if found is None:
        return None
    quota = state.tenants[event.tenant].quota
    assert quota is not None
    wait = quotas.wait_s(state, event.tenant, found)
    if wait is None:
        wait = retry_after_s(state, quota.ended, quota.rejected)
        quota.rejected += 1
    return Reject(event.run, wait, over=found)


def outage(state: SchedulerState, shape: PlanShape) -> Seconds | None:
    """Seconds until a model that the plan calls may be served again, when all its engines have been down for
    `outage_s`; None: a run may begin, and its calls wait for an engine if need be."""
    config = state.config
    longest: Seconds | None = None
    for model in shape.called:
        if state.serving.get(model):
            continue
        down = [engine for engine in state.engines.values() if model in engine.models]
        if down and state.now - max(engine.down_since for engine in down) >= config.pool.outage_s:
            back = min(max(0.0, engine.pause_until - state.now) for engine in down)
            wait = within_bounds(state, back)
            longest = wait if longest is None else max(longest, wait)
    return longest


def hopeless(state: SchedulerState, run: Run) -> tuple[Seconds, Seconds] | None:
    """Seconds that `run`, which is about to be accepted, is expected to take with what was taken of it, and of these seconds of
    waiting for runs that go before it, when that is far more than it has, by its deadline or by a binding SLO; None: it may
    well be on time, or nobody knows.

    Early rejection (Mooncake, FAST 2025): before anything was computed for it. Runs are walked only if all of them together
    would make it late.
    """
    known = lessened(run.shape.figures, run.taken)
    slo = run.plan.slo
    promised = slo.e2e if slo.binding and slo.e2e is not None else inf
    most = state.config.hopeless * min(run.deadline - state.now, promised)
    if not most or not known.learned or not known.by_tail:
        return None
    path = known.tails[known.by_tail[0]]
    wait = wait_s(state, run) if path <= most < path + state.work / run.width else 0.0
    return (path + wait, wait) if path + wait > most else None


def wait_s(state: SchedulerState, run: Run) -> Seconds:
    """Seconds that `run`, which is about to be accepted, is expected to wait for runs that go before it."""
    if not any(state.models[model].size for model in run.shape.called if model in state.models):
        return 0.0
    return sum(other.work for other in state.runs.values() if not other.held and other.rank < run.rank) / run.width


def too_late(state: SchedulerState, task: Task) -> Doom | None:
    """Why the run of `task`, a model call that could go to an engine now, is not worth it any more; None: it may be.

    The same early rejection for a run under way, before the prefill of a call that would be in vain. Only where the run has a
    deadline and cannot do without the call, and by what was seen alone: nodes nobody has seen count for nothing, and so does
    waiting. Calls that go on, steps of an agent beyond its first, and rounds of a loop beyond this one are not judged by
    their whole.
    """
    config, run, call = state.config, task.run, task.call
    if not config.drop_hopeless or not config.hopeless or not run.sure or run.deadline == inf:
        return None
    if (call is not None and call.written) or task.index and task.role is Role.STEP or not _is_needed(task):
        return None
    expected = run.sure[task.node.id]
    late = expected > config.hopeless * (run.deadline - state.now)
    return Doom(task, Code.HOPELESS, expected_s=expected) if late else None


def _is_needed(task: Task) -> bool:
    """Does the run fail with it? Not where others may do instead, or where a program may go on without."""
    owner = task.frame.owner
    while owner is not None:
        if owner.kind not in (Kind.MAP, Kind.SWITCH, Kind.LOOP):
            return False
        owner = owner.frame.owner
    return True


def within_bounds(state: SchedulerState, seconds: Seconds) -> Seconds:
    """Advice to a client, neither at once nor never."""
    return max(state.config.min_reject_s, min(state.config.max_reject_s, seconds))
