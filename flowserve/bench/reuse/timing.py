"""Time to the first token of a prompt of passages: full prefill, prefix caching and each policy, in turn.

One round asks once in every way, in an order that turns from round to round, so what the machine does besides hits all alike; a speedup
is the median over rounds of ratios within a round. Between rounds the passages behind the first one change places, as a retriever
changes them: prefix caching has seen the head and the first passage; policies have a record of each passage and cache no prefix, else
what one computes would help the next. Divergences are of the first token's distribution from that of full prefill, in nats; with random
weights they tell that something is lost, not how much it matters.
"""

import asyncio
import random
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, Final

from flowserve.bench.random_model import SIZES, WORDS, make
from flowserve.bench.reuse.quality import figures
from flowserve.cachestore.divergence import LogProbs, kl
from flowserve.cachestore.gates import Thresholds
from flowserve.cachestore.policies import Policy, parse_policy
from flowserve.cachestore.segments import Provenance, Quality
from flowserve.cachestore.settings import ReuseSettings
from flowserve.engines.base import Call, Origin, Output, Sampling, Segment
from flowserve.engines.chunk_store import sink_of
from flowserve.engines.hf import HFEngine
from flowserve.errors import ConfigError, EngineError
from flowserve.ids import Seconds, Tokens

SEED: Final = 0
POLICIES: Final = (
    "none", "first_k:16", "hkvd:0.05", "hkvd:0.15", "hkvd:0.3", "hkvd:0.2,gradual=0.15/0.1", "budgeted:0.15", "query_attn:0.15",
)  # fmt: skip
TIERS: Final = ("host", "disk")
FULL, PREFIX = "full prefill", "prefix caching"
HEAD: Final[Tokens] = 24
QUESTION: Final[Tokens] = 32

Say = Callable[[str], None]


@dataclass
class Arm:
    """One way to answer, and what it took."""

    name: str
    policy: Policy | None = None
    """None: nothing is pasted."""
    seconds: list[Seconds] = field(default_factory=list)
    """To the first token, by round."""
    cpu: list[Seconds] = field(default_factory=list)
    """Of this process, meanwhile: hardly disturbed by others on a busy machine, and blind to a GPU."""
    origins: Provenance = field(default_factory=Provenance)
    """Of the last prompt."""
    divergences: list[float] = field(default_factory=list)
    agreements: list[bool] = field(default_factory=list)


@dataclass(frozen=True)
class Shape:
    """Of a prompt."""

    chunks: int
    tokens: Tokens
    """Of each chunk."""


def run(
    model: str,
    policies: Sequence[str] = POLICIES,
    tiers: Sequence[str] = TIERS,
    shapes: Sequence[Shape] = (Shape(6, 512),),
    rounds: int = 3,
    data: Path | None = None,
    say: Say = print,
) -> dict[str, Any]:
    """model: a folder or hub name, or `random`, or `random:SIZE` of random_model.SIZES. data: questions over passages; then answers
    are scored as well. Raises ConfigError."""
    chosen = [parse_policy(text) for text in policies]
    if unknown := sorted(set(tiers) - set(TIERS)):
        raise ConfigError(f"bench reuse --tier: expected {' or '.join(TIERS)}; got '{unknown[0]}'")
    with tempfile.TemporaryDirectory(prefix="flowserve-reuse-") as folder:
        path = _model(model, Path(folder))
        cases = [
            case
            for tier in tiers
            for shape in shapes
            for case in asyncio.run(_measured(path, chosen, tier, shape, rounds, Path(folder), say))
        ]
        if data is not None:
            _score(cases, path, data, policies)
    return {"rounds": rounds, "data": None if data is None else data.name, "cases": cases}


def _model(model: str, folder: Path) -> str:
    kind, _, size = model.partition(":")
    if kind != "random":
        return model
    if (size or "66m") not in SIZES:
        raise ConfigError(f"bench reuse --model: expected random:SIZE with a size of {', '.join(SIZES)}; got '{model}'")
    return str(make(size or "66m", folder / "model", SEED))


async def _measured(
    model: str, policies: Sequence[Policy], tier: str, shape: Shape, rounds: int, folder: Path, say: Say
) -> list[dict[str, Any]]:
    say(
        f"{shape.chunks} passages of {shape.tokens} tokens, records on {tier}: {len(policies) + 2} ways, {rounds} rounds"
    )
    records = folder / f"records-{tier}-{shape.chunks}x{shape.tokens}"
    settings = ReuseSettings(
        host_bytes=8 << 30 if tier == "host" else 0,
        disk=records if tier == "disk" else None,
        least_chunk_tokens=8,
        measuring=True,
    )
    plain = HFEngine(model, id="plain", prefix_bytes=2 << 30, quiet=True)
    blending = HFEngine(model, id="blending", reuse=settings, prefix_bytes=0, quiet=True)
    try:
        for engine in (plain, blending):
            await engine.start()
        bench = Bench(plain, blending, shape)
        arms = [Arm(FULL), Arm(PREFIX), *(Arm(str(policy), policy) for policy in policies)]
        await bench.prepare()
        for number in range(rounds):
            turn = number % len(arms)
            for arm in (*arms[turn:], *arms[:turn]):
                await bench.ask(arm, number)
            await bench.compare(arms, number)
            say(f"round {number + 1} of {rounds}: " + ", ".join(f"{arm.name} {arm.seconds[-1]:.2f} s" for arm in arms))
        return [_case(arm, arms, tier, shape, bench.prompt_tokens) for arm in arms]
    finally:
        for engine in (plain, blending):
            await engine.close()


class Bench:
    """Prompts of one shape, for an engine that caches prefixes and one that blends."""

    def __init__(self, plain: HFEngine, blending: HFEngine, shape: Shape) -> None:
        self._plain = plain
        self._blending = blending
        self._source = random.Random(SEED)
        self._head = sink_of(plain.tokenizer, 1) + self._text(HEAD - 1)
        self._chunks = [self._text(shape.tokens) for _ in range(shape.chunks)]
        self._question = self._text(QUESTION)
        self._number = 0
        self.prompt_tokens: Tokens = HEAD + QUESTION + shape.chunks * shape.tokens

    async def prepare(self) -> None:
        """Make the records; and ask both once, so that no way pays for what is allocated at first use."""
        arm = Arm("warm-up", Policy("none"))
        for _ in range(2):
            await self.ask(arm, 0)
            await self._blending.settled()
        if arm.origins.pasted < self.prompt_tokens - HEAD - QUESTION:
            raise EngineError(f"bench reuse: expected records of all passages in the store; got {arm.origins}")
        await self.ask(Arm(FULL), 0)

    async def ask(self, arm: Arm, number: int) -> None:
        """Once, in the way of `arm`, with the order of passages of round `number`."""
        engine, call = await self._prepared(arm, number)
        began, cpu = time.perf_counter(), time.process_time()
        async for output in engine.generate(call):
            if not output.token_ids:
                continue
            arm.seconds.append(time.perf_counter() - began)
            arm.cpu.append(time.process_time() - cpu)
            arm.origins = output.provenance or _exactly(output)

    async def compare(self, arms: Sequence[Arm], number: int) -> None:
        """First tokens of all policies with that of full prefill, untimed."""
        full = await self._first(arms[0], number)
        for arm in arms:
            if arm.policy is not None:
                blended = await self._first(arm, number)
                arm.divergences.append(kl(full, blended))
                arm.agreements.append(bool(full.argmax() == blended.argmax()))

    async def _first(self, arm: Arm, number: int) -> LogProbs:
        engine, call = await self._prepared(arm, number)
        return (await engine.first_logprobs(call)).numpy()

    async def _prepared(self, arm: Arm, number: int) -> tuple[HFEngine, Call]:
        """A tenant whom the engine does not know has no prefix cached."""
        if arm.policy is not None:
            self._blending.paste_by(arm.policy)
            return self._blending, self._call(number, "reuse", Quality.FAST)
        tenant = f"tenant-{self._number}"
        if arm.name == PREFIX:
            await self._plain.prefill(self._call(number, tenant, Quality.EXACT, only=1))
        return self._plain, self._call(number, tenant, Quality.EXACT)

    def _call(self, number: int, tenant: str, quality: Quality, only: int | None = None) -> Call:
        """only: so many passages and no question."""
        self._number += 1
        first, *others = self._chunks
        turn = number % max(1, len(others))
        chunks = [first, *others[turn:], *others[:turn]][:only]
        segments = [Segment(self._head, Origin.TEMPLATE), *(Segment(chunk, Origin.CHUNK) for chunk in chunks)]
        if only is None:
            segments.append(Segment(self._question, Origin.VALUE))
        sampling = Sampling(1, ignore_eos=True)
        return Call(f"bench-{self._number}", tuple(segments), sampling, tenant=tenant, reuse=quality)

    def _text(self, tokens: Tokens) -> tuple[int, ...]:
        ids: list[int] = []
        while len(ids) < tokens:
            ids += self._plain.tokenizer.encode(" " + " ".join(self._source.choices(WORDS, k=64)))
        return tuple(ids[:tokens])


def _exactly(output: Output) -> Provenance:
    """Of an engine that pastes nothing."""
    return Provenance(output.cached_tokens, 0, output.prompt_tokens - output.cached_tokens)


def _case(arm: Arm, arms: Sequence[Arm], tier: str, shape: Shape, prompt_tokens: Tokens) -> dict[str, Any]:
    full, prefix = arms[0].seconds, arms[1].seconds
    policy, origins = arm.policy, arm.origins
    return {
        "engine": "hf",
        "policy": arm.name,
        "ratio": policy.ratio if policy is not None and "ratio" in policy.parameters else None,
        "tier": tier if policy is not None else None,
        "chunks": shape.chunks,
        "chunk_tokens": shape.tokens,
        "prompt_tokens": prompt_tokens,
        "ttft_ms_p50": 1000 * median(arm.seconds),
        "ttft_ms_all": [1000 * seconds for seconds in arm.seconds],
        "cpu_ms_p50": 1000 * median(arm.cpu),
        "speedup_vs_full": median(_ratios(full, arm.seconds)),
        "speedup_vs_prefix": median(_ratios(prefix, arm.seconds)),
        "cpu_vs_full": median(_ratios(arms[0].cpu, arm.cpu)),
        "exact": origins.exact,
        "pasted": origins.pasted,
        "recomputed": origins.recomputed,
        "kl_mean": sum(arm.divergences) / len(arm.divergences) if arm.divergences else None,
        "agreement": sum(arm.agreements) / len(arm.agreements) if arm.agreements else None,
        "score": None,
        "loss_vs_full": None,
        "n": len(arm.seconds),
    }


def _ratios(base: Sequence[Seconds], other: Sequence[Seconds]) -> Iterator[float]:
    return (one / two for one, two in zip(base, other, strict=True))


def _score(cases: Sequence[dict[str, Any]], model: str, data: Path, policies: Sequence[str]) -> None:
    """F1 of the answers to `data`, with each policy and in full, into its cases."""
    from flowserve.bench.reuse.embedded import measured_cases

    for about, answered in measured_cases(model, model, data, policies):
        told = figures(answered, "f1", Thresholds())
        for case in cases:
            if case["policy"] == FULL:
                case |= {"score": told.score_full, "loss_vs_full": 0.0}
            if case["policy"] == str(about.subject.policy):
                case |= {"score": told.score_policy, "loss_vs_full": told.loss}
