"""A policy's answers held against those of full prefill, case by case; a file of such cases; the figures of a gate from it.

The cases are kept, so that a gate can be judged again with other limits and nobody has to believe its figures. The file is
JSON lines: the first says whose they are (`Measured`), each further one is a `Case`.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Protocol, TypeVar

from flowserve.bench.retrieval import Question
from flowserve.bench.reuse.scores import exact, f1
from flowserve.bounds import lower_mean
from flowserve.cachestore.divergence import LogProbs, kl
from flowserve.cachestore.gates import Figures, Subject, Thresholds
from flowserve.cachestore.policies import Policy, parse_policy
from flowserve.errors import ConfigError

SCHEMA = 1
SCORES = ("f1", "exact")

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Reply:
    """What a model said to a question over its passages."""

    text: str
    first: LogProbs
    """Log-probabilities of the first token, before anything was drawn."""


class Replies(Protocol):
    """A model that answers greedily, its passages' KV blended by a policy or computed for this prompt."""

    def reply(self, question: Question, policy: Policy | None) -> Reply:
        """`policy` None: full prefill. The same prompt either way."""
        ...


@dataclass(frozen=True, slots=True)
class Case:
    """One question, answered twice."""

    f1_full: float
    f1_policy: float
    exact_full: float
    exact_policy: float
    kl: float
    """Nats, first token."""
    agrees: bool
    """Is the likeliest first token the same?"""


@dataclass(frozen=True, slots=True)
class Measured:
    """Whose cases they are."""

    subject: Subject
    name: str
    """Of the model, for people."""
    dataset: str
    dataset_sha256: str
    versions: Mapping[str, str]
    """Of the software that computed, by package."""


def measure(replies: Replies, questions: Iterable[Question], policy: Policy) -> list[Case]:
    """One case per question, in their order."""
    return [
        _case(question.answers, replies.reply(question, None), replies.reply(question, policy))
        for question in questions
    ]


def figures(cases: Sequence[Case], score: str, limits: Thresholds) -> Figures:
    """What a gate tells of them. Raises ConfigError."""
    if score not in SCORES:
        raise ConfigError(f"score: expected {' or '.join(SCORES)}, got '{score}'")
    if not cases:
        raise ConfigError("expected at least one case, got none")
    n = len(cases)
    full = [getattr(case, f"{score}_full") for case in cases]
    other = [getattr(case, f"{score}_policy") for case in cases]
    gains = [after - before for before, after in zip(full, other, strict=True)]
    return Figures(
        n=n,
        score=score,
        score_full=sum(full) / n,
        score_policy=sum(other) / n,
        loss_high=max(-lower_mean(gains, -1.0, limits.error), -sum(gains) / n),
        kl_mean=sum(case.kl for case in cases) / n,
        far=sum(case.kl >= limits.kl for case in cases),
        differing=sum(not case.agrees for case in cases),
    )


def write_cases(path: Path, measured: Measured, cases: Iterable[Case]) -> None:
    subject = measured.subject
    head = {
        "schema": SCHEMA,
        "model": subject.model,
        "revision": subject.revision,
        "policy": str(subject.policy),
        "codec": subject.codec,
        "name": measured.name,
        "dataset": measured.dataset,
        "dataset_sha256": measured.dataset_sha256,
        "versions": dict(measured.versions),
    }
    rows = [head, *map(asdict, cases)]
    path.write_text("".join(json.dumps(row, allow_nan=False) + "\n" for row in rows), encoding="utf-8")


def read_cases(path: Path) -> tuple[Measured, list[Case]]:
    """Raises ConfigError, which names the line."""
    try:
        lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: expected a file of measured cases: {error}") from error
    measured = _parsed(path, 1, lines[0] if lines else "null", _measured)
    return measured, [_parsed(path, number, line, _read_case) for number, line in enumerate(lines[1:], 2)]


def _parsed(path: Path, number: int, line: str, parse: Callable[[Any], T]) -> T:
    try:
        return parse(json.loads(line))
    except (TypeError, ValueError, ConfigError) as error:
        raise ConfigError(f"{path}, line {number}: {error}") from error


def _case(golds: Sequence[str], full: Reply, other: Reply) -> Case:
    return Case(
        f1_full=f1(full.text, golds),
        f1_policy=f1(other.text, golds),
        exact_full=exact(full.text, golds),
        exact_policy=exact(other.text, golds),
        kl=kl(full.first, other.first),
        agrees=bool(full.first.argmax() == other.first.argmax()),
    )


def _measured(head: Any) -> Measured:
    if not isinstance(head, dict) or head.get("schema") != SCHEMA:
        raise ValueError(f"expected the head of measured cases of schema {SCHEMA}, got {head!r}")
    texts = ("model", "revision", "policy", "codec", "name", "dataset", "dataset_sha256")
    if wrong := [name for name in texts if not isinstance(head.get(name), str)]:
        raise ValueError(f"field '{wrong[0]}': expected text, got {head.get(wrong[0])!r}")
    if not isinstance(head.get("versions"), dict):
        raise TypeError(f"field 'versions': expected an object, got {head.get('versions')!r}")
    model, revision, policy, codec, name, dataset, digest = (str(head[name]) for name in texts)
    versions = {str(package): str(version) for package, version in head["versions"].items()}
    return Measured(Subject(model, revision, parse_policy(policy), codec), name, dataset, digest, versions)


def _read_case(row: Any) -> Case:
    if not isinstance(row, dict) or set(row) != {each.name for each in fields(Case)}:
        raise ValueError(f"expected a case with {', '.join(each.name for each in fields(Case))}; got {row!r}")
    scores = [row[each.name] for each in fields(Case) if each.name.startswith(SCORES)]
    if not all(_is_number(score) and 0 <= score <= 1 for score in scores):
        raise ValueError(f"expected scores from 0 to 1, got {row!r}")
    if not (_is_number(row["kl"]) and row["kl"] >= 0) or not isinstance(row["agrees"], bool):
        raise ValueError(f"expected kl of at least 0 and agrees true or false, got {row!r}")
    return Case(**row)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
