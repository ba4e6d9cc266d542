"""A folder of gates, one file of JSON each. What passes is decided anew from the figures whenever a file is read, so that none
passes because it says so.
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

from flowserve.cachestore.gates import Figures, Gate, Subject, Thresholds
from flowserve.cachestore.policies import parse_policy
from flowserve.errors import ConfigError, StoreError

SCHEMA: Final = 1
SUFFIX: Final = ".gate.json"

T = TypeVar("T", bound=Thresholds | Figures)


@dataclass(frozen=True, slots=True)
class Absent:
    """No gate that holds: the policy is off."""

    reason: str


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
        obstacle = gate.obstacle(now)
        return gate if obstacle is None else Absent(f"{path} {obstacle}")

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
