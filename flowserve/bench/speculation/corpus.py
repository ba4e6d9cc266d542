"""A synthetic corpus with topics, as large as wanted: passages of words, their vectors, their postings.

The vectors are those that `HashEmbedder` gives the texts, made without making the texts: what a text gets is a sum over its words.
Passages of a topic share words, so their vectors lie in a cluster as those of real corpora do. What is not like a real corpus: there
are few different words, and neighbouring queries are alike only because their texts overlap.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from flowserve.bench.random_model import WORDS
from flowserve.retrieval.bm25_lookup import Postings
from flowserve.retrieval.documents import Passage
from flowserve.retrieval.embed import HashEmbedder
from flowserve.retrieval.protocols import Vectors

DIMENSION = 384
LENGTH = 48
"""Words of a passage."""
PER_TOPIC = 500
"""Passages of a topic, on average."""
TOPIC_WORDS = 16
"""Words that a topic likes."""
LIKING = 0.6
"""Share of a passage's words that are its topic's."""
CHUNK = 1 << 14


@dataclass(frozen=True, slots=True, eq=False)
class Corpus:
    """Passages by row. words: (passages, LENGTH) numbers in WORDS."""

    words: NDArray[np.uint16]

    def __len__(self) -> int:
        return len(self.words)

    def text(self, row: int) -> str:
        return " ".join(WORDS[number] for number in self.words[row])

    def passage(self, row: int) -> Passage:
        text = self.text(row)
        return Passage(f"p{row}#0", f"p{row}", text, 0, len(text))


def make(num_passages: int, seed: int) -> Corpus:
    """Topics by chance, passages by topic."""
    chance = np.random.default_rng(seed)
    topics = chance.integers(0, len(WORDS), (max(1, num_passages // PER_TOPIC), TOPIC_WORDS)).astype(np.uint16)
    words = chance.integers(0, len(WORDS), (num_passages, LENGTH), dtype=np.uint16)
    topic = chance.integers(0, len(topics), num_passages)
    liked = chance.random((num_passages, LENGTH), np.float32) < LIKING
    place = chance.integers(0, TOPIC_WORDS, (num_passages, LENGTH), dtype=np.uint8)
    for start in range(0, num_passages, CHUNK):
        part = slice(start, start + CHUNK)
        words[part] = np.where(liked[part], topics[topic[part, None], place[part]], words[part])
    return Corpus(words)


def embedder() -> HashEmbedder:
    """Of passages and queries."""
    return HashEmbedder(DIMENSION)


def vectors_of(corpus: Corpus) -> Vectors:
    """(passages, DIMENSION), unit rows: what `embedder` gives the texts, but for the last bits."""
    features = _features(embedder(), WORDS)
    vectors = np.empty((len(corpus), DIMENSION), np.float32)
    for start in range(0, len(corpus), CHUNK):
        words = corpus.words[start : start + CHUNK].astype(np.int64)
        flat = (np.arange(len(words))[:, None] * len(WORDS) + words).ravel()
        counts = np.bincount(flat, minlength=len(words) * len(WORDS)).reshape(len(words), -1)
        sums = counts.astype(np.float32) @ features
        vectors[start : start + CHUNK] = sums / np.linalg.norm(sums, axis=1, keepdims=True)
    return vectors


def _features(by: HashEmbedder, words: Sequence[str]) -> Vectors:
    """(words, DIMENSION) what each word adds to a text, up to one factor: from pairs, as a word alone comes at unit length."""
    alone = by.embed(words).astype(np.float64)
    first, sums = alone[0], by.embed([f"{words[0]} {word}" for word in words]).astype(np.float64)
    scaled = np.zeros_like(alone)
    for row, (own, pair) in enumerate(zip(alone, sums, strict=True)):
        weights, *_ = np.linalg.lstsq(np.stack([first, own], axis=1), pair, rcond=None)
        scaled[row] = own * (weights[1] / weights[0] if row else 1.0)
    return scaled.astype(np.float32)


def postings_of(corpus: Corpus) -> Postings:
    """Of the texts, word by word so that memory stays small."""
    size = len(corpus) * LENGTH
    order = np.argsort(corpus.words.ravel(), kind="stable").astype(np.int64)
    ends = np.searchsorted(corpus.words.ravel()[order], np.arange(len(WORDS) + 1))
    rows, times, starts = [], [], [0]
    for number in range(len(WORDS)):
        found, often = np.unique(order[ends[number] : ends[number + 1]] // LENGTH, return_counts=True)
        rows.append(found.astype(np.int32))
        times.append(often.astype(np.int32))
        starts.append(starts[-1] + len(found))
    assert sum(int(often.sum()) for often in times) == size
    numbers = {word: number for number, word in enumerate(WORDS)}
    lengths = np.full(len(corpus), LENGTH, np.int64)
    return Postings(numbers, np.array(starts), np.concatenate(rows), np.concatenate(times), lengths)
