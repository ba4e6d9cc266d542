"""What a model call has produced so far, choice by choice."""

from dataclasses import dataclass, field

from flowserve.cachestore.segments import Provenance
from flowserve.engines.base import Finish, Logprob, Output
from flowserve.ids import Tokens


@dataclass(slots=True)
class Collected:
    """Outputs of one call, in order. When another engine goes on with the call, its outputs are added to these."""

    texts: dict[int, list[str]] = field(default_factory=dict)
    logprobs: dict[int, list[Logprob]] = field(default_factory=dict)
    finish: dict[int, Finish] = field(default_factory=dict)
    ids: list[int] = field(default_factory=list)
    """Of choice 0: what another engine would go on with."""
    tokens_in: Tokens = 0
    tokens_out: Tokens = 0
    cached: Tokens = 0
    provenance: Provenance | None = None
    """Of the engine that read the prompt last; None: it does not tell."""

    def add(self, output: Output) -> None:
        self.texts.setdefault(output.index, []).append(output.text)
        if output.logprobs:
            self.logprobs.setdefault(output.index, []).extend(output.logprobs)
        self.tokens_in = max(self.tokens_in, output.prompt_tokens)
        self.cached = max(self.cached, output.cached_tokens)
        self.provenance = output.provenance or self.provenance
        self.tokens_out += output.count
        if output.index == 0:
            self.ids.extend(output.token_ids)
        if output.finish is not None:
            self.finish[output.index] = output.finish

    def text(self, index: int = 0) -> str:
        return "".join(self.texts.get(index, ()))
