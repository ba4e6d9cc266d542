"""What a tenant may take at most (`config.TenantLimits`), and what has been taken of it.

*Runs at work.* A tenant has so many at once. A further one is accepted and held, as far as the tenant's queue has room: it has
no frames, no part in the work that others wait for and no place among `max_live_runs`, and begins when one of its tenant
ends. So a tenant that holds runs has exactly as many at work as it may have.

*Rates* are token buckets: filled at the rate up to the burst, in the time of events. A run takes one run, and the tokens that
runs of its plan took (a running mean; 1 where nobody knows) but never more than the bucket holds. What its calls take is
charged against that first, then against the bucket, which may owe; what is left at the end goes back. Nobody begins while the
bucket owes, so that over time the rate holds although only the end of a run tells what it took (the settling of VTC; Sheng et
al., OSDI 2024, 4.2).

*Allowances* (`allowances`) are tokens and money per hour and day, taken and settled in the same way. Money is what the calls
of a run cost by the prices.

Whoever is over a bound is told when it has room again: for a rate or an allowance that is exact, if nobody else of the tenant
comes.
"""

from collections import deque
from collections.abc import Iterator
from typing import TYPE_CHECKING

from flowserve.config import TenantLimits
from flowserve.core.allowances import ROUNDING, Allowance
from flowserve.core.commands import Bound, Over
from flowserve.ids import Seconds

if TYPE_CHECKING:
    from flowserve.core.config import Config
    from flowserve.core.events import RunSubmitted
    from flowserve.core.service import Tenant
    from flowserve.core.state import Run, SchedulerState

OTHERS = "*"
"""Stands for all tenants that are not named."""
MINUTE_S: Seconds = 60.0
HOUR_S: Seconds = 3600.0
DAY_S: Seconds = 86_400.0
SOME = 1e-6
"""Share of an allowance of money that a run needs of which nobody knows what it costs."""


class Bucket:
    """Fills at a steady rate up to `burst`, and may owe."""

    __slots__ = ("at", "burst", "level", "per_s")

    def __init__(self, per_minute: float, burst: float | None, now: Seconds) -> None:
        self.per_s = per_minute / MINUTE_S
        self.burst = burst if burst is not None else max(1.0, per_minute)
        self.level = self.burst
        """What was in it at `at`."""
        self.at = now

    @property
    def most(self) -> float:
        """What it can hold."""
        return self.burst

    def holds(self, now: Seconds) -> float:
        """What is in it now."""
        return min(self.burst, self.level + (now - self.at) * self.per_s)

    def has(self, amount: float, now: Seconds) -> bool:
        """Does it hold `amount` now, but for rounding?"""
        return self.holds(now) >= amount - ROUNDING * self.burst

    def take(self, amount: float, now: Seconds) -> None:
        """Whether it holds that much or not; a negative amount is given back."""
        self.level, self.at = min(self.burst, self.holds(now) - amount), now

    def wait_s(self, amount: float, now: Seconds) -> Seconds:
        """Until it holds `amount`, which is at most `burst`."""
        return max(0.0, amount - self.holds(now)) / self.per_s

    def __repr__(self) -> str:
        return f"Bucket({self.level:.4g} of {self.burst:g} at {self.at:.3f})"


Purse = Bucket | Allowance
DECLARED = {
    Bound.RUNS: "runs_per_minute",
    Bound.TOKENS: "tokens_per_minute",
    Bound.HOUR_TOKENS: "tokens_per_hour",
    Bound.DAY_TOKENS: "tokens_per_day",
    Bound.HOUR_MONEY: "money_per_hour",
    Bound.DAY_MONEY: "money_per_day",
}
"""Bound of a rate or an allowance -> field of TenantLimits."""


class Quota:
    """The limits of one tenant, and what it has of them."""

    __slots__ = ("ended", "held", "limits", "money", "rejected", "runs", "tokens")

    def __init__(self, limits: TenantLimits, now: Seconds) -> None:
        self.limits = limits
        self.runs: dict[Bound, Purse] = {}
        """What a run is taken from."""
        self.tokens: dict[Bound, Purse] = {}
        """What tokens are taken from."""
        self.money: dict[Bound, Purse] = {}
        """What money is taken from."""
        if limits.runs_per_minute is not None:
            self.runs[Bound.RUNS] = Bucket(limits.runs_per_minute, limits.run_burst, now)
        if limits.tokens_per_minute is not None:
            self.tokens[Bound.TOKENS] = Bucket(limits.tokens_per_minute, limits.token_burst, now)
        for purses, bound, period_s in (
            (self.tokens, Bound.HOUR_TOKENS, HOUR_S),
            (self.tokens, Bound.DAY_TOKENS, DAY_S),
            (self.money, Bound.HOUR_MONEY, HOUR_S),
            (self.money, Bound.DAY_MONEY, DAY_S),
        ):
            amount = getattr(limits, DECLARED[bound])
            if amount is not None:
                purses[bound] = Allowance(amount, period_s, now)
        self.held: dict[Run, None] = {}
        """Accepted, and waiting for a run of the tenant to end; in order of arrival."""
        self.ended: deque[Seconds] = deque(maxlen=32)
        """When its latest runs ended."""
        self.rejected = 0
        """Runs that found no room since one last ended."""

    @property
    def purses(self) -> dict[Bound, Purse]:
        """All of them."""
        return self.runs | self.tokens | self.money


def limits_of(config: "Config", tenant: str) -> TenantLimits | None:
    """What `tenant` may take; None: nobody set bounds."""
    limits = dict(config.tenant_limits)
    return limits.get(tenant, limits.get(OTHERS))


def over(state: "SchedulerState", event: "RunSubmitted") -> Over | None:
    """The bound that the submitted run would pass, of several the one with the longest wait; None: its tenant may have it. A
    tenant that is not in the table has taken nothing."""
    tenant = state.tenants.get(event.tenant)
    if tenant is None or tenant.quota is None:
        return None
    quota, limits, now = tenant.quota, tenant.quota.limits, state.now
    if limits.live_runs is not None and limits.queued_runs is None and tenant.runs >= limits.live_runs:
        return Over(Bound.LIVE, limits.live_runs, 1, limits.live_runs - tenant.runs)
    if limits.queued_runs is not None and tenant.queued >= limits.queued_runs:
        return Over(Bound.QUEUE, limits.queued_runs, 1, limits.queued_runs - tenant.queued)
    passed = list(_passed(state, quota, event.plan.digest))
    return max(passed, key=lambda found: quota.purses[found.bound].wait_s(found.needed, now), default=None)


def _passed(state: "SchedulerState", quota: Quota, digest: str) -> Iterator[Over]:
    """Rates and allowances that a run of this plan would pass."""
    tokens, money = state.estimates.tokens(digest), state.estimates.money(digest)
    for purses, expected in ((quota.runs, 1.0), (quota.tokens, tokens), (quota.money, money)):
        for bound, purse in purses.items():
            needed = min(purse.most, expected or SOME * purse.most)
            if not purse.has(needed, state.now):
                yield Over(bound, getattr(quota.limits, DECLARED[bound]), needed, purse.holds(state.now))


def wait_s(state: "SchedulerState", tenant: str, found: Over) -> Seconds | None:
    """Until there is room for a rate or an allowance; None: that depends on when runs end."""
    quota = state.tenants[tenant].quota
    assert quota is not None
    purse = quota.purses.get(found.bound)
    return None if purse is None else purse.wait_s(found.needed, state.now)


def accepted(state: "SchedulerState", run: "Run") -> None:
    """`run` takes what it is expected to take."""
    quota = run.share.quota
    if quota is None:
        return
    for purse in quota.runs.values():
        purse.take(1.0, state.now)
    digest, now = run.plan.digest, state.now
    run.prepaid = _prepay(quota.tokens, state.estimates.tokens(digest), now)
    run.prepaid_money = _prepay(quota.money, state.estimates.money(digest), now)


def _prepay(purses: dict[Bound, Purse], expected: float, now: Seconds) -> float:
    """Take what is expected, but no more than each can hold. How much."""
    if not purses:
        return 0.0
    paid = min(expected, *(purse.most for purse in purses.values()))
    for purse in purses.values():
        purse.take(paid, now)
    return paid


def must_wait(tenant: "Tenant") -> bool:
    """Has it as many runs at work as it may have?"""
    quota = tenant.quota
    return quota is not None and quota.limits.live_runs is not None and tenant.runs >= quota.limits.live_runs


def hold(state: "SchedulerState", run: "Run") -> None:
    """`run` waits for another one of its tenant to end."""
    assert run.share.quota is not None
    run.held = True
    run.share.quota.held[run] = None
    state.held += 1


def _let_go(state: "SchedulerState", run: "Run") -> None:
    assert run.share.quota is not None
    run.held = False
    del run.share.quota.held[run]
    state.held -= 1


def next_held(state: "SchedulerState", tenant: "Tenant") -> "Run | None":
    """The most urgent run of those that wait for `tenant`, if one may begin; it waits no longer."""
    quota = tenant.quota
    if quota is None or not quota.held or must_wait(tenant):
        return None
    run = min(quota.held, key=lambda run: (run.rank, run.arrival))
    _let_go(state, run)
    return run


def standing(state: "SchedulerState", tenant: str, now: Seconds) -> dict[str, tuple[float, float, Seconds]]:
    """For each rate that bounds `tenant` (`requests`, `tokens`): what a minute gives, what is left, and the seconds until it is
    full again."""
    known = state.tenants.get(tenant)
    limits = limits_of(state.config, tenant)
    if limits is None:
        return {}
    quota = known.quota if known is not None and known.quota is not None else Quota(limits, now)
    buckets = {"requests": quota.runs.get(Bound.RUNS), "tokens": quota.tokens.get(Bound.TOKENS)}
    return {
        name: (bucket.per_s * MINUTE_S, bucket.holds(now), bucket.wait_s(bucket.burst, now))
        for name, bucket in buckets.items()
        if isinstance(bucket, Bucket)
    }


def used(state: "SchedulerState", run: "Run", tokens: float, money: float) -> None:
    """Calls of `run` have taken so many tokens and so much money more (negative: it turned out to be less)."""
    quota = run.share.quota
    if quota is not None:
        run.prepaid = _settle(quota.tokens, run.prepaid, tokens, state.now)
        run.prepaid_money = _settle(quota.money, run.prepaid_money, money, state.now)


def _settle(purses: dict[Bound, Purse], prepaid: float, amount: float, now: Seconds) -> float:
    """Take what `prepaid` does not cover. What is left of that."""
    covered = min(prepaid, amount)
    for purse in purses.values():
        purse.take(amount - covered, now)
    return prepaid - covered if purses else prepaid


def ended(state: "SchedulerState", run: "Run") -> None:
    """What `run` has not taken goes back."""
    quota = run.share.quota
    if quota is None:
        return
    if run.held:
        _let_go(state, run)
    for purses, prepaid in ((quota.tokens, run.prepaid), (quota.money, run.prepaid_money)):
        for purse in purses.values():
            purse.take(-prepaid, state.now)
    run.prepaid = run.prepaid_money = 0.0
    quota.ended.append(state.now)
    quota.rejected = 0
