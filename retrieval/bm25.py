"""BM25 (Robertson and Zaragoza 2009) over passages, exact, in blocks if wanted.

score = sum over the query's words of idf * f * (k1 + 1) / (f + k1 * (1 - b + b * length / average length)), with Lucene's
idf = ln(1 + (N - n + 0.5) / (n + 0.5)), which is never negative. A filter hides passages; N, n and lengths stay those of
the whole index, so a passage's score does not depend on the filter.
"""

import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from flowserve.retrieval.exact import MARGIN, SCORE_DECIMALS, best
from flowserve.retrieval.protocols import Ids, Query, Ranking
from flowserve.retrieval.ranking import NOTHING, blocks, merge
from flowserve.retrieval.snapshot import Snapshot
from flowserve.retrieval.spec import IndexSpec
from flowserve.retrieval.structure import Arrays

WORD = re.compile(r"\w+")
FLOAT32_SHARE = 1e-6
"""More than a score loses by being told in float32, as a share of it."""


def evolve(spec: IndexSpec, old: Snapshot, new: Snapshot, origins: Ids) -> Arrays:
    """How often each passage has each word: a function of the texts alone. Only texts that are new are read.

    `vocabulary` (bytes,) sorted words in UTF-8, one a line; `starts` (passages + 1,); from starts[row] to starts[row + 1]
    `words`, ascending numbers in the vocabulary, and `times`.
    """
    vocabulary = vocabulary_of(old.structure) if old.structure else []
    number_of = {word: number for number, word in enumerate(vocabulary)}
    kept = np.flatnonzero(origins >= 0)
    entries = [np.zeros((3, 0), np.int64)]  # of passage, word, times
    if old.structure:
        lengths, places = _ranges(old.structure["starts"], origins[kept])
        numbers, times = old.structure["words"][places], old.structure["times"][places]
        entries.append(np.stack([np.repeat(kept, lengths), numbers, times]))
    for row in np.setdiff1d(np.arange(len(new.passages)), kept).tolist():
        count = Counter(words(new.passages[row].text))
        numbered = [number_of.setdefault(word, len(number_of)) for word in count]
        entries.append(np.array([[row] * len(count), numbered, list(count.values())], np.int64))
    return _sorted(list(number_of), np.concatenate(entries, axis=1), len(new.passages))


class Bm25Index:
    """One generation's words, inverted."""

    wants_vector = False

    def __init__(self, spec: IndexSpec, arrays: Arrays) -> None:
        self._k1 = spec["k1"]
        starts, numbers, times = arrays["starts"], arrays["words"], arrays["times"].astype(np.float64)
        rows = np.repeat(np.arange(len(starts) - 1, dtype=np.int64), np.diff(starts))
        lengths = np.bincount(rows, times, len(starts) - 1).astype(np.float64)
        average = float(lengths.mean()) if lengths.any() else 1.0
        self._damping: NDArray[np.float64] = self._k1 * (1 - spec["b"] + spec["b"] * lengths / average)
        self._number_of = {word: number for number, word in enumerate(vocabulary_of(arrays))}
        order = np.argsort(numbers, kind="stable")
        self._rows, self._times = rows[order], times[order]
        self._starts = np.searchsorted(numbers[order], np.arange(len(self._number_of) + 1))

    def __repr__(self) -> str:
        return f"Bm25Index({len(self)} texts, {len(self._number_of)} words)"

    def __len__(self) -> int:
        return len(self._damping)

    def search(self, queries: Sequence[Query], k: int, rows: Ids | None = None) -> list[Ranking]:
        """Only texts that share a word with the query."""
        return [self._top(query.text, 0, len(self), k, rows) for query in queries]

    def stages(self, query: Query, k: int, rows: Ids | None = None) -> Iterator[Ranking]:
        """After each of a few blocks of texts."""
        ranking = NOTHING
        for start, stop in blocks(len(self)):
            ranking = merge(ranking, self._top(query.text, start, stop, k, rows), k)
            yield ranking

    def _top(self, query: str, start: int, stop: int, k: int, allowed: Ids | None) -> Ranking:
        scores = self._scores(query, start, stop)
        hits = np.flatnonzero(scores > 0)
        if allowed is not None:
            hits = hits[np.isin(hits + start, allowed)]
        if len(hits) > k:  # sorting all that share a common word would take longer than scoring them
            floor = np.partition(scores[hits], len(hits) - k)[len(hits) - k]
            hits = hits[scores[hits] >= floor * (1 - FLOAT32_SHARE) - MARGIN]
        rounded = np.round(scores[hits], SCORE_DECIMALS).astype(np.float32).astype(np.float64)
        top, rows = best(rounded[None], (hits + start)[None], k)
        return top[0], rows[0]

    def _scores(self, query: str, start: int, stop: int) -> NDArray[np.float64]:
        """(stop - start,) unrounded scores of these rows; words in order, so that every block sums alike."""
        scores = np.zeros(stop - start, np.float64)
        for word, weight in sorted(Counter(words(query)).items()):
            number = self._number_of.get(word)
            if number is None:
                continue
            begin, end = self._starts[number], self._starts[number + 1]
            idf = math.log(1 + (len(self) - (end - begin) + 0.5) / (end - begin + 0.5))
            low, high = begin + np.searchsorted(self._rows[begin:end], (start, stop))
            rows, times = self._rows[low:high], self._times[low:high]
            scores[rows - start] += weight * idf * times * (self._k1 + 1) / (times + self._damping[rows])
        return scores


def words(text: str) -> list[str]:
    """Runs of letters and digits, case folded."""
    return WORD.findall(text.casefold())


def vocabulary_of(arrays: Arrays) -> list[str]:
    """The words by number."""
    return arrays["vocabulary"].tobytes().decode("utf-8", "surrogatepass").splitlines()


def _ranges(starts: NDArray[np.int64], rows: Ids) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(rows,) how many entries each row has, and the places of them all."""
    lengths = starts[rows + 1] - starts[rows]
    shifts = starts[rows] - (np.cumsum(lengths) - lengths)
    return lengths, np.repeat(shifts, lengths) + np.arange(lengths.sum())


def _sorted(vocabulary: Sequence[str], entries: NDArray[np.int64], num_rows: int) -> Arrays:
    """Entries in order of row and word, without words that no passage has any more."""
    rows, numbers, times = entries
    used: list[int] = np.unique(numbers).tolist()
    in_order = sorted(used, key=lambda number: vocabulary[number])
    renumbered = np.zeros(len(vocabulary), np.int64)
    renumbered[in_order] = np.arange(len(in_order))
    numbers = renumbered[numbers]
    order = np.lexsort((numbers, rows))
    text = "\n".join(vocabulary[number] for number in in_order)
    return {
        "vocabulary": np.frombuffer(text.encode("utf-8", "surrogatepass"), np.uint8),
        "starts": np.searchsorted(rows[order], np.arange(num_rows + 1)).astype(np.int64),
        "words": numbers[order].astype(np.int32),
        "times": times[order].astype(np.int32),
    }
