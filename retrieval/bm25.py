"""BM25 (Robertson and Zaragoza 2009) over passages, exact, in blocks if wanted.

score = sum over the query's words of idf * f * (k1 + 1) / (f + k1 * (1 - b + b * length / average length)), with Lucene's
idf = ln(1 + (N - n + 0.5) / (n + 0.5)), which is never negative. Not yet behind the service.
"""

import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from flowserve.errors import ConfigError
from flowserve.retrieval.exact import SCORE_DECIMALS, best
from flowserve.retrieval.protocols import Ids, Vectors

WORD = re.compile(r"\w+")


class Bm25Index:
    """Texts by row; built once, never changed, so any number of readers may search at once."""

    def __init__(self, texts: Sequence[str], *, k1: float = 1.2, b: float = 0.75) -> None:
        if k1 < 0 or not 0 <= b <= 1:
            raise ConfigError(f"expected k1 >= 0 and b between 0 and 1, got k1={k1} and b={b}")
        counts = [Counter(words(text)) for text in texts]
        lengths = np.array([count.total() for count in counts], np.float64)
        average = float(lengths.mean()) if lengths.any() else 1.0
        self._damping: NDArray[np.float64] = k1 * (1 - b + b * lengths / average)
        self._k1 = k1
        postings: dict[str, list[tuple[int, int]]] = defaultdict(list)
        for row, count in enumerate(counts):
            for word, times in count.items():
                postings[word].append((row, times))
        self._postings = {word: np.array(found, np.int64) for word, found in postings.items()}

    def __repr__(self) -> str:
        return f"Bm25Index({len(self)} texts, {len(self._postings)} words)"

    def __len__(self) -> int:
        return len(self._damping)

    def search(self, query: str, k: int) -> tuple[Vectors, Ids]:
        """Scores and rows, both (hits,): at most k texts that share a word with `query`, best first, ties by row."""
        return self._top(self._scores(query, 0, len(self)), 0, k)

    def stages(self, query: str, k: int, block: int) -> Iterator[tuple[Vectors, Ids]]:
        """The top k so far after each `block` texts; the last is what `search` finds. No texts: no stage."""
        if block < 1:
            raise ConfigError(f"expected a block of at least 1 text, got {block}")
        scores, rows = np.zeros(0, np.float32), np.zeros(0, np.int64)
        for start in range(0, len(self), block):
            more, more_rows = self._top(self._scores(query, start, min(start + block, len(self))), start, k)
            merged = np.concatenate([scores, more]).astype(np.float64)
            top, top_rows = best(merged[None], np.concatenate([rows, more_rows])[None], k)
            scores, rows = top[0], top_rows[0]
            yield scores, rows

    def _scores(self, query: str, start: int, stop: int) -> NDArray[np.float64]:
        """(stop - start,) unrounded scores of these rows; words in order, so that every block sums alike."""
        scores = np.zeros(stop - start, np.float64)
        for word, weight in sorted(Counter(words(query)).items()):
            found = self._postings.get(word)
            if found is None:
                continue
            idf = math.log(1 + (len(self) - len(found) + 0.5) / (len(found) + 0.5))
            low, high = np.searchsorted(found[:, 0], (start, stop))
            rows, times = found[low:high].T
            scores[rows - start] += weight * idf * times * (self._k1 + 1) / (times + self._damping[rows])
        return scores

    @staticmethod
    def _top(scores: NDArray[np.float64], start: int, k: int) -> tuple[Vectors, Ids]:
        hits = np.flatnonzero(scores > 0)
        top, rows = best(
            np.round(scores[hits], SCORE_DECIMALS).astype(np.float32).astype(np.float64)[None], (hits + start)[None], k
        )
        return top[0], rows[0]


def words(text: str) -> list[str]:
    """Runs of letters and digits, case folded."""
    return WORD.findall(text.casefold())
