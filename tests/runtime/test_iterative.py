"""A generation that looks things up as it writes gives the tokens of the sequential run, whatever it guesses."""

import asyncio
import random
from collections.abc import Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from typing import Any
from zlib import crc32

import numpy as np
import pytest

from flowserve.core.speculation.stride import Stride
from flowserve.core.speculation.transaction import Commit, Mode, RollBack
from flowserve.engines.base import Call, Finish, Origin, Output, Sampling, Segment
from flowserve.engines.fake import FakeEngine
from flowserve.engines.words import FIRST_SPECIAL
from flowserve.errors import ContextTooLong, EngineLost, InputError, RetrievalError
from flowserve.retrieval import ivf
from flowserve.retrieval.bm25_lookup import Bm25Batch, Bm25Lookup, postings_of
from flowserve.retrieval.documents import Passage
from flowserve.retrieval.embed import HashEmbedder
from flowserve.retrieval.flat_batch import FlatBatch
from flowserve.retrieval.lookup import DenseLookup, LocalCache, Lookup, Scores
from flowserve.retrieval.protocols import Ids, Vectors
from flowserve.retrieval.service import _rows
from flowserve.retrieval.snapshot import empty, origins
from flowserve.retrieval.spec import parse
from flowserve.runtime.iterative import Generation, Iteration

VOCABULARY = [f"w{i}" for i in range(12)]
DIMENSION = 16
RETRIEVERS = ("exact", "ivf", "bm25", *(["hnsw"] if find_spec("faiss") is not None else []))


def reply(call: Call) -> str:
    """A tiny model: the next word is a hash of the prompt and all that is written, now and then it is the end."""
    engine = TINY
    written = [engine.tokenizer.decode((i,)) for i in call.resumed]
    ends = int(call.meta["ends"])
    while len(written) <= call.sampling.max_tokens:
        drawn = crc32(f"{call.prompt_text}|{''.join(written)}|{call.meta['seed']}".encode())
        if ends and drawn % ends == 0:
            break
        written.append(f" {VOCABULARY[drawn // 64 % len(VOCABULARY)]}")
    return "".join(written)


TINY = FakeEngine(reply)


def corpus(seed: int, count: int = 40) -> list[str]:
    chance = random.Random(seed)
    return [" ".join(chance.choices(VOCABULARY, k=chance.randint(1, 12))) for _ in range(count)]


@dataclass
class Slow:
    """A lookup whose searches take a turn or more of the loop, so that other things come first, and may fail or hang."""

    inner: Lookup
    chance: random.Random
    fails_at: int | None = None
    hangs_at: int | None = None
    searches: int = 0
    asked: list[int] = field(default_factory=list)

    async def read(self, text: str) -> Any:
        return await self.inner.read(text)

    async def search(self, queries: Sequence[Any], k: int) -> list[tuple[int, ...]]:
        self.searches += 1
        self.asked.append(len(queries))
        if self.searches == self.fails_at:
            raise RetrievalError("the index is gone")
        if self.searches == self.hangs_at:
            await asyncio.Event().wait()
        for _ in range(self.chance.randint(0, 30)):
            await asyncio.sleep(0)
        return await self.inner.search(queries, k)

    def score(self, query: Any, rows: Sequence[int]) -> Scores:
        return self.inner.score(query, rows)

    def passage(self, row: int) -> Passage:
        return self.inner.passage(row)


class Adversary(LocalCache):
    """Knows what is right, and says something else."""

    def __init__(self) -> None:
        super().__init__()
        self.add(range(40))

    def guess(self, lookup: Lookup, query: Any) -> int | None:
        right = super().guess(lookup, query)
        return None if right is None else (right + 1) % 40


class Empty(LocalCache):
    def add(self, rows: Sequence[int]) -> None:
        """Nothing stays."""


def perfect() -> LocalCache:
    cache = LocalCache()
    cache.add(range(40))
    return cache


CACHES: dict[str, Callable[[], LocalCache]] = {
    "own": LocalCache,
    "small": lambda: LocalCache(2),
    "perfect": perfect,
    "adversary": Adversary,
    "empty": Empty,
}


def lookup_of(kind: str, seed: int) -> Lookup:
    texts, embedder = corpus(seed), HashEmbedder(DIMENSION)

    def passage(row: int) -> Passage:
        return Passage(f"d#{row}", "d", texts[row], 0, len(texts[row]))

    if kind == "bm25":
        return Bm25Lookup(Bm25Batch(postings_of(texts)), passage, _at_once)
    vectors = embedder.embed(texts)
    index: Any = {"hnsw": _Hnsw, "exact": FlatBatch, "ivf": _Ivf}[kind](vectors)

    async def search(queries: Vectors, k: int) -> tuple[Vectors, Ids]:
        found: tuple[Vectors, Ids] = index.search(queries, k)
        return found

    async def embed(text: str) -> Vectors:
        found: Vectors = embedder.embed([text])[0]
        return found

    return DenseLookup(vectors, search, embed, passage)


class _Hnsw:
    """As it is in FAISS: approximate, so the cache may know better, which counts as wrong."""

    def __init__(self, vectors: Vectors) -> None:
        import faiss

        self._index = faiss.IndexHNSWFlat(vectors.shape[1], 4, faiss.METRIC_INNER_PRODUCT)
        self._index.add(vectors)
        self._index.hnsw.efSearch = 8

    def search(self, queries: Vectors, k: int) -> tuple[Vectors, Ids]:
        scores, rows = self._index.search(np.ascontiguousarray(queries), 8)
        return scores[:, :k], rows[:, :k]


class _Ivf:
    """Eight clusters, of which two are looked into."""

    def __init__(self, vectors: Vectors) -> None:
        old = empty("hash", vectors.shape[1], parse("ivf:clusters=8,nprobe=2"))
        passages = tuple(Passage(f"{row:03}#0", f"{row:03}", "", 0, 0) for row in range(len(vectors)))
        new = replace(old, passages=passages, vectors=vectors)
        self._index = ivf.IvfIndex(new.spec, replace(new, structure=ivf.evolve(new.spec, old, new, origins(old, new))))

    def search(self, queries: Vectors, k: int) -> tuple[Vectors, Ids]:
        return _rows(self._index, queries, k)


async def _at_once(function: Callable[[], Any]) -> Any:
    return function()


def call_of(seed: int, ends: int, max_tokens: int, stop: tuple[str, ...] = ()) -> Call:
    question = Segment(tuple(TINY.tokenizer.encode("say w1 and w2")), Origin.VALUE, "say w1 and w2")
    cue = Segment(tuple(TINY.tokenizer.encode("\nA:")), Origin.TEMPLATE, "\nA:")
    sampling = Sampling(max_tokens=max_tokens, stop=stop)
    return Call("c", (question, cue), sampling, meta={"ends": str(ends), "seed": str(seed), "node": "n"})


def generation(call: Call, lookup: Lookup, how: Iteration, stride: int | None = None, **more: Any) -> Generation:
    return Generation(call, 0, TINY, lookup, how, Stride(how.mode is Mode.OVERLAPPED, stride), **more)


async def written(work: Generation) -> list[Output]:
    async with aclosing(work.outputs()) as outputs:
        return [output async for output in outputs]


def ids_of(outputs: Sequence[Output]) -> tuple[int, ...]:
    return tuple(i for output in outputs for i in output.token_ids)


def text_of(outputs: Sequence[Output]) -> str:
    return "".join(output.text for output in outputs)


def naive(call: Call, lookup: Lookup, how: Iteration) -> tuple[int, ...]:
    """The workload in ten lines, without any of the code under test but the model and the index."""

    async def work() -> tuple[int, ...]:
        ids: list[int] = []
        decode, encode = TINY.tokenizer.decode, TINY.tokenizer.encode
        while len(ids) < call.sampling.max_tokens:
            text = decode((*call.prompt_ids, *ids)[-how.window :])
            (hits,) = await lookup.search([await lookup.read(text)], 1)
            front = decode(encode(lookup.passage(hits[0]).text)[: how.passage_tokens]) + "\n\n" if hits else ""
            segments = (Segment((), Origin.VALUE, front + call.prompt_text),)
            most = min(len(ids) + how.every, call.sampling.max_tokens)
            sampling = replace(call.sampling, max_tokens=most)
            whole = encode(reply(replace(call, segments=segments, resumed=tuple(ids), sampling=sampling)))
            ids = whole[:most]
            if len(whole) < most or len(whole) == most < call.sampling.max_tokens:
                break  # the fake engine says STOP with the last token that it has
        return tuple(ids)

    return asyncio.run(work())


@pytest.mark.parametrize("block", range(10))
def test_five_hundred_random_generations_are_the_sequential_ones(block: int) -> None:
    """Every retriever, stride, prefetch, mode and cache; ends in the middle, and searches that answer early or late."""
    for number in range(block * 50, block * 50 + 50):
        chance = random.Random(number)
        kind = chance.choice(RETRIEVERS)
        lookup = Slow(lookup_of(kind, number), chance)
        how = Iteration(
            every=chance.choice([1, 3, 4, 7]),
            window=chance.choice([2, 8, 32]),
            passage_tokens=chance.choice([3, 256]),
            prefetch=chance.choice([1, 5, 8]),
            mode=Mode.SEQUENTIAL,
        )
        call = call_of(number, chance.choice([0, 9, 30]), chance.randint(1, 40), chance.choice([(), (), ("w3 w",)]))
        expected = asyncio.run(written(generation(call, lookup, how)))
        how = replace(how, mode=chance.choice([Mode.SPECULATIVE, Mode.OVERLAPPED]))
        stride, cache = chance.choice([None, 1, 2, 3, 8]), chance.choice(sorted(CACHES))
        told: list[Commit | RollBack] = []
        work = generation(call, lookup, how, stride, cache=CACHES[cache](), told=told.append)
        outputs = asyncio.run(written(work))
        seen = f"configuration {number}: {kind}, {how}, stride {stride}, cache {cache}"
        assert ids_of(outputs) == ids_of(expected), seen
        assert text_of(outputs) == text_of(expected), seen
        assert outputs[-1].finish is expected[-1].finish, seen
        assert work.num_wasted == sum(item.tokens for item in told if isinstance(item, RollBack)), seen
        if cache == "adversary" and kind in ("exact", "bm25"):  # the others may find what it says
            assert work.speculation.num_right == 0, seen
        if cache == "empty":
            assert work.speculation.num_guessed == 0, seen


@pytest.mark.parametrize("kind", RETRIEVERS)
def test_the_sequential_run_is_the_workload_as_it_is_written_down(kind: str) -> None:
    for seed in range(8):
        lookup, how = lookup_of(kind, seed), Iteration(mode=Mode.SEQUENTIAL, window=6)
        call = call_of(seed, 25, 21)
        assert ids_of(asyncio.run(written(generation(call, lookup, how)))) == naive(call, lookup, how)


def test_a_perfect_cache_is_never_wrong_with_an_exact_index() -> None:
    work = generation(call_of(1, 0, 40), lookup_of("exact", 1), Iteration(), 3, cache=perfect())
    asyncio.run(written(work))
    assert work.speculation.num_right == work.speculation.num_guessed > 0
    assert work.num_wasted == 0


def test_verifications_are_batched() -> None:
    lookup = Slow(lookup_of("exact", 1), random.Random(1))
    asyncio.run(written(generation(call_of(1, 0, 36), lookup, Iteration(), 4, cache=perfect())))
    assert lookup.asked == [4, 4, 1]


class WrongAt(LocalCache):
    """Right but for the guess of one step."""

    def __init__(self, step: int) -> None:
        super().__init__()
        self.add(range(40))
        self.step, self.looks = step, 0

    def guess(self, lookup: Lookup, query: Any) -> int | None:
        right = super().guess(lookup, query)
        self.looks += 1
        return (right + 1) % 40 if right is not None and self.looks == self.step + 1 else right


@pytest.mark.parametrize("mode", [Mode.SPECULATIVE, Mode.OVERLAPPED])
@pytest.mark.parametrize("wrong", [0, 3, 7])
def test_a_roll_back_of_the_first_a_middle_and_the_last_step(mode: Mode, wrong: int) -> None:
    call, lookup = call_of(5, 0, 32), lookup_of("exact", 5)
    told: list[Commit | RollBack] = []
    expected = ids_of(asyncio.run(written(generation(call, lookup, Iteration(mode=Mode.SEQUENTIAL)))))
    work = generation(call, lookup, Iteration(mode=mode), 4, cache=WrongAt(wrong), told=told.append)
    assert ids_of(asyncio.run(written(work))) == expected
    assert [item.step for item in told if isinstance(item, RollBack)] == [wrong]


def test_an_end_that_a_wrong_passage_brought_is_none() -> None:
    found = 0
    for seed in range(60):
        call, lookup = call_of(seed, 6, 30), lookup_of("exact", seed)
        expected = ids_of(asyncio.run(written(generation(call, lookup, Iteration(mode=Mode.SEQUENTIAL)))))
        told: list[Commit | RollBack] = []
        work = generation(call, lookup, Iteration(), 3, cache=Adversary(), told=told.append)
        assert ids_of(asyncio.run(written(work))) == expected
        found += any(isinstance(item, RollBack) and item.tokens % 4 for item in told)
    assert found  # a step that was cut short by an end was rolled back


@pytest.mark.parametrize("mode", [Mode.SPECULATIVE, Mode.OVERLAPPED])
@pytest.mark.parametrize("at", [1, 2, 4])
@pytest.mark.parametrize("how", ["fails_at", "hangs_at"])
def test_a_retriever_that_fails_or_hangs_ends_it_clearly_and_shows_nothing_unverified(
    mode: Mode, at: int, how: str
) -> None:
    call, lookup = call_of(2, 0, 60), lookup_of("exact", 2)
    expected = ids_of(asyncio.run(written(generation(call, lookup, Iteration(mode=Mode.SEQUENTIAL)))))
    shown: list[Output] = []
    broken = Slow(lookup, random.Random(1))
    setattr(broken, how, at)
    work = generation(call, broken, Iteration(mode=mode, timeout_s=0.05), 3, cache=CACHES["own"]())

    async def read() -> None:
        async with aclosing(work.outputs()) as outputs:
            async for output in outputs:
                shown.append(output)

    message = "the index is gone" if how == "fails_at" else "did not answer within 0.05 s"
    with pytest.raises(RetrievalError, match=message):
        asyncio.run(read())
    ids = ids_of(shown)
    assert ids == expected[: len(ids)]
    assert len(ids) == 4 * work.speculation.committed < len(expected)
    assert not TINY._running  # nothing is left at the engine


def test_who_leaves_early_leaves_nothing_behind() -> None:
    async def work() -> int:
        outputs = generation(call_of(3, 0, 40), lookup_of("exact", 3), Iteration(mode=Mode.OVERLAPPED), 3).outputs()
        async with aclosing(outputs):
            async for _ in outputs:
                break
        return len(asyncio.all_tasks())

    assert asyncio.run(work()) == 1
    assert not TINY._running


def test_a_passage_that_is_refused_counts_only_if_it_is_right() -> None:
    """A guessed passage may be too long for the engine's context; the run without guesses never sees it."""
    call, lookup = call_of(5, 0, 16), lookup_of("exact", 5)
    expected = ids_of(asyncio.run(written(generation(call, lookup, Iteration(mode=Mode.SEQUENTIAL)))))

    @dataclass
    class Long(Slow):
        right: set[int] = field(default_factory=set)

        def passage(self, row: int) -> Passage:
            found = self.inner.passage(row)
            return found if row in self.right else replace(found, text="w1 " * 200)

    async def rows() -> set[int]:
        seen: set[int] = set()
        cut = 0
        while cut < len(expected):
            text = TINY.tokenizer.decode((*call.prompt_ids, *expected[:cut])[-32:])
            seen.update((await lookup.search([await lookup.read(text)], 1))[0])
            cut += 4
        return seen

    right = asyncio.run(rows())
    small = FakeEngine(reply, max_context=120, tokenizer=TINY.tokenizer)
    for known, fails in ((right, False), (set[int](), True)):
        long = Long(lookup, random.Random(1), right=known)
        work = replace(generation(call, long, Iteration(), 3, cache=Adversary()), engine=small)
        if fails:
            with pytest.raises(ContextTooLong):
                asyncio.run(written(work))
        else:
            assert ids_of(asyncio.run(written(work))) == expected


def test_an_engine_that_is_lost_is_told_as_such() -> None:
    engine = FakeEngine(lambda call: EngineLost("gone"))
    work = replace(generation(call_of(1, 0, 8), lookup_of("exact", 1), Iteration()), engine=engine)
    with pytest.raises(EngineLost, match="gone"):
        asyncio.run(written(work))


def test_a_call_that_another_engine_has_begun_goes_on_as_it_would_have() -> None:
    call, lookup, how = call_of(4, 0, 24), lookup_of("bm25", 4), Iteration(mode=Mode.OVERLAPPED)
    whole = asyncio.run(written(generation(call, lookup, how)))
    begun = replace(call, resumed=ids_of(whole)[:8])
    rest = asyncio.run(written(generation(begun, lookup, how)))
    assert (ids_of(rest), text_of(whole).endswith(text_of(rest))) == (ids_of(whole)[8:], True)


def test_a_query_without_words_finds_nothing_and_asks_nobody() -> None:
    call = replace(call_of(1, 0, 4), segments=(Segment((FIRST_SPECIAL,), Origin.TEMPLATE, "<s>"),))
    lookup = Slow(lookup_of("exact", 1), random.Random(1))
    outputs = asyncio.run(written(generation(call, lookup, Iteration())))
    assert (len(ids_of(outputs)), lookup.searches, outputs[-1].finish) == (4, 0, Finish.LENGTH)


@pytest.mark.parametrize("sampling", [Sampling(temperature=1.0), Sampling(n=2), Sampling(logprobs=1)])
def test_what_cannot_be_rolled_back_is_refused(sampling: Sampling) -> None:
    with pytest.raises(InputError, match="takes one greedy answer of free form"):
        generation(replace(call_of(1, 0, 4), sampling=sampling), lookup_of("exact", 1), Iteration())


def test_impossible_settings_are_refused() -> None:
    with pytest.raises(InputError, match="every: expected at least 1, got 0"):
        Iteration(every=0)
