"""What can happen: the only input of `core.step`.

Events are plain data without user content: a log of them holds no prompt and no answer, and replays to
the same commands in any process. Every event about a task carries the attempt it speaks of; what
arrives about an older attempt is stale and ignored.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import get_args

from flowserve.core.predict.base import Call
from flowserve.core.quick import quick
from flowserve.core.stopping.chains import DEFAULT_RULE
from flowserve.graphs.plan import Budget, Plan
from flowserve.ids import EngineId, FrameId, NodeId, RunId, Seconds, TaskId, Tokens


class Code(StrEnum):
    """Why an execution failed. The scheduler decides by code alone; the text stays with the driver."""

    ENGINE = "engine"
    """The engine failed on this call. Retryable."""
    ENGINE_LOST = "engine_lost"
    """The engine went away. Tried elsewhere without using up an attempt of the node, within a bound."""
    STALLED = "stalled"
    """The engine took the call and stood still. Like a loss."""
    OVERLOADED = "overloaded"
    """The engine or tool had no room; `retry_after_s` may say when. An engine's is like a loss without a bound of its own;
    a tool's is retryable."""
    MOVED = "moved"
    """The scheduler wants the call at another engine, or later. Nothing failed."""
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
    BUDGET = "budget_exhausted"
    """The run has spent what it may, or the call would go beyond it. Ends the run."""
    HOPELESS = "deadline_hopeless"
    """The run would end long after its deadline even if the call began now. Ends the run."""
    UNPRICED = "unpriced"
    """The run has a budget of money, and the engine that is to take the call has no price. Ends the run."""
    INTERNAL = "internal"
    """Our own mistake. Never retried."""


class Loss(StrEnum):
    """What becomes of a call that has written something when its engine is lost."""

    RESTART = "restart"
    """It begins anew; what was written is void."""
    CONTINUE = "continue"
    """Another engine is given what was written, and goes on."""
    FAIL = "fail"
    """The node fails."""


@dataclass(frozen=True, slots=True)
class RunSubmitted:
    """A client wants `plan` run. The scheduler accepts it (Mark QUEUED, and now or later OpenFrame 0) or answers Reject."""

    run: RunId
    plan: Plan
    deadline_s: Seconds | None = None
    """Seconds from now by which the run must end; None: no bound."""
    tenant: str = ""
    tier: str = "standard"
    priority: int = 0
    """Asked for by the client; higher goes first inside a tier."""
    session: str | None = None
    degrade: bool = True
    """Whether degradations that the plan declares may be taken."""
    budget: Budget | None = None
    """What it may spend, the plan's own budget taken into account; None: anything."""


@dataclass(frozen=True, slots=True)
class Passage:
    """A stretch of a prompt whose KV may be pasted if an engine has it from another prompt."""

    number: int
    """A keyed hash, which tells nothing of the text. Equal ones stand for equal passages of the same tenant and model."""
    start: Tokens
    """Where it begins in the prompt."""
    tokens: Tokens


@dataclass(frozen=True, slots=True)
class Measured:
    """Answer to Measure: the size of a model call, before it is placed."""

    run: RunId
    task: TaskId
    attempt: int
    tokens: Tokens
    """Of the prompt."""
    limit: Tokens = 0
    """Most tokens of output, over all choices; 0: unknown."""
    choices: int = 1
    on_loss: Loss = Loss.RESTART
    prefix: tuple[int, ...] = ()
    """Identities of the prompt's prefixes of 1, 2, ... times `Config.prefix_tokens` tokens: keyed hashes, which tell nothing of
    the text. Equal ones stand for equal prefixes of the same tenant and model."""
    rule: str = DEFAULT_RULE
    """What may end the call early, where its node declares that something may: a name of `stopping.chains.CHAIN_RULES`. Another
    than the default needs a certificate, which only the driver knows."""
    rule_args: tuple[tuple[str, float], ...] = ()
    """The rule's parameters that are not its defaults."""
    passages: tuple[Passage, ...] = ()
    """In order; (): the call is computed exactly."""


@dataclass(frozen=True, slots=True)
class HeadMeasured:
    """Answer to MeasureHead."""

    run: RunId
    frame: FrameId
    node: NodeId
    tokens: Tokens
    """Of the prompt, that are known; 0: none, or it cannot be rendered."""
    prefix: tuple[int, ...] = ()
    """As `Measured.prefix`."""


@dataclass(frozen=True, slots=True)
class HeadComputed:
    """Answer to ComputeHead: it is done, or has failed, which harms nobody."""

    run: RunId
    frame: FrameId
    node: NodeId


@dataclass(frozen=True, slots=True)
class Evaluated:
    """Answer to Evaluate, or to the Dispatch of a MAP, SAMPLE, SWITCH, LOOP or RACE: with the task's present attempt.

    `choice` is the number of items (MAP), of samples (SAMPLE), of arms (RACE), the arm (SWITCH),
    1 for stop and 0 for one more (LOOP).
    """

    run: RunId
    task: TaskId
    attempt: int
    choice: int
    anew: bool = False
    """MAP that began early: its list is another than was streamed, and what has begun is void."""


@dataclass(frozen=True, slots=True)
class Items:
    """A model call is writing the list that a MAP waits for: `count` items of it are whole by now. More may come."""

    run: RunId
    task: TaskId
    """The model call's."""
    attempt: int
    map: NodeId
    """Whose `Node.streams` is the call's node."""
    count: int


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
    prefix: tuple[int, ...] = ()
    """Model calls: as `Measured.prefix`, of prompt and output together: what the engine's cache now holds."""
    engine: EngineId | None = None
    """Model calls: who answered; None: the one it was dispatched to."""
    cached_tokens: Tokens = 0
    """Model calls: of `tokens_in`, those that the engine had in its cache; 0 also where it does not tell."""


@dataclass(frozen=True, slots=True)
class TaskFailed:
    """An execution ended badly."""

    run: RunId
    task: TaskId
    attempt: int
    code: Code
    retry_after_s: Seconds | None = None
    engine: EngineId | None = None
    """Model calls: who failed; None: the one it was dispatched to."""


@dataclass(frozen=True, slots=True)
class TokensProduced:
    """An engine sent `count` more tokens for a task. The first one marks time to first token."""

    run: RunId
    task: TaskId
    attempt: int
    count: Tokens
    engine: EngineId | None = None
    """Who sent them; None: the one it was dispatched to."""
    trial: bool = False
    """They are a trial's: charged like others, and no progress of the call."""


@dataclass(frozen=True, slots=True)
class TrialAnswered:
    """Answer to Fork: what the call would answer if it ended at `position`. One that failed has no usable answer."""

    run: RunId
    task: TaskId
    attempt: int
    position: Tokens
    """Of the call's own output; at least what was asked for."""
    label: int
    """Class of the answer, as in SampleLabelled, counted within this execution."""
    confidence: float | None
    """Mean probability of the answer's tokens, 0 to 1. None: the Fork did not ask for it."""
    cost: Tokens
    """Written by the fork; told before by TokensProduced."""
    closed: bool = True
    """It had ended its thoughts, or has none."""
    hesitates: bool = False
    """The answer contains a word of doubt."""


@dataclass(frozen=True, slots=True)
class SampleLabelled:
    """Answer to Label: the sample in `frame` belongs to answer class `label` (small integers, equal answers equal
    numbers; -1 is an empty or unusable answer, which never agrees with anything). RACE: 0 if the result counts, -1 if not."""

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
    """Choices that may be at the engine at once."""
    kv_tokens: Tokens = 0
    """Tokens that its KV memory holds; 0: unknown, no bound."""
    batch_tokens: Tokens = 0
    """Prompt tokens that one of its steps computes; 0: unknown, no bound."""
    restart: bool = False
    """It can be started again, and tells its progress: stalls are looked for, and Restart follows a loss."""
    reprioritise: bool = False
    """Takes Reprioritise."""
    preempt: bool = False
    """Takes Preempt."""
    pasted: float = 0.0
    """Share of a passage's tokens that it does not compute when it has the passage's KV, 0 to 1; 0: it computes all."""


@dataclass(frozen=True, slots=True)
class EngineReported:
    """What an engine says of itself while it is up."""

    engine: EngineId
    running: int
    """Choices in its batch."""
    waiting: int
    """Choices that it has not begun or has pushed out."""
    kv_used: float
    """Share of its KV memory in use, 0 to 1."""
    steps: int
    """Grows when it computes."""
    preemptions: int = 0
    """Times that it pushed a call out for want of memory, in all."""


@dataclass(frozen=True, slots=True)
class KVChanged:
    """Which prefixes an engine's cache holds, for engines that tell: first `cleared`, then `removed`, then `stored`."""

    engine: EngineId
    stored: tuple[int, ...] = ()
    """As in `Measured.prefix`."""
    removed: tuple[int, ...] = ()
    cleared: bool = False


@dataclass(frozen=True, slots=True)
class Probed:
    """Answer to Probe: did the engine generate something?"""

    engine: EngineId
    ok: bool


@dataclass(frozen=True, slots=True)
class DrainRequested:
    """An operator wants an engine empty: it gets no more calls, and what it has ends there or moves."""

    engine: EngineId
    replace: bool = False
    """Start it anew when it is empty; else it is closed."""


@dataclass(frozen=True, slots=True)
class ResumeRequested:
    """An operator wants a drained engine back."""

    engine: EngineId


@dataclass(frozen=True, slots=True)
class SessionEnded:
    """A client says that no call of this session comes any more."""

    tenant: str
    session: str


@dataclass(frozen=True, slots=True)
class Lesson:
    """A running mean that was learned of a node."""

    node: NodeId
    mean: float
    seen: int
    """Observations that it rests on."""


@dataclass(frozen=True, slots=True)
class Learned:
    """What an earlier scheduler has learned of `plan` (`learning.lessons`). It takes the place of what is known of it."""

    plan: Plan
    figures: tuple[Lesson, ...] = ()
    """Seconds or counts, as in `estimates.PlanFigures.figures`."""
    written: tuple[Lesson, ...] = ()
    """Tokens per model call."""
    arms: tuple[tuple[NodeId, tuple[float, ...]], ...] = ()
    """How often each arm of a SWITCH was taken, fading."""
    scale: float = 1.0
    """Seconds that model calls of all plans took, per second of their prior."""
    scale_seen: int = 0
    """Calls that this rests on."""
    answers: tuple[tuple[Call, Tokens], ...] = ()
    """The latest calls and what they wrote, in order: predictors are shown them."""


@dataclass(frozen=True, slots=True)
class Tick:
    """The time that a WakeAt named has come."""


Event = (
    RunSubmitted
    | Measured
    | HeadMeasured
    | HeadComputed
    | Evaluated
    | Items
    | TaskFinished
    | TaskFailed
    | TokensProduced
    | TrialAnswered
    | SampleLabelled
    | Called
    | CancelRequested
    | EngineChanged
    | EngineReported
    | KVChanged
    | Probed
    | DrainRequested
    | ResumeRequested
    | SessionEnded
    | Learned
    | Tick
)

for event in get_args(Event):
    quick(event)
