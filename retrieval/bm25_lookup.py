"""BM25 for generations that look things up: many queries that share most of their words are searched at once.

Scores are those of `bm25`. What a word adds to a passage does not depend on the query, so it is computed once, when the index is
made (as in BM25S, Lu, arXiv 2407.03618); a batch then walks the lists of its words once, each of them for all queries side by side.
Queries of one generation are windows that overlap: eight of them have few more words than one.
"""

from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from flowserve.errors import ConfigError
from flowserve.retrieval.bm25 import words
from flowserve.retrieval.documents import Passage
from flowserve.retrieval.exact import SCORE_DECIMALS
from flowserve.retrieval.lookup import Scores

BLOCK = 1 << 15
"""Passages scored at a time: the scores of a batch of eight stay in a core's cache (2 MiB)."""
SLACK = 2 * 10.0**-SCORE_DECIMALS
"""More than rounding can move two scores past each other."""

WordCounts = Mapping[str, int]


@dataclass(frozen=True, slots=True, eq=False)
class Postings:
    """How often which passage has which word: of word w, `rows` and `times` from starts[w] to starts[w + 1], rows ascending."""

    vocabulary: Mapping[str, int]
    starts: NDArray[np.int64]
    """(words + 1,)"""
    rows: NDArray[np.int32]
    times: NDArray[np.int32]
    lengths: NDArray[np.int64]
    """(passages,) words of each."""


def postings_of(texts: Sequence[str]) -> Postings:
    """Count the words of passages."""
    vocabulary: dict[str, int] = {}
    numbers, rows, times = [], [], []
    lengths = np.zeros(len(texts), np.int64)
    for row, text in enumerate(texts):
        count = Counter(words(text))
        lengths[row] = count.total()
        for word, often in count.items():
            numbers.append(vocabulary.setdefault(word, len(vocabulary)))
            rows.append(row)
            times.append(often)
    number = np.array(numbers, np.int64)
    order = np.argsort(number, kind="stable")
    starts = np.searchsorted(number[order], np.arange(len(vocabulary) + 1))
    return Postings(vocabulary, starts, np.array(rows, np.int32)[order], np.array(times, np.int32)[order], lengths)


class Bm25Batch:
    """Passages by row, searched by word counts. Never changes; any number of threads may search."""

    def __init__(self, postings: Postings, *, k1: float = 1.2, b: float = 0.75) -> None:
        if k1 < 0 or not 0 <= b <= 1:
            raise ConfigError(f"expected k1 >= 0 and b between 0 and 1, got k1={k1} and b={b}")
        lengths, starts = postings.lengths, postings.starts
        average = float(lengths.mean()) if lengths.any() else 1.0
        damping = k1 * (1 - b + b * lengths / average)
        found = np.diff(starts)
        idf = np.log(1 + (len(lengths) - found + 0.5) / (found + 0.5))
        self._weights: NDArray[np.float64] = (
            np.repeat(idf, found) * postings.times * (k1 + 1) / (postings.times + damping[postings.rows])
        )
        self._vocabulary, self._starts, self._rows = postings.vocabulary, starts, postings.rows
        self._num_passages = len(lengths)

    def __repr__(self) -> str:
        return f"Bm25Batch({len(self)} passages, {len(self._vocabulary)} words)"

    def __len__(self) -> int:
        return self._num_passages

    def search(self, queries: Sequence[WordCounts], k: int) -> list[tuple[int, ...]]:
        """At most `k` rows for each, that share a word with it: best first, ties by row."""
        lists = self._lists(queries)
        best = [(np.zeros(0), np.zeros(0, np.int64)) for _ in queries]
        for start in range(0, len(self), BLOCK):
            scores = np.zeros((min(BLOCK, len(self) - start), len(queries)))
            for begin, end, often in lists:
                low, high = begin + np.searchsorted(self._rows[begin:end], (start, start + BLOCK))
                scores[self._rows[low:high] - start] += self._weights[low:high, None] * often
            best = [_merged(*found, scores[:, column], start, k) for column, found in enumerate(best)]
        return [tuple(rows.tolist()) for _, rows in best]

    def score(self, query: WordCounts, rows: Sequence[int]) -> Scores:
        """(rows,) to the last bit as `search` scores them; -inf for 0. rows: ascending."""
        wanted = np.asarray(rows, self._rows.dtype)
        scores = np.zeros(len(wanted))
        for begin, end, often in self._lists([query]):
            places = begin + np.searchsorted(self._rows[begin:end], wanted)
            here = (places < end) & (self._rows[np.minimum(places, end - 1)] == wanted)
            scores[here] += self._weights[places[here]] * often[0]
        return np.where(scores > 0, np.round(scores, SCORE_DECIMALS), -np.inf)

    def _lists(self, queries: Sequence[WordCounts]) -> list[tuple[int, int, NDArray[np.float64]]]:
        """(begin, end, (queries,) times in each) of their words, in the order of the words: sums must not depend on the batch."""
        known = sorted({word for query in queries for word in query if word in self._vocabulary})
        numbers = [self._vocabulary[word] for word in known]
        return [
            (
                int(self._starts[number]),
                int(self._starts[number + 1]),
                np.array([float(q.get(word, 0)) for q in queries]),
            )
            for word, number in zip(known, numbers, strict=True)
        ]


def _merged(
    scores: Scores, rows: NDArray[np.int64], more: Scores, start: int, k: int
) -> tuple[Scores, NDArray[np.int64]]:
    """The k best so far, and of the block of passages from `start` on: rounded scores and rows, ties by row."""
    floor = max(0.0, float(np.partition(more, -k)[-k]) - SLACK) if len(more) > k else 0.0
    hits = np.flatnonzero((more > 0) & (more >= floor))
    scores = np.concatenate([scores, np.round(more[hits], SCORE_DECIMALS)])
    rows = np.concatenate([rows, hits + start])
    order = np.lexsort((rows, -scores))[:k]
    return scores[order], rows[order]


class Bm25Lookup:
    """A Lookup by words."""

    def __init__(
        self,
        index: Bm25Batch,
        passage: Callable[[int], Passage],
        run: Callable[[Callable[[], list[tuple[int, ...]]]], Awaitable[list[tuple[int, ...]]]],
    ) -> None:
        """`run` calls a function off the event loop."""
        self._index, self._passage, self._run = index, passage, run

    async def read(self, text: str) -> WordCounts:
        return Counter(words(text))

    async def search(self, queries: Sequence[WordCounts], k: int) -> list[tuple[int, ...]]:
        return await self._run(lambda: self._index.search(queries, k))

    def score(self, query: WordCounts, rows: Sequence[int]) -> Scores:
        return self._index.score(query, rows)

    def passage(self, row: int) -> Passage:
        return self._passage(row)
