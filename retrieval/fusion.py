"""Several rankings into one: reciprocal rank fusion (Cormack, Clarke and Buettcher, SIGIR 2009)."""

from collections.abc import Hashable, Iterable, Sequence
from typing import TypeVar

Key = TypeVar("Key", bound=Hashable)
OFFSET = 60
"""The paper's k: how little the first places count above the next."""


def fuse(rankings: Iterable[Sequence[Key]], offset: int = OFFSET) -> list[tuple[Key, float]]:
    """Keys with the sum of 1 / (offset + rank), rank from 1, best first; equal sums stay in order of first mention.

    A key that stands twice in one ranking counts at its first place.
    """
    sums: dict[Key, float] = {}
    for ranking in rankings:
        for rank, key in enumerate(dict.fromkeys(ranking), start=1):
            sums[key] = sums.get(key, 0.0) + 1.0 / (offset + rank)
    return sorted(sums.items(), key=lambda item: -item[1])
