"""A final answer taken out of text, and words of doubt. Whether two answers are the same is `answers.py`."""

import re

HESITATION = frozenset({"wait", "hold", "but", "okay", "no", "hmm"})
"""Dynasor's list (arXiv 2412.20993). There it is searched for inside words, so that `no` is found in `denominator`; here words count."""

_BOX = re.compile(r"\\(?:boxed|fbox)\s*")
_UNBRACED = re.compile(r"\\?\S+")
_HASHES = re.compile(r"####\s*(\S[^\n]*)")
_PHRASE = re.compile(
    r"\b(?:final\s+)?answer\s*(?:is|:|=)\s*:?\s*(?:\*\*)?\s*(\S[^\n]*?)\s*(?=\*\*|\.(?:\s|$)|\n|$)", re.IGNORECASE
)
_CHOICE = re.compile(r"\(([A-J])\)")
_NUMBER = re.compile(r"-?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?:/\d+)?|-?\.\d+")
_WORD = re.compile(r"[^\W\d_]+")


def final_answer(text: str, last_number: bool = False) -> str:
    """The answer that the text ends with, empty if it names none.

    The last `\\boxed{}`; else the last `#### N`; else the last "the answer is ..."; else the last choice `(A)` to `(J)`; else,
    if `last_number` allows that guess, the last number.
    """
    found = boxed(text) or _last(_HASHES, text) or _phrased(text) or _last(_CHOICE, text)
    if not found and last_number:
        numbers = _NUMBER.findall(text)
        return numbers[-1] if numbers else ""
    return found


def boxed(text: str) -> str:
    """The content of the last `\\boxed{}` with balanced braces; an open one is no answer."""
    for match in reversed(list(_BOX.finditer(text))):
        rest = text[match.end() :]
        if rest.startswith("{"):
            inside = forced(rest[1:])
            if len(inside) + 1 < len(rest) and inside.strip():
                return inside.strip()
        elif bare := _UNBRACED.match(rest):
            return bare[0].rstrip("$.,;")
    return ""


def forced(text: str) -> str:
    """What was written after a prompt that ends in an open brace: up to the first `}` that closes nothing inside.

    A trial that did not get there is returned whole; if it stopped inside a group, `answers.canonical` calls it unusable.
    """
    depth, escaped = 0, False
    for at, character in enumerate(text):
        if not escaped and character in "{}":
            depth += 1 if character == "{" else -1
            if depth < 0:
                return text[:at]
        escaped = character == "\\" and not escaped
    return text


def hesitates(text: str) -> bool:
    """Does a word of doubt stand in it?"""
    return not HESITATION.isdisjoint(word.lower() for word in _WORD.findall(text))


def _phrased(text: str) -> str:
    phrase = _last(_PHRASE, text)
    choice = re.match(r"\(([A-J])\)(?=\W|$)", phrase)
    return choice[1] if choice else phrase


def _last(pattern: re.Pattern[str], text: str) -> str:
    found = pattern.findall(text)
    return found[-1].strip() if found else ""
