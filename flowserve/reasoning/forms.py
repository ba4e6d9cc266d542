"""What a trial has answered so far: forms in which an answer stands at the beginning of what a fork writes.

A trial is read while it is written and ends with its answer, so each form says where the answer ends. Which answers are the same
is `answers.py`; final answers of whole texts are found by `extraction.py`.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass

from flowserve.reasoning.extraction import forced


@dataclass(frozen=True, slots=True)
class Read:
    """An answer that is whole: nothing written after it can change it."""

    answer: str
    end: int
    """Characters of the trial up to where the answer has ended, its closing mark included."""


Form = Callable[[str, bool], Read | None]
"""(what the fork has written, whether it ended by itself) -> its answer; None: none yet."""

_NUMBER = re.compile(r"-?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?:/\d+)?|-?\.\d+")
_LETTER = re.compile(r"\b[A-J]\b")
_JOINTS = (".", ",", "/")
"""What may stand between two parts of a number."""


def _boxed(text: str, ended: bool) -> Read | None:
    """Up to the brace that closes the box. The opening one may be the end of what made the fork answer."""
    start = len(text) - len(text.lstrip())
    start += text.startswith("{", start)
    inside = forced(text[start:])
    end = start + len(inside)
    return Read(inside.strip(), end + 1) if end < len(text) else None


def _number(text: str, ended: bool) -> Read | None:
    """The first number."""
    found = _NUMBER.search(text)
    if found is None or (not ended and text[found.end() :] in ("", *_JOINTS)):
        return None
    return Read(found[0], found.end())


def _choice(text: str, ended: bool) -> Read | None:
    """The first capital letter from A to J that stands alone."""
    found = _LETTER.search(text)
    if found is None or (not ended and found.end() == len(text)):
        return None
    return Read(found[0], found.end())


def _line(text: str, ended: bool) -> Read | None:
    """The first line."""
    line, newline, _ = text.partition("\n")
    return Read(line.strip(), len(line)) if newline or ended else None


FORMS: dict[str, Form] = {"boxed": _boxed, "number": _number, "choice": _choice, "line": _line}
"""By the names of `graphs.exits.ANSWERS`."""
