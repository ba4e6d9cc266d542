"""One run of a recorded log: when each of its tasks could begin, was sent and ended, and what let it begin.

Nothing of this is guessed. A log replays to commands (`core/log.py`), and the event that a step answers is the cause of what that
step lets begin: the last thing that a task waited for.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

from flowserve.core import commands as c
from flowserve.core import events as e
from flowserve.core.commands import Role, Status
from flowserve.core.log import read
from flowserve.core.state import SchedulerState
from flowserve.core.step import step
from flowserve.errors import UnknownName
from flowserve.graphs.plan import Kind, Node, Plan
from flowserve.ids import BlockId, FrameId, RunId, Seconds, TaskId, Tokens

_NUMBERED = frozenset({Kind.MAP, Kind.SAMPLE, Kind.LOOP, Kind.DYNAMIC})


@dataclass(frozen=True, slots=True)
class Turn:
    """Something inside a task let it go on: a join, one more round, an answered call."""

    at: Seconds
    order: int
    cause: TaskId


@dataclass(slots=True, eq=False)
class Span:
    """A task. Times are seconds since the run was submitted; orders are numbers of events of the log, since several may have one
    time."""

    task: TaskId
    node: Node
    label: str
    role: Role
    frame: FrameId
    ready: Seconds
    order: int
    """Of the event that let it begin."""
    cause: TaskId | None
    """What it waited for last; None: for nothing of its run."""
    parent: TaskId | None = None
    """Agent steps and tool calls: the agent."""
    begun: Seconds | None = None
    """First sent to an engine, a tool, an index."""
    sent: Seconds | None = None
    """Last sent there: later than `begun` after a failure or a move."""
    first: Seconds | None = None
    """First token since."""
    ended: Seconds | None = None
    end_order: int = 1 << 62
    """Of the event that ended it."""
    status: Status = Status.READY
    engine: str | None = None
    tokens_in: Tokens = 0
    tokens_out: Tokens = 0
    reduced: int | None = None
    """How much its last execution did of what its node declares, where it was degraded."""
    turns: list[Turn] = field(default_factory=list)
    """In order of time; none: it is one piece of work."""

    @property
    def is_call(self) -> bool:
        """Of a model."""
        return self.role is Role.STEP or self.node.kind is Kind.LLM


@dataclass(slots=True)
class Timeline:
    """A run."""

    run: RunId
    plan: Plan
    policy: str
    tier: str
    at: Seconds
    """When it was submitted, by the log's clock."""
    status: str = "running"
    ended: Seconds = 0.0
    """Or the log."""
    last: TaskId | None = None
    """Whose end was the run's end."""
    spans: dict[TaskId, Span] = field(default_factory=dict)
    frames: dict[FrameId, tuple[BlockId, TaskId | None, FrameId | None, int]] = field(default_factory=dict)
    """(block, task that it belongs to, frame around it, number)."""

    def label(self, node: Node, frame: FrameId | None, role: Role, index: int) -> str:
        """As `runtime/labels.py`."""
        numbers: list[str] = []
        while frame is not None:
            block, _, around, number = self.frames[frame]
            owner = self.plan.blocks[block].parent
            if owner is not None and self.plan.nodes[owner].kind in _NUMBERED:
                numbers.append(f"[{number}]")
            frame = around
        label = node.name + "".join(reversed(numbers))
        return label + {Role.STEP: f".{index}", Role.TOOL: f".tool[{index}]"}.get(role, "")


def runs_of(lines: Iterable[str]) -> dict[RunId, Seconds]:
    """The runs of a log that ended with a result, and how long each took, in order of their ends."""
    config, events = read(lines)
    state = SchedulerState(config)
    begun: dict[RunId, Seconds] = {}
    found: dict[RunId, Seconds] = {}
    for now, event in events:
        if isinstance(event, e.RunSubmitted):
            begun[event.run] = now
        for command in step(state, event, now):
            if isinstance(command, c.Complete):
                found[command.run] = now - begun[command.run]
    return found


def timeline(lines: Iterable[str], run: RunId) -> Timeline:
    """Raises UnknownName where the log has no such run, StoreError for what is no log."""
    config, events = read(lines)
    state = SchedulerState(config)
    found: Timeline | None = None
    others: list[RunId] = []
    now = 0.0
    for order, (now, event) in enumerate(events):
        if isinstance(event, e.RunSubmitted):
            if event.run == run:
                found = Timeline(run, event.plan, config.policy, event.tier, now)
            else:
                others.append(event.run)
        if found is None or found.status != "running":
            if found is not None:
                break
            step(state, event, now)
            continue
        cause: TaskId | None = getattr(event, "task", None) if getattr(event, "run", None) == run else None
        _note_event(found, event, now - found.at)
        for command in step(state, event, now):
            if getattr(command, "run", None) == run:
                _note_command(found, command, cause, now - found.at, order)
    if found is None:
        raise UnknownName("run", run, others[-20:])
    if found.status == "running":
        found.ended = now - found.at
    return found


def _note_event(found: Timeline, event: e.Event, at: Seconds) -> None:
    if getattr(event, "run", None) != found.run:
        return
    span = found.spans.get(getattr(event, "task", TaskId(-1)))
    if span is None:
        return
    if isinstance(event, e.Measured):
        span.tokens_in = event.tokens
    elif isinstance(event, e.TokensProduced) and not event.trial:
        span.first = at if span.first is None else span.first
        span.tokens_out += event.count
    elif isinstance(event, e.TaskFinished) and span.is_call:
        span.tokens_in = event.tokens_in or span.tokens_in
        span.tokens_out = event.tokens_out or span.tokens_out


def _note_command(found: Timeline, command: c.Command, cause: TaskId | None, at: Seconds, order: int) -> None:
    match command:
        case c.OpenFrame():
            found.frames[command.frame] = (command.block, command.task, command.parent, command.index)
        case c.Mark() if command.task is not None:
            _note_mark(found, command, command.task, cause, at, order)
        case c.Dispatch():
            span = found.spans[command.task]
            span.begun = at if span.begun is None else span.begun
            span.sent, span.parent = at, command.parent
            span.engine = command.engine
            span.reduced = command.limit
            if not command.resume:
                span.first, span.tokens_out = None, 0
        case c.Degrade():
            found.spans[command.task].reduced = command.to
        case c.Join() | c.Evaluate() | c.Label() | c.Return():
            if cause is not None and cause != command.task:
                found.spans[command.task].turns.append(Turn(at, order, cause))
        case c.Complete():
            found.status, found.ended, found.last = "completed", at, cause
        case c.Fail():
            found.status, found.ended = command.status.value, at
            found.last = command.task if command.task is not None else cause
        case c.Reject():
            found.status, found.ended = "rejected", at
        case _:
            pass


def _note_mark(found: Timeline, mark: c.Mark, task: TaskId, cause: TaskId | None, at: Seconds, order: int) -> None:
    span = found.spans.get(task)
    if span is None:
        if mark.node is None or mark.frame is None:
            return
        node = found.plan.nodes[mark.node]
        label = found.label(node, mark.frame, mark.role, mark.index)
        span = found.spans[task] = Span(task, node, label, mark.role, mark.frame, at, order, cause)
    span.status = mark.status
    if mark.status in (Status.COMPLETED, Status.FAILED, Status.CANCELLED):
        span.ended, span.end_order = at, order
