"""When do two samples give the same answer, which answer wins, and how sure that is.

Equality here is deliberately plain: numbers by value, text without regard to case and outer or repeated
white space, everything else by its canonical JSON. Empty answers agree with nothing.
"""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from flowserve.core.stopping.samples import certainty
from flowserve.core.stopping.signals import UNUSABLE

Key = str | None
"""None: no usable answer."""


@dataclass(frozen=True, slots=True)
class Tally:
    """How a vote went."""

    asked: int
    """Samples declared, or what a degradation left of them."""
    drawn: int
    """Samples that ended well and count; the others failed, were cancelled or were never begun."""
    counts: tuple[int, ...]
    """Samples by answer, the most frequent answer first."""
    unusable: int
    """Samples without an answer, which agree with nothing; with `counts` they make `drawn`."""
    certainty: float
    """1 - H / log n of the answers (`stopping.samples.certainty`): 0 when all differ, 1 when all agree."""
    stopped_by: str | None
    """The rule that ended sampling; None: all that were asked for have ended."""


def answer_key(value: Any) -> Key:
    """A key that equal answers share. `value` is JSON-ready."""
    if value is None:
        return None
    if isinstance(value, bool):
        return f"b:{value}"
    if isinstance(value, int | float):
        return f"n:{float(value)!r}"
    if isinstance(value, str):
        text = " ".join(value.split()).casefold()
        if not text:
            return None
        try:
            return f"n:{float(text.replace(',', ''))!r}"
        except ValueError:
            return f"s:{text}"
    if value in ([], {}):
        return None
    return "j:" + json.dumps(value, sort_keys=True, ensure_ascii=False)


def winner(keys: Sequence[Key]) -> int:
    """Index of the first sample of the largest class; ties go to the class seen first. All unusable: 0."""
    counts: dict[str, int] = {}
    first: dict[str, int] = {}
    for position, key in enumerate(keys):
        if key is not None:
            counts[key] = counts.get(key, 0) + 1
            first.setdefault(key, position)
    if not counts:
        return 0
    best = max(counts, key=lambda key: (counts[key], -first[key]))
    return first[best]


def tally(keys: Sequence[Key], asked: int, stopped_by: str | None) -> Tally:
    """The vote of samples with these answers."""
    counts = Counter(key for key in keys if key is not None)
    unusable = len(keys) - counts.total()
    labels = {**dict(enumerate(counts.values())), UNUSABLE: unusable}
    ordered = tuple(sorted(counts.values(), reverse=True))
    return Tally(asked, len(keys), ordered, unusable, round(certainty(labels), 6), stopped_by)
