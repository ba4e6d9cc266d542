"""A model in this process, asked questions over their passages twice: in full, and with passages pasted by a policy.

The engine is the embedded one with a store in memory, the same path as when it serves; only the gate is left out, since this is the
measurement that opens it.
"""

import asyncio
import hashlib
import importlib.metadata
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Self

from flowserve.bench.retrieval import Question, read_questions
from flowserve.bench.reuse.quality import Case, Measured, Reply, measure
from flowserve.cachestore.gates import subject_of
from flowserve.cachestore.policies import Policy, parse_policy
from flowserve.cachestore.segments import Quality
from flowserve.cachestore.settings import ReuseSettings
from flowserve.engines.base import Call, Origin, Sampling, Segment
from flowserve.engines.chat import ChatFormat, Piece, PromptMessage
from flowserve.engines.chunk_store import CODEC
from flowserve.engines.hf import HFEngine
from flowserve.errors import ConfigError
from flowserve.ids import Tokens

SYSTEM = "Answer the question from the passages only, in a few words."
PACKAGES = ("torch", "transformers", "flowserve")


class EmbeddedReplies:
    """Fulfils `quality.Replies` for one policy. Use as a context manager: it loads the model and gives it back."""

    def __init__(self, model: str, policy: str, max_tokens: Tokens = 32, least_chunk_tokens: Tokens = 8) -> None:
        """policy: as for `ReuseSettings`, e.g. first_k:16."""
        self.policy = parse_policy(policy)
        settings = ReuseSettings(fast=policy, least_chunk_tokens=least_chunk_tokens, measuring=True)
        self._engine = HFEngine(model, reuse=settings, prefix_bytes=0, quiet=True)
        self._max_tokens = max_tokens
        self._runner = asyncio.Runner()
        self._number = 0

    def __enter__(self) -> Self:
        self._runner.__enter__()
        self._runner.run(self._engine.start())
        self._format = ChatFormat(self._engine.tokenizer)
        return self

    def __exit__(self, *error: object) -> None:
        self._runner.run(self._engine.close())
        self._runner.__exit__(None, None, None)

    def reply(self, question: Question, policy: Policy | None) -> Reply:
        if policy is not None and policy != self.policy:
            raise ConfigError(f"expected the policy {self.policy}, with which the model was loaded; got {policy}")
        return self._runner.run(self._reply(question, Quality.EXACT if policy is None else Quality.FAST))

    def measured(self, data: Path, name: str) -> Measured:
        """Whose cases these are."""
        identity = self._engine.identity
        assert identity is not None, "an engine with a store is up"
        digest = hashlib.sha256(data.read_bytes()).hexdigest()
        versions = {package: importlib.metadata.version(package) for package in PACKAGES}
        return Measured(subject_of(identity, self.policy, CODEC), name, data.name, digest, versions)

    async def _reply(self, question: Question, quality: Quality) -> Reply:
        segments = self._segments(question)
        if quality is not Quality.EXACT:
            await self._engine.first_logprobs(self._call(segments, quality))  # what is missing is encoded after this
            await self._engine.settled()
        first = await self._engine.first_logprobs(self._call(segments, quality))
        outputs = [output async for output in self._engine.generate(self._call(segments, quality))]
        return Reply("".join(output.text for output in outputs), first.numpy())

    def _call(self, segments: tuple[Segment, ...], quality: Quality) -> Call:
        self._number += 1
        return Call(f"measured-{self._number}", segments, Sampling(self._max_tokens), reuse=quality)

    def _segments(self, question: Question) -> tuple[Segment, ...]:
        pieces = [Piece(f"{passage}\n", Origin.CHUNK) for passage in question.passages]
        asked = Piece(f"Question: {question.text}", Origin.VALUE)
        system = PromptMessage("system", (Piece(SYSTEM, Origin.TEMPLATE),))
        return self._format.segments([system, PromptMessage("user", (*pieces, asked))])


def measured_cases(
    model: str, name: str, data: Path, policies: Sequence[str], limit: int | None = None
) -> Iterator[tuple[Measured, list[Case]]]:
    """For each policy, as soon as they are there, its cases over the questions of `data`. Raises ConfigError."""
    questions = read_questions(data, limit)
    for policy in policies:
        with EmbeddedReplies(model, policy) as replies:
            cases = measure(replies, _shown(questions, policy), replies.policy)
            yield replies.measured(data, name), cases


def _shown(questions: Sequence[Question], policy: str) -> Iterable[Question]:
    from rich.console import Console
    from rich.progress import track

    return track(questions, f"measuring {policy}", console=Console(stderr=True))
