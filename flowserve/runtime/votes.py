"""When do two samples give the same answer, and which answer wins.

Equality here is deliberately plain: numbers by value, text without regard to case and outer or repeated
white space, everything else by its canonical JSON. Empty answers agree with nothing.
"""

import json
from collections.abc import Sequence
from typing import Any

Key = str | None
"""None: no usable answer."""


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
