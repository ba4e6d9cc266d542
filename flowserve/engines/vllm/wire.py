"""What the server process and a host of vLLM say to each other; see host.py for who hosts.

Every message is a small struct; over a socket they travel as MessagePack, several in one frame (frames.py). Token ids
go both ways, text never does: it is made in the server process.
"""

from enum import StrEnum
from typing import Any

import msgspec

from flowserve.ids import Bytes, Seconds, Tokens


class Message(msgspec.Struct, frozen=True, array_like=True, tag=True, gc=False):
    """Base of all messages."""


# --- server process to host ---------------------------------------------------------------------------------


class Start(Message, frozen=True):
    """The first message: what to host. Fields as in VLLMSettings."""

    model: str
    args: dict[str, Any]
    loras: dict[str, str]
    cores: str
    kv_bytes: Bytes | None
    scheduler: bool
    kv_events: bool
    reuse: dict[str, Any] | None
    """As `settings.packed` makes it; None: no store of passages."""
    session_share: float
    secret: bytes
    stop_s: Seconds
    folder: str
    """A private one for sockets; whoever sent this removes it."""


class Ask(Message, frozen=True):
    """Generate. Answered with Deltas, or one Fault."""

    key: int
    """Of this call on this connection; its choices are 0 to n - 1."""
    prompt: list[int]
    max_tokens: Tokens
    """Already within the context."""
    temperature: float
    top_p: float
    top_k: int
    seed: int | None
    """Of choice 0; choice i has seed + i."""
    n: int
    logprobs: int | None
    ignore_eos: bool
    thinking_budget: Tokens | None
    priority: int
    tenant: str
    lora: str
    """Name of an adapter; "": none."""
    constraint: tuple[str, str] | None
    """(`schema`, `regex` or `grammar`; its text)."""
    session: str
    keep_s: Seconds
    whole: bool
    """Nobody reads along: tokens may come in larger pieces."""
    stops: bool
    """Stop strings may end it from outside."""
    reuse: str = ""
    """Class of reuse that the call allows, where the engine has a policy for it; "": nothing is pasted."""
    chunks: list[tuple[Tokens, Tokens, str, str]] = []
    """Passages in the prompt: start, end, document and version."""


class Warm(Message, frozen=True):
    """Compute the KV of `ask`'s prompt ahead of time. Answered with Done."""

    ask: Ask


class Drop(Message, frozen=True):
    """Stop a call, or one choice of it; nothing more is said of it."""

    key: int
    index: int | None = None
    keep: bool = False
    """It ended well (a stop string came): what shall be held for its session is held."""


class Reorder(Message, frozen=True):
    """Give a call another priority."""

    key: int
    priority: int


class Preempt(Message, frozen=True):
    """Push a call out of the batch."""

    key: int


class Release(Message, frozen=True):
    """Let go of what is held for a session."""

    session: str


class Sleep(Message, frozen=True):
    """Answered with Done."""

    key: int
    level: int


class Wake(Message, frozen=True):
    """Answered with Done."""

    key: int


class Stop(Message, frozen=True):
    """End in good order."""


# --- host to server process ---------------------------------------------------------------------------------


class Say(Message, frozen=True):
    """Progress of the start, for people."""

    text: str


class TokenizerParts(Message, frozen=True):
    """What hf_tokenizer.py reads of a transformers tokenizer, so that the server process need not import
    transformers."""

    json: str
    chat_template: str | dict[str, str] | None
    special: dict[str, str]
    added: list[tuple[int, str, bool]]
    """(id, text, special)."""
    unknown: int | None
    eos: int | None
    eos_ids: list[int]
    """Of the model's generation config."""


class Ready(Message, frozen=True):
    """The engine is up. All of it was found out from the started engine."""

    tokenizer: TokenizerParts
    version: str
    device: str
    max_context: Tokens
    kv_tokens: Tokens
    block_tokens: Tokens
    window: int
    batch_tokens: Tokens
    constraints: list[str]
    """Kinds of constraint that it can keep, `schema`, `regex`, `grammar`."""
    prefix_reuse: bool
    priority: bool
    thinking: bool
    kv_connector: bool
    kv_events: bool
    sleep: bool
    sessions: bool
    """KV can be kept between the calls of a session to the token."""
    controls: list[str]
    """What our scheduler can do in it; empty without."""
    reuse: dict[str, str] | None = None
    """By class of reuse, the name of the policy that has passed its gate; None: no store of passages."""


class FaultKind(StrEnum):
    """Whose doing it is."""

    CONFIG = "config"
    INPUT = "input"
    OVERLOADED = "overloaded"
    ENGINE = "engine"
    LOST = "lost"


class Failed(Message, frozen=True):
    """The engine did not start."""

    kind: FaultKind
    text: str


class Delta(Message, frozen=True):
    """What a choice gained."""

    key: int
    index: int
    ids: list[int]
    finish: str = ""
    """vLLM's word for it, once."""
    cached: Tokens = 0
    """Prompt tokens whose KV was reused exactly."""
    logprobs: list[tuple[float, list[tuple[int, float]]]] | None = None
    """Per token: its own, and those of the likeliest."""
    pasted: Tokens = 0
    """Prompt tokens whose KV was taken from records of passages."""


class Fault(Message, frozen=True):
    """A call failed; nothing more comes of it."""

    key: int
    kind: FaultKind
    text: str


class Done(Message, frozen=True):
    """Warm, Sleep or Wake is done."""

    key: int
    kind: FaultKind | None = None
    """Set when it failed."""
    text: str = ""


class Load(Message, frozen=True):
    """How busy vLLM is. Sent at most ten times a second, and when it becomes idle."""

    running: int = 0
    waiting: int = 0
    kv_used: float = 0.0
    steps: int = 0
    preemptions: int = 0
    prefix_asked: Tokens = 0
    prefix_hit: Tokens = 0
    records: list[tuple[str, str, int]] = []
    """As base.EngineStatus.records."""


class Stored(Message, frozen=True):
    """As base.KVStored."""

    tenant: str
    parent: bytes | None
    blocks: list[bytes]
    token_ids: list[int]
    block_tokens: Tokens


class News(Message, frozen=True):
    """As base.KVNews."""

    cleared: bool
    removed: list[bytes]
    stored: list[Stored]


class Lost(Message, frozen=True):
    """The engine died under its host."""

    text: str


class Stopping(Message, frozen=True):
    """Stop was heard; the end of the connection follows when all is done."""


ToHost = Start | Ask | Warm | Drop | Reorder | Preempt | Release | Sleep | Wake | Stop
ToServer = Say | Ready | Failed | Delta | Fault | Done | Load | News | Lost | Stopping
