"""What is compared: who goes first, when samples stop, and whether chains end early; each alone, and together."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from flowserve.config import PoolConfig
from flowserve.core.config import Config
from flowserve.graphs.plan import Plan
from flowserve.ids import Seconds
from flowserve.sim.voting import voting_plan

ALL_AT_ONCE = {"kv_fill": 1e6, "batches_ahead": 1e6}
"""Of PoolConfig: an engine is given every call as it comes and orders them itself, as it does without a scheduler in front."""
BAND_S: Seconds = 3600.0
"""Remaining work is compared up to here: programs of long chains take many minutes."""


@dataclass(frozen=True, slots=True)
class Setup:
    """One way to serve these programs."""

    name: str
    policy: str | None = None
    """Of the scheduler; None: calls go to the engines at once, and those take them in order of arrival."""
    rule: str | None = None
    """That stops samples; None: all are drawn."""
    args: tuple[tuple[str, float], ...] = ()
    wave: int | None = None
    """`SampleSpec.wave`."""
    early_exit: bool = False
    """Chains end when a trial is sure."""

    def plan(self, samples: int) -> Plan:
        return voting_plan(samples, self.rule, self.args, self.wave, self.early_exit)

    def config(self) -> Config:
        pool: dict[str, Any] = {"first_token_s": 0.0, **(ALL_AT_ONCE if self.policy is None else {})}
        return Config(
            policy=self.policy or "fcfs",
            measure=True,
            max_live_runs=1_000_000,
            band_s=BAND_S,
            pool=PoolConfig(**pool),
        )


BASELINE = Setup("fcfs")


def setups(samples: int) -> Sequence[Setup]:
    """The baseline first; then each means alone; then more and more of them together."""
    rule, args = _rule(samples)
    found = [
        BASELINE,
        Setup("gang", "fcfs"),
        Setup("sjf", "shortest_work"),
        Setup("samples in waves", None, rule, args, wave=1),
        Setup("samples", None, rule, args),
        Setup("chains", None, early_exit=True),
        Setup("both", None, rule, args, early_exit=True),
        Setup("both, gang", "fcfs", rule, args, early_exit=True),
        Setup("both, sjf", "shortest_work", rule, args, early_exit=True),
        Setup("both in waves, sjf", "shortest_work", rule, args, wave=1, early_exit=True),
    ]
    certaindex = Setup("samples by certaindex", None, "certaindex", (("every", 0.0),))
    return [*found[:5], certaindex, *found[5:]] if samples > 5 else found


def _rule(samples: int) -> tuple[str, tuple[tuple[str, float], ...]]:
    """The Beta rule needs four samples; of three, two that agree decide."""
    return ("adaptive_consistency", (("threshold", 0.95),)) if samples > 4 else ("decided", ())
