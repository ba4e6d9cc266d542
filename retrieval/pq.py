"""Product quantisation (Jegou, Douze and Schmid 2011), by FAISS: all passages are compared, each by a few bytes.

The codes find `refine` candidates for each hit; those are scored by their vectors, as everywhere. With fewer passages
than codebooks need to be learned, every vector is looked at.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from flowserve.errors import InputError
from flowserve.retrieval.faiss_module import faiss_module
from flowserve.retrieval.protocols import Ids, Query, Ranking
from flowserve.retrieval.ranking import rescored, scan
from flowserve.retrieval.snapshot import Snapshot
from flowserve.retrieval.spec import IndexSpec
from flowserve.retrieval.structure import Arrays

PER_CODE = 39
"""Vectors that FAISS wants to see for each entry of a codebook."""
GROWTH = 2
"""Codebooks are learned anew when there are so many times the vectors they were learned from."""
MIN_SEGMENT = 8
"""Dimensions of a segment where their number is not said: at least so many."""


def evolve(spec: IndexSpec, old: Snapshot, new: Snapshot, origins: Ids) -> Arrays:
    """`codebooks` (flat, FAISS's order), `codes` (passages, bytes) and `learned_from`, a count; nothing while few."""
    vectors, built = np.ascontiguousarray(new.vectors), old.structure
    segments_of(spec, new.dimension)
    if len(vectors) < PER_CODE << spec.count("bits"):
        return {}
    if not built or len(vectors) > GROWTH * int(built["learned_from"][0]):
        index = _quantiser(spec, new.dimension)
        index.train(vectors)
        codes, learned_from = index.sa_encode(vectors), len(vectors)
    else:
        index, learned_from = _quantiser(spec, new.dimension, built), int(built["learned_from"][0])
        known = origins >= 0
        codes = np.zeros((len(vectors), built["codes"].shape[1]), np.uint8)
        codes[known] = built["codes"][origins[known]]
        if not known.all():
            codes[~known] = index.sa_encode(vectors[~known])
    codebooks = faiss_module().vector_to_array(index.pq.centroids)
    return {"codebooks": codebooks, "codes": codes, "learned_from": np.array([learned_from], np.int64)}


class PqIndex:
    """One generation's codes."""

    wants_vector = True

    def __init__(self, spec: IndexSpec, snapshot: Snapshot) -> None:
        self._refine = spec.count("refine")
        self._vectors = snapshot.vectors
        self._index = None
        if built := snapshot.structure:
            self._index = _quantiser(spec, snapshot.dimension, built)
            faiss_module().copy_array_to_vector(built["codes"].ravel(), self._index.codes)
            self._index.ntotal = len(built["codes"])

    def __repr__(self) -> str:
        return f"PqIndex({len(self._vectors)} vectors, {'learned' if self._index else 'too few to learn'})"

    def search(self, queries: Sequence[Query], k: int, rows: Ids | None = None) -> list[Ranking]:
        units = np.stack([query.unit for query in queries])
        if self._index is None:
            return scan(units, range(len(self._vectors)) if rows is None else rows, self._vectors, k)
        if rows is not None:
            return [self._among(query, k, rows) for query in queries]
        fetch = min(k * self._refine, len(self._vectors))
        _, found = self._index.search(units, fetch)
        return [rescored(query.unit, near, self._vectors, k) for query, near in zip(queries, found, strict=True)]

    def stages(self, query: Query, k: int, rows: Ids | None = None) -> Iterator[Ranking]:
        """One: codes of all passages are compared in one go."""
        yield self.search([query], k, rows)[0]

    def _among(self, query: Query, k: int, rows: Ids) -> Ranking:
        """FAISS's flat codes know no selection: fetch more until enough of the wanted ones are among them."""
        wanted = min(k * self._refine, len(rows))
        fetch = wanted
        while True:
            fetch = min(2 * fetch, len(self._vectors))
            found = self._index.search(query.unit[None], fetch)[1][0]  # type: ignore[union-attr]
            found = found[np.isin(found, rows)]
            if len(found) >= wanted:
                return rescored(query.unit, found[:wanted], self._vectors, k)


def segments_of(spec: IndexSpec, dimension: int) -> int:
    """Into how many parts a vector is cut. Raises InputError where they would not be equal."""
    segments = spec.count("segments") or next(
        n for n in range(max(1, dimension // MIN_SEGMENT), 0, -1) if dimension % n == 0
    )
    if dimension % segments:
        raise InputError(f"segments of kind 'pq': expected a divisor of the dimension {dimension}, got {segments}")
    return segments


def _quantiser(spec: IndexSpec, dimension: int, built: Arrays | None = None) -> Any:
    faiss = faiss_module()
    index = faiss.IndexPQ(dimension, segments_of(spec, dimension), spec.count("bits"), faiss.METRIC_INNER_PRODUCT)
    if built:
        faiss.copy_array_to_vector(np.ascontiguousarray(built["codebooks"]), index.pq.centroids)
        index.is_trained = True
    return index
