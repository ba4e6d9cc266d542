"""The contract between FlowServe and anything that generates text.

An engine takes a `Call` made of segments of token ids and yields `Output` deltas. It schedules nothing
across workflows: order and windows are the core's. Adapters live beside this file, one each, and
import their heavy packages when they are constructed. tests/engines/test_contract.py is the test suite that
every adapter passes.
"""

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Protocol

from flowserve.ids import EngineId, Seconds, Tokens


class Origin(StrEnum):
    """Where a segment's text comes from; it decides what may be shared and reused."""

    TEMPLATE = "template"
    """Constant text of a template or chat format."""
    VALUE = "value"
    """A value known only at run time."""
    CHUNK = "chunk"
    """One element of a loop over values (a retrieved passage): reusable anywhere."""
    GENERATED = "generated"
    """Earlier output of a model."""


@dataclass(frozen=True, slots=True)
class Segment:
    """A stretch of the prompt that was tokenised alone. Concatenated `ids` are what the engine runs."""

    ids: tuple[int, ...]
    origin: Origin
    text: str = ""
    """What `ids` encode; for people, and for engines that only take text."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are chosen. `temperature` 0 is greedy, then `seed`, `top_p` and `top_k` do nothing."""

    max_tokens: Tokens = 256
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    """0: all."""
    seed: int | None = None
    """Same seed, same call, same engine version: same tokens, whatever else runs in the batch."""
    stop: tuple[str, ...] = ()
    """Generation ends before the first of these; the text does not contain it."""
    n: int = 1
    """Independent choices. Choice `i` draws from seed + i."""
    logprobs: int | None = None
    """None: none. 0: of the chosen tokens. k: of the chosen and the k likeliest."""
    ignore_eos: bool = False


@dataclass(frozen=True, slots=True)
class Call:
    """One request to an engine."""

    id: str
    """Unique; what `abort` takes."""
    segments: tuple[Segment, ...]
    sampling: Sampling = Sampling()
    model: str = ""
    """Model or adapter name; "" is the engine's own."""
    priority: int = 0
    """Lower goes first, where the engine can order; ties by arrival."""
    schema: dict[str, Any] | None = None
    """JSON Schema that the whole output must satisfy (constrained decoding)."""
    timeout_s: Seconds | None = None
    session: str | None = None
    """Calls of one session share a growing prefix."""
    tenant: str = ""
    """Cached state is never shared between tenants."""
    meta: dict[str, str] = field(default_factory=dict)
    """Workflow, run and node names, for logs and for the scripted engine (`node`)."""

    @property
    def prompt_ids(self) -> tuple[int, ...]:
        """The concatenated ids of all segments."""
        return tuple(i for segment in self.segments for i in segment.ids)

    @property
    def prompt_text(self) -> str:
        """The concatenated texts of all segments."""
        return "".join(segment.text for segment in self.segments)


class Finish(StrEnum):
    """Why a choice ended."""

    STOP = "stop"
    """End-of-sequence token or a stop string."""
    LENGTH = "length"
    """`max_tokens` or the context is full."""
    ABORT = "abort"
    """`abort(call.id)` or closing."""


@dataclass(frozen=True, slots=True)
class Logprob:
    """Natural logarithm of a token's probability (after temperature 1 softmax, before top-k and top-p)."""

    token_id: int
    text: str
    logprob: float
    top: tuple[tuple[int, str, float], ...] = ()
    """(token id, text, logprob) of the likeliest alternatives, best first."""


@dataclass(frozen=True, slots=True)
class Output:
    """What one choice gained since its last output. Deltas of a choice concatenate to the whole."""

    index: int = 0
    """Which of the `n` choices."""
    token_ids: tuple[int, ...] = ()
    text: str = ""
    """May be shorter than the tokens say while an incomplete character or possible stop string is held back."""
    logprobs: tuple[Logprob, ...] = ()
    finish: Finish | None = None
    """Set exactly once per choice, on its last output."""
    prompt_tokens: Tokens = 0
    """Set on the first output of choice 0."""
    cached_tokens: Tokens = 0
    """Prompt tokens whose KV was reused exactly; set on the first output of choice 0."""


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What an engine can do. A call that needs more raises Unsupported, naming the field here and the remedy."""

    models: tuple[str, ...] = ()
    """Names it answers to. The first is its own name."""
    max_context: Tokens = 0
    """Prompt and output together; 0: unknown."""
    priority: bool = False
    logprobs: bool = False
    schema: bool = False
    prefix_reuse: bool = False
    lora: bool = False
    kv_connector: bool = False
    thinking_budget: bool = False
    deterministic_seed: bool = False


@dataclass(frozen=True, slots=True)
class EngineStatus:
    """A snapshot; cheap, synchronous, never blocks."""

    up: bool
    running: int = 0
    """Choices in the batch now."""
    waiting: int = 0
    window: int = 0
    """Calls it wants at once: enough to keep its batch full, no more."""
    kv_used: float = 0.0
    """Share of KV memory in use, 0 to 1."""
    tokens_out_total: Tokens = 0
    reason: str = ""
    """When not up: why."""


class Tokenizer(Protocol):
    """Text to ids and back. Thread-safe. Encoding adds no special tokens by itself."""

    def encode(self, text: str) -> list[int]:
        """Ids of `text`; special tokens written in `text` are NOT recognised (data stays data)."""
        ...

    def encode_template(self, text: str) -> list[int]:
        """Ids of trusted template text, in which special tokens (`<|end|>`) are recognised."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """Text of `ids`, special tokens left out."""
        ...

    @property
    def chat_template(self) -> str | None:
        """The model's Jinja2 chat template, or None for a model without one."""
        ...

    @property
    def special_tokens(self) -> dict[str, str]:
        """`bos_token`, `eos_token`, ... as the chat template expects them."""
        ...

    @property
    def eos_ids(self) -> tuple[int, ...]: ...


class Engine(Protocol):
    """A replica that generates. Called from one event loop."""

    @property
    def id(self) -> EngineId: ...

    @property
    def capabilities(self) -> Capabilities: ...

    @property
    def tokenizer(self) -> Tokenizer: ...

    async def start(self) -> None:
        """Load and get ready; raises ConfigError or EngineError. Called once, before anything else."""
        ...

    def generate(self, call: Call) -> AsyncIterator[Output]:
        """Run `call`. Closing the iterator early aborts the call.

        Raises RequestError (ContextTooLong, InputError) for a wrong call, Unsupported for a missing capability,
        EngineLost when the engine dies, EngineError otherwise. Never ends without `finish` on every choice.
        """
        ...

    async def prefill(self, call: Call) -> None:
        """Compute the prompt's KV so that a later call that starts with it is faster. A hint: may do nothing."""
        ...

    async def abort(self, call_id: str) -> None:
        """Stop a call; its iterator ends with `Finish.ABORT` at the engine's next step. Unknown ids are ignored."""
        ...

    def status(self) -> EngineStatus: ...

    async def close(self) -> None:
        """Abort everything and free what is held. Idempotent."""
        ...
