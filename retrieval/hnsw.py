"""Hierarchical navigable small worlds (Malkov and Yashunin 2018), by FAISS: few comparisons, many bytes.

FAISS finds candidates; they are scored as everywhere. New passages are inserted into the graph. It cannot lose a node,
so one whose passage is gone stays as a stepping stone that is never found, until such nodes are more than half.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flowserve.errors import StoreError
from flowserve.retrieval.faiss_module import faiss_module
from flowserve.retrieval.protocols import Ids, Query, Ranking, Vectors
from flowserve.retrieval.ranking import rescored
from flowserve.retrieval.snapshot import Snapshot
from flowserve.retrieval.spec import IndexSpec
from flowserve.retrieval.structure import Arrays

FIRST_BUDGET = 16
STEP = 4
"""Each stage of a search may hold so many times the candidates of the stage before: all stages but the last together
cost about a third of it."""


def evolve(spec: IndexSpec, old: Snapshot, new: Snapshot, origins: Ids) -> Arrays:
    """The graph (`levels`, `offsets`, `neighbors`, `entry`), `rows` (nodes,): a node's passage or -1, and `gone`
    (gone nodes, dimension): the vectors of those without one."""
    built = old.structure
    rows = _moved(built["rows"], len(old.passages), origins) if built else np.zeros(0, np.int64)
    if 2 * int((rows < 0).sum()) > len(rows):
        rows, built = np.zeros(0, np.int64), {}
    vectors = _node_vectors(old.vectors, built) if built else np.zeros((0, new.dimension), np.float32)
    index = _graph(spec, vectors, built)
    added = np.setdiff1d(np.arange(len(new.passages), dtype=np.int64), rows)
    if len(added):
        index.add(np.ascontiguousarray(new.vectors[added]))
    faiss, graph = faiss_module(), index.hnsw
    return {
        "levels": faiss.vector_to_array(graph.levels),
        "offsets": faiss.vector_to_array(graph.offsets).astype(np.int64),
        "neighbors": faiss.vector_to_array(graph.neighbors),
        "entry": np.array([graph.entry_point, graph.max_level], np.int64),
        "rows": np.concatenate([rows, added]),
        "gone": vectors[rows < 0],
    }


class HnswIndex:
    """One generation's graph."""

    wants_vector = True

    def __init__(self, spec: IndexSpec, snapshot: Snapshot) -> None:
        self._faiss = faiss_module()
        self._budget = spec.count("ef_search")
        self._vectors = snapshot.vectors
        self._rows: Ids = snapshot.structure["rows"]
        self._index = _graph(spec, _node_vectors(snapshot.vectors, snapshot.structure), snapshot.structure)

    def __repr__(self) -> str:
        return f"HnswIndex({len(self._vectors)} vectors, {len(self._rows)} nodes, ef_search={self._budget})"

    def search(self, queries: Sequence[Query], k: int, rows: Ids | None = None) -> list[Ranking]:
        return self._look(queries, k, rows, self._budget)

    def stages(self, query: Query, k: int, rows: Ids | None = None) -> Iterator[Ranking]:
        """With budgets of 16, 64, ... candidates up to `ef_search`; the last is the whole search."""
        budget = FIRST_BUDGET
        while budget < self._budget:
            yield self._look([query], k, rows, budget)[0]
            budget *= STEP
        yield self._look([query], k, rows, self._budget)[0]

    def _look(self, queries: Sequence[Query], k: int, rows: Ids | None, budget: int) -> list[Ranking]:
        budget = max(budget, k)
        allowed = self._rows >= 0 if rows is None else np.isin(self._rows, rows)
        bitmap = np.packbits(allowed, bitorder="little")  # FAISS keeps a pointer to it, not a copy
        selector = None if allowed.all() else self._faiss.IDSelectorBitmap(bitmap)
        parameters = self._faiss.SearchParametersHNSW(efSearch=budget, sel=selector)
        units = np.stack([query.unit for query in queries])
        _, nodes = self._index.search(units, min(budget, len(self._rows)), params=parameters)
        return [
            rescored(query.unit, self._rows[found[found >= 0]], self._vectors, k)
            for query, found in zip(queries, nodes, strict=True)
        ]


def _moved(rows: Ids, num_old: int, origins: Ids) -> Ids:
    """(nodes,) rows in the new generation; of several passages with one text, the first takes over the node."""
    now = np.full(num_old + 1, -1, np.int64)  # the last is where a node without a passage looks
    known = np.flatnonzero(origins >= 0)[::-1]
    now[origins[known]] = known
    return now[rows]


def _node_vectors(vectors: Vectors, built: Arrays) -> Vectors:
    """(nodes, dimension) vectors of passages and of nodes whose passage is gone."""
    rows = built["rows"]
    nodes = np.empty((len(rows), vectors.shape[1]), np.float32)
    nodes[rows >= 0] = vectors[rows[rows >= 0]]
    nodes[rows < 0] = built["gone"]
    return nodes


def _graph(spec: IndexSpec, vectors: Vectors, built: Arrays) -> Any:
    """FAISS's index over (nodes, dimension) `vectors`, with the links that were built."""
    faiss, m = faiss_module(), spec.count("m")
    index = faiss.IndexHNSWFlat(vectors.shape[1], m, faiss.METRIC_INNER_PRODUCT)
    graph = index.hnsw
    graph.efConstruction = spec.count("ef_construction")
    # FAISS draws a node's level from here. From a fixed seed, nodes that come one by one would all get the same level.
    graph.rng = faiss.RandomGenerator(1 + len(vectors))
    if built:
        _check_links(built, m, len(vectors))
        index.storage.add(vectors)
        index.ntotal = len(vectors)
        faiss.copy_array_to_vector(np.ascontiguousarray(built["levels"]), graph.levels)
        faiss.copy_array_to_vector(built["offsets"].astype(np.uint64), graph.offsets)
        faiss.copy_array_to_vector(np.ascontiguousarray(built["neighbors"]), graph.neighbors)
        graph.entry_point, graph.max_level = (int(value) for value in built["entry"])
    return index


def _check_links(built: Arrays, m: int, num_nodes: int) -> None:
    """FAISS follows links without looking: one that leads nowhere would read foreign memory."""
    levels: NDArray[np.int64] = built["levels"].astype(np.int64)
    sizes = 2 * m + (levels - 1) * m
    entry, highest = (int(value) for value in built["entry"])
    good = (
        len(levels) == num_nodes
        and bool((levels >= 1).all())
        and np.array_equal(built["offsets"], np.concatenate([[0], np.cumsum(sizes)]))
        and len(built["neighbors"]) == int(sizes.sum())
        and bool(((built["neighbors"] >= -1) & (built["neighbors"] < num_nodes)).all())
        and (-1 <= entry < num_nodes)
        and (highest == levels.max(initial=0) - 1)
        and (entry < 0 or levels[entry] == highest + 1)
    )
    if not good:
        raise StoreError(
            "the graph of this index leads out of itself; delete its folder and ingest the documents again"
        )
