"""Settings of a runtime, of its tenants and of its pool of engines: frozen, with units in the names, checked when built."""

import math
from dataclasses import dataclass, field, fields

from flowserve.errors import ConfigError
from flowserve.ids import Seconds, Tokens

SHADOW_SHARE = 0.01
"""Of the calls that a certified rule has stopped, so many run on unseen, to watch the certificate."""


@dataclass(frozen=True, slots=True)
class PoolConfig:
    """How engines are filled, judged, left and started anew. The scheduler's log carries it."""

    prefix_tokens: Tokens = 64
    """Granularity in which prefixes of prompts are told and compared."""
    decode_weight: float = 4.0
    """What one token of output counts in an engine's outstanding work, in tokens of prompt."""
    unmeasured_tokens: Tokens = 512
    """What a call of unknown size counts."""
    batches_ahead: float = 2.0
    """Prompt tokens that may wait inside an engine, in steps of it: enough to keep its batch full, no more, so that the
    order of the rest stays with the scheduler."""
    kv_fill: float = 1.0
    """Share of an engine's KV memory that calls there may be expected to need."""
    sticky_tokens: Tokens = 256
    """A call waits for the engine that holds at least so much of its prompt, as long as computing that elsewhere would
    take, before it goes elsewhere; see `placement`."""
    group_tokens: Tokens = 0
    """Calls whose prompts begin with the same so many tokens go to one engine one after the other; 0: no groups. See
    `core.passing`."""
    near_s: Seconds = 0.5
    """How long a group lasts, and for how long a call may be passed by others that are at most so much less urgent."""
    prefill_rate: float = 4000.0
    """Prompt tokens per second of an engine that has not shown its own rate yet."""

    ahead_tokens: Tokens = 0
    """An engine without calls computes what is known of a prompt whose last part is still being made, if it is at least so
    many tokens that the engine does not hold; 0: never. See `core.heads`."""

    stall_s: Seconds = 20.0
    """An engine with calls that has not computed anything for so long is probed. Rises with the engine's own pauses."""
    probe_s: Seconds = 10.0
    """A probe that is not answered after so long has failed."""
    first_token_s: Seconds = 300.0
    """A call that gets no token for so long after its dispatch has stalled; 0: no such limit."""
    between_tokens_s: Seconds = 120.0
    """The same between two tokens."""
    breaker_calls: int = 20
    """An engine is judged by its latest so many calls, at least a quarter as many."""
    breaker_share: float = 0.5
    """It is left alone for a while when this share of them failed by its fault, unless nobody else serves its models."""
    breaker_s: Seconds = 5.0
    """How long at first; doubles up to `max_pause_s` while its trial calls fail."""
    restart_s: Seconds = 0.5
    """Pause before the second start of an engine that did not come up; doubles up to `max_pause_s`."""
    max_pause_s: Seconds = 60.0
    """Longest pause of a breaker or before a start."""
    settled_s: Seconds = 30.0
    """An engine that was up for so long begins with short pauses again."""
    outage_s: Seconds = 5.0
    """When no engine for a run's models has been up for so long, new runs are rejected."""
    drain_s: Seconds = 30.0
    """How long calls may go on at an engine that is drained before they are moved."""
    max_moves: int = 3
    """Times that one call is moved to another engine, or back into the queue, by the scheduler's own will."""
    preempt: bool = True
    """A call of a more urgent tier may push one of a less urgent tier out of an engine that has no room."""
    tier_slowdown: float = 2.0
    """Steps of an engine that serves urgent calls may take so many times longer than for one call alone before calls of less
    urgent tiers have to wait. 0: no such bound."""
    hedge_after_s: Seconds = 0.0
    """An interactive call without a token after so long is sent to a second engine as well; 0: never."""
    hedge_share: float = 0.02
    """Hedges per dispatched call, at most."""
    hedge_tokens: Tokens = 1024
    """Longest prompt of a hedged call."""
    keep_s: Seconds = 20.0
    """An engine holds the KV of an agent's step for so long while its tools run."""

    def __post_init__(self) -> None:
        for item in fields(self):
            value = getattr(self, item.name)
            least = 1 if item.name in ("prefix_tokens", "breaker_calls") else 0
            if not isinstance(value, bool) and not least <= value < math.inf:
                raise ConfigError(
                    f"PoolConfig.{item.name}: expected a finite number of at least {least}; got {value!r}"
                )


@dataclass(frozen=True, slots=True)
class TenantLimits:
    """What one tenant may take. None: no bound. The scheduler's log carries it."""

    live_runs: int | None = None
    """Runs at work at once. A further one waits where `queued_runs` has room for it, else it is rejected."""
    queued_runs: int | None = None
    """Runs accepted and not begun, those that wait by the bound above included; one more is rejected. None: none waits by
    that bound, and any number for engines."""
    runs_per_minute: float | None = None
    """Runs accepted, on average."""
    run_burst: float | None = None
    """Runs that may come at once after a pause; None: those of a minute, at least one."""
    tokens_per_minute: float | None = None
    """Tokens that model calls compute, prompt and output, on average. A run is charged with what runs of its workflow took
    when it is accepted, and with what it takes beyond that while it takes it."""
    token_burst: float | None = None
    """Tokens that may be taken at once after a pause; None: those of a minute, at least one."""
    tokens_per_hour: float | None = None
    """Likewise, in an hour: all of them are back when it is over. Hours follow each other from the tenant's first run on."""
    tokens_per_day: float | None = None
    money_per_hour: float | None = None
    """By the prices; a model without one costs nothing."""
    money_per_day: float | None = None

    def __post_init__(self) -> None:
        for item in fields(self):
            value = getattr(self, item.name)
            if value is None:
                continue
            least = 1 if item.name in ("live_runs", "queued_runs", "run_burst", "token_burst") else 0
            whole = item.name in ("live_runs", "queued_runs")
            number = isinstance(value, int if whole else int | float) and not isinstance(value, bool)
            if not number or not least <= value < math.inf or value == 0:
                kind = "a whole number of at least 1" if whole else "at least 1" if least else "a number above 0"
                raise ConfigError(f"TenantLimits.{item.name}: expected {kind}; got {value!r}")
        for burst, rate in (("run_burst", "runs_per_minute"), ("token_burst", "tokens_per_minute")):
            if getattr(self, burst) is not None and getattr(self, rate) is None:
                raise ConfigError(f"TenantLimits.{burst}: expected {rate} beside it; got none")


@dataclass(frozen=True, slots=True)
class Price:
    """What a million tokens of a model cost, in whatever money the operator counts. The scheduler's log carries it."""

    input: float
    """Of prompts."""
    output: float
    cached: float | None = None
    """Of prompts, where an engine had them in its cache; None: as `input`."""

    def __post_init__(self) -> None:
        for item in fields(self):
            value = getattr(self, item.name)
            if value is None and item.name == "cached":
                continue
            if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value < math.inf:
                raise ConfigError(f"Price.{item.name}: expected a finite number of at least 0; got {value!r}")

    def of(self, prompt: float, cached: float, output: float) -> float:
        """What so many tokens cost; `prompt` are those that were computed."""
        kept = self.input if self.cached is None else self.cached
        return (prompt * self.input + cached * kept + output * self.output) / 1e6


@dataclass(frozen=True, slots=True)
class RuntimeConfig:
    """How much a runtime takes on and how it orders it."""

    policy: str = "critical_path"
    """Name in `core.priority.POLICIES`."""
    predictor: str = "mean"
    """Name in `core.predict.table.PREDICTORS`."""
    placement: str = "marginal"
    """Name in `core.placements.PLACEMENTS`."""
    fairness: float = 1.0
    """Seconds of urgency that a run loses per second of service by which its tenant is ahead of others; 0: none."""
    tenant_weights: tuple[tuple[str, float], ...] = ()
    """Tenant -> its share of the engines relative to others; who is not named has 1."""
    tenant_limits: tuple[tuple[str, TenantLimits], ...] = ()
    """Tenant -> what it may take; `*` stands for those that are not named. Without, there are no bounds."""
    prices: tuple[tuple[str, Price], ...] = ()
    """Model, by any name that it answers to -> its price; `*` stands for those that are not named. Without, nothing is said
    about money."""
    max_live_runs: int = 512
    """Runs accepted and not yet ended; one more is answered with Overloaded."""
    tool_window: int = 32
    """Tool calls at once."""
    search_window: int = 16
    """Searches at once."""
    default_timeout_s: Seconds = 600.0
    """Deadline of a run that names none."""
    max_timeout_s: Seconds = 86_400.0
    drop_hopeless: bool = False
    """A run under way that is seen to end long after its deadline ends before its next call instead."""
    kept_runs: int = 1_000
    """Ended runs whose events and result are still answered for; the oldest goes first."""
    kept_events: int = 1_000_000
    """Events of ended runs kept in memory, all runs together; the oldest run goes first."""
    cache_entries: int = 4_096
    """Results of `cache=True` nodes kept in memory."""
    passes: bool = True
    """Whether runs follow the plan that `graphs/passes` have made of what was declared; the results are the same."""
    pool: PoolConfig = field(default_factory=PoolConfig)
    """How engines are filled, judged, left and started anew."""

    def __post_init__(self) -> None:
        for item in fields(self):
            value = getattr(self, item.name)
            may_be_zero = item.name == "fairness" and value == 0
            if isinstance(value, int | float) and not isinstance(value, bool) and value <= 0 and not may_be_zero:
                raise ConfigError(f"RuntimeConfig.{item.name}: expected a number above 0, got {value}")
