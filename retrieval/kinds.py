"""The kinds of index: what each builds when passages change, and how it searches. The names are `spec`'s."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec

from flowserve.retrieval import bm25, hnsw, ivf, pq
from flowserve.retrieval.exact import ExactIndex
from flowserve.retrieval.faiss_index import FaissIndex
from flowserve.retrieval.flat import FlatIndex, MakeIndex
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


def searcher(snapshot: Snapshot, make: MakeIndex | None = None) -> Searcher:
    """What searches `snapshot`. `make`: the flat index of exact kinds; None: FAISS where it is installed."""
    spec, make = snapshot.spec, make or default_index()
    match spec.kind:
        case "exact":
            return FlatIndex(snapshot, make)
        case "ivf":
            return Selecting(ivf.IvfIndex(spec, snapshot), snapshot.vectors)
        case "hnsw":
            return Selecting(hnsw.HnswIndex(spec, snapshot), snapshot.vectors)
        case "pq":
            return Selecting(pq.PqIndex(spec, snapshot), snapshot.vectors)
        case "bm25":
            return bm25.Bm25Index(spec, snapshot.structure)
        case "hybrid":
            return HybridIndex(spec, FlatIndex(snapshot, make), bm25.Bm25Index(spec, snapshot.structure))
    raise AssertionError(spec)


def default_index() -> MakeIndex:
    """FAISS where it is installed; the numpy index gives the same answers, slower."""
    return FaissIndex if find_spec("faiss") is not None else ExactIndex


@dataclass(frozen=True)
class Selecting:
    """An approximate searcher that, where few rows may be found, looks at those instead: exact and quicker."""

    inner: Searcher
    vectors: Vectors
    wants_vector: bool = True

    def search(self, queries: Sequence[Query], k: int, rows: Ids | None = None) -> list[Ranking]:
        if rows is None or len(rows) > FEW_ROWS:
            return self.inner.search(queries, k, rows)
        return [scan(query.unit, rows, self.vectors, k) for query in queries]

    def stages(self, query: Query, k: int, rows: Ids | None = None) -> Iterator[Ranking]:
        if rows is None or len(rows) > FEW_ROWS:
            return self.inner.stages(query, k, rows)
        return iter([scan(query.unit, rows, self.vectors, k)])
