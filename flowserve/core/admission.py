"""What a client is told that finds no room: an honest guess of when there will be some."""

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
