"""Invented names: one capital syllable and one small syllable, such as "Krekol".

Every name is exactly two tokens of the demo tokenizer. A name belongs to the evaluation split when
crc32(name) % 8 == 0, so that no name of the evaluation ever occurs in training.
"""

import zlib
from random import Random
from typing import Literal

Split = Literal["train", "eval"]

VOWELS = "aeiou"
ONSETS = (
    "B", "D", "F", "G", "K", "L", "M", "N", "P", "R", "S", "T", "V", "Z",
    "Br", "Dr", "Gr", "Kr", "Pl", "Tr",
)  # fmt: skip
CODAS = "lnrsmkt"

# An onset followed by its first vowel ends a first syllable, so greedy matching splits a name in one way only.
FIRST_SYLLABLES = tuple(onset + vowel for onset in ONSETS for vowel in VOWELS)
_OPEN = tuple(consonant + vowel for consonant in "bdfgklmnprstvz" for vowel in VOWELS)
SECOND_SYLLABLES = _OPEN + tuple(open_ + CODAS[i % len(CODAS)] for i, open_ in enumerate(_OPEN))

EVAL_SHARE = 8


def split_of(name: str) -> Split:
    """The split that a name belongs to, by its checksum alone."""
    return "eval" if zlib.crc32(name.encode()) % EVAL_SHARE == 0 else "train"


def all_names(split: Split, reserved: frozenset[str] = frozenset()) -> tuple[str, ...]:
    """Every name of a split, in a fixed order, except those that begin with a word of the language."""
    names = (first + second for first in FIRST_SYLLABLES for second in SECOND_SYLLABLES)
    capitals = tuple(word for word in reserved if word[0].isupper() and len(word) > 2)
    return tuple(name for name in names if split_of(name) == split and not name.startswith(capitals))


def draw_names(rng: Random, names: tuple[str, ...], count: int) -> list[str]:
    """`count` different names."""
    return rng.sample(names, count)
