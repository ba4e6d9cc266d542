"""An index in memory: one generation, what searches it, and which of its rows a filter leaves."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, reduce

import numpy as np

from flowserve.graphs.types import Doc
from flowserve.retrieval.kinds import searcher
from flowserve.retrieval.protocols import Ids, Query, Ranking, Searcher
from flowserve.retrieval.ranking import NOTHING
from flowserve.retrieval.rerank import Reranker, reranked
from flowserve.retrieval.snapshot import Snapshot

Filter = tuple[tuple[str, str], ...]
"""Metadata that a passage must have, ordered by name; empty for every passage."""


class Opened:
    """Immutable but for what it has worked out already: a commit makes a new one."""

    def __init__(self, signature: bytes, snapshot: Snapshot) -> None:
        self.signature = signature
        self.snapshot = snapshot
        self.searcher: Searcher = searcher(snapshot)

    def rows(self, wanted: Filter) -> Ids | None:
        """Rows of passages with this metadata, ascending; None for all."""
        if not wanted:
            return None
        nowhere = np.zeros(0, np.int64)
        having = [self._rows_having.get(pair, nowhere) for pair in wanted]
        return reduce(lambda one, other: np.intersect1d(one, other, assume_unique=True), having)

    def reranked(self, reranker: Reranker, query: Query, ranking: Ranking, k: int) -> Ranking:
        """The k best of a ranking, as `reranker` sees them."""
        return reranked(reranker, query, ranking, self.snapshot.passages, self.snapshot.vectors, k)

    def docs(self, ranking: Ranking) -> list[Doc]:
        """The passages of a ranking."""
        scores, rows = ranking
        passages = (self.snapshot.passages[row] for row in rows.tolist())
        return [
            Doc(passage.text, passage.id, passage.document, round(score, 6), passage.metadata)
            for passage, score in zip(passages, scores.tolist(), strict=True)
        ]

    @cached_property
    def _rows_having(self) -> Mapping[tuple[str, str], Ids]:
        found: dict[tuple[str, str], list[int]] = {}
        for row, passage in enumerate(self.snapshot.passages):
            for pair in passage.metadata.items():
                found.setdefault(pair, []).append(row)
        return {pair: np.array(rows, np.int64) for pair, rows in found.items()}


@dataclass(frozen=True, slots=True, eq=False)
class Look:
    """One search of one generation."""

    opened: Opened
    query: Query
    k: int
    wanted: Filter

    def stages(self) -> Iterator[Ranking]:
        """As `Searcher.stages`; one stage without hits where there is nothing to find."""
        rows = self.opened.rows(self.wanted)
        if (rows is not None and len(rows) == 0) or not self.opened.snapshot.passages:
            return iter([NOTHING])
        return self.opened.searcher.stages(self.query, self.k, rows)


def look_together(looks: Sequence[Look]) -> list[Ranking]:
    """What each finds; those that ask the same generation for as many under one filter ask it in one call."""
    alike: dict[tuple[int, int, Filter], list[int]] = {}
    for place, look in enumerate(looks):
        alike.setdefault((id(look.opened), look.k, look.wanted), []).append(place)
    found: list[Ranking] = [NOTHING for _ in looks]
    for places in alike.values():
        first = looks[places[0]]
        rows = first.opened.rows(first.wanted)
        if (rows is not None and len(rows) == 0) or not first.opened.snapshot.passages:
            continue
        rankings = first.opened.searcher.search([looks[place].query for place in places], first.k, rows)
        for place, ranking in zip(places, rankings, strict=True):
            found[place] = ranking
    return found
