"""Who goes first: policies that return a sort key. They do not act, count or log.

A policy gives a run a *rank* and a task an *order*; what waits is sorted by (rank, arrival of the run, order,
task id), lower first. Within a run the task with the longest tail goes first, because it decides when the run ends; so
the siblings of a join stand together, and a run's calls are not torn apart by those of another.

    rank = level * band + min(seconds, band) + ageing * time of submission

`level` is tier and client priority, and `seconds` what the policy says. What a run's tenant is ahead of others comes on
top of any policy when the first of each are compared (`service`, `queues`).

| policy          | seconds                                                                | after                            |
|-----------------|------------------------------------------------------------------------|----------------------------------|
| critical_path   | the remaining critical path, from learned durations                    | the default                      |
| shortest_work   | remaining model calls, summed                                          | SRPT (Schrage 1968)              |
| srpt            | the same, its calls as long as predicted, its votes as they stand      | SRPT with learned lengths        |
| trail           | the same; a shorter call pushes a longer one of its tier out           | TRAIL (arXiv 2410.01035)         |
| shortest_time   | path, and work over how many are served at once: if it were alone      | Graham's bound (1966)            |
| memory_time     | path, times the KV its present calls will need over what a call needs  | MARS (arXiv 2410.18248)          |
| depth_first     | model calls in a row that remain                                       | Parrot (OSDI 2024), 1.1          |
| topology        | none: runs in order of arrival                                         | Ayo (ASPLOS 2025), Alg. 2        |
| objectives      | the remaining critical path; throughput-bound calls stand behind       | Parrot (OSDI 2024), 5.2          |
| plas            | model calls that it has had                                            | Autellix (NSDI 2026), 4.2        |
| atlas           | the longest chain of model calls that it has had                       | Autellix (NSDI 2026), 4.2        |
| mlfq            | the queue that it has sunk to; it joins the one that its first call fits | FastServe (2023), skip-join      |

*Inside a run* the task with the longest tail goes first; under **topology** the one with most model calls in a row from it
on, so that calls of equal depth fill a batch together, whatever they are expected to take; under **objectives** the group,
or the single call, whose first node has the longest tail, so that a group is not torn apart by another one.

*Groups* (`graphs.objectives`). A call is throughput-bound if it works for a group of its plan, or if its run is of tier
batch: nobody waits for any call of such a run. All others are latency-bound. Under objectives throughput-bound calls stand
`GROUP_S` seconds behind their run. Parrot takes runs first come, first served; ours keeps the critical path (ADR 29 says why).

Two have keys of their own: **fcfs** the arrival number, tier and priority ignored; **least_slack** the level, then the
time at which the run must begin to be on time: its deadline, or what its author promised (`SLO.e2e`), or a band after it
was submitted, less its remaining critical path.

*Why the key is static.* Waiting makes a run more urgent by `ageing` seconds per second. At time t, a run
submitted at s with w seconds left has urgency w - ageing * (t - s). The term ageing * t is the same for every
run, so comparing w + ageing * s compares urgencies at every t, and a heap never has to be re-sorted because
time passed. A rank moves when a run has got somewhere or, under some policies, when more is known of its calls.

*Starvation is bounded.* w is clamped to one band and a level is a band wide, so that a run is passed only by runs
submitted less than W / ageing after it, where W is its own w if the others have its level or a worse one, and at
most 3 * (2 * levels + 1) bands in all: with the defaults 4 w, and 4.4 hours over all tiers. Those are finitely
many, since admission bounds how many runs live at once. Under objectives `GROUP_S` counts as part of w. Under plas,
atlas, mlfq, srpt, trail and memory_time w may rise, and is a band at most. Under trail a call may lose its place to a
shorter one of its tier, `PoolConfig.max_moves` times and no more.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from flowserve.core.config import Config
from flowserve.ids import NodeId, Seconds

if TYPE_CHECKING:
    from flowserve.core.estimates import PlanFigures
    from flowserve.core.state import Run, Task

Paths = tuple[Sequence[Seconds], tuple[NodeId, ...]]
"""Per node the remaining critical path from its start, and the nodes of block 0, longest first."""

TIERS = {"interactive": 0, "standard": 1, "batch": 2}
"""Most urgent first. An unknown tier counts as standard."""


def _not_behind(task: "Task", config: Config) -> Seconds:
    return 0.0


@dataclass(frozen=True, slots=True)
class Policy:
    """How runs and their tasks are ordered. Lower goes first."""

    rank: "Callable[[Run, Config], float]"
    """Of a run; asked when it arrives, when one of its nodes is done, and, `by_calls`, when a call of it was measured, has
    left its engine or is over."""
    order: "Callable[[Task], float]"
    """Of a task among those of its run; asked once, when it becomes ready."""
    paths: "Callable[[PlanFigures], Paths]"
    """Which tails a run is accepted with."""
    by_calls: bool = False
    preempts: float = 0.0
    """A call may be pushed out by a shorter one of its tier until it has written so much of what it was predicted to."""
    behind: "Callable[[Task, Config], Seconds]" = _not_behind
    """How far a task stands behind the rank of its run; always the same for one task."""

    def rank_of(self, task: "Task", config: Config) -> float:
        """Place of `task` among those of all runs."""
        return task.run.rank + self.behind(task, config)


def level(tier: str, priority: int, config: Config) -> int:
    """Tier and client priority as one number, 0 the most urgent. Priorities are clamped to the configured levels."""
    bound = config.priority_levels
    inside = bound - max(-bound, min(bound, priority))
    return TIERS.get(tier, TIERS["standard"]) * (2 * bound + 1) + inside


def tier(level: int, config: Config) -> int:
    """Which tier a level lies in, 0 the most urgent."""
    return level // (2 * config.priority_levels + 1)


def is_throughput_bound(task: "Task", config: Config) -> bool:
    """Does it matter when all of its group are done, and not when it is?"""
    run = task.run
    return run.shape.groups[task.node.id] is not None or tier(run.level, config) == TIERS["batch"]


# --- seconds ------------------------------------------------------------------------------------------


def _none(run: "Run") -> Seconds:
    """Runs of a level go in the order in which they came."""
    return 0.0


def _path_s(run: "Run") -> Seconds:
    return run.remaining_s


def _work_s(run: "Run") -> Seconds:
    """Not over `width`: seconds that small would be nothing beside those of ageing, and the earliest would go first."""
    return run.work


def _time_s(run: "Run") -> Seconds:
    return run.remaining_s + run.work / run.width


def _predicted_work_s(run: "Run") -> Seconds:
    return max(0.0, run.work + run.longer_s)


def _memory_time_s(run: "Run") -> Seconds:
    """MARS ranks by memory times time until the program ends; in terms of what calls usually need these are seconds, and the
    path alone where nothing is known."""
    known = run.kv_tokens and run.usual_kv_tokens
    return run.remaining_s * (run.kv_tokens / run.usual_kv_tokens if known else 1.0)


def _attained_s(run: "Run") -> Seconds:
    return run.attained


def _longest_s(run: "Run") -> Seconds:
    return run.longest


def _sunk_s(run: "Run") -> Seconds:
    """Queues have quanta of 1, 2, 4, ... seconds and are `QUEUE_S` apart."""
    first = run.tails[run.by_tail[0]] / len(run.by_tail) if run.by_tail else 0.0
    return QUEUE_S * math.floor(math.log2(1.0 + max(run.attained, first)))


GROUP_S: Seconds = 15.0
"""objectives: a throughput-bound call is passed by latency-bound ones of runs that are up to so much less urgent."""
QUEUE_S: Seconds = 8.0
"""What a queue of mlfq counts: a run of the queue below passes when it has waited for `QUEUE_S / ageing` longer."""


# --- ranks --------------------------------------------------------------------------------------------


def _by(seconds: "Callable[[Run], Seconds]") -> "Callable[[Run, Config], float]":
    def rank(run: "Run", config: Config) -> float:
        return run.level * config.band_s + min(seconds(run), config.band_s) + config.ageing * run.submitted_at

    return rank


def _arrival_rank(run: "Run", config: Config) -> float:
    return float(run.arrival)


def _slack_rank(run: "Run", config: Config) -> float:
    """Of two runs the one that must begin first goes first."""
    promised = run.plan.slo.e2e if run.plan.slo.e2e is not None else config.band_s
    due = min(run.deadline, run.submitted_at + promised)
    return run.level * config.band_s + due - run.remaining_s


# --- orders and paths ---------------------------------------------------------------------------------


def _longest_tail_first(task: "Task") -> float:
    """The tail of a node reaches from there to the end of the run also for nested nodes."""
    return -task.run.tails[task.node.id]


def _longest_group_first(task: "Task") -> float:
    group = task.run.shape.groups[task.node.id]
    return -task.run.tails[task.node.id if group is None else group]


def _as_they_come(task: "Task") -> float:
    return 0.0


def _groups_later(task: "Task", config: Config) -> Seconds:
    return min(GROUP_S, config.band_s) if is_throughput_bound(task, config) else 0.0


def _in_seconds(known: "PlanFigures") -> Paths:
    return known.tails, known.by_tail


def _in_calls(known: "PlanFigures") -> Paths:
    return known.hops, known.by_hops


def engine_priority(rank: float) -> int:
    """The rank as the integer that engines take, lower first: a step per millisecond, never against the rank."""
    return int(rank * 1000.0)


POLICIES = {
    "critical_path": Policy(_by(_path_s), _longest_tail_first, _in_seconds),
    "shortest_work": Policy(_by(_work_s), _longest_tail_first, _in_seconds),
    "srpt": Policy(_by(_predicted_work_s), _longest_tail_first, _in_seconds, by_calls=True),
    "trail": Policy(_by(_predicted_work_s), _longest_tail_first, _in_seconds, by_calls=True, preempts=0.8),
    "shortest_time": Policy(_by(_time_s), _longest_tail_first, _in_seconds),
    "memory_time": Policy(_by(_memory_time_s), _longest_tail_first, _in_seconds, by_calls=True),
    "depth_first": Policy(_by(_path_s), _as_they_come, _in_calls),
    "topology": Policy(_by(_none), _longest_tail_first, _in_calls),
    "objectives": Policy(_by(_path_s), _longest_group_first, _in_seconds, behind=_groups_later),
    "least_slack": Policy(_slack_rank, _longest_tail_first, _in_seconds),
    "plas": Policy(_by(_attained_s), _as_they_come, _in_seconds, by_calls=True),
    "atlas": Policy(_by(_longest_s), _as_they_come, _in_seconds, by_calls=True),
    "mlfq": Policy(_by(_sunk_s), _as_they_come, _in_seconds, by_calls=True),
    "fcfs": Policy(_arrival_rank, _as_they_come, _in_seconds),
}
"""By the name in `Config.policy`."""
