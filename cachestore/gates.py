"""Gates: which policy may be used for which model, on what evidence and until when.

A policy is off for a model until its gate exists and has passed. Another revision of the weights, other parameters or
another codec is another subject: nothing is carried over. gatefiles.py keeps them.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from flowserve.bounds import upper_rate
from flowserve.cachestore.keys import Identity
from flowserve.cachestore.policies import PASTES, Policy
from flowserve.cachestore.segments import Quality
from flowserve.errors import ConfigError

PREFERENCE: Final = ("none", "sink0", "first_k", "budgeted", "query_attn", "hkvd")
"""From the one that computes least. `full` is not among them: it computes all, so it needs no gate and nobody gains by it."""


@dataclass(frozen=True, slots=True)
class Subject:
    """Whom a gate is about."""

    model: str
    """Fingerprint of its configuration."""
    revision: str
    """Of its weights, with whatever else makes them compute something else."""
    policy: Policy
    codec: str
    """In which its records are kept."""

    def __str__(self) -> str:
        return f"model {self.model[:12]} revision {self.revision}, policy {self.policy}, codec {self.codec}"


def subject_of(identity: Identity, policy: Policy, codec: str) -> Subject:
    """Of a model as keys of records know it."""
    parts = (identity.weights, identity.dtype, identity.quantisation, identity.adapter)
    return Subject(identity.model, "+".join(filter(None, parts)), Policy(policy.name, **policy.parameters), codec)


@dataclass(frozen=True, slots=True)
class Thresholds:
    """What is allowed. Each is tested at the whole `error`: a policy passes only if it passes all, so whichever limit it really
    breaks, the chance that it passes is at most `error`."""

    loss: float = 0.02
    """Of score, in the mean over cases."""
    error: float = 0.05
    """Chance that a policy passes which is over a limit."""
    kl: float = 1.0
    """Nats of the first token's distribution from that of full prefill, from which a case counts as far."""
    far: float = 0.1
    """Share of cases that are far."""
    differing: float = 0.1
    """Share of cases whose likeliest first token is another than with full prefill."""
    full: float = 0.3
    """Score that full prefill must reach: where it knows nothing, a loss cannot be seen."""

    def __post_init__(self) -> None:
        for name in ("loss", "far", "differing"):
            if not 0 < getattr(self, name) < 1:
                raise ConfigError(f"gate {name}: expected a share between 0 and 1, got {getattr(self, name)}")
        if not 0 < self.error < 0.5:
            raise ConfigError(f"gate error: expected a chance between 0 and 0.5; got {self.error}")
        if self.kl <= 0 or not 0 <= self.full <= 1:
            raise ConfigError(f"gate: expected kl above 0 and full from 0 to 1; got kl={self.kl}, full={self.full}")


@dataclass(frozen=True, slots=True)
class Figures:
    """What was measured, on the same cases with full prefill and with the policy."""

    n: int
    """Cases."""
    score: str
    """Which: `f1` or `exact`."""
    score_full: float
    score_policy: float
    loss_high: float
    """Bound over the mean loss that is wrong with a chance of at most `Thresholds.error` (bounds.py); exact for any n."""
    kl_mean: float
    """Nats, first tokens, full prefill's distribution from the policy's."""
    far: int
    """Cases with a KL of at least `Thresholds.kl`."""
    differing: int
    """Cases whose likeliest first token differs."""

    @property
    def loss(self) -> float:
        return self.score_full - self.score_policy


@dataclass(frozen=True, slots=True)
class Gate:
    """A measurement and what it was held against."""

    subject: Subject
    name: str
    """Of the model, for people."""
    figures: Figures
    thresholds: Thresholds
    dataset: str
    dataset_sha256: str
    created: datetime
    expires: datetime
    versions: Mapping[str, str]
    """Of the software that computed, by package."""
    revoked: str | None = None
    """Why it does not hold any longer; None while it does."""

    @property
    def far_high(self) -> float:
        """Bound over the share of far cases (Clopper and Pearson), at the error of the thresholds."""
        return upper_rate(self.figures.far, self.figures.n, self.thresholds.error)

    @property
    def differing_high(self) -> float:
        return upper_rate(self.figures.differing, self.figures.n, self.thresholds.error)

    @property
    def refusal(self) -> str | None:
        """Why the policy does not pass; None: it does."""
        figures, limits = self.figures, self.thresholds
        if figures.score_full < limits.full:
            return (
                f"full prefill scores {figures.score_full:.3f} {figures.score} on {self.dataset}, under {limits.full:g}: "
                "where it knows so little, a loss cannot be seen. Use questions that the model can answer"
            )
        for what, measured, bound, limit in (
            (f"loss of {figures.score}", figures.loss, figures.loss_high, limits.loss),
            (f"share of cases with a KL from {limits.kl:g} nats", figures.far / figures.n, self.far_high, limits.far),
            (
                "share of cases with another first token",
                figures.differing / figures.n,
                self.differing_high,
                limits.differing,
            ),
        ):
            if bound > limit:
                remedy = "" if measured > limit else "; more cases would tell"
                return f"{what}: {measured:.4f} in {figures.n} cases, at most {bound:.4f}; allowed is {limit:g}{remedy}"
        return None

    def obstacle(self, now: datetime) -> str | None:
        """Why it does not hold; None: the policy may be used."""
        if self.revoked is not None:
            return f"was revoked: {self.revoked}"
        if now >= self.expires:
            return f"has expired: it held until {self.expires.isoformat()}; measure anew"
        return f"did not pass: {self.refusal}" if self.refusal else None


def allowed(
    gates: Iterable[Gate], identity: Identity, codec: str, quality: Quality, now: datetime
) -> tuple[Policy, ...]:
    """Policies that a node of this class may use, the one that computes least first; (): only exact reuse."""
    if quality is Quality.EXACT:
        return ()
    found = [
        gate.subject.policy
        for gate in gates
        if gate.obstacle(now) is None
        and gate.subject == subject_of(identity, gate.subject.policy, codec)
        and gate.subject.policy.name in PREFERENCE
        and (quality is Quality.FAST or gate.subject.policy.name not in PASTES)
    ]
    return tuple(sorted(found, key=_work))


def _work(policy: Policy) -> tuple[int, float, str]:
    """How much it computes, roughly: what its name says before what its parameters do."""
    amount = policy.k if policy.name == "first_k" else policy.ratio
    return PREFERENCE.index(policy.name), amount, str(policy)
