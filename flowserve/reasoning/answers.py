"""When two answers are the same: a canonical form, comparators, and labels.

Equal canonical forms are the same answer, so "the same" is an equivalence: classes do not depend on the order in which answers
come. An answer that is empty or malformed has no form and agrees with nothing, itself included. As graders of mathematics do,
units, currency, percent and degree signs are dropped: that a price was asked for in cents is not checked.
"""

import re
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Protocol

from flowserve.core.stopping.signals import UNUSABLE, Label
from flowserve.reasoning.expressions import (
    NotAnExpression,
    Sum,
    difference,
    normal_form,
    parsed,
    scaled_to_one,
    written,
)

MAX_LENGTH = 2000
"""A longer answer is compared as it stands."""

_UNITS = (
    r"degrees?|radians?|percent|dollars?|cents?|euros?|pounds?|bucks|usd"
    r"|(?:kilo|centi|milli|nano)?met(?:er|re)s?|(?:kilo|milli)?grams?|(?:milli)?lit(?:er|re)s?|[kcm]m|kg|mg|ml"
    r"|miles?|yards?|feet|foot|ft|inch(?:es)?|ounces?|lbs?|seconds?|secs?|minutes?|mins?|hours?|hrs?|days?|weeks?|months?|years?"
    r"|mph|km/h|units?|points?|people|students?|times|ways"
)
_TRAILING_UNIT = re.compile(
    rf"(?<=[\d}}).\s])\s*(?:(?:square|cubic|sq\.?|cu\.?)\s+)?(?:{_UNITS})(?:\s*/\s*\w+|\s+per\s+\w+)?(?:\^\{{?\d\}}?)?$",
    re.IGNORECASE,
)
_TEXT = r"\\(?:text|mbox|mathrm|textbf|mathbf|textit|textrm|operatorname|texttt|boldsymbol|mathit)\*?\s*\{([^{}]*)\}"
_TRAILING_TEXT = re.compile(r"(?<=[\d})])\s*(?!\\text\{\s*(?:and|or|\())" + _TEXT + r"(?:\^\{?\d\}?)?$")
_BETWEEN = re.compile(r"\\text\s*\{\s*(?:and|or)\s*\}|(?<=[\d})\s])\s+(?:and|or)\s+(?=\S)|;")
_SPACING = re.compile(
    r"\\(?:left|right|displaystyle|limits|mathop|big|Big|bigg|Bigg|quad|qquad)(?![a-zA-Z])|(?<!\\)\\[,;:()\[\] ]|~|\$"
)
_REMOVED = re.compile(r"\\!\s*|\\\$|[€£]|\^\s*\{?\s*(?:\\circ|°)\s*\}?|\\degree|°|\\?%|\{(?=,\})|(?<=,)\}")
_THOUSANDS = re.compile(r"(?<![\d.,])\d{1,3}(?:,\d{3})+(?![\d,])")
_ASSIGNMENT = re.compile(r"([a-zA-Z](?:_\{?\w+\}?)?(?:\([a-z]\))?)\s*(?:=|\\in(?![a-zA-Z]))\s*(?=\S)")
_CHOICE = re.compile(r"\(?([A-Z])\)?\.?")
_MATRIX = re.compile(r"\\begin\{([pbv]?matrix|array)\}(?:\{[lcr|]*\})?(.*)\\end\{\1\}", re.DOTALL)
_UNION = re.compile(r"\\cup(?![a-zA-Z])")
_RELATION = re.compile(r"\\(?:leq?|geq?|neq?)(?![a-zA-Z])|[<>]=?|=|≤|≥|≠")
_RELATIONS = {
    "\\le": "<=",
    "\\leq": "<=",
    "≤": "<=",
    "\\ge": ">=",
    "\\geq": ">=",
    "≥": ">=",
    "\\ne": "!=",
    "\\neq": "!=",
    "≠": "!=",
}
_TURNED = {"<": ">", ">": "<", "<=": ">=", ">=": "<="}
_PROSE = re.compile(r"[^\W\d_]{2,}(?:[\s,.'-]+[^\W\d_]+)*")
_SYMBOLS = {"−": "-", "–": "-", "π": "\\pi ", "√": "\\sqrt ", "∞": "\\infty ", "×": "\\times ", "·": "\\cdot ", "∪": "\\cup ", "±": "\\pm "}  # fmt: skip
_OPEN, _CLOSE = "([{", ")]}"


class Comparator(Protocol):
    """Says which answers are the same, e.g. two programs that pass the same tests."""

    def key(self, answer: str) -> str | None:
        """Answers with equal keys are the same. None: unusable, agrees with nothing."""
        ...

    def same(self, left: str, right: str) -> bool:
        """Asked only of usable answers with unequal keys."""
        ...


class ByForm:
    """Equal canonical forms, nothing else."""

    def key(self, answer: str) -> str | None:
        return canonical(answer)

    def same(self, left: str, right: str) -> bool:
        return False


class ByBehaviour:
    """For code: two programs are the same if `behaviour`, the user's own, says the same of both.

    It could return what a program printed on each of the tests, in order; None if it did not run. It is asked once per text.
    """

    def __init__(self, behaviour: Callable[[str], str | None]) -> None:
        self._behaviour = behaviour
        self._known: dict[str, str | None] = {}

    def key(self, answer: str) -> str | None:
        if answer not in self._known:
            self._known[answer] = self._behaviour(answer)
        return self._known[answer]

    def same(self, left: str, right: str) -> bool:
        return False


class Labels:
    """Small integers for answers within one request: equal answers have equal labels, counted from 0 as they come."""

    def __init__(self, comparator: Comparator | None = None) -> None:
        self._comparator = comparator or ByForm()
        self._label_of_key: dict[str, Label] = {}
        self._answers: list[str] = []

    def __getitem__(self, answer: str) -> Label:
        key = self._comparator.key(answer)
        if key is None:
            return UNUSABLE
        if key not in self._label_of_key:
            self._label_of_key[key] = self._label_of_class(answer)
        return self._label_of_key[key]

    def answer(self, label: Label) -> str:
        """The first answer that got this label, as it was written; empty for UNUSABLE."""
        return "" if label == UNUSABLE else self._answers[label]

    def __len__(self) -> int:
        """How many classes there are."""
        return len(self._answers)

    def _label_of_class(self, answer: str) -> Label:
        for label, first in enumerate(self._answers):
            if self._comparator.same(first, answer):
                return label
        self._answers.append(answer)
        return len(self._answers) - 1


def same(left: str, right: str, comparator: Comparator | None = None) -> bool:
    """Are both usable and one answer?"""
    comparator = comparator or ByForm()
    one, other = comparator.key(left), comparator.key(right)
    if one is None or other is None:
        return False
    return one == other or comparator.same(left, right)


@lru_cache(maxsize=1 << 16)
def canonical(answer: str) -> str | None:
    """Equal for answers that are the same, None for one that is unusable: empty, only punctuation, or with unbalanced braces."""
    if len(answer) > MAX_LENGTH:
        return answer
    text = _plain(answer)
    if not any(character.isalnum() for character in text) and text not in ("()", "{}", "\\{\\}"):
        return None
    if not _is_balanced(text):
        return None
    return _form(text)


def _plain(answer: str) -> str:
    """Without what only sets the type: spacing, sizes, dollar signs, units."""
    text = answer.strip().rstrip(".").strip()
    for symbol, command in _SYMBOLS.items():
        text = text.replace(symbol, command)
    text = re.sub(r"\\[dtc]frac(?![a-zA-Z])", r"\\frac", text)
    text = _SPACING.sub(" ", _REMOVED.sub("", text)).strip()
    text = _TRAILING_TEXT.sub("", text)
    text = _BETWEEN.sub(",", text)
    text = re.sub(_TEXT, r" \1 ", text)
    text = re.sub(r"\\(?:emptyset|varnothing)|∅", r"\\{\\}", text)
    text = re.sub(r"\s+", " ", text).strip()
    return _TRAILING_UNIT.sub("", text).strip().rstrip(".").strip()


def _is_balanced(text: str) -> bool:
    """Braces close; brackets may be of two kinds, as in `(0, 1]`."""
    depth = brackets = 0
    for character in re.sub(r"\\[{}]", "", text):
        depth += (character == "{") - (character == "}")
        brackets += (character in "([") - (character in ")]")
        if depth < 0 or brackets < 0:
            return False
    return not depth and not brackets


def _form(text: str) -> str:
    if choice := _CHOICE.fullmatch(text):
        return choice[1]
    if _PROSE.fullmatch(text) and text != "pi":
        return " ".join(re.findall(r"\w+", text.lower()))
    parts = [part.strip() for part in _UNION.split(text)]
    if len(parts) > 1 and all(parts):
        return " u ".join(sorted(map(_form, parts)))
    if assignment := _ASSIGNMENT.match(text):
        value = text[assignment.end() :]
        if not _RELATION.search(value) and not _is_list(value):
            return _form(value)
    if matrix := _MATRIX.fullmatch(text):
        rows = (re.split(r"&", row) for row in re.split(r"\\\\", matrix[2]) if row.strip())
        return "matrix " + " | ".join(" ".join(_scalar(cell.strip()) for cell in row) for row in rows)
    return _collection(text)


def _is_list(text: str) -> bool:
    return len(_split(_THOUSANDS.sub("", text))) > 1 and text[0] not in _OPEN


def _collection(text: str) -> str:
    """A set or a bare list has no order; a tuple and an interval have one."""
    if text.startswith("\\{") and text.endswith("\\}"):
        return _set(_split(text[2:-2]))
    if text[0] in "([" and text[-1] in ")]" and _closes_last(text):
        parts = _split(text[1:-1])
        if len(parts) > 1:
            return text[0] + ", ".join(_scalar(part) for part in parts) + text[-1]
    return _set(_split(_THOUSANDS.sub(lambda number: number[0].replace(",", ""), text)))


def _set(parts: list[str]) -> str:
    names = {match[1] if (match := _ASSIGNMENT.match(part)) else None for part in parts}
    if len(names) == 1 and None not in names:
        parts = [_ASSIGNMENT.sub("", part, count=1) for part in parts]
    forms = sorted({_scalar_or_tuple(each) for part in parts for each in _both_signs(part)})
    return forms[0] if len(forms) == 1 else "{" + ", ".join(forms) + "}"


def _scalar_or_tuple(text: str) -> str:
    if text[:1] in ("(", "[") and len(_split(text[1:-1])) > 1 and _closes_last(text):
        return _collection(text)
    return _scalar(text)


def _both_signs(text: str) -> Iterator[str]:
    if text.count("\\pm") == 1:
        yield text.replace("\\pm", "+")
        yield text.replace("\\pm", "-")
    else:
        yield text


def _split(text: str) -> list[str]:
    """At commas that stand in no bracket."""
    parts, depth, begin = [], 0, 0
    for at, character in enumerate(text):
        depth += (character in _OPEN) - (character in _CLOSE)
        if character == "," and not depth:
            parts.append(text[begin:at].strip())
            begin = at + 1
    parts.append(text[begin:].strip())
    return [part for part in parts if part]


def _closes_last(text: str) -> bool:
    """Does the bracket that opens the text close at its end?"""
    depth = 0
    for at, character in enumerate(text):
        depth += (character in _OPEN) - (character in _CLOSE)
        if not depth:
            return at == len(text) - 1
    return False


def _scalar(text: str) -> str:
    """One value, an equation or an inequality."""
    text = _TRAILING_UNIT.sub("", text)
    relations: list[str] = _RELATION.findall(text)
    try:
        if not relations:
            return normal_form(text)
        sides = [parsed(side) for side in _RELATION.split(text)]
    except NotAnExpression:
        return re.sub(r"\s+", "", text) if re.search(r"[\\\d=+*/^]", text) else text.lower()
    if set(relations) == {"="}:
        return _equation(sides)
    return _inequality(sides, [_RELATIONS.get(relation, relation) for relation in relations])


def _equation(sides: list[Sum]) -> str:
    """Of a chain of equalities, `64 + 4 = 68`, the last side is the result; a single one is brought to `0 = ...`."""
    if len(sides) > 2 or not any(map(_has_letters, sides)):
        return written(sides[-1])
    return "0=" + written(scaled_to_one(difference(sides[0], sides[1])))


def _has_letters(side: Sum) -> bool:
    return any(atom[0].isalpha() for monomial in side for atom, _ in monomial)


def _inequality(sides: list[Sum], relations: list[str]) -> str:
    """The greater side is written last."""
    forms = [written(side) for side in sides]
    if all(relation in (">", ">=") for relation in relations):
        forms, relations = forms[::-1], [_TURNED[relation] for relation in reversed(relations)]
    return "".join(map(str.__add__, forms, [*relations, ""]))
