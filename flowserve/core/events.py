"""What can happen: the only input of `core.step`.

Events are plain data without user content: a log of them holds no prompt and no answer, and replays to
the same commands in any process. Every event about a task carries the attempt it speaks of; what
arrives about an older attempt is stale and ignored.
"""

from dataclasses import dataclass
from enum import StrEnum

from flowserve.graphs.plan import Plan
from flowserve.ids import EngineId, FrameId, RunId, Seconds, TaskId, Tokens


class Code(StrEnum):
    """Why an execution failed. The scheduler decides by code alone; the text stays with the driver."""

    ENGINE = "engine"
    """The engine failed on this call. Retryable."""
    ENGINE_LOST = "engine_lost"
    """The engine went away. Retried elsewhere without using up an attempt of the node, within a bound."""
    OVERLOADED = "overloaded"
    """The engine or tool had no room; `retry_after_s` may say when. Retryable."""
    TIMEOUT = "timeout"
    """The node's own time was up. Retryable."""
    OUTPUT_INVALID = "output_invalid"
    """The model's text did not fit the declared output. Retryable."""
    TOOL = "tool"
    """A tool raised. Retryable."""
    RETRIEVAL = "retrieval"
    """A search failed. Retryable."""
    REQUEST = "request"
    """The call itself is wrong (too long, unknown model). Never retried."""
    LIMIT = "limit"
    """A declared bound was passed: width, calls, steps. Never retried."""
    INTERNAL = "internal"
    """Our own mistake. Never retried."""


@dataclass(frozen=True, slots=True)
class RunSubmitted:
    """A client wants `plan` run. The scheduler accepts it (Mark QUEUED, OpenFrame 0) or answers Reject."""

    run: RunId
    plan: Plan
    deadline_s: Seconds | None = None
    """Seconds from now by which the run must end; None: no bound."""
    tenant: str = ""
    tier: str = "standard"
    priority: int = 0
    """Asked for by the client; higher goes first inside a tier."""
    session: str | None = None


@dataclass(frozen=True, slots=True)
class Evaluated:
    """Answer to Evaluate, or to the Dispatch of a MAP, SAMPLE, SWITCH or LOOP: with the task's present attempt.

    `choice` is the number of items (MAP), the number of samples (SAMPLE), the arm (SWITCH),
    1 for stop and 0 for one more (LOOP).
    """

    run: RunId
    task: TaskId
    attempt: int
    choice: int


@dataclass(frozen=True, slots=True)
class TaskFinished:
    """An execution ended well; its value lies with the driver."""

    run: RunId
    task: TaskId
    attempt: int
    tokens_in: Tokens = 0
    tokens_out: Tokens = 0
    tools: tuple[int, ...] = ()
    """Agent step only: which tools (indices into `AgentSpec.tools`) are to be called, in order; none: it is the answer."""


@dataclass(frozen=True, slots=True)
class TaskFailed:
    """An execution ended badly."""

    run: RunId
    task: TaskId
    attempt: int
    code: Code
    retry_after_s: Seconds | None = None


@dataclass(frozen=True, slots=True)
class TokensProduced:
    """An engine sent `count` more tokens for a task. The first one marks time to first token."""

    run: RunId
    task: TaskId
    attempt: int
    count: Tokens


@dataclass(frozen=True, slots=True)
class SampleLabelled:
    """Answer to Label: the sample in `frame` belongs to answer class `label` (small integers, equal answers equal
    numbers; -1 is an empty or unusable answer, which never agrees with anything)."""

    run: RunId
    task: TaskId
    frame: FrameId
    label: int


@dataclass(frozen=True, slots=True)
class Called:
    """A running dynamic node calls `callee` (index into its `bodies`); `call` counts its calls from 0."""

    run: RunId
    task: TaskId
    attempt: int
    callee: int
    call: int


@dataclass(frozen=True, slots=True)
class CancelRequested:
    """Somebody wants the run to end."""

    run: RunId
    reason: str = "client"


@dataclass(frozen=True, slots=True)
class EngineChanged:
    """An engine appeared, changed its room or models, or went away (`up=False`: all its calls are lost)."""

    engine: EngineId
    up: bool
    models: tuple[str, ...] = ()
    """Names and roles it answers to; `""` among them makes it a default."""
    window: int = 0
    """Calls that may be at the engine at once."""


@dataclass(frozen=True, slots=True)
class Tick:
    """The time that a WakeAt named has come."""


Event = (
    RunSubmitted
    | Evaluated
    | TaskFinished
    | TaskFailed
    | TokensProduced
    | SampleLabelled
    | Called
    | CancelRequested
    | EngineChanged
    | Tick
)
