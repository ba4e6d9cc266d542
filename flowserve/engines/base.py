"""The contract between FlowServe and anything that generates text.

An engine takes a `Call` made of segments of token ids and yields `Output` deltas. It schedules nothing
across workflows: order and windows are the core's. Adapters live beside this file, one each, and
import their heavy packages when they are constructed. tests/engines/test_contract.py is the test suite that
every adapter passes.
"""

from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Protocol

from flowserve.cachestore.segments import Provenance, Quality
from flowserve.errors import Unsupported
from flowserve.ids import EngineId, Seconds, Tokens

if TYPE_CHECKING:
    from flowserve.engines.chat import PromptMessage


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
    document: str = ""
    """Chunks: id of the document that it was cut from; "" where nobody said."""
    version: str = ""
    """Chunks: version of that document."""
    free: bool = False
    """Chunks: its place among its free neighbours means nothing to the author (`any_order=`)."""


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
    thinking_budget: Tokens | None = None
    """Most tokens between a reasoning model's thinking marks, after which the engine closes them; None: no bound."""


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
    """JSON Schema that the whole output must satisfy (constrained decoding). At most one of schema, regex and grammar."""
    regex: str | None = None
    """Regular expression that the whole output must match."""
    grammar: str | None = None
    """Context-free grammar that the whole output must follow, in Lark's syntax, beginning at `start`."""
    timeout_s: Seconds | None = None
    session: str | None = None
    """Calls of one session share a growing prefix."""
    keep_s: Seconds = 0.0
    """Hold the KV of prompt and answer for so long after the call, for the session's next one. A hint within the
    engine's own budget; any later call of the session ends it."""
    tenant: str = ""
    """Cached state is never shared between tenants."""
    resumed: tuple[int, ...] = ()
    """Tokens of the answer that another engine has written already. They are read like the prompt, and what comes out
    goes on after them: `max_tokens` counts them, stop strings may begin in them. Only with n = 1 and no constraint."""
    stream: bool = True
    """False: nobody reads along, so the engine may send the output in larger pieces."""
    messages: "tuple[PromptMessage, ...] | None" = None
    """The conversation that `segments` render, for engines that do not take tokens. None: a plain prompt."""
    reuse: Quality = Quality.EXACT
    """How KV of chunks may be reused; beyond EXACT only engines that have a cachestore do anything else."""
    meta: dict[str, str] = field(default_factory=dict)
    """Workflow, run and node names, for logs and for the scripted engine (`node`)."""

    @property
    def prompt_ids(self) -> tuple[int, ...]:
        """The concatenated ids of all segments."""
        return tuple(i for segment in self.segments for i in segment.ids)

    @property
    def constrained(self) -> bool:
        """Only some tokens may come next."""
        return self.schema is not None or self.regex is not None or self.grammar is not None

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
    """Prompt tokens whose KV was reused exactly; set once, on an output of choice 0 (servers tell it with the last)."""
    provenance: Provenance | None = None
    """Where the KV of the prompt came from; set once, on an output of choice 0, by engines that have a cachestore."""
    untold: Tokens = 0
    """Tokens of this delta whose ids the engine does not tell."""

    @property
    def count(self) -> Tokens:
        """Tokens of this delta, told or not."""
        return len(self.token_ids) + self.untold


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What an engine can do. A call that needs more raises Unsupported, naming the field here and the remedy."""

    models: tuple[str, ...] = ()
    """Names it answers to. The first is its own name."""
    max_context: Tokens = 0
    """Prompt and output together; 0: unknown."""
    priority: bool = False
    """Orders what waits by `Call.priority`."""
    logprobs: bool = False
    schema: bool = False
    regex: bool = False
    grammar: bool = False
    prefix_reuse: bool = False
    lora: bool = False
    kv_connector: bool = False
    chunk_reuse: tuple[str, ...] = ()
    """Reuse policies that have passed the gate of its model, by name; (): chunks are reused as prefixes only."""
    thinking_budget: bool = False
    deterministic_seed: bool = False
    tokens: bool = True
    """Takes a prompt as token ids and tells the ids of its output. False: it is given text, and `Call.resumed` is refused."""
    sessions: bool = False
    """Keeps the KV of a session between its calls (`Call.keep_s`), to the token."""
    reprioritise: bool = False
    """`reprioritise` works inside the engine; else the call is begun anew with what it has written."""
    preempt: bool = False
    """`preempt` works inside the engine."""
    kv_events: bool = False
    """Tells its listener which blocks its prefix cache holds."""
    sleep: bool = False
    restart: bool = False
    """`start` may be called again after `close`, or after the engine was lost."""


@dataclass(frozen=True, slots=True)
class EngineStatus:
    """A snapshot; cheap, synchronous, never blocks."""

    up: bool
    running: int = 0
    """Choices in the batch now."""
    waiting: int = 0
    """Choices that the engine has not begun, or has pushed out of its batch."""
    window: int = 0
    """Choices it can have in its batch: what it wants at once."""
    kv_used: float = 0.0
    """Share of KV memory in use, 0 to 1."""
    tokens_out_total: Tokens = 0
    reason: str = ""
    """When not up: why."""
    kv_tokens: Tokens = 0
    """Tokens that its KV memory holds; 0: unknown."""
    batch_tokens: Tokens = 0
    """Prompt tokens that one step computes at most; 0: unknown."""
    steps: int = 0
    """Grows whenever the engine computes something: what health is judged by."""
    preemptions: int = 0
    """Times that it pushed a call out of its batch for want of memory, in all."""
    prefix_asked: Tokens = 0
    """Prompt tokens looked up in its prefix cache, in all."""
    prefix_hit: Tokens = 0
    """Of these, the ones that were there."""
    records: tuple[tuple[str, str, int], ...] = ()
    """Of an engine with a store of chunks: (what happened to its records and in shadows of its blends,
    tier or reason or verdict or "", how often), in all."""


@dataclass(frozen=True, slots=True)
class KVStored:
    """A chain of blocks that entered a prefix cache."""

    tenant: str
    parent: bytes | None
    """The engine's name of the block before the first; None: the chain begins with them."""
    blocks: tuple[bytes, ...]
    """The engine's names, in order."""
    token_ids: tuple[int, ...]
    """`len(blocks) * block_tokens` of them."""
    block_tokens: Tokens


@dataclass(frozen=True, slots=True)
class KVNews:
    """What changed in a prefix cache, in order: first `cleared`, then `removed`, then `stored`."""

    cleared: bool = False
    removed: tuple[bytes, ...] = ()
    stored: tuple[KVStored, ...] = ()


Listener = Callable[["Engine", KVNews | None], None]
"""Called on the engine's event loop: with None when `status()` has something new to say, at most ten times a second
but at once when `up` changed; with KVNews by engines that have `kv_events`."""


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

    @property
    def fingerprint(self) -> str:
        """Equal for tokenizers that give equal ids."""
        ...


class Engine(Protocol):
    """A replica that generates. Called from one event loop. Adapters derive from `BaseEngine`, which has the parts that
    many of them lack."""

    @property
    def id(self) -> EngineId: ...

    @property
    def capabilities(self) -> Capabilities: ...

    @property
    def tokenizer(self) -> Tokenizer: ...

    async def start(self) -> None:
        """Load and get ready; raises ConfigError or EngineError. Called before anything else, and again after `close` or
        a loss where `capabilities.restart` says so."""
        ...

    def watch(self, listener: Listener | None) -> None:
        """Tell `listener` of changes from now on; there is at most one."""
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

    async def reprioritise(self, call_id: str, priority: int) -> None:
        """Give a submitted call another priority. Unknown ids and engines without priorities ignore it."""
        ...

    async def preempt(self, call_id: str) -> None:
        """Push a running call out of the batch; it goes on, with the same output, when its priority lets it back.
        Unknown and waiting calls are left alone. Raises Unsupported."""
        ...

    async def release(self, session: str) -> None:
        """Let go of what is kept for a session (`Call.keep_s`). Unknown sessions are ignored."""
        ...

    async def probe(self) -> None:
        """Generate one token beside everything else, to see whether the engine computes. Raises EngineError; the caller
        sets the time limit. A client's faults are never an answer of this."""
        ...

    async def sleep(self, level: int = 1) -> None:
        """Give device memory back until `wake`: 1 keeps weights in host memory, 2 drops them. Calls at work are aborted.
        Raises Unsupported."""
        ...

    async def wake(self) -> None:
        """The opposite of `sleep`."""
        ...

    def status(self) -> EngineStatus: ...

    async def close(self) -> None:
        """Abort everything and free what is held. Idempotent."""
        ...


class BaseEngine:
    """What an adapter has unless it says otherwise."""

    _listener: Listener | None = None

    def watch(self, listener: Listener | None) -> None:
        self._listener = listener

    async def reprioritise(self, call_id: str, priority: int) -> None:
        """Nothing is ordered here."""

    async def preempt(self, call_id: str) -> None:
        raise Unsupported("this engine lacks the capability 'preempt': cancel the call and send it again")

    async def release(self, session: str) -> None:
        """Nothing is kept here."""

    async def sleep(self, level: int = 1) -> None:
        raise Unsupported("this engine lacks the capability 'sleep': close it and start it again")

    async def wake(self) -> None:
        raise Unsupported("this engine lacks the capability 'sleep': there is nothing to wake")
