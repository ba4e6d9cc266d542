"""LLM nodes that look passages up while they write: what `iterative` needs, from what a node declares.

The passage is put in front of the first user message. Where that is in a model's chat format, a mark tells that is rendered with the
prompt and taken out again before anything goes to an engine.
"""

from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace

from flowserve.core.speculation.stride import Stride
from flowserve.core.speculation.transaction import Commit, Mode, RollBack
from flowserve.engines.base import Call, Engine, Origin, Output
from flowserve.engines.chat import Piece, PromptMessage
from flowserve.errors import InputError, RetrievalError, Unsupported
from flowserve.graphs.plan import LLMSpec
from flowserve.retrieval.protocols import RetrievalService
from flowserve.runtime.iterative import Generation, Iteration

MARK = "\N{OBJECT REPLACEMENT CHARACTER}"
MARK_DOCUMENT = "flowserve:retrieved"
MOST_STRIDES = 4096
"""Of nodes whose strides are remembered; the one that was first used longest ago is forgotten."""

Told = Callable[[Commit | RollBack], None]


@dataclass(frozen=True, slots=True)
class Looking:
    """What a call looks up, and how."""

    node: tuple[str, str]
    """Workflow and node: whose chances and times are alike."""
    index: str
    how: Iteration


def looking_of(spec: LLMSpec, workflow: str) -> Looking | None:
    """None: the node looks nothing up."""
    if spec.retrieve_every is None or spec.retrieve_from is None:
        return None
    mode = Mode(spec.retrieve_mode or Mode.SPECULATIVE)
    return Looking((workflow, spec.name), spec.retrieve_from, Iteration(every=spec.retrieve_every, mode=mode))


def marked(messages: Sequence[PromptMessage]) -> list[PromptMessage]:
    """The conversation with the mark in front of its first user message; without one, of its last message."""
    place = next((i for i, message in enumerate(messages) if message.role == "user"), len(messages) - 1)
    mark = Piece(MARK, Origin.CHUNK, MARK_DOCUMENT)
    return [replace(m, pieces=(mark, *m.pieces)) if i == place else m for i, m in enumerate(messages)]


def unmarked(call: Call) -> tuple[Call, int]:
    """The call without the mark, and the place in its segments where that was."""
    for place, segment in enumerate(call.segments):
        if segment.document == MARK_DOCUMENT and segment.text == MARK:
            return replace(call, segments=(*call.segments[:place], *call.segments[place + 1 :])), place
    raise InputError(
        f"call '{call.id}': retrieve_every needs a chat template that keeps the text of a user message as it is; this model's "
        "changes it, so there is no telling where a passage goes"
    )


class Lookups:
    """Generations that look things up, and what was learned of when guessing pays: of one runtime."""

    def __init__(self, retrieval: RetrievalService | None) -> None:
        self._retrieval = retrieval
        self._strides: dict[tuple[Looking, str], Stride] = {}

    async def outputs(self, call: Call, engine: Engine, looking: Looking, told: Told) -> AsyncGenerator[Output, None]:
        """What is committed of the answer to `call`. `told` hears of commits and roll-backs, where there are guesses."""
        if self._retrieval is None:
            raise RetrievalError(
                f"node {looking.node[1]} looks into index '{looking.index}' but this runtime has no retrieval folder; "
                "start it with one (`flowserve serve --indexes DIR`)"
            )
        if not engine.capabilities.tokens:
            raise Unsupported(f"engine '{engine.id}' lacks the capability 'tokens', which retrieve_every needs")
        call, place = unmarked(call)
        lookup = await self._retrieval.lookup(looking.index, call.tenant)
        generation = Generation(
            call,
            place,
            engine,
            lookup,
            looking.how,
            self._stride(looking, engine),
            told=told if looking.how.mode is not Mode.SEQUENTIAL else lambda _: None,
        )
        async with aclosing(generation.outputs()) as outputs:
            async for output in outputs:
                yield output

    def _stride(self, looking: Looking, engine: Engine) -> Stride:
        """One per node, index, mode and engine: their chances and times differ."""
        key = looking, engine.id
        if key not in self._strides:
            while len(self._strides) >= MOST_STRIDES:
                del self._strides[next(iter(self._strides))]
            self._strides[key] = Stride(looking.how.mode is Mode.OVERLAPPED)
        return self._strides[key]
