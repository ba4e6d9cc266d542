"""What a client is told that finds no room: an honest guess of when there will be some."""

from flowserve.core.engine_state import Health
from flowserve.core.shapes import PlanShape
from flowserve.core.state import SchedulerState
from flowserve.ids import Seconds


def retry_after_s(state: SchedulerState) -> Seconds:
    """Seconds until a place should be free for one more client, within the configured bounds.

    The latest endings give the time between two free places, the silence since the last one included. Clients
    rejected since then stand before this one, so that not all of them come back for the same place.
    """
    config = state.config
    if len(state.ended) < 2:
        between = config.min_reject_s
    else:
        between = (state.now - state.ended[0]) / (len(state.ended) - 1)
    return max(config.min_reject_s, min(config.max_reject_s, between * (state.rejected + 1)))


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
            wait = max(config.min_reject_s, min(config.max_reject_s, back))
            longest = wait if longest is None else max(longest, wait)
    return longest
