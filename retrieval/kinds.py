"""The kinds of index: what each builds when passages change, and how it searches. The names are `spec`'s."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from flowserve.retrieval import bm25, hnsw, ivf, pq
from flowserve.retrieval.flat import FlatIndex
from flowserve.retrieval.hybrid import HybridIndex
from flowserve.retrieval.protocols import Ids, Query, Ranking, Searcher, Vectors
from flowserve.retrieval.ranking import scan
from flowserve.retrieval.snapshot import Snapshot, empty, origins

FEW_ROWS = 4096
"""So many vectors are looked at one by one rather than through a structure that has to pass over all others."""

_EVOLVE = {"ivf": ivf.evolve, "hnsw": hnsw.evolve, "pq": pq.evolve, "bm25": bm25.evolve, "hybrid": bm25.evolve}


def evolved(old: Snapshot, new: Snapshot) -> Snapshot:
    """`new` with its structure, which is made from that of `old` as far as that is of its kind.

    What is there stays and what is new is added, so that a small change is small work. Raises InputError, ConfigError (no faiss).
    """
    evolve = _EVOLVE.get(new.spec.kind)
    if evolve is None:
        return replace(new, structure={})
    if not new.spec.builds_like(old.spec):
        old = empty(old.embedder, old.dimension, new.spec)
    return replace(new, structure=evolve(new.spec, old, new, origins(old, new)))


def searcher(snapshot: Snapshot) -> Searcher:
    """What searches `snapshot`. Raises ConfigError where its kind needs FAISS and that is not installed."""
    spec = snapshot.spec
    match spec.kind:
        case "exact":
            return FlatIndex(snapshot)
        case "ivf":
            return Selecting(ivf.IvfIndex(spec, snapshot), snapshot.vectors)
        case "hnsw":
            return Selecting(hnsw.HnswIndex(spec, snapshot), snapshot.vectors)
        case "pq":
            return Selecting(pq.PqIndex(spec, snapshot), snapshot.vectors)
        case "bm25":
            return bm25.Bm25Index(spec, snapshot.structure)
        case "hybrid":
            return HybridIndex(spec, FlatIndex(snapshot), bm25.Bm25Index(spec, snapshot.structure))
    raise AssertionError(spec)


@dataclass(frozen=True)
class Selecting:
    """An approximate searcher that, where few rows may be found, looks at those instead: exact and quicker."""

    inner: Searcher
    vectors: Vectors
    wants_vector: bool = True

    def search(self, queries: Sequence[Query], k: int, rows: Ids | None = None) -> list[Ranking]:
        if rows is None or len(rows) > FEW_ROWS:
            return self.inner.search(queries, k, rows)
        return scan(np.stack([query.unit for query in queries]), rows, self.vectors, k)

    def stages(self, query: Query, k: int, rows: Ids | None = None) -> Iterator[Ranking]:
        if rows is None or len(rows) > FEW_ROWS:
            return self.inner.stages(query, k, rows)
        return iter(self.search([query], k, rows))
