"""Settings of the scheduler: every bound it keeps, with its unit. Frozen; checked when built."""

import math
from dataclasses import dataclass, field, fields

from flowserve.config import PoolConfig, Price, TenantLimits
from flowserve.errors import ConfigError
from flowserve.ids import Seconds


@dataclass(frozen=True, slots=True)
class Config:
    """What the scheduler may do at once and for how long. A log carries it, so that replays agree."""

    policy: str = "critical_path"
    """Name in `priority.POLICIES`: who goes first."""
    predictor: str = "mean"
    """Name in `predict.table.PREDICTORS`: who says how much a model call will write."""
    placement: str = "marginal"
    """Name in `placements.PLACEMENTS`: which engine a call goes to."""
    tool_window: int = 64
    """Tool calls running at once, over all runs."""
    search_window: int = 16
    """Searches running at once, over all runs."""
    max_live_runs: int = 1024
    """Runs accepted and not yet ended, without those that wait for another one of their tenant; one more is rejected."""
    hopeless: float = 2.0
    """A run that is expected to take so many times what its deadline allows is rejected at once, with the estimate; 0: none.
    Only where runs of its plan have been seen."""
    drop_hopeless: bool = False
    """A run under way ends as soon as what follows from one of its calls on is expected to take so many times what its
    deadline allows, instead of having that call computed; see `admission.too_late`."""
    default_deadline_s: Seconds | None = None
    """Deadline of a run that was submitted without one; None: none."""

    ageing: float = 0.25
    """Seconds of urgency that a run gains per second since it was submitted; see `priority`."""
    band_s: Seconds = 120.0
    """Distance between two priority levels; a remaining critical path counts for at most this much."""
    fairness: float = 1.0
    """Seconds of urgency that a run loses per second of service by which its tenant is ahead of others; 0: none."""
    tenant_weights: tuple[tuple[str, float], ...] = ()
    """Tenant -> its share of the service relative to others; who is not named has 1."""
    tenant_limits: tuple[tuple[str, TenantLimits], ...] = ()
    """Tenant -> what it may take; `*` stands for those that are not named. See `quotas`."""
    prices: tuple[tuple[str, Price], ...] = ()
    """Model, by any name that it answers to -> its price; `*` stands for those that are not named."""
    priority_levels: int = 5
    """Client priorities are clamped to -levels..levels, so that a tier is `2 * levels + 1` bands."""

    measure: bool = False
    """Ask the driver how large a model call is before placing it (Measure). Without, calls count alike."""
    pool: PoolConfig = field(default_factory=PoolConfig)
    """How engines are filled, judged, left and started anew."""

    max_engine_losses: int = 3
    """Times one task is put back in the queue because its engine went away; the next loss is a failure."""
    run_retries: int = 3
    """Retries that every run may use, however small it is."""
    retry_share: float = 0.1
    """Beyond that, retries per first execution: of the run, and of the whole scheduler."""
    retry_reserve: int = 100
    """Retries that the scheduler as a whole can save up while all goes well; also what it starts with."""
    max_retry_after_s: Seconds = 300.0
    """An engine that asks for a longer pause than this has failed for good."""

    min_reject_s: Seconds = 1.0
    """Least and first advice to a rejected client."""
    max_reject_s: Seconds = 60.0
    """Greatest advice to a rejected client."""
    story_length: int = 32
    """Events and commands remembered per run for `story`."""

    def __post_init__(self) -> None:
        least = {name: 1 for name in ("tool_window", "search_window", "max_live_runs", "story_length")}
        for item in fields(self):
            value = getattr(self, item.name)
            if isinstance(value, int | float) and not least.get(item.name, 0) <= value < math.inf:
                raise ConfigError(
                    f"{item.name}: expected a finite number of at least {least.get(item.name, 0)}; got {value!r}"
                )
        for tenant, weight in self.tenant_weights:
            if not 0 < weight < math.inf:
                raise ConfigError(f"tenant_weights: expected a number above 0 for {tenant!r}; got {weight!r}")
        for tenant, limits in self.tenant_limits:
            if not self.prices and (limits.money_per_hour or limits.money_per_day):
                raise ConfigError(
                    f"tenant_limits: expected prices beside the money that {tenant!r} may spend; got none"
                )
        if self.band_s <= 0:
            raise ConfigError(f"band_s: expected more than 0 seconds; got {self.band_s!r}")
        if self.min_reject_s > self.max_reject_s:
            raise ConfigError(
                f"min_reject_s: expected at most max_reject_s ({self.max_reject_s!r}); got {self.min_reject_s!r}"
            )
