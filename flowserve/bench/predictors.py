"""`flowserve bench predictors`: how well each predictor foretells the lengths of recorded answers.

Each call is predicted with what was seen before it, then shown (prequential evaluation, Dawid 1984): nothing is fitted beforehand
and no part is held back. A predictor that does not know counts with what the scheduler would take: the share of their limits
that all calls write. Order is judged between calls that were at work together, so that neither was known to the other.
"""

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean, median
from typing import Any

from flowserve.core.learning import Answered
from flowserve.core.predict.base import Call, Prediction, Predictor
from flowserve.core.predict.shares import Prior
from flowserve.core.predict.table import PREDICTORS
from flowserve.errors import ConfigError
from flowserve.ids import Tokens
from flowserve.sim import calls

BESIDE = 32
"""Calls that one is compared with: those at work with it, no more than so many."""
FIRST = 100
"""Answers of a foreign recording that only teach: until a few have come all that is known is the limit, and that is ours."""


@dataclass(slots=True)
class Errors:
    """Of one predictor."""

    of_mean: list[float] = field(default_factory=list)
    of_p50: list[float] = field(default_factory=list)
    tokens: list[Tokens] = field(default_factory=list)
    covered: int = 0
    known: int = 0
    """Calls for which the predictor had an answer of its own."""
    agreed: float = 0.0
    pairs: int = 0
    seconds: float = 0.0
    """Of processor time in the predictor."""

    def add(self, predicted: Prediction, tokens: Tokens, beside: Sequence[tuple[float, Tokens]]) -> None:
        """`beside`: (predicted, written) of the calls that were at work when this one was asked about."""
        self.of_mean.append(abs(predicted.mean - tokens))
        self.of_p50.append(abs(predicted.p50 - tokens))
        self.tokens.append(tokens)
        self.covered += tokens <= predicted.p90
        for mean, other in beside:
            if other != tokens:
                self.pairs += 1
                self.agreed += 0.5 if mean == predicted.mean else (mean < predicted.mean) == (other < tokens)

    def figures(self) -> dict[str, Any]:
        """For the report; tokens, shares, microseconds."""
        relative = [error / max(1, tokens) for error, tokens in zip(self.of_mean, self.tokens, strict=True)]
        return {
            "mae": round(fmean(self.of_mean), 2),
            "mae_p50": round(fmean(self.of_p50), 2),
            "relative_error": round(median(relative), 4),
            "order": round(self.agreed / self.pairs, 4) if self.pairs else 0.5,
            "p90_coverage": round(self.covered / len(self.tokens), 4),
            "known": round(self.known / len(self.tokens), 4),
            "us_per_call": round(1e6 * self.seconds / len(self.tokens), 2),
        }


@dataclass(slots=True)
class Asked:
    """A call that was not answered yet."""

    own: Prediction | None
    """What the predictor said."""
    predicted: Prediction | None
    """That, or what the scheduler would take; None: it is unknown, and has no limit."""
    beside: deque[tuple[float, Tokens]] = field(default_factory=lambda: deque(maxlen=BESIDE))
    """(predicted, written) of calls that were answered since."""


def judge(story: Iterable[Call | Answered], make: Callable[[], Predictor], first: int = 0) -> Errors:
    """A fresh predictor on these calls; the `first` answers only teach. Equal calls are answered as they were asked."""
    predictor, prior, errors = make(), Prior(), Errors()
    waiting: dict[Call, deque[Asked]] = {}
    num_answers = 0
    for item in story:
        start = time.thread_time()
        if isinstance(item, Call):
            own = predictor.predict(item)
            errors.seconds += time.thread_time() - start
            waiting.setdefault(item, deque()).append(Asked(own, own if own is not None else prior.predict(item)))
            continue
        predictor.observe(item.call, item.tokens)
        errors.seconds += time.thread_time() - start
        prior.observe(item.call, item.tokens)
        asked = waiting[item.call].popleft()
        if not waiting[item.call]:
            del waiting[item.call]
        num_answers += 1
        if asked.predicted is not None and num_answers > first:
            errors.add(asked.predicted, item.tokens, asked.beside)
            errors.known += asked.own is not None
            for others in waiting.values():
                for other in others:
                    other.beside.append((asked.predicted.mean, item.tokens))
    return errors


def run(traces: Sequence[Path], logs: Sequence[Path], say: Callable[[str], object]) -> dict[str, Any]:
    """`{"cases": [{"recording", "calls", "mean_tokens", "predictors": {name: figures}}, ...]}`."""
    if not traces and not logs:
        raise ConfigError("expected --trace FILE or --log FILE, at least one")
    cases = [_case(path, list(calls.recorded(path)), FIRST) for path in _told(traces, say)]
    return {"cases": cases + [_case(path, list(calls.log(path)), 0) for path in _told(logs, say)]}


def _told(paths: Sequence[Path], say: Callable[[str], object]) -> Iterator[Path]:
    for path in paths:
        say(f"reading {path}")
        yield path


def _case(path: Path, story: Sequence[Call | Answered], first: int) -> dict[str, Any]:
    written = [item.tokens for item in story if isinstance(item, Answered)]
    if len(written) <= first:
        raise ConfigError(f"{path}: expected more than {first} model calls that were answered; got {len(written)}")
    found = {name: judge(story, make, first).figures() for name, make in PREDICTORS.items()}
    return {"recording": path.name, "calls": len(written), "mean_tokens": round(fmean(written), 1), "predictors": found}
