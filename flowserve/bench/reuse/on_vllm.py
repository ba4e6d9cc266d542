"""Passages pasted inside vLLM: time to the first token, and what a running answer waits meanwhile.

One engine per policy; in it every round asks once in every way, in an order that turns from round to round: in full, in full with
vLLM's own prefix cache warm for the head and the first passage, and blended. Passages change places between rounds. A speedup is the
median of ratios within a round. The same prompts then come while another answer is written: its longest gap is the stall. Weights
may be random: then this is about time alone, and the share of equal first tokens says only that something is lost.
"""

import asyncio
import math
import os
import random
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, Final

from flowserve.bench.random_model import SIZES, make
from flowserve.cachestore.policies import Policy
from flowserve.cachestore.segments import Provenance, Quality
from flowserve.cachestore.settings import ReuseSettings, parsed
from flowserve.engines.base import Call, Origin, Sampling, Segment
from flowserve.engines.vllm import VLLMEngine, VLLMSettings
from flowserve.errors import ConfigError
from flowserve.ids import Seconds, Tokens

SEED: Final = 0
POLICIES: Final = ("none", "first_k:16", "hkvd:0.15")
HEAD: Final[Tokens] = 64
QUESTION: Final[Tokens] = 32
FULL, PREFIX, BLENDED = "full", "prefix", "blended"
WAYS: Final = (FULL, PREFIX, BLENDED)
ANSWER: Final[Tokens] = 24
"""That the running answer writes before a prompt comes, to know its pace."""

Say = Callable[[str], None]


@dataclass
class Way:
    """What one way of asking took, by round."""

    ttft_s: list[Seconds] = field(default_factory=list)
    stall_s: list[Seconds] = field(default_factory=list)
    firsts: list[int] = field(default_factory=list)
    """First tokens."""
    origin: Provenance | None = None
    """Of the last prompt."""


def run(model: str, policies: Sequence[str], chunks: int, tokens: Tokens, rounds: int, say: Say) -> dict[str, Any]:
    """model: a folder or hub name, or random:SIZE. tokens: of each of `chunks` passages. Raises ConfigError."""
    if 2 * rounds > math.factorial(chunks - 1):
        raise ConfigError(f"bench: expected passages for {2 * rounds} different orders behind the first; got {chunks}")
    cases: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="flowserve-reuse-") as folder:
        path = _model(model, Path(folder))
        for text in policies:
            policy = parsed(text, "bench policy")
            say(f"{text}: {rounds} rounds of {len(WAYS)} ways, {chunks} passages of {tokens} tokens")
            cases += asyncio.run(_measured(path, text, policy, chunks, tokens, rounds))
    return {"model": model, "chunks": chunks, "chunk_tokens": tokens, "rounds": rounds, "cases": cases}


def _model(model: str, folder: Path) -> str:
    kind, _, size = model.partition(":")
    if kind != "random":
        return model
    if size not in SIZES:
        raise ConfigError(f"bench --model: expected random:SIZE with a size of {', '.join(SIZES)}; got '{model}'")
    return str(make(size, folder / "model", SEED))


async def _measured(
    model: str, text: str, policy: Policy, chunks: int, tokens: Tokens, rounds: int
) -> list[dict[str, Any]]:
    reuse = ReuseSettings(fast=text, host_bytes=4 << 30, measuring=True)
    core = str(max(os.sched_getaffinity(0)))  # on a CPU; with several, one busy neighbour slows all of them down
    engine = VLLMEngine(VLLMSettings(model, cores=core, quiet=True, reuse=reuse))
    await engine.start()
    try:
        bench = Bench(engine, chunks, tokens)
        await bench.prepare()
        for number in range(rounds):
            turn = number % len(WAYS)
            for busy in (False, True):
                for way in (*WAYS[turn:], *WAYS[:turn]):
                    await bench.ask(way, number, busy)
        return [_case(way, policy, bench.ways) for way in WAYS]
    finally:
        await engine.close()


class Bench:
    """Prompts over the same passages, for one engine."""

    def __init__(self, engine: VLLMEngine, chunks: int, tokens: Tokens) -> None:
        self._engine = engine
        self._draw = random.Random(SEED)
        self._head = self._segment(HEAD, Origin.TEMPLATE)
        self._passages = [self._segment(tokens, Origin.CHUNK) for _ in range(chunks)]
        self._question = self._segment(QUESTION, Origin.VALUE)
        self._orders: dict[tuple[int, bool], list[Segment]] = {}
        """Of the passages behind the first, by round; no two are the same, else one would be in the prefix cache."""
        self._number = 0
        self.ways = {way: Way() for way in WAYS}

    async def prepare(self) -> None:
        """Records of all passages, and the head and the first passage in the prefix cache of its tenant."""
        for way in (PREFIX, BLENDED):
            await self._first(self._call(way, self._passages, way))
        wanted = len(self._passages)
        async with asyncio.timeout(600):
            while sum(count for what, _, count in self._engine.status().records if what == "put") < wanted:
                await asyncio.sleep(0.05)

    async def ask(self, way: str, number: int, busy: bool) -> None:
        """busy: while another answer is written."""
        behind = self._order(number, busy)
        tenant = f"{FULL}-{number}-{busy}" if way == FULL else way
        call = self._call(way, [self._passages[0], *behind], tenant)
        told = self.ways[way]
        if busy:
            async with self._answering() as gaps:
                pace = median(gaps)
                gaps.clear()
                await self._first(call)
            told.stall_s.append(max(gaps) - pace)
        else:
            seconds, first, told.origin = await self._first(call)
            told.ttft_s.append(seconds)
            told.firsts.append(first)

    @asynccontextmanager
    async def _answering(self) -> AsyncIterator[list[Seconds]]:
        """While it is open an answer is written; the gaps between its tokens, of which some have been."""
        gaps: list[Seconds] = []
        under_way = asyncio.Event()

        async def write() -> None:
            call = Call(self._name(), (self._head,), Sampling(4096, ignore_eos=True), tenant="answer")
            before = time.perf_counter()
            async for _ in self._engine.generate(call):
                now = time.perf_counter()
                gaps.append(now - before)
                before = now
                if len(gaps) >= ANSWER:
                    under_way.set()

        task = asyncio.ensure_future(write())
        await under_way.wait()
        try:
            yield gaps
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _first(self, call: Call) -> tuple[Seconds, int, Provenance | None]:
        began = time.perf_counter()
        seconds, first, origin = 0.0, -1, None
        async for output in self._engine.generate(call):
            seconds = seconds or time.perf_counter() - began
            first = output.token_ids[0] if output.token_ids and first < 0 else first
            origin = output.provenance or origin
        return seconds, first, origin

    def _order(self, number: int, busy: bool) -> list[Segment]:
        while (number, busy) not in self._orders:
            order = self._draw.sample(self._passages[1:], len(self._passages) - 1)
            if order not in self._orders.values():
                self._orders[number, busy] = order
        return self._orders[number, busy]

    def _segment(self, tokens: Tokens, origin: Origin) -> Segment:
        return Segment(tuple(self._draw.randrange(10, 260) for _ in range(tokens)), origin)  # in any vocabulary

    def _call(self, way: str, passages: Sequence[Segment], tenant: str) -> Call:
        reuse = Quality.FAST if way == BLENDED else Quality.EXACT
        segments = (self._head, *passages, self._question)
        return Call(self._name(), segments, Sampling(1, ignore_eos=True), tenant=tenant, reuse=reuse)

    def _name(self) -> str:
        self._number += 1
        return f"bench-{self._number}"


def _case(name: str, policy: Policy, ways: dict[str, Way]) -> dict[str, Any]:
    way, full, prefix = ways[name], ways[FULL], ways[PREFIX]
    origin = way.origin or Provenance()
    return {
        "engine": "vllm",
        "policy": str(policy) if name == BLENDED else f"{name} (beside {policy})",
        "ratio": policy.ratio if name == BLENDED and policy.name == "hkvd" else None,
        "tier": "host",
        "ttft_ms_p50": 1e3 * median(way.ttft_s),
        "speedup_vs_full": _speedup(full.ttft_s, way.ttft_s),
        "speedup_vs_prefix": _speedup(prefix.ttft_s, way.ttft_s),
        "stall_ms_p50": 1e3 * median(way.stall_s),
        "stall_vs_full": median(mine / its for mine, its in zip(way.stall_s, full.stall_s, strict=True)),
        "first_token_agrees": sum(a == b for a, b in zip(way.firsts, full.firsts, strict=True)) / len(full.firsts),
        "exact": origin.exact,
        "pasted": origin.pasted,
        "recomputed": origin.recomputed,
        "score": None,
        "loss_vs_full": None,
        "n": len(way.ttft_s),
    }


def _speedup(slow: Sequence[Seconds], fast: Sequence[Seconds]) -> float:
    return median(before / after for before, after in zip(slow, fast, strict=True))
