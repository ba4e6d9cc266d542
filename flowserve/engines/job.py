"""A call and its choices while the transformers engine works on them."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from flowserve.cachestore.segments import Provenance
from flowserve.engines.base import Call
from flowserve.engines.blend.blend import Blend
from flowserve.engines.detok import Decode, TextStream
from flowserve.engines.grammar import Grammar
from flowserve.engines.hf_reuse import Patch
from flowserve.engines.sampling import Chooser
from flowserve.ids import Tokens


@dataclass(eq=False)
class Job:
    """One call on its way through the engine."""

    call: Call
    prompt: tuple[int, ...]
    """What is computed before the first new token: the call's prompt, and what another engine has written already."""
    deliver: Callable[[Any], None]
    """Called on the event loop with each Output, with the exception that ends the call, or with None when a
    prefill is done."""
    grammar: Grammar | None = None
    prefill_only: bool = False
    encoded_from: Tokens | None = None
    """A prefill whose KV from this position on is delivered when it is done; nothing of it is remembered."""
    alone: bool = False
    """Its prompt is not computed together with others': that has failed."""
    cached: Tokens = 0
    """Prompt tokens whose KV was reused."""
    patch: Patch | None = None
    """Chunks at hand for its prompt; None: there are none, and the prompt is computed from its cached beginning on."""
    todo: list[Tokens] | None = None
    """With a patch, once it is in its slot: positions that are still to be computed, ascending."""
    blend: Blend | None = None
    """With a patch whose policy is dynamic, once it is in its slot: what computes the prompt."""
    exact: Tokens | None = None
    """So many tokens from the beginning have exact KV; None: all, also of the answer. Only these may be remembered."""
    provenance: Provenance | None = None
    """Told with `prompt_tokens`, by engines that reuse chunks; None while a dynamic policy has not chosen."""
    first: Callable[[torch.Tensor], None] | None = None
    """Told, in the engine's thread, of the logits that a choice's first token is drawn from."""
    over: bool = False
    """Nothing more will be delivered."""
    open: set[int] = field(default_factory=set)
    """Choices that have not finished."""
    announced: bool = False
    """prompt_tokens went out."""

    @property
    def prompt_tokens(self) -> Tokens:
        """Without what another engine has written."""
        return len(self.prompt) - len(self.call.resumed)

    def __post_init__(self) -> None:
        if self.encoded_from is not None:
            self.exact = 0
        self.open = set(range(0 if self.prefill_only else self.call.sampling.n))


class Choice:
    """A decoding sequence."""

    __slots__ = ("chooser", "grammar", "ids", "index", "job", "limit", "stream")

    def __init__(self, job: Job, index: int, grammar: Grammar | None, decode: Decode, max_context: Tokens) -> None:
        call = job.call
        self.job = job
        self.index = index
        self.chooser = Chooser(call.sampling, index, len(call.resumed))
        self.grammar = grammar
        self.stream = TextStream(decode, call.sampling.stop)
        self.stream.push(call.resumed)
        self.ids: list[int] = []
        self.limit = min(call.sampling.max_tokens - len(call.resumed), max_context - len(job.prompt))

    @property
    def length(self) -> Tokens:
        """Positions whose KV exists: all but the last chosen token's."""
        return len(self.job.prompt) + len(self.ids) - 1
