"""Who goes first: policies that return a static sort key. They do not act, count or log.

A policy gives a run a *rank* and a task an *order*; what waits is sorted by (rank, arrival of the run, order,
task id), lower first.

**critical_path**: the run with the shortest remaining critical path goes first, as shortest remaining
processing time does for single jobs; within a run the task with the longest tail goes first, because it
decides when the run ends. Tier comes before that, client priority inside the tier.

*Why the key is static.* Waiting makes a run more urgent by `ageing` seconds per second. At time t, a run
submitted at s with w seconds left has urgency w - ageing * (t - s). The term ageing * t is the same for every
run, so comparing w + ageing * s compares urgencies at every t, and a heap never has to be re-sorted because
time passed. w only falls, so ranks only fall.

*Starvation is bounded.* w is clamped to one band and a level is a band wide, so that a run is passed only by runs
submitted less than W / ageing after it, where W is its own w if the others have its level or a worse one, and at
most 3 * (2 * levels + 1) bands in all: with the defaults 4 w, and 4.4 hours over all tiers. Those are finitely
many, since admission bounds how many runs live at once.

**fcfs**: runs in order of arrival, tasks in order of readiness. Tier and priority are ignored.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from flowserve.core.config import Config

if TYPE_CHECKING:
    from flowserve.core.state import Run, Task

TIERS = {"interactive": 0, "standard": 1, "batch": 2}
"""Most urgent first. An unknown tier counts as standard."""


@dataclass(frozen=True, slots=True)
class Policy:
    """How runs and their tasks are ordered. Lower goes first."""

    rank: "Callable[[Run, Config], float]"
    """Of a run; asked when it arrives and when its critical path has shortened. May only fall."""
    order: "Callable[[Task], float]"
    """Of a task among those of its run; asked once, when it becomes ready."""


def level(tier: str, priority: int, config: Config) -> int:
    """Tier and client priority as one number, 0 the most urgent. Priorities are clamped to the configured levels."""
    bound = config.priority_levels
    inside = bound - max(-bound, min(bound, priority))
    return TIERS.get(tier, TIERS["standard"]) * (2 * bound + 1) + inside


def tier(level: int, config: Config) -> int:
    """Which tier a level lies in, 0 the most urgent."""
    return level // (2 * config.priority_levels + 1)


def critical_path_rank(run: "Run", config: Config) -> float:
    """Seconds left, at most a band; a band per level; plus ageing times the time of submission."""
    return run.level * config.band_s + min(run.remaining_s, config.band_s) + config.ageing * run.submitted_at


def critical_path_order(task: "Task") -> float:
    """Minus the tail of its node, which reaches from there to the end of the run also for nested nodes."""
    return -task.run.tails[task.node.id]


def arrival_rank(run: "Run", config: Config) -> float:
    """The arrival number."""
    return float(run.arrival)


def arrival_order(task: "Task") -> float:
    """All alike: the task id decides."""
    return 0.0


def engine_priority(rank: float) -> int:
    """The rank as the integer that engines take, lower first: a step per millisecond, never against the rank."""
    return int(rank * 1000.0)


POLICIES = {
    "critical_path": Policy(critical_path_rank, critical_path_order),
    "fcfs": Policy(arrival_rank, arrival_order),
}
"""By the name in `Config.policy`."""
