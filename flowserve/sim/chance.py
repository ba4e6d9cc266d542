"""Chance by name instead of by turn: a draw depends on the seed and on what it is for, not on what was drawn before.

So two policies meet the same workload: the third map item of run 17 is equally long under both, in whatever order
they come to it. A key is a 64-bit integer; `mix` makes new ones (splitmix64, Steele et al., OOPSLA 2014).
"""

from math import log
from statistics import NormalDist

MASK = (1 << 64) - 1
_NORMAL = NormalDist()


def mix(*parts: int) -> int:
    """A key that depends on all `parts` and their order."""
    key = 0x9E3779B97F4A7C15
    for part in parts:
        key = (key + (part & MASK) * 0xD1342543DE82EF95 + 0x9E3779B97F4A7C15) & MASK
        key = ((key ^ (key >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        key = ((key ^ (key >> 27)) * 0x94D049BB133111EB) & MASK
        key ^= key >> 31
    return key


def name_key(text: str) -> int:
    """The key of a name; the same in every process."""
    return mix(*text.encode("utf-8"))


def uniform(key: int) -> float:
    """Between 0 and 1, both excluded."""
    return ((key >> 11) + 0.5) / (1 << 53)


def below(key: int, bound: int) -> int:
    """One of 0 .. bound - 1."""
    return key % bound


def exponential(key: int, mean: float) -> float:
    return -mean * log(uniform(key))


def normal(key: int) -> float:
    """With mean 0 and deviation 1."""
    return _NORMAL.inv_cdf(uniform(key))
