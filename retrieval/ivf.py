"""Inverted lists in numpy: a query looks only into the clusters nearest to it, a few at a time if wanted.

Approximate unless `nprobe` reaches the number of clusters; then it gives what `exact` gives. A vector's score never
depends on its cluster, so stages merge to what one look into the same clusters finds. Not yet behind the service.
"""

from collections.abc import Iterator

import numpy as np

from flowserve.errors import ConfigError
from flowserve.retrieval.exact import best, check_new, rounded_scores
from flowserve.retrieval.protocols import Ids, Vectors

ROUNDS = 10
"""Of Lloyd's algorithm; ours stops earlier when nothing moves."""


class IvfIndex:
    """Vectors by nearest centroid. The centroids are learned from the first vectors added, and then stay."""

    def __init__(self, dimension: int, *, num_clusters: int, nprobe: int, seed: int = 0) -> None:
        if num_clusters < 1 or nprobe < 1:
            raise ConfigError(f"expected num_clusters and nprobe of at least 1, got {num_clusters} and {nprobe}")
        self._num_clusters, self._nprobe, self._seed = num_clusters, nprobe, seed
        self._ids: Ids = np.zeros(0, np.int64)
        self._vectors: Vectors = np.zeros((0, dimension), np.float32)
        self._clusters: Ids = np.zeros(0, np.int64)
        self._centroids: Vectors = np.zeros((0, dimension), np.float32)

    def __repr__(self) -> str:
        return f"IvfIndex({len(self)} vectors in {len(self._centroids)} clusters, nprobe={self._nprobe})"

    def __len__(self) -> int:
        return len(self._ids)

    def add(self, ids: Ids, vectors: Vectors) -> None:
        check_new(ids, vectors, self._ids, self._vectors.shape[1])
        if len(vectors) == 0:
            return
        if len(self._centroids) == 0:
            self._centroids = learn(vectors, self._num_clusters, self._seed)
        self._ids = np.concatenate([self._ids, ids])
        self._vectors = np.concatenate([self._vectors, vectors])
        self._clusters = np.concatenate([self._clusters, nearest(vectors, self._centroids)])

    def remove(self, ids: Ids) -> int:
        keep = ~np.isin(self._ids, ids)
        self._ids, self._vectors, self._clusters = self._ids[keep], self._vectors[keep], self._clusters[keep]
        return int(len(keep) - keep.sum())

    def search(self, queries: Vectors, k: int) -> tuple[Vectors, Ids]:
        """As VectorIndex, but a row whose clusters hold fewer than k ends in id -1 and score -inf."""
        k = min(k, len(self))
        scores = np.full((len(queries), k), -np.inf, np.float32)
        ids = np.full((len(queries), k), -1, np.int64)
        for row, query in enumerate(queries):
            found, found_ids = self._look(query, self._probes(query), k)
            scores[row, : len(found)], ids[row, : len(found)] = found, found_ids
        return scores, ids

    def stages(self, query: Vectors, k: int, clusters_per_stage: int) -> Iterator[tuple[Vectors, Ids]]:
        """The top k so far, both (hits,), after each group of clusters; the last is what `search` finds.

        query: (dimension,). Nothing is computed ahead of the caller; the index must not change meanwhile.
        """
        if clusters_per_stage < 1:
            raise ConfigError(f"expected clusters_per_stage of at least 1, got {clusters_per_stage}")
        probes = self._probes(query)
        scores, ids = np.zeros(0, np.float32), np.zeros(0, np.int64)
        for start in range(0, len(probes), clusters_per_stage):
            more, more_ids = self._look(query, probes[start : start + clusters_per_stage], k)
            merged = np.concatenate([scores, more]).astype(np.float64)
            top, top_ids = best(merged[None], np.concatenate([ids, more_ids])[None], k)
            scores, ids = top[0], top_ids[0]
            yield scores, ids

    def _probes(self, query: Vectors) -> Ids:
        """The clusters to look into, nearest first."""
        similar = rounded_scores(query[None], self._centroids)
        clusters = np.arange(len(self._centroids), dtype=np.int64)
        chosen: Ids = best(similar, clusters[None], self._nprobe)[1][0]
        return chosen

    def _look(self, query: Vectors, clusters: Ids, k: int) -> tuple[Vectors, Ids]:
        rows = np.flatnonzero(np.isin(self._clusters, clusters))
        scores, ids = best(rounded_scores(query[None], self._vectors[rows]), self._ids[rows][None], k)
        return scores[0], ids[0]


def learn(vectors: Vectors, num_clusters: int, seed: int) -> Vectors:
    """(clusters, dimension) centroids of unit length by spherical k-means; at most one per vector."""
    chosen = np.random.default_rng(seed).permutation(len(vectors))[:num_clusters]
    centroids = vectors[np.sort(chosen)].copy()
    for _ in range(ROUNDS):
        sums = np.zeros_like(centroids)
        np.add.at(sums, nearest(vectors, centroids), vectors)
        lengths = np.linalg.norm(sums, axis=1, keepdims=True)
        moved = np.where(lengths > 0, sums / np.maximum(lengths, 1e-12), centroids)  # an empty cluster stays
        if np.array_equal(moved, centroids):
            break
        centroids = moved.astype(np.float32)
    return centroids


def nearest(vectors: Vectors, centroids: Vectors) -> Ids:
    """(vectors,) the most similar centroid of each, the lower one of equals."""
    clusters: Ids = np.argmax(vectors @ centroids.T, axis=1).astype(np.int64)
    return clusters
