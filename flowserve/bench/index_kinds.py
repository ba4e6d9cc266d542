"""Kinds of indexes on the same vectors and queries, side by side: what each misses of `exact`, how fast, at what cost.

recall@k of a kind: the share of the k hits of `exact` that it finds too. For `bm25` and `hybrid` that is no measure of
quality, as they look for something else; where questions have answers, `answers` is.

Synthetic vectors are a mixture: real embeddings lie in clusters, and evenly spread ones would make every kind but `exact`
look bad. Centres are as many as the root of the vectors; a vector is a centre plus noise of `SPREAD` times its length;
queries are vectors plus half of that.
"""

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from flowserve.retrieval import kinds
from flowserve.retrieval.documents import Passage
from flowserve.retrieval.protocols import Query, Ranking, Searcher, Vectors
from flowserve.retrieval.snapshot import Snapshot, empty
from flowserve.retrieval.spec import parse

SEED = 0
DENSE = ("exact", "ivf:nprobe=4", "ivf:nprobe=16", "ivf:nprobe=64", "hnsw:ef_search=64", "hnsw:ef_search=256", "pq")
ALL = (*DENSE, "bm25", "hybrid")
SPREAD = 1.5
TOGETHER = 32
"""Queries per call where many wait."""
ADDED = 0.01
"""Share of the vectors that are added to an index that has the others."""

Say = Callable[[str], object]


def run(num_vectors: int, dimension: int, num_queries: int, names: Sequence[str], k: int, say: Say) -> dict[str, Any]:
    """Synthetic vectors through every kind of `names`. Raises InputError for kinds that do not exist."""
    snapshot, queries = synthetic(num_vectors, dimension, num_queries)
    cases = compare(snapshot, queries, names or DENSE, (1, k), say)
    return {"vectors": num_vectors, "dimension": dimension, "queries": num_queries, "spread": SPREAD, "cases": cases}


def synthetic(num_vectors: int, dimension: int, num_queries: int) -> tuple[Snapshot, list[Query]]:
    """A snapshot without a kind yet, and queries near its vectors."""
    rng = np.random.default_rng(SEED)
    centres = _unit(rng.standard_normal((max(1, round(num_vectors**0.5)), dimension), np.float32))
    vectors = centres[rng.integers(0, len(centres), num_vectors)]
    vectors = _unit(vectors + _noise(rng, vectors.shape, SPREAD))
    asked = vectors[rng.integers(0, num_vectors, num_queries)]
    asked = _unit(asked + _noise(rng, asked.shape, SPREAD / 2))
    passages = tuple(Passage(f"{row:09}#0", f"{row:09}", f"{row:09}", 0, 9) for row in range(num_vectors))
    snapshot = replace(empty("synthetic", dimension), generation=1, passages=passages, vectors=vectors)
    return snapshot, [Query("", vector) for vector in asked]


def compare(
    snapshot: Snapshot,
    queries: Sequence[Query],
    names: Sequence[str],
    ks: Sequence[int],
    say: Say,
    relevant: Sequence[set[int]] | None = None,
) -> list[dict[str, Any]]:
    """One row of figures for each kind. `relevant`: for each query, the rows that answer it; none for those not counted."""
    specs = [parse(name) for name in names]
    exact = kinds.searcher(kinds.evolved(snapshot, replace(snapshot, spec=parse("exact"))))
    oracle = exact.search(queries, max(ks))
    cases = []
    for name, spec in zip(names, specs, strict=True):
        case, found = _measured(replace(snapshot, spec=spec), queries, max(ks))
        case = {"kind": name, "recall": {str(k): _overlap(oracle, found, k) for k in ks}, **case}
        if relevant is not None:
            case["answers"] = {str(k): _answered(relevant, found, k) for k in ks}
        say(told(case))
        cases.append(case)
    return cases


def told(case: dict[str, Any]) -> str:
    """A case on one line."""
    shares = ", ".join(f"@{k} {share:.3f}" for k, share in case["recall"].items())
    speed = f"{case['single_per_s']:,.0f} queries/s singly, {case['together_per_s']:,.0f} together"
    return (
        f"{case['kind']}: recall {shares}; {speed}; built in {case['build_s']:.2f} s, 1 % more in {case['add_s']:.2f} s"
    )


def _measured(snapshot: Snapshot, queries: Sequence[Query], k: int) -> tuple[dict[str, Any], list[Ranking]]:
    nothing = empty(snapshot.embedder, snapshot.dimension, snapshot.spec)
    built, build_s = _timed(lambda: kinds.evolved(nothing, snapshot))
    add_s = _add(snapshot, nothing)
    searcher, open_s = _timed(lambda: kinds.searcher(built))
    searcher.search(queries[:TOGETHER], k)  # whatever happens at first use
    singly, found = _singly(searcher, queries, k)
    _, together_s = _timed(lambda: [searcher.search(batch, k) for batch in _batches(queries)])
    figures = {
        "build_s": round(build_s, 3),
        "add_s": round(add_s, 3),
        "open_s": round(open_s, 3),
        "built_bytes": sum(array.nbytes for array in built.structure.values()),
        "single_per_s": round(len(queries) / sum(singly), 1),
        "p50_ms": round(statistics.median(singly) * 1e3, 3),
        "p95_ms": round(sorted(singly)[int(0.95 * (len(singly) - 1))] * 1e3, 3),
        "together_per_s": round(len(queries) / together_s, 1),
        "stages": _stages(searcher, queries, k),
    }
    return figures, found


def _add(snapshot: Snapshot, nothing: Snapshot) -> float:
    """Seconds to add the last of the passages to an index that has the others."""
    kept = len(snapshot.passages) - max(1, round(ADDED * len(snapshot.passages)))
    before = replace(snapshot, passages=snapshot.passages[:kept], vectors=snapshot.vectors[:kept])
    before = kinds.evolved(nothing, before)
    return _timed(lambda: kinds.evolved(before, snapshot))[1]


def _singly(searcher: Searcher, queries: Sequence[Query], k: int) -> tuple[list[float], list[Ranking]]:
    seconds, found = [], []
    for query in queries:
        [ranking], took = _timed(lambda query=query: searcher.search([query], k))  # type: ignore[misc]
        seconds.append(took)
        found.append(ranking)
    return seconds, found


def _stages(searcher: Searcher, queries: Sequence[Query], k: int) -> dict[str, float]:
    """How early a staged search has its final hits, as a share of its time, and its time against that of `search`.

    Medians; staged and whole take turns at being first, as the second finds its data in the cache.
    """
    numbers, settled, staged_s, whole_s = [], [], [], []
    for place, query in enumerate(queries):
        for staged in (place % 2 == 0, place % 2 == 1):
            if not staged:
                whole_s.append(_timed(lambda query=query: searcher.search([query], k))[1])  # type: ignore[misc]
                continue
            times, tops = _staged(searcher, query, k)
            final = next(number for number in range(len(tops)) if all(top == tops[-1] for top in tops[number:]))
            numbers.append(len(tops))
            settled.append(times[final] / times[-1])
            staged_s.append(times[-1])
    return {
        "number": statistics.mean(numbers),
        "settled_at": round(statistics.median(settled), 3),
        "cost": round(statistics.median(staged_s) / statistics.median(whole_s), 2),
    }


def _staged(searcher: Searcher, query: Query, k: int) -> tuple[list[float], list[list[int]]]:
    """Seconds from the beginning and hits of each stage."""
    times, tops, started = [], [], time.perf_counter()
    for _, rows in searcher.stages(query, k):
        times.append(time.perf_counter() - started)
        tops.append(rows.tolist())
    return times, tops


def _overlap(oracle: Sequence[Ranking], found: Sequence[Ranking], k: int) -> float:
    shares = [
        len(set(wanted[1][:k].tolist()) & set(ours[1][:k].tolist())) / len(wanted[1][:k])
        for wanted, ours in zip(oracle, found, strict=True)
    ]
    return round(statistics.mean(shares), 4)


def _answered(relevant: Sequence[set[int]], found: Sequence[Ranking], k: int) -> float:
    hits = [bool(rows & set(ours[1][:k].tolist())) for rows, ours in zip(relevant, found, strict=True) if rows]
    return round(sum(hits) / max(1, len(hits)), 4)


def _batches(queries: Sequence[Query]) -> Iterator[Sequence[Query]]:
    for start in range(0, len(queries), TOGETHER):
        yield queries[start : start + TOGETHER]


def _noise(rng: np.random.Generator, shape: tuple[int, ...], length: float) -> Vectors:
    return rng.standard_normal(shape, np.float32) * np.float32(length / shape[1] ** 0.5)


def _unit(vectors: Vectors) -> Vectors:
    unit: Vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return unit


def _timed(work: Callable[[], Any]) -> tuple[Any, float]:
    started = time.perf_counter()
    result = work()
    return result, time.perf_counter() - started
