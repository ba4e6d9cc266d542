"""The same questions written step by step and with guesses, one after the other on one engine, so that ratios are paired.

A mode keeps what it has learned of times and chances from question to question, as a server would; its cache begins empty with each.
It has learned nothing at the first one. One question before all others warms the engine and the index.
`cpu_ratio` is of processor seconds: on a machine with other work they say more of all modes but the overlapped ones, whose gain is
that two things go on at once. Prefixes are not shared between modes: each is a tenant of its own.
"""

import asyncio
import random
import tempfile
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean, median
from time import perf_counter, process_time
from typing import Any

from flowserve.bench import random_model
from flowserve.bench.random_model import WORDS
from flowserve.bench.speculation import corpus, indexes
from flowserve.bench.speculation.indexes import RETRIEVERS, Span, Timed
from flowserve.core.speculation.stride import Stride
from flowserve.core.speculation.transaction import Mode
from flowserve.engines.base import Call, Engine, Origin, Output, Sampling, Segment
from flowserve.errors import ConfigError
from flowserve.ids import Seconds, Tokens
from flowserve.runtime.iterative import Generation, Iteration

SEED = 23
WARM = 10
"""Requests after which speculation must not be slower any more: by then times and chances are known."""
QUESTION_WORDS = 24
FIXED = 3
"""The paper's stride without OS3."""
SHOWN = (
    "speedup", "cpu_ratio", "speedup_median", "speedup_least", "speedup_after_warm", "token_identical", "accept_rate", "waste_tokens", "search_ms", "write_ms",
)  # fmt: skip
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Way:
    """A mode of the comparison."""

    mode: Mode
    prefetch: int = 1
    stride: int | None = FIXED
    """None: OS3, and off where it does not pay."""


WAYS = {
    "fixed": Way(Mode.SPECULATIVE),
    "prefetch": Way(Mode.SPECULATIVE, prefetch=20),
    "os3": Way(Mode.SPECULATIVE, stride=None),
    "async": Way(Mode.OVERLAPPED),
    "prefetch+os3": Way(Mode.SPECULATIVE, 20, None),
    "prefetch+os3+async": Way(Mode.OVERLAPPED, 20, None),
}


@dataclass(frozen=True, slots=True)
class Options:
    vectors: int
    hnsw_vectors: int
    """HNSW is built one vector at a time; it may have fewer."""
    requests: int
    tokens: Tokens
    size: str
    model: Path | None
    retrievers: Sequence[str] = RETRIEVERS
    ways: Sequence[str] = tuple(WAYS)

    def __post_init__(self) -> None:
        for what, given, known in (("retriever", self.retrievers, RETRIEVERS), ("mode", self.ways, tuple(WAYS))):
            for name in given:
                if name not in known:
                    raise ConfigError(f"--{what}: expected one of {', '.join(known)}; got {name}")


@dataclass(slots=True)
class Seen:
    """What one request took."""

    ids: tuple[int, ...]
    seconds: Seconds
    cpu: Seconds
    """Of all threads: where nothing overlaps, what it would take on a machine without other work."""
    work: Generation
    spans: list[Span]


@dataclass(slots=True)
class Record:
    """Requests of one mode, beside the sequential ones, in order."""

    ratios: list[float] = field(default_factory=list)
    """Sequential seconds over this mode's."""
    seconds: list[Seconds] = field(default_factory=list)
    cpu: Seconds = 0.0
    plain_cpu: Seconds = 0.0
    plain: list[Seconds] = field(default_factory=list)
    identical: bool = True
    guessed: int = 0
    right: int = 0
    wasted: Tokens = 0
    written: Tokens = 0


def run(options: Options, say: Say) -> dict[str, Any]:
    """Measure every retriever in every mode. `picture` in the result is the timeline of one request."""
    with tempfile.TemporaryDirectory() as folder:
        model = options.model or random_model.make(options.size, Path(folder) / "model")
        return asyncio.run(_run(options, model, say))


async def _run(options: Options, model: Path, say: Say) -> dict[str, Any]:
    from flowserve.engines.hf import HFEngine

    engine = HFEngine(model, quiet=True)
    await engine.start()
    cases: list[dict[str, Any]] = []
    timelines: list[dict[str, Any]] = []
    try:
        for kind in options.retrievers:
            began = perf_counter()
            count = options.hnsw_vectors if kind == "hnsw" else options.vectors
            lookup = Timed(indexes.lookup_of(kind, corpus.make(count, SEED)))
            built = perf_counter() - began
            say(f"{kind}: {count:,} passages in {built:.0f} s")
            found, timeline = await _retriever(kind, engine, lookup, options, say)
            cases += [{**case, "vectors": count} for case in found]
            timelines += timeline
    finally:
        await engine.close()
    return {"cases": cases, "timelines": timelines, "tokens": options.tokens, "requests": options.requests}


async def _retriever(
    kind: str, engine: Engine, lookup: Timed, options: Options, say: Say
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    chance = random.Random(SEED)
    records = {way: Record() for way in options.ways}
    strides = {name: Stride(WAYS[name].mode is Mode.OVERLAPPED, WAYS[name].stride) for name in options.ways}
    took: dict[str, list[Seconds]] = {"search": [], "write": []}
    shown: list[dict[str, Any]] = []
    await _one(engine, lookup, _question(chance), options, f"{kind} warm 0", None, Stride())
    for number in range(options.requests):
        question = _question(chance)
        plain = await _one(engine, lookup, question, options, f"{kind} plain {number}", None, Stride())
        shown = [_timeline(kind, "sequential", plain)]
        for what, started, ended, _ in plain.spans:
            took[what].append(ended - started)
        for name in options.ways:
            label = f"{kind} {name} {number}"
            seen = await _one(engine, lookup, question, options, label, WAYS[name], strides[name])
            _note(records[name], plain, seen)
            last = _timeline(kind, name, seen)
            shown = [shown[0], last]
        say(f"{kind} {number + 1}/{options.requests}: " + _progress(plain, records))
    times = {f"{what}_ms": round(1000 * median(seconds), 3) for what, seconds in took.items() if seconds}
    return [_case(kind, name, record) | times for name, record in records.items()], shown


def _question(chance: random.Random) -> str:
    return " ".join(chance.choices(WORDS, k=QUESTION_WORDS))


async def _one(
    engine: Engine, lookup: Timed, question: str, options: Options, label: str, way: Way | None, stride: Stride
) -> Seen:
    """Write one answer. way None: sequentially."""
    tenant = label.rpartition(" ")[0]
    segment = Segment(tuple(engine.tokenizer.encode(question)), Origin.VALUE, question)
    sampling = Sampling(max_tokens=options.tokens, ignore_eos=True)
    call = Call(label, (segment,), sampling, tenant=tenant, meta={"node": "write"})
    how = Iteration(mode=Mode.SEQUENTIAL) if way is None else Iteration(mode=way.mode, prefetch=way.prefetch)
    lookup.spans = []
    spans = lookup.spans
    noted: Any = Noted(engine, spans)  # an engine as far as it is used
    told = (lambda did: spans.append(_instant(did))) if way is not None else (lambda did: None)
    work = Generation(call, 0, noted, lookup, how, stride, told=told)
    began, began_cpu = perf_counter(), process_time()
    async with aclosing(work.outputs()) as outputs:
        ids = tuple([i async for output in outputs for i in output.token_ids])
    ended, cpu = perf_counter(), process_time() - began_cpu
    shifted = [(what, start - began, end - began, count) for what, start, end, count in spans]
    return Seen(ids, ended - began, cpu, work, shifted)


def _instant(did: Any) -> Span:
    now = perf_counter()
    return (type(did).__name__.lower(), now, now, getattr(did, "tokens", 0))


class Noted:
    """An engine that notes when it writes; everything else is the engine's own."""

    def __init__(self, engine: Engine, spans: list[Span]) -> None:
        self._engine, self._spans = engine, spans

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    async def generate(self, call: Call) -> AsyncGenerator[Output, None]:
        began, written = perf_counter(), 0
        try:
            async with aclosing(self._engine.generate(call)) as outputs:  # type: ignore[type-var]
                async for output in outputs:
                    written += output.count
                    yield output
        finally:
            self._spans.append(("write", began, perf_counter(), written))


def _note(record: Record, plain: Seen, seen: Seen) -> None:
    record.ratios.append(plain.seconds / seen.seconds)
    record.seconds.append(seen.seconds)
    record.plain.append(plain.seconds)
    record.cpu += seen.cpu
    record.plain_cpu += plain.cpu
    record.identical &= seen.ids == plain.ids
    record.guessed += seen.work.speculation.num_guessed
    record.right += seen.work.speculation.num_right
    record.wasted += seen.work.num_wasted
    record.written += len(seen.ids)


def _progress(plain: Seen, records: dict[str, Record]) -> str:
    told = ", ".join(f"{name} x{record.ratios[-1]:.2f}" for name, record in records.items())
    return f"sequential {plain.seconds:.2f} s; {told}"


def _case(kind: str, name: str, record: Record) -> dict[str, Any]:
    late = record.ratios[WARM:]
    return {
        "retriever": kind,
        "mode": name,
        "speedup": round(sum(record.plain) / sum(record.seconds), 3),
        "token_identical": record.identical,
        "accept_rate": round(record.right / record.guessed, 3) if record.guessed else None,
        "waste_tokens": record.wasted,
        "written_tokens": record.written,
        "cpu_ratio": round(record.plain_cpu / record.cpu, 3),
        "speedup_median": round(median(record.ratios), 3),
        "speedup_least": round(min(record.ratios), 3),
        "speedup_after_warm": round(sum(record.plain[WARM:]) / sum(record.seconds[WARM:]), 3) if late else None,
        "least_after_warm": round(min(late), 3) if late else None,
        "sequential_s": round(fmean(record.plain), 3),
        "seconds": round(fmean(record.seconds), 3),
    }


def _timeline(kind: str, mode: str, seen: Seen) -> dict[str, Any]:
    spans = [[what, round(start, 5), round(end, 5), count] for what, start, end, count in seen.spans]
    return {"retriever": kind, "mode": mode, "seconds": round(seen.seconds, 5), "spans": spans}


def shown(cases: Sequence[dict[str, Any]]) -> dict[str, dict[str, dict[str, Any]]]:
    """By retriever, then mode: the figures for people."""
    tables: dict[str, dict[str, dict[str, Any]]] = {}
    for case in cases:
        tables.setdefault(case["retriever"], {})[case["mode"]] = {name: case[name] for name in SHOWN}
    return tables
