"""Gates: which policy may be used for which model, on what evidence and until when; a folder of files of JSON.

A policy is off for a model until its gate file exists and has passed. Another revision of the weights, other parameters or
another codec is another subject: nothing is carried over. What passes is decided anew from the figures whenever a file is
read, so a file does not pass because it says so.
"""

import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields, replace
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any, Final, TypeVar

from flowserve.bounds import upper_rate
from flowserve.cachestore.keys import Identity
from flowserve.cachestore.policies import PASTES, Policy, parse_policy
from flowserve.cachestore.segments import Quality
from flowserve.errors import ConfigError, StoreError

SCHEMA: Final = 1
SUFFIX: Final = ".gate.json"
PREFERENCE: Final = ("none", "sink0", "first_k", "budgeted", "query_attn", "hkvd")
"""From the one that computes least. `full` is not among them: it computes all, so it needs no gate and nobody gains by it."""

T = TypeVar("T", bound="Thresholds | Figures")


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


@dataclass(frozen=True, slots=True)
class Absent:
    """No gate that holds: the policy is off."""

    reason: str


def allowed(
    gates: Iterable[Gate], identity: Identity, codec: str, quality: Quality, now: datetime
) -> tuple[Policy, ...]:
    """Policies that a node of this class may use, the one that computes least first; (): only exact reuse."""
    if quality is Quality.EXACT:
        return ()
    found = [
        gate.subject.policy
        for gate in gates
        if not _why_not(gate, now)
        and gate.subject == subject_of(identity, gate.subject.policy, codec)
        and gate.subject.policy.name in PREFERENCE
        and (quality is Quality.FAST or gate.subject.policy.name not in PASTES)
    ]
    return tuple(sorted(found, key=_work))


class Gates:
    """A folder of them. Files are replaced whole, so a reader never sees half of one."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __iter__(self) -> Iterator[Gate]:
        """All, also those that do not hold. Raises StoreError for a file that cannot be trusted: a broken one is not as none."""
        return (read(path) for path in sorted(self._folder.glob(f"*{SUFFIX}")))

    def lookup(self, subject: Subject, now: datetime) -> Gate | Absent:
        """Raises StoreError as iteration does."""
        path = self.path(subject)
        if not path.exists():
            return Absent(f"no gate for {subject} in {self._folder}; run flowserve gate reuse")
        gate = read(path)
        if gate.subject != subject:
            return Absent(f"{path} is foreign: it is for {gate.subject}, and {subject} was asked for")
        why = _why_not(gate, now)
        return Absent(f"{path} {why}") if why else gate

    def write(self, gate: Gate) -> Path:
        """Raises StoreError."""
        path = self.path(gate.subject)
        write_whole(path, json.dumps(_written(gate), indent=2, allow_nan=False) + "\n")
        return path

    def revoke(self, subject: Subject, reason: str) -> bool:
        """Whether there was one. Only a new measurement by an operator (`flowserve gate reuse`) brings it back."""
        path = self.path(subject)
        if not path.exists():
            return False
        self.write(replace(read(path), revoked=reason))
        return True

    def path(self, subject: Subject) -> Path:
        """Where the gate of `subject` stands, whether there is one or not."""
        parts = (subject.model, subject.revision, str(subject.policy), subject.codec)
        digest = sha256("\0".join(parts).encode()).hexdigest()[:16]
        return (
            self._folder
            / f"{_safe(subject.model)[:12]}--{_safe(str(subject.policy))}--{_safe(subject.codec)}-{digest}{SUFFIX}"
        )


def write_whole(path: Path, text: str) -> None:
    """Whoever reads the file finds the old text or this. Raises StoreError."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with NamedTemporaryFile("w", dir=path.parent, suffix=".part", delete=False, encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(file.name, path)
    except OSError as error:
        raise StoreError(f"{path}: writing failed: {error}") from error


def read(path: Path) -> Gate:
    """Raises StoreError, which names the file and the field."""
    try:
        return _read(json.loads(path.read_text(encoding="utf-8"), parse_constant=_no_constant))
    except (OSError, TypeError, ValueError, ConfigError) as error:
        raise StoreError(f"{path}: expected a gate of schema {SCHEMA}: {error}") from error


def _why_not(gate: Gate, now: datetime) -> str:
    """Why a gate does not hold, after its name; empty: it does."""
    if gate.revoked is not None:
        return f"was revoked: {gate.revoked}"
    if now >= gate.expires:
        return f"has expired: it held until {gate.expires.isoformat()}; measure anew"
    return f"did not pass: {gate.refusal}" if gate.refusal else ""


def _work(policy: Policy) -> tuple[int, float, str]:
    """How much it computes, roughly: what its name says before what its parameters do."""
    amount = policy.k if policy.name == "first_k" else policy.ratio
    return PREFERENCE.index(policy.name), amount, str(policy)


def _safe(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9._]+", "-", name).strip("-.")[:60] or "any"


def _written(gate: Gate) -> dict[str, Any]:
    subject = gate.subject
    return {
        "schema": SCHEMA,
        "model": subject.model,
        "revision": subject.revision,
        "policy": str(subject.policy),
        "codec": subject.codec,
        "name": gate.name,
        "figures": asdict(gate.figures),
        "thresholds": asdict(gate.thresholds),
        "dataset": gate.dataset,
        "dataset_sha256": gate.dataset_sha256,
        "created": gate.created.isoformat(),
        "expires": gate.expires.isoformat(),
        "versions": dict(gate.versions),
        "revoked": gate.revoked,
    }


_TEXTS = ("model", "revision", "policy", "codec", "name", "dataset", "dataset_sha256")
_KINDS: Mapping[Any, tuple[type, ...]] = {str: (str,), int: (int,), float: (int, float)}
_FIELDS = ("schema", *_TEXTS, "figures", "thresholds", "created", "expires", "versions", "revoked")


def _read(record: object) -> Gate:
    schema = record.get("schema") if isinstance(record, dict) else None
    if schema != SCHEMA:
        raise ValueError(f"field 'schema': got {schema!r}")
    assert isinstance(record, dict)
    _compare_names(record, _FIELDS, "")
    texts = {name: _text(record, name) for name in _TEXTS}
    gate = Gate(
        subject=Subject(texts["model"], texts["revision"], parse_policy(texts["policy"]), texts["codec"]),
        name=texts["name"],
        figures=_numbers(record, "figures", Figures),
        thresholds=_numbers(record, "thresholds", Thresholds),
        dataset=texts["dataset"],
        dataset_sha256=texts["dataset_sha256"],
        created=_time(record, "created"),
        expires=_time(record, "expires"),
        versions=_versions(record["versions"]),
        revoked=None if record["revoked"] is None else _text(record, "revoked"),
    )
    _check(gate)
    return gate


def _compare_names(record: Mapping[str, Any], names: Iterable[str], where: str) -> None:
    known = tuple(names)
    if unknown := sorted(set(record) - set(known)):
        raise ValueError(f"unknown field '{where}{unknown[0]}'; known are {', '.join(known)}")
    if missing := [name for name in known if name not in record]:
        raise ValueError(f"field '{where}{missing[0]}' is missing")


def _text(record: Mapping[str, Any], name: str) -> str:
    if not isinstance(record[name], str):
        raise TypeError(f"field '{name}': expected text, got {record[name]!r}")
    return str(record[name])


def _numbers(record: Mapping[str, Any], name: str, kind: type[T]) -> T:
    values = record[name]
    if not isinstance(values, dict):
        raise TypeError(f"field '{name}': expected an object, got {values!r}")
    _compare_names(values, (each.name for each in fields(kind)), f"{name}.")
    for each in fields(kind):
        value = values[each.name]
        if not isinstance(value, _KINDS[each.type]) or isinstance(value, bool):
            told = getattr(each.type, "__name__", each.type)
            raise TypeError(f"field '{name}.{each.name}': expected {told}; got {value!r}")
    return kind(**values)


def _time(record: Mapping[str, Any], name: str) -> datetime:
    try:
        time = datetime.fromisoformat(_text(record, name))
    except ValueError:
        time = datetime.min
    if time.tzinfo is None:
        raise ValueError(
            f"field '{name}': expected a time with its zone, as 2026-01-31T12:00:00+00:00; got {record[name]!r}"
        )
    return time.astimezone(UTC)


def _versions(value: object) -> dict[str, str]:
    if not isinstance(value, dict) or not all(isinstance(each, str) for each in value.values()):
        raise ValueError(f"field 'versions': expected an object of texts; got {value!r}")
    return value


def _check(gate: Gate) -> None:
    """What its writer guarantees."""
    figures = gate.figures
    if (
        figures.n < 1
        or not 0 <= min(figures.far, figures.differing) <= max(figures.far, figures.differing) <= figures.n
    ):
        raise ValueError(f"figures: expected n of at least 1 and counts from 0 to n; got {figures}")
    if not all(0 <= score <= 1 for score in (figures.score_full, figures.score_policy)):
        raise ValueError(f"figures: expected scores from 0 to 1; got {figures}")
    if figures.loss_high < figures.loss - 1e-9:
        raise ValueError(f"field 'figures.loss_high': {figures.loss_high} is under the loss, {figures.loss}")
    if gate.expires <= gate.created:
        raise ValueError(f"field 'expires': {gate.expires} is not after 'created', {gate.created}")


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is no number")
