"""What runs and tenants have had, in seconds of model calls at engines; and what that says about whose turn it is.

*Runs.* `attained` is the sum over a run's calls, `longest` the longest chain of them that was seen: a call begins where
the run's longest chain stood and makes it longer if it ends beyond it (PLAS and ATLAS; Autellix, NSDI 2026, 4.2). Both
are known also where nothing was declared.

*Tenants.* Each has a counter of service over its weight (VTC; Sheng et al., OSDI 2024). A call is charged with what calls of
its node took when it goes to an engine, and with the rest when it leaves: ours are seconds, not tokens, and count before
they are over. A tenant that comes back begins no lower than the lowest that is there: idle time is not saved up. What waits
is served as if each second by which its tenant is ahead were `Config.fairness` seconds of its own (`queues`).
"""

from typing import TYPE_CHECKING

from flowserve.core.quotas import Quota, limits_of
from flowserve.graphs.plan import Kind
from flowserve.ids import Seconds

if TYPE_CHECKING:
    from flowserve.core.state import Run, SchedulerState, Task

MOST_TENANTS = 4096
"""Tenants without live runs whose counter is remembered; the one idle longest goes first."""
FADING = 0.999
"""Per dispatch, of the greatest number of calls that were at engines at once."""


class Tenant:
    """Whose runs share one counter."""

    __slots__ = ("counter", "fairness", "most_s", "queued", "quota", "runs", "weight")

    def __init__(self, weight: float, fairness: float, most_s: Seconds, quota: Quota | None = None) -> None:
        self.weight = weight
        self.fairness = fairness
        """Seconds of urgency per second ahead."""
        self.most_s = most_s
        """Of urgency, so that levels stay above shares."""
        self.counter: Seconds = 0.0
        """Service over weight."""
        self.runs = 0
        """Live ones, without those that are held."""
        self.queued = 0
        """Runs that nothing was dispatched of yet, those that are held included."""
        self.quota = quota
        """What it may take; None: there are no bounds."""

    def behind_s(self, least: Seconds) -> Seconds:
        """Urgency that its runs lose against a tenant whose counter stands at `least`."""
        return min(self.fairness * (self.counter - least), self.most_s)

    def __repr__(self) -> str:
        return f"Tenant({self.counter:.3f} s, {self.runs} runs, weight {self.weight:g})"


def accept(state: "SchedulerState", run: "Run") -> None:
    """`run` is accepted; it begins now or later."""
    run.share = _tenant(state, run.tenant)
    run.share.queued += 1


def begin(state: "SchedulerState", run: "Run") -> None:
    """`run` is at work."""
    state.work += run.work
    tenant = run.share
    if not tenant.runs:
        others = [other.counter for other in state.tenants.values() if other.runs]
        tenant.counter = max(tenant.counter, min(others, default=0.0))
    tenant.runs += 1


def end(state: "SchedulerState", run: "Run") -> None:
    """`run`, which was at work, has ended."""
    state.work = state.work - run.work if state.runs else 0.0
    run.share.runs -= 1


def start(run: "Run") -> None:
    """The first task of `run` is dispatched."""
    run.started = True
    run.share.queued -= 1


def forget(state: "SchedulerState", run: "Run") -> None:
    """Nothing of `run` is left; its tenant is remembered for a while."""
    tenant = run.share
    if not run.started:
        tenant.queued -= 1
    if tenant.runs or tenant.queued:
        return
    state.tenants[run.tenant] = state.tenants.pop(run.tenant)  # the one idle longest stands first
    if len(state.tenants) > MOST_TENANTS:
        idle = next((name for name, other in state.tenants.items() if not other.runs and not other.queued), None)
        if idle is not None:
            del state.tenants[idle]


def _tenant(state: "SchedulerState", name: str) -> Tenant:
    tenant = state.tenants.get(name)
    if tenant is None:
        config = state.config
        weight = next((share for who, share in config.tenant_weights if who == name), 1.0)
        limits = limits_of(config, name)
        quota = Quota(limits, state.now) if limits is not None else None
        tenant = state.tenants[name] = Tenant(weight, config.fairness, config.band_s, quota)
    return tenant


def taken(state: "SchedulerState", task: "Task") -> None:
    """A call goes to an engine."""
    run = task.run
    task.behind = run.longest
    task.charged = run.works[task.node.id] if task.kind is Kind.LLM else 0.0
    run.share.counter += task.charged / run.share.weight
    state.at_engines += 1
    state.width = max(state.at_engines, FADING * state.width)


def left(state: "SchedulerState", task: "Task", seconds: Seconds) -> None:
    """A call has left its engine after so long, answered or not; where ranks follow calls, its run moves."""
    run = task.run
    state.at_engines -= 1
    run.attained += seconds
    run.longest = max(run.longest, task.behind + seconds)
    run.share.counter += (seconds - task.charged) / run.share.weight
    task.charged = 0.0
    if state.policy.by_calls:
        state.served[run] = None
