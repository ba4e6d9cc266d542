"""What the scheduler asks for: the only output of `core.step`.

A driver carries commands out in the order given. It decides nothing; what it learns comes back as
events.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import get_args

from flowserve.core.events import Code
from flowserve.core.quick import quick
from flowserve.ids import BlockId, EngineId, FrameId, NodeId, RunId, Seconds, TaskId, Tokens


class Role(StrEnum):
    """Which part of a node's work a task is."""

    NODE = "node"
    """The node itself."""
    STEP = "step"
    """One model call of an agent; `index` counts steps from 0."""
    TOOL = "tool"
    """One tool call of an agent; `index` is its place among the calls of the step."""


class Status(StrEnum):
    """What became of a run or a task. Drivers forward it to streams and metrics."""

    READY = "ready"
    RUNNING = "running"
    RETRYING = "retrying"
    CONTINUED = "continued"
    """A model call goes on at another engine with what it has written; nothing said about it so far is void."""
    COMPLETED = "completed"
    FAILED = "failed"
    SKIPPED = "skipped"
    CANCELLED = "cancelled"
    TIMED_OUT = "timed_out"
    """Runs only."""
    QUEUED = "queued"
    """Runs only: accepted, nothing dispatched yet."""


class Bound(StrEnum):
    """Which of its tenant's limits (`config.TenantLimits`) a run would pass."""

    LIVE = "tenant_live"
    """Runs at work."""
    QUEUE = "tenant_queue"
    """Runs accepted and not begun."""
    RUNS = "tenant_rate"
    """Runs per minute."""
    TOKENS = "tenant_tokens"
    """Tokens per minute."""
    HOUR_TOKENS = "tenant_hour_tokens"
    DAY_TOKENS = "tenant_day_tokens"
    HOUR_MONEY = "tenant_hour_money"
    DAY_MONEY = "tenant_day_money"


@dataclass(frozen=True, slots=True)
class Over:
    """A run would take its tenant over a limit."""

    bound: Bound
    limit: float
    """As it was declared."""
    needed: float
    """What the run needs: runs, or tokens or money as runs of its workflow took."""
    left: float
    """What there is of it; below 0: more was taken than came in."""


@quick
@dataclass(frozen=True, slots=True)
class Spending:
    """What model calls took. A call counts from its dispatch on; one that is taken back before its first token has only taken
    seconds, and one that goes on elsewhere does not pay for its prompt twice."""

    prompt: Tokens = 0
    """Computed; what engines had in their caches stands in `cached`."""
    cached: Tokens = 0
    """As engines tell when they have answered."""
    output: Tokens = 0
    seconds: Seconds = 0.0
    """At engines, summed over calls."""
    money: float | None = None
    """None: a model that was called has no price."""


@dataclass(frozen=True, slots=True)
class Overspent:
    """A run has spent, or would have to spend, more than its budget says."""

    name: str
    """Which: a field of `plan.Budget`."""
    limit: float
    spent: float
    needed: float
    """What the next call needs at least beyond that; 0: it was passed by a call under way."""
    nodes: tuple[tuple[NodeId, Spending], ...]
    """What each node has spent, by node."""


@dataclass(frozen=True, slots=True)
class OpenFrame:
    """Instantiate `block` inside `parent`. `index` is the item, sample, iteration or call number.

    Frame 0 of a run has no task and no parent. Comes before any command about the frame's tasks.
    """

    run: RunId
    frame: FrameId
    block: BlockId
    task: TaskId | None
    """The task (of a MAP, SAMPLE, SWITCH, LOOP, RACE or DYNAMIC node) that the frame belongs to."""
    parent: FrameId | None
    index: int


@dataclass(frozen=True, slots=True)
class Measure:
    """Find out how large a model call is. Answered by Measured, or by TaskFailed if there can be no such call.

    Comes once per call, before its first Dispatch, only with `Config.measure`.
    """

    run: RunId
    task: TaskId
    node: NodeId
    frame: FrameId
    role: Role = Role.NODE
    index: int = 0
    parent: TaskId | None = None
    last: bool = False
    """As in Dispatch."""


@dataclass(frozen=True, slots=True)
class MeasureHead:
    """Find out how much of the prompt of an LLM node is known already: all that it reads is there but the result of one node,
    which is at work. Answered by HeadMeasured, unless DropHead comes before."""

    run: RunId
    frame: FrameId
    node: NodeId


@dataclass(frozen=True, slots=True)
class ComputeHead:
    """Compute what was measured at an engine that has nothing to do. Answered by HeadComputed, unless DropHead comes before."""

    run: RunId
    frame: FrameId
    node: NodeId
    engine: EngineId


@dataclass(frozen=True, slots=True)
class DropHead:
    """Forget it, measured, computed or neither: it does not pay, its engine has something else to do, or nobody needs it any more.
    No answer is expected."""

    run: RunId
    frame: FrameId
    node: NodeId
    engine: EngineId | None = None
    """Who computes it; None: nobody yet."""


@dataclass(frozen=True, slots=True)
class Dispatch:
    """Execute a task. Answered by exactly one of TaskFinished, TaskFailed or (MAP, SAMPLE, SWITCH, LOOP, RACE)
    Evaluated."""

    run: RunId
    task: TaskId
    node: NodeId
    frame: FrameId
    attempt: int
    """1 for the first execution."""
    role: Role = Role.NODE
    index: int = 0
    """Agent step number, or place of a tool call in its step."""
    parent: TaskId | None = None
    """Agent steps and tool calls: the agent's task."""
    last: bool = False
    """Agent step: no further step is allowed, the model must answer now."""
    engine: EngineId | None = None
    """Where, for a model call."""
    priority: int = 0
    """For engines that order by priority: lower goes first."""
    timeout_s: Seconds | None = None
    """Time left for this execution when it was dispatched; for the engine's own limits. The scheduler keeps the clock."""
    resume: bool = False
    """Go on after what the attempt before has written, instead of from the start."""
    keep_s: Seconds = 0.0
    """Hold the KV for so long after the call; see `engines.base.Call`."""
    limit: int | None = None
    """A search that is degraded: most passages, instead of what its node asks for; else None."""


@dataclass(frozen=True, slots=True)
class Degrade:
    """This execution does no more than `to` of its node's `limit`, so that the run is on time. For observers: samples and
    rounds that are left out are not opened, and a search has its bound in its Dispatch, which follows."""

    run: RunId
    task: TaskId
    attempt: int
    to: int


@dataclass(frozen=True, slots=True)
class Evaluate:
    """LOOP: is it done? `frame` is the iteration that just ended. MAP that began early: how many items has its list, which
    is whole now, and are they those that were streamed? `frame` is None. Answered by Evaluated."""

    run: RunId
    task: TaskId
    attempt: int
    frame: FrameId | None


@dataclass(frozen=True, slots=True)
class Label:
    """SAMPLE with a stopping rule: which answer class does the finished `frame` belong to? RACE: does its result count?
    Answered by SampleLabelled."""

    run: RunId
    task: TaskId
    frame: FrameId


@dataclass(frozen=True, slots=True)
class Join:
    """All frames that count are done: build the task's value from them. Answered by TaskFinished or TaskFailed.

    RACE: the first `limit`, in the order of the bodies. MAP: all, in item order. SAMPLE: those that completed, in order of index. SWITCH: the one.
    LOOP: the last (none: the value is `init`). AGENT: none; the last step's answer is the value.
    """

    run: RunId
    task: TaskId
    attempt: int
    frames: tuple[FrameId, ...]
    stopped_by: str | None = None
    """SAMPLE: the rule that ended it before all were drawn; None: all have ended."""


@dataclass(frozen=True, slots=True)
class Return:
    """Call number `call` of a dynamic task is answered: by the result of `frame`, or (failed) by an exception of `code`."""

    run: RunId
    task: TaskId
    call: int
    frame: FrameId | None
    code: Code | None = None


@dataclass(frozen=True, slots=True)
class Cancel:
    """Stop this execution now and abort it at the engine. Nothing it still says counts. No answer is expected.

    Also sent for tasks that only have frames at work (nothing to abort: forget them), and for an agent's own task
    from its first step on. What works for a task is cancelled before it. A call that runs at two engines ends at both.
    """

    run: RunId
    task: TaskId
    attempt: int
    engine: EngineId | None = None


@dataclass(frozen=True, slots=True)
class Mark:
    """A status changed; for observers only. `task` None: the run itself, QUEUED or RUNNING.

    SKIPPED names a `node` of an arm not taken, without a task; `frame` is that of the SWITCH. RETRYING carries the
    attempt that failed, the READY after it the next one. An agent is READY with its first step, and RUNNING when that
    is dispatched.
    """

    run: RunId
    status: Status
    task: TaskId | None = None
    node: NodeId | None = None
    frame: FrameId | None = None
    attempt: int = 0
    role: Role = Role.NODE
    index: int = 0
    code: Code | None = None


@dataclass(frozen=True, slots=True)
class CloseFrame:
    """Nothing will read this frame's values again."""

    run: RunId
    frame: FrameId


@dataclass(frozen=True, slots=True)
class Complete:
    """The run is done: the result of frame 0 is its result. Last command about the run."""

    run: RunId
    spent: Spending = Spending()


@dataclass(frozen=True, slots=True)
class Fail:
    """The run ended without a result. Last command about the run; its executions have been cancelled before."""

    run: RunId
    status: Status
    """FAILED, CANCELLED or TIMED_OUT."""
    task: TaskId | None = None
    """FAILED: the task that failed."""
    code: Code | None = None
    spent: Spending = Spending()
    over: Overspent | None = None
    """Code BUDGET: how."""
    expected_s: Seconds | None = None
    """Code HOPELESS: what it was still expected to take, from the call on."""


@dataclass(frozen=True, slots=True)
class Reject:
    """The run was not accepted. Only command about it."""

    run: RunId
    retry_after_s: Seconds
    outage: bool = False
    """No engine is there that could serve it."""
    expected_s: Seconds | None = None
    """It could not end before its deadline: it is expected to take so long, of which"""
    wait_s: Seconds = 0.0
    """for runs that go before it."""
    over: Over | None = None
    """Its tenant has what it may have. Nothing of these three: there are too many runs."""


@dataclass(frozen=True, slots=True)
class Fork:
    """At the first place from `position` tokens of output on where the node's ExitSpec allows it, fork the call and have the fork
    answer. Answered by TrialAnswered, unless the call ends before; not at all where the engine cannot do it. A later Fork
    of the execution replaces an earlier one."""

    run: RunId
    task: TaskId
    attempt: int
    engine: EngineId
    position: Tokens
    confident: bool = True
    """The rule wants to know how sure the fork is; False: what it answers suffices."""


@dataclass(frozen=True, slots=True)
class Exit:
    """Enough: abort the call at its engine, and deliver as the node's ExitSpec says. TaskFinished follows, as for every call."""

    run: RunId
    task: TaskId
    attempt: int
    engine: EngineId
    label: int
    """Class of the answer that the latest trial gave."""
    why: str
    """For people."""


@dataclass(frozen=True, slots=True)
class Hedge:
    """Send a dispatched model call to a second engine as well. Until a Choose, nothing of either may be shown."""

    run: RunId
    task: TaskId
    attempt: int
    engine: EngineId


@dataclass(frozen=True, slots=True)
class Choose:
    """Of the two engines that have a call, this one is to finish it; abort it at the other."""

    run: RunId
    task: TaskId
    attempt: int
    engine: EngineId
    other: EngineId


@dataclass(frozen=True, slots=True)
class Reprioritise:
    """Tell the engine that a call it has not begun has another priority now. No answer is expected."""

    run: RunId
    task: TaskId
    attempt: int
    engine: EngineId
    priority: int


@dataclass(frozen=True, slots=True)
class Preempt:
    """Push a call out of the engine's batch; the engine takes it in again when there is room. No answer is expected."""

    run: RunId
    task: TaskId
    attempt: int
    engine: EngineId


@dataclass(frozen=True, slots=True)
class Probe:
    """See whether the engine computes. Answered by Probed, at leisure: the scheduler keeps the time."""

    engine: EngineId


@dataclass(frozen=True, slots=True)
class Restart:
    """End what is left of the engine, a probe of it included, and start it anew. Answered by EngineChanged, up or not."""

    engine: EngineId


@dataclass(frozen=True, slots=True)
class Close:
    """The engine is drained: end it. Answered by EngineChanged."""

    engine: EngineId


@dataclass(frozen=True, slots=True)
class WakeAt:
    """Send a Tick at `at` (the scheduler's own time). A later WakeAt replaces an earlier one."""

    at: Seconds


Command = (
    OpenFrame
    | Measure
    | MeasureHead
    | ComputeHead
    | DropHead
    | Dispatch
    | Degrade
    | Fork
    | Exit
    | Hedge
    | Choose
    | Reprioritise
    | Preempt
    | Evaluate
    | Label
    | Join
    | Return
    | Cancel
    | Mark
    | CloseFrame
    | Complete
    | Fail
    | Reject
    | Probe
    | Restart
    | Close
    | WakeAt
)

for command in get_args(Command):
    quick(command)
