"""One generation of an index as a value: what is stored, searched and replaced as a whole."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from flowserve.retrieval.documents import Passage
from flowserve.retrieval.protocols import Ids, Vectors
from flowserve.retrieval.spec import EXACT, IndexSpec
from flowserve.retrieval.structure import Arrays


@dataclass(frozen=True, slots=True, eq=False)
class Snapshot:
    """Passages and their vectors: row `i` of `vectors` belongs to `passages[i]`, ordered by passage id.

    Because of that order, equal scores by lower row are equal scores by passage id.
    """

    generation: int
    """0: nothing was committed yet; grows by one with every commit."""
    embedder: str
    dimension: int
    passages: tuple[Passage, ...] = field(repr=False)
    vectors: Vectors = field(repr=False)
    documents: Mapping[str, str] = field(repr=False)
    """Document id -> digest of its text, metadata and splitting; also of documents without passages."""
    spec: IndexSpec = EXACT
    structure: Arrays = field(default_factory=dict, repr=False)
    """What its kind has built for exactly these passages (`kinds`); empty for `exact`."""


def empty(embedder: str, dimension: int, spec: IndexSpec = EXACT) -> Snapshot:
    """The state before the first commit."""
    return Snapshot(0, embedder, dimension, (), np.zeros((0, dimension), np.float32), {}, spec)


def origins(old: Snapshot, new: Snapshot) -> Ids:
    """(passages of `new`,) a row of `old` with the same text, and so the same vector; -1 where there is none.

    Equal texts are matched one to one, in order, as far as there are enough of them: none is taken for new that is not.
    """
    rows_of: dict[str, list[int]] = {}
    for row, passage in enumerate(old.passages):
        rows_of.setdefault(passage.text, []).append(row)
    num_taken: Counter[str] = Counter()
    found = np.full(len(new.passages), -1, np.int64)
    for row, passage in enumerate(new.passages):
        if rows := rows_of.get(passage.text):
            found[row] = rows[min(num_taken[passage.text], len(rows) - 1)]
            num_taken[passage.text] += 1
    return found
