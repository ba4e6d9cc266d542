"""Certificates: what may be stopped how, for whom, on what evidence and until when; a folder of them.

One file of JSON per model, template and task class. Whoever finds none that holds uses the conservative default.
"""

import json
import os
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

from flowserve.errors import StoreError

SCHEMA = 1


@dataclass(frozen=True, slots=True)
class Subject:
    """Whom a certificate is about. Another model, prompt or kind of task is another subject: nothing is carried over."""

    model: str
    template: str
    """Name of the prompt that forces a trial answer."""
    task: str
    """Class of tasks, by the users' own name."""

    def __str__(self) -> str:
        return f"{self.model}, template {self.template}, task {self.task}"


@dataclass(frozen=True, slots=True)
class Certificate:
    """The fields of the figures are told in `calibrate.Figures`."""

    subject: Subject
    rule: str
    args: Mapping[str, float]
    num_problems: int
    num_trajectories: int
    stopped: int
    harmed: int
    rescued: int
    differing: int
    change: float
    change_low: float
    margin: float
    """Net harm that was allowed, as a share of problems."""
    error: float
    """Chance that it is greater all the same."""
    saved: float
    saved_low: float
    saved_high: float
    differing_high: float
    unseen_change: float
    """As `change`, on problems that took no part in the choice of parameters (cross-fitting)."""
    unseen_saved: float
    bank: str
    """SHA-256 of the recorded chains' file."""
    created: datetime
    expires: datetime
    revoked: str | None = None
    """Why it does not hold any longer; None while it does."""


@dataclass(frozen=True, slots=True)
class Absent:
    """No certificate that holds: only the conservative default may be used."""

    reason: str


class Certificates:
    """A folder of them. Files are replaced whole, so a reader never sees half of one."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def lookup(self, subject: Subject, now: datetime) -> Certificate | Absent:
        """Raises StoreError for a file that cannot be trusted: a broken one is not as none."""
        path = self.path(subject)
        if not path.exists():
            return Absent(f"no certificate for {subject} in {self._folder}")
        found = read(path)
        if found.subject != subject:
            return Absent(f"{path} is foreign: it is for {found.subject}, and {subject} was asked for")
        if found.revoked is not None:
            return Absent(f"{path} was revoked: {found.revoked}")
        if now >= found.expires:
            return Absent(f"{path} has expired: it held until {found.expires.isoformat()}; calibrate anew")
        return found

    def write(self, certificate: Certificate) -> Path:
        path = self.path(certificate.subject)
        text = json.dumps(_written(certificate), indent=2, allow_nan=False) + "\n"
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            with NamedTemporaryFile("w", dir=self._folder, suffix=".part", delete=False, encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            os.replace(file.name, path)
        except OSError as error:
            raise StoreError(f"{path}: writing a certificate failed: {error}") from error
        return path

    def revoke(self, subject: Subject, reason: str) -> bool:
        """Whether there was one."""
        path = self.path(subject)
        if not path.exists():
            return False
        self.write(replace(read(path), revoked=reason))
        return True

    def path(self, subject: Subject) -> Path:
        """Where the certificate of `subject` stands, whether there is one or not."""
        parts = (subject.model, subject.template, subject.task)
        digest = sha256("\0".join(parts).encode()).hexdigest()[:8]
        return self._folder / ("--".join(_safe(part) for part in parts) + f"-{digest}.json")


def read(path: Path) -> Certificate:
    """Raises StoreError, which names the file and the field."""
    try:
        return _read(json.loads(path.read_text(encoding="utf-8"), parse_constant=_no_constant))
    except (OSError, ValueError) as error:
        raise StoreError(f"{path}: expected a certificate of schema {SCHEMA}: {error}") from error


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is no number")


def _safe(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9._]+", "-", name).strip("-.")[:60] or "any"


def _written(certificate: Certificate) -> dict[str, Any]:
    values = asdict(certificate)
    subject = values.pop("subject")
    times = {name: values[name].isoformat() for name in ("created", "expires")}
    return {"schema": SCHEMA, **subject, **values, "args": dict(certificate.args), **times}


_SUBJECT = tuple(each.name for each in fields(Subject))
_KINDS: Mapping[Any, tuple[type, ...]] = {str: (str,), int: (int,), float: (int, float), str | None: (str, type(None))}


def _read(record: object) -> Certificate:
    schema = record.get("schema") if isinstance(record, dict) else None
    if schema != SCHEMA:
        raise ValueError(f"field 'schema': got {schema!r}")
    assert isinstance(record, dict)
    names = [*_SUBJECT, *(each.name for each in fields(Certificate) if each.name != "subject")]
    if unknown := sorted(set(record) - {"schema", *names}):
        raise ValueError(f"unknown field '{unknown[0]}'; known are {', '.join(names)}")
    if missing := [name for name in names if name not in record]:
        raise ValueError(f"field '{missing[0]}' is missing")
    subject = Subject(**{name: _value(record, name, str) for name in _SUBJECT})
    values = {each.name: _value(record, each.name, each.type) for each in fields(Certificate) if each.name != "subject"}
    certificate = Certificate(subject, **values)
    _check(certificate)
    return certificate


def _value(record: Mapping[str, Any], name: str, kind: Any) -> Any:
    value = record[name]
    if kind is datetime:
        return _time(name, value)
    if name == "args":
        return _args(value)
    is_right = isinstance(value, _KINDS[kind]) and not isinstance(value, bool)
    if not is_right:
        raise ValueError(f"field '{name}': expected {getattr(kind, '__name__', kind)}; got {value!r}")
    return value


def _time(name: str, value: object) -> datetime:
    try:
        time = datetime.fromisoformat(value if isinstance(value, str) else "")
    except ValueError:
        time = datetime.min
    if time.tzinfo is None:
        raise ValueError(f"field '{name}': expected a time with its zone, as 2026-01-31T12:00:00+00:00; got {value!r}")
    return time.astimezone(UTC)


def _args(value: object) -> dict[str, float]:
    if not isinstance(value, dict) or not all(
        isinstance(each, int | float) and not isinstance(each, bool) for each in value.values()
    ):
        raise ValueError(f"field 'args': expected an object of numbers; got {value!r}")
    return value


def _check(certificate: Certificate) -> None:
    """What its writer guarantees; a file that was edited by hand into something better is found out."""
    counts = (
        certificate.num_problems,
        certificate.stopped,
        certificate.harmed,
        certificate.rescued,
        certificate.differing,
    )
    if min(counts) < 0 or max(counts) > certificate.num_trajectories:
        raise ValueError(f"counts: expected each between 0 and num_trajectories; got {counts}")
    if certificate.change_low < -certificate.margin:
        raise ValueError(f"field 'change_low': {certificate.change_low} is under -margin, {-certificate.margin}")
    if certificate.expires <= certificate.created:
        raise ValueError(f"field 'expires': {certificate.expires} is not after 'created', {certificate.created}")
