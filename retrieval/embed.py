"""The hashing embedder: words and character n-grams to signed buckets. No model, no torch, the same in every process.

It finds passages that share words or word stems with the query, which is enough for tests and tiny corpora. It knows
nothing of meaning; `minilm` does. Feature hashing as in Weinberger et al. 2009 (arXiv 0902.2206), section 2.
"""

import re
from collections.abc import Sequence
from functools import lru_cache
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from flowserve.errors import ConfigError
from flowserve.ids import Tokens
from flowserve.retrieval.protocols import Vectors

WORD = re.compile(r"\w+")
TOKEN = re.compile(r"\w+|[^\w\s]")
NGRAMS = (3, 4)
NGRAM_WEIGHT = 0.3
"""Of one n-gram against its whole word."""
FULL_WEIGHT_LENGTH = 8
"""Shorter words weigh less, in proportion: a stand-in for rarity that needs no statistics of the corpus."""


class HashEmbedder:
    """Deterministic embedder without a model. Thread-safe: it has no state."""

    def __init__(self, dimension: int = 512) -> None:
        if not 8 <= dimension <= 65536:
            raise ConfigError(f"a hashing embedder's dimension must be between 8 and 65536, got {dimension}")
        self._dimension = dimension

    def __repr__(self) -> str:
        return f"HashEmbedder({self._dimension})"

    @property
    def name(self) -> str:
        return f"hash-{self._dimension}"

    @property
    def dimension(self) -> int:
        return self._dimension

    def embed(self, texts: Sequence[str]) -> Vectors:
        vectors = np.zeros((len(texts), self._dimension), np.float32)
        for row, text in zip(vectors, texts, strict=True):
            row[:] = self._embed_one(text)
        return vectors

    def count_tokens(self, text: str) -> Tokens:
        return len(TOKEN.findall(text))

    def _embed_one(self, text: str) -> NDArray[np.float64]:
        total = np.zeros(self._dimension)
        for word in WORD.findall(text.lower()):
            buckets, weights = _features(word, self._dimension)
            np.add.at(total, buckets, weights)
        length = float(np.linalg.norm(total))
        if length == 0.0:  # no words, or (in theory) all cancelled: any fixed unit vector
            total[0] = length = 1.0
        return total / length


@lru_cache(maxsize=1 << 16)
def _features(word: str, dimension: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Buckets and signed weights of a word and of its n-grams."""
    marked = f"<{word}>"
    grams = [marked[i : i + n] for n in NGRAMS for i in range(len(marked) - n + 1)]
    # An n-gram never equals a word's own feature, which is tagged: "<a>" is a trigram as well.
    hashes = np.array([crc32(f"w{word}".encode())] + [crc32(gram.encode()) for gram in grams], np.int64)
    weight = min(len(word), FULL_WEIGHT_LENGTH) / FULL_WEIGHT_LENGTH
    weights = np.full(len(hashes), weight * NGRAM_WEIGHT)
    weights[0] = weight
    return (hashes >> 1) % dimension, np.where(hashes & 1, weights, -weights)
