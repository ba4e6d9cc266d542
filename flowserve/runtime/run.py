"""One run as the runtime holds it, and as a client sees it.

`Run` is both the handle that `Runtime.submit` returns and the place of the run's frames, tasks, events and
result. Only the runtime changes it, on its loop.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

from flowserve.core.commands import Dispatch, Role, Spending, Status
from flowserve.core.events import Code
from flowserve.engines.base import Output
from flowserve.errors import FlowServeError, RunCancelled, RunFailed, RunTimedOut
from flowserve.graphs.plan import Kind, Node
from flowserve.graphs.program import Program
from flowserve.graphs.types import ToolCall
from flowserve.ids import EngineId, FrameId, NodeId, RunId, Seconds, TaskId, Tokens
from flowserve.runtime.chains import Chain
from flowserve.runtime.collected import Collected
from flowserve.runtime.failures import reason
from flowserve.runtime.frames import Frame
from flowserve.runtime.items import ItemList
from flowserve.runtime.jobs import Job
from flowserve.runtime.records import NodeRecord, RunEvent, RunSnapshot, SubmitOptions, summed
from flowserve.runtime.streams import EventLog

ENDED = frozenset({Status.COMPLETED, Status.FAILED, Status.CANCELLED, Status.TIMED_OUT})


@dataclass(slots=True)
class TaskState:
    """What the runtime keeps of one task while its run lives. Which fields are used depends on the node's kind."""

    id: TaskId
    record: NodeRecord
    node: Node
    frame: Frame
    role: Role
    index: int
    attempt: int = 0
    parent: "TaskState | None" = None
    """Agent steps and tool calls: the agent's task."""
    jobs: dict[EngineId | None, Job] = field(default_factory=dict)
    """The coroutines at work on the current attempt: one, or for a hedged call one per engine."""
    dispatch: Dispatch | None = None
    """What the current attempt was started by."""
    prompt: Any = None
    """Model calls: the `prompts.Prompt`, from its Measure on."""
    collected: Collected = field(default_factory=Collected)
    """Model calls: what the engine has written; kept when the call goes on elsewhere."""
    streams: dict[EngineId, Collected] = field(default_factory=dict)
    """Model calls: what each engine that has the call has written; `collected` is one of these."""
    held: dict[EngineId, list[Output]] | None = None
    """A hedged call: what each of its engines has sent and nobody was shown yet. None: not hedged."""
    chain: Chain | None = None
    """LLM: what watches its text, if it may end early."""
    lists: list[ItemList] = field(default_factory=list)
    """LLM: what maps take items of while it is being written."""
    items: list[tuple[Any, ...]] = field(default_factory=list)
    """MAP: parameters of each item's frame; none before the list is whole."""
    state: Any = None
    """LOOP: the state after the last iteration."""
    labels: dict[str, int] = field(default_factory=dict)
    """SAMPLE: answer key to answer class."""
    conversation: Any = None
    """AGENT: the `prompts.Conversation` so far."""
    pending: list[ToolCall] = field(default_factory=list)
    """AGENT: the tool calls of the last step, in order."""
    replies: dict[int, str] = field(default_factory=dict)
    """AGENT: what the pending calls have answered, by place."""
    value: Any = None
    """AGENT: its answer."""
    calls: dict[int, asyncio.Future[Any]] = field(default_factory=dict)
    """DYNAMIC: calls not yet answered."""
    call_params: dict[int, tuple[Any, ...]] = field(default_factory=dict)
    """DYNAMIC: bound parameters of each call."""
    call_tokens: dict[int, Tokens] = field(default_factory=dict)
    """DYNAMIC: tokens that model calls have taken for each call not yet answered."""
    continues: bool = False
    """The next attempt goes on with what this one has written."""
    error: FlowServeError | None = None
    """Why the last attempt failed."""

    def start_over(self) -> None:
        """Forget what the attempt that failed has left; the next one begins with nothing."""
        self.items, self.state, self.labels = [], None, {}
        self.conversation, self.pending, self.replies, self.value = None, [], {}, None
        self.calls, self.call_params, self.call_tokens = {}, {}, {}
        self.error = None
        self.collected, self.streams, self.held = Collected(), {}, None
        self.record.first_token_s = None
        self.record.degraded = self.record.votes = self.record.exited = None


class Run:
    """A submitted run. Safe to hold after it ended; use only on the runtime's event loop."""

    def __init__(
        self,
        run_id: RunId,
        program: Program,
        options: SubmitOptions,
        wall: Seconds,
        now: Seconds,
        cancel: Callable[[RunId], None],
    ) -> None:
        self.id = run_id
        self.program = program
        self.options = options
        self.created_wall = wall
        self.created = now
        self.started: Seconds | None = None
        self.ended: Seconds | None = None
        self.status = Status.QUEUED
        self.log = EventLog()
        self.frames: dict[FrameId, Frame] = {}
        self.tasks: dict[TaskId, TaskState] = {}
        self.records: dict[TaskId, NodeRecord] = {}
        self.inputs: tuple[Any, ...] = ()
        self.raw: Any = None
        """`prompts.RawCall` of a run made by `Runtime.generate`."""
        self.streamed: frozenset[NodeId] = frozenset()
        self.value: Any = None
        self.spent: Spending | None = None
        """What its model calls took; None until it has ended."""
        self.error: FlowServeError | None = None
        self.last_error: dict[TaskId, str] = {}
        """The last failure below a task that holds frames, for the exception a dynamic node sees."""
        self.accepted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.broken: FlowServeError | None = None
        """Set when an event of the run could not be handled: a defect of ours."""
        self._done = asyncio.Event()
        self._cancel = cancel

    def __repr__(self) -> str:
        return f"Run({self.id}, {self.program.plan.name}, {self.status}, {len(self.records)} tasks)"

    @property
    def tenant(self) -> str:
        return self.options.tenant

    @property
    def done(self) -> bool:
        return self.status in ENDED

    @property
    def settled(self) -> bool:
        """Everything is said; nothing of the run changes any more. May be asked from any thread."""
        return self.log.closed

    def events(self, after: int = 0) -> AsyncIterator[RunEvent]:
        """Every event with `seq > after`, as they come, ending with the terminal one."""
        return self.log.follow(after)

    async def wait(self) -> None:
        """Until the run has ended, however it ends."""
        await self._done.wait()

    async def result(self) -> Any:
        """The typed result. Raises RunFailed, RunCancelled or RunTimedOut."""
        await self._done.wait()
        return self.outcome()

    def outcome(self) -> Any:
        """The typed result of an ended run, or what `result` raises."""
        if self.error is not None:
            raise self.error
        return self.value

    def cancel(self) -> None:
        """End the run now; its calls are aborted at the engines. Does nothing to an ended run."""
        if not self.done:
            self._cancel(self.id)

    def note_error(self, task: TaskState, message: str) -> None:
        """Remember a failure for every task that the failed one works for."""
        if task.parent is not None and task.role is Role.STEP:
            self.last_error[task.parent.id] = message
        frame: Frame | None = task.frame
        while frame is not None:
            if frame.task is not None:
                self.last_error[frame.task] = message
            frame = frame.parent

    def took(self, task: TaskState, tokens: Tokens) -> None:
        """A model call of `task` took so many: they count for every call of a dynamic function that it was made for."""
        frame: Frame | None = task.frame
        while frame is not None:
            if frame.task is not None:
                owner = self.tasks[frame.task]
                if frame.index in owner.calls:
                    owner.call_tokens[frame.index] = owner.call_tokens.get(frame.index, 0) + tokens
            frame = frame.parent

    def reason(self, task: TaskState, code: Code) -> str:
        """Why `task` failed, for people."""
        return reason(code, task.node, self.last_error.get(task.id)) if task.error is None else str(task.error)

    def end(self, status: Status, now: Seconds, value: Any = None, error: FlowServeError | None = None) -> None:
        """Called once, by the runtime, before the terminal event is appended."""
        self.status, self.ended, self.value, self.error = status, now, value, error

    def release(self) -> None:
        """Called once, after the terminal event: wake the waiters and let go of what only a live run needs."""
        self.frames.clear()
        self.tasks.clear()
        self._done.set()

    def snapshot(self) -> RunSnapshot:
        """The run as it stands; the node table is in order of arrival."""
        nodes = tuple(self.records.values())
        offset = self.created_wall - self.created
        leaves = [n for n in nodes if n.kind not in _CONTAINERS]
        return RunSnapshot(
            id=self.id,
            workflow=self.program.plan.name,
            version=self.program.version,
            status=self.status.value,
            created=self.created_wall,
            started=None if self.started is None else self.started + offset,
            ended=None if self.ended is None else self.ended + offset,
            nodes=nodes,
            tokens_in=sum(n.tokens_in for n in leaves),
            tokens_out=sum(n.tokens_out for n in leaves),
            cached_tokens=sum(n.cached_tokens for n in leaves),
            trial_tokens=sum(n.trial_tokens for n in leaves),
            wasted_tokens=sum(n.wasted_tokens for n in leaves),
            provenance=summed(n.provenance for n in leaves),
            spent=self.spent,
            result=self.log.events[-1].data.get("result")
            if self.status is Status.COMPLETED and self.log.closed
            else None,
            error=None if self.error is None else describe(self.error),
            degraded=tuple(n.degraded for n in nodes if n.degraded is not None),
            exits=tuple(n.exited for n in nodes if n.exited is not None),
            session=self.options.session,
            caller=self.options.caller,
            metadata=self.options.metadata,
            last_seq=self.log.last_seq,
        )


_CONTAINERS = frozenset(
    k.name.lower() for k in (Kind.MAP, Kind.SAMPLE, Kind.SWITCH, Kind.LOOP, Kind.AGENT, Kind.DYNAMIC, Kind.RACE)
)


def describe(error: FlowServeError) -> dict[str, Any]:
    """An error as data: its type, what it says and, where known, the node."""
    cause = error.__cause__ if isinstance(error, RunFailed) and error.__cause__ is not None else error
    return {"type": type(cause).__name__, "message": str(error), "node": getattr(error, "node", None)}


def ended_error(status: Status, run: RunId) -> FlowServeError:
    """The error of a run that ended without any node being at fault."""
    if status is Status.TIMED_OUT:
        return RunTimedOut(f"run {run} passed its deadline; give it a longer `timeout`", run)
    return RunCancelled(f"run {run} was cancelled", run)
