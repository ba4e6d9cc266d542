"""Inverted lists: a query looks only into the clusters nearest to it, a few at a time if wanted.

Approximate unless `nprobe` reaches the number of clusters; then it gives what `exact` gives. A vector's score never
depends on its cluster, so stages merge to what one look into the same clusters finds.
"""

from collections.abc import Iterator, Sequence

import numpy as np

from flowserve.retrieval.protocols import Ids, Query, Ranking, Vectors
from flowserve.retrieval.ranking import NOTHING, dots, merge, top
from flowserve.retrieval.snapshot import Snapshot
from flowserve.retrieval.spec import IndexSpec
from flowserve.retrieval.structure import Arrays

ROUNDS = 10
"""Of Lloyd's algorithm; ours stops earlier when nothing moves."""
SAMPLE = 64
"""Vectors per cluster that centroids are learned from, at most; FAISS takes up to 256 and warns below 39."""
GROWTH = 2
"""Centroids are learned anew when there are so many times the vectors they were learned from."""
CHUNK = 1 << 14
"""Vectors that are compared with all centroids at once: bounds the memory of building."""


def evolve(spec: IndexSpec, old: Snapshot, new: Snapshot, origins: Ids) -> Arrays:
    """`centroids` (clusters, dimension), `clusters` (passages,) and `learned_from`, a count.

    A passage that was there keeps its cluster, a new one joins the nearest: nothing is learned until there are GROWTH
    times as many passages, so all learning together costs a bounded share of what was ever added.
    """
    vectors, built = new.vectors, old.structure
    if not built or len(vectors) > GROWTH * int(built["learned_from"][0]):
        wanted = spec.count("clusters") or round(4 * len(vectors) ** 0.5)
        centroids = learn(vectors, wanted, seed=0)
        clusters, learned_from = nearest(vectors, centroids), len(vectors)
    else:
        centroids, learned_from = built["centroids"], int(built["learned_from"][0])
        clusters = np.full(len(vectors), -1, np.int64)
        known = origins >= 0
        clusters[known] = built["clusters"][origins[known]]
        clusters[~known] = nearest(vectors[~known], centroids)
    return {
        "centroids": centroids,
        "clusters": clusters.astype(np.int32),
        "learned_from": np.array([learned_from], np.int64),
    }


class IvfIndex:
    """One generation's vectors, those of a cluster side by side."""

    wants_vector = True

    def __init__(self, spec: IndexSpec, snapshot: Snapshot) -> None:
        self._nprobe = spec.count("nprobe")
        self._vectors = snapshot.vectors
        self._centroids: Vectors = snapshot.structure["centroids"]
        clusters = snapshot.structure["clusters"]
        self._rows = np.argsort(clusters, kind="stable").astype(np.int64)
        self._starts = np.searchsorted(clusters[self._rows], np.arange(len(self._centroids) + 1))
        self._lists: Vectors = self._vectors[self._rows]

    def __repr__(self) -> str:
        return f"IvfIndex({len(self._rows)} vectors in {len(self._centroids)} clusters, nprobe={self._nprobe})"

    def search(self, queries: Sequence[Query], k: int, rows: Ids | None = None) -> list[Ranking]:
        allowed = self._mask(rows)
        return [self._look(query.unit, self._probes(query.unit), k, allowed) for query in queries]

    def stages(self, query: Query, k: int, rows: Ids | None = None) -> Iterator[Ranking]:
        """After 1, 2, 4, ... of the clusters: the nearest ones tell most, so they come alone."""
        allowed, probes = self._mask(rows), self._probes(query.unit)
        ranking, done = NOTHING, 0
        while done < len(probes):
            group = probes[done : max(1, 2 * done)]
            ranking = merge(ranking, self._look(query.unit, group, k, allowed), k)
            done += len(group)
            yield ranking

    def _mask(self, rows: Ids | None) -> "np.ndarray[tuple[int], np.dtype[np.bool_]] | None":
        if rows is None:
            return None
        allowed = np.zeros(len(self._rows), np.bool_)
        allowed[rows] = True
        return allowed

    def _probes(self, query: Vectors) -> Ids:
        """The clusters to look into, nearest first."""
        clusters = np.arange(len(self._centroids), dtype=np.int64)
        return top(query, dots(self._centroids, query), clusters, self._centroids, self._nprobe)[1]

    def _look(
        self, query: Vectors, clusters: Ids, k: int, allowed: "np.ndarray[tuple[int], np.dtype[np.bool_]] | None"
    ) -> Ranking:
        bounds = [(self._starts[cluster], self._starts[cluster + 1]) for cluster in clusters.tolist()]
        near = np.concatenate([dots(self._lists[start:stop], query) for start, stop in bounds])
        rows = np.concatenate([self._rows[start:stop] for start, stop in bounds])
        if allowed is not None:
            near, rows = near[allowed[rows]], rows[allowed[rows]]
        return top(query, near, rows, self._vectors, k)


def learn(vectors: Vectors, num_clusters: int, seed: int) -> Vectors:
    """(clusters, dimension) centroids of unit length by spherical k-means; at most one per vector."""
    shuffled = np.random.default_rng(seed).permutation(len(vectors))
    sample = vectors[np.sort(shuffled[: SAMPLE * num_clusters])]
    centroids: Vectors = vectors[np.sort(shuffled[:num_clusters])].copy()
    for _ in range(ROUNDS if len(centroids) else 0):
        clusters = nearest(sample, centroids)
        order = np.argsort(clusters, kind="stable")
        filled, starts = np.unique(clusters[order], return_index=True)
        moved = centroids.copy()  # an empty cluster stays
        moved[filled] = np.add.reduceat(sample[order], starts, axis=0)
        lengths = np.linalg.norm(moved, axis=1, keepdims=True)
        moved = np.where(lengths > 0, moved / np.maximum(lengths, 1e-12), centroids).astype(np.float32)
        if np.array_equal(moved, centroids):
            break
        centroids = moved
    return centroids


def nearest(vectors: Vectors, centroids: Vectors) -> Ids:
    """(vectors,) the most similar centroid of each, the lower one of equals."""
    clusters = np.zeros(len(vectors), np.int64)
    for start in range(0, len(vectors), CHUNK):
        clusters[start : start + CHUNK] = np.argmax(vectors[start : start + CHUNK] @ centroids.T, axis=1)
    return clusters
