"""What a client is told that finds no room, or asks for what cannot be: an honest guess, at once."""

from collections.abc import Sequence

from flowserve.core import quotas
from flowserve.core.commands import Reject
from flowserve.core.engine_state import Health
from flowserve.core.estimates import lessened
from flowserve.core.events import RunSubmitted
from flowserve.core.shapes import PlanShape
from flowserve.core.state import Run, SchedulerState
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
        engines = [engine for engine in state.engines.values() if model in engine.models]
        down = [engine for engine in engines if engine.health >= Health.DOWN]
        if not engines or len(down) < len(engines):
            continue
        if state.now - max(engine.down_since for engine in down) >= config.pool.outage_s:
            back = min(max(0.0, engine.pause_until - state.now) for engine in down)
            wait = within_bounds(state, back)
            longest = wait if longest is None else max(longest, wait)
    return longest


def hopeless(state: SchedulerState, run: Run) -> tuple[Seconds, Seconds] | None:
    """Seconds that `run`, which is about to be accepted, is expected to take with what was taken of it, and of these seconds of
    waiting for runs that go before it, when that is far more than it has; None: it may well be on time, or nobody knows.

    Early rejection (Mooncake, FAST 2025): before anything was computed for it. Runs are walked only if all of them together
    would make it late.
    """
    known = lessened(run.shape.figures, run.taken)
    most = state.config.hopeless * (run.deadline - state.now)
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


def within_bounds(state: SchedulerState, seconds: Seconds) -> Seconds:
    """Advice to a client, neither at once nor never."""
    return max(state.config.min_reject_s, min(state.config.max_reject_s, seconds))
