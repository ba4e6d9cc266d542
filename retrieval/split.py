"""Text to passages, by token count with overlap. Pure: the counting function is handed in.

The text is seen as atoms: words, with very long ones cut. A passage is a run of whole atoms, so it neither starts nor
ends with white space, and `text[start:end]` is the passage. Between two atoms stands a border of some strength
(paragraph > sentence > word > none); a passage ends at the strongest border in its second half, and the overlap starts
at the strongest border in its first half.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import IntEnum

from flowserve.errors import ConfigError
from flowserve.ids import Tokens
from flowserve.retrieval.documents import Document, Passage

CountTokens = Callable[[str], Tokens]

ATOM = re.compile(r"[^\s。！？]{1,64}[。！？]*|[。！？]{1,64}")
"""A word, or 64 characters of one: no text without spaces becomes one endless atom. CJK sentences end without a space."""
PARAGRAPH_GAP = re.compile(r"\n[^\S\n]*\n")
SENTENCE_END = re.compile(r"[.!?…][\"'”’)\]]*$")
CJK_END = re.compile(r"[。！？]$")


@dataclass(frozen=True, slots=True)
class Splitting:
    """How long passages are. 200 leaves room in the 256 tokens that MiniLM reads."""

    limit_tokens: Tokens = 200
    overlap_tokens: Tokens = 32
    """At most this much of the end of a passage is repeated at the start of the next."""

    def __post_init__(self) -> None:
        if self.limit_tokens < 1:
            raise ConfigError(f"limit_tokens must be at least 1, got {self.limit_tokens}")
        if not 0 <= self.overlap_tokens < self.limit_tokens:
            raise ConfigError(
                f"overlap_tokens must be between 0 and limit_tokens - 1 = {self.limit_tokens - 1}, "
                f"got {self.overlap_tokens}"
            )


@dataclass(frozen=True, slots=True)
class Span:
    """Characters `start:end` of a text."""

    start: int
    end: int


class Border(IntEnum):
    """What stands between an atom and the next; a higher one is a better place to cut."""

    NONE = 0
    WORD = 1
    SENTENCE = 2
    PARAGRAPH = 3


def split(document: Document, splitting: Splitting, count: CountTokens) -> list[Passage]:
    """The document's passages in order. No passages if it holds only white space."""
    return [
        Passage(
            id=f"{document.id}#{ordinal}",
            document=document.id,
            text=document.text[span.start : span.end],
            start=span.start,
            end=span.end,
            metadata=document.metadata,
        )
        for ordinal, span in enumerate(spans(document.text, splitting, count))
    ]


def joined(passages: Sequence[Passage]) -> str:
    """The text that `split` made these passages of, given all of them in order. White space that stood between two
    passages was in none: it comes back as that many spaces; at the end of the text it is gone."""
    text = ""
    for passage in passages:
        text = text[: passage.start].ljust(passage.start) + passage.text
    return text


def spans(text: str, splitting: Splitting, count: CountTokens) -> list[Span]:
    """Where the passages of `text` are: in order, every character that is not white space in at least one.

    `count(text[start:end]) <= limit_tokens` for all, except a single character that alone counts more. `count` should
    not shrink when text is added; if it does, passages are shorter than they could be, never too long.
    """
    atoms = [Span(match.start(), match.end()) for match in ATOM.finditer(text)]
    found: list[Span] = []
    first = covered = 0  # the next passage starts at atom `first`; atoms before `covered` are in a passage already
    while covered < len(atoms):
        fits = _fit_forward(text, atoms, first, splitting.limit_tokens, count)
        if first + fits <= covered and first < covered:
            first = covered  # the repeated part leaves no room for the next atom: start without it
            continue
        if fits == 0:
            if atoms[first].end - atoms[first].start > 1:
                atoms[first : first + 1] = _halves(atoms[first])
                continue
            fits = 1  # one character that is too long by itself
        past = _best_end(text, atoms, max(covered + 1, first + (fits + 1) // 2), first + fits)
        if count(text[atoms[first].start : atoms[past - 1].end]) > splitting.limit_tokens:
            past = first + fits  # only where `count` shrinks with added text
        found.append(Span(atoms[first].start, atoms[past - 1].end))
        covered = past
        if past < len(atoms):
            first = _overlap_start(text, atoms, first + 1, past, splitting.overlap_tokens, count)
    return found


def _fit_forward(text: str, atoms: Sequence[Span], first: int, limit: Tokens, count: CountTokens) -> int:
    """How many atoms from `first` on fit into `limit` tokens together."""

    def fits(number: int) -> bool:
        return count(text[atoms[first].start : atoms[first + number - 1].end]) <= limit

    return _largest(len(atoms) - first, fits, guess=max(1, limit // 2))


def _overlap_start(
    text: str, atoms: Sequence[Span], lowest: int, past: int, overlap: Tokens, count: CountTokens
) -> int:
    """The atom at which the next passage starts so that at most `overlap` tokens before `past` are repeated."""
    if overlap == 0:
        return past

    def fits(number: int) -> bool:
        return count(text[atoms[past - number].start : atoms[past - 1].end]) <= overlap

    longest = _largest(past - lowest, fits, guess=max(1, overlap // 2))
    if longest == 0:
        return past
    earliest, middle = past - longest, past - (longest + 1) // 2
    best = max(range(earliest, middle + 1), key=lambda atom: (_border(text, atoms, atom - 1), -atom))
    return best if count(text[atoms[best].start : atoms[past - 1].end]) <= overlap else earliest


def _best_end(text: str, atoms: Sequence[Span], lowest: int, highest: int) -> int:
    """One past the last atom of the passage: `lowest <= result <= highest`, strongest border, then latest."""
    if highest == len(atoms):
        return highest
    return max(range(lowest, highest + 1), key=lambda past: (_border(text, atoms, past - 1), past))


def _border(text: str, atoms: Sequence[Span], atom: int) -> Border:
    """What stands behind `atom`."""
    if atom + 1 >= len(atoms):
        return Border.PARAGRAPH
    gap = text[atoms[atom].end : atoms[atom + 1].start]
    word = text[atoms[atom].start : atoms[atom].end]
    if PARAGRAPH_GAP.search(gap):
        return Border.PARAGRAPH
    if CJK_END.search(word) or "\n" in gap or (gap and SENTENCE_END.search(word)):
        return Border.SENTENCE
    return Border.WORD if gap else Border.NONE


def _halves(atom: Span) -> list[Span]:
    middle = (atom.start + atom.end) // 2
    return [Span(atom.start, middle), Span(middle, atom.end)]


def _largest(most: int, fits: Callable[[int], bool], guess: int) -> int:
    """The largest n in 0..most with fits(n), for a predicate that is true up to some n. Doubles, then bisects."""
    good, step = 0, min(guess, most)
    bad = most + 1
    while step and fits(step):
        good = step
        if step == most:
            return most
        step = min(2 * step, most)
    if step:
        bad = step
    while bad - good > 1:
        middle = (good + bad) // 2
        if fits(middle):
            good = middle
        else:
            bad = middle
    return good
