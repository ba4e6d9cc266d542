"""The driver of a simulation: the counterpart of `runtime/driver.py`, with models where that has engines, tools and clients.

Events go to `core.step` in the order in which they arise; each command is carried out at once or scheduled. What can be answered
without time passing (sizes, widths, joins, labels) is answered in the same turn, as live. It decides nothing.
"""

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from math import inf
from typing import Any, Protocol

from flowserve.core import commands as c
from flowserve.core import events as e
from flowserve.core.commands import Command, Role, Status
from flowserve.core.config import Config
from flowserve.core.events import Code
from flowserve.core.log import LogWriter
from flowserve.core.state import SchedulerState
from flowserve.core.step import step
from flowserve.errors import InternalError
from flowserve.graphs.plan import Budget, Kind, Node, Plan
from flowserve.ids import EngineId, FrameId, NodeId, RunId, Seconds, TaskId, Tokens
from flowserve.sim.chance import below, mix, uniform
from flowserve.sim.engine import EngineSpec, Request
from flowserve.sim.fleet import Fleet, Member
from flowserve.sim.heap import Heap
from flowserve.sim.programs import Asked, Program, Size
from flowserve.sim.services import Chaos, Services

FAIL, WHICH, WHERE, BUSY, LEAVE, WHEN, TAKES, SENT, JOINS, OTHER = range(100, 110)
"""What a draw is for."""
NUMBERS = (Kind.MAP, Kind.SAMPLE, Kind.SWITCH, Kind.LOOP, Kind.RACE)
"""Kinds whose Dispatch is answered by Evaluated."""
CALL_FAILURES = (Code.ENGINE, Code.OUTPUT_INVALID, Code.TIMEOUT, Code.ENGINE, Code.REQUEST)


@dataclass(frozen=True, slots=True)
class Arrival:
    """A client submits a run."""

    at: Seconds
    program: Program
    plan: Plan
    key: int
    """What its draws depend on; equal under every policy."""
    mix: str = ""
    """Which part of the workload it belongs to."""
    deadline_s: Seconds | None = None
    tenant: str = ""
    tier: str = "standard"
    priority: int = 0
    session: str | None = None
    talk: int = 0
    """Key of the session; 0: none."""
    then: "Callable[[Seconds], Arrival | None] | None" = None
    """Closed loops: who comes when this run has ended."""
    degrade: bool = True
    """Whether the client allows what the plan allows."""
    budget: Budget | None = None


class Observer(Protocol):
    """Sees what happens. Hooks return nothing."""

    def dispatched(self, execution: "Execution", waited_s: Seconds, now: Seconds) -> None:
        """A model call goes to an engine."""

    def answered(self, execution: "Execution", last: bool, now: Seconds) -> None:
        """It has its first token, or its last."""

    def ended(self, view: "RunView", command: c.Complete | c.Fail | c.Reject, now: Seconds) -> None: ...


@dataclass(slots=True, eq=False)
class Execution:
    """One attempt at one task, in one place."""

    view: "RunView"
    task: TaskId
    attempt: int
    node: Node
    command: c.Dispatch
    member: Member | None = None
    request: Request | None = None
    size: Size | None = None
    code: Code | None = None
    """How it will fail; None: it will not."""
    told: Tokens = 0
    """Tokens of it that the scheduler knows."""
    sent_at: Seconds = 0.0
    """When it was dispatched."""
    asked: Asked | None = None
    """What its next fork will say; None: no fork was asked for."""
    forks: dict[Request, None] = field(default_factory=dict)
    """Of it, at its engine."""
    over: bool = False
    """Nothing that it says counts."""

    @property
    def run(self) -> RunId:
        return self.view.id

    def __repr__(self) -> str:
        where = self.member.id if self.member is not None else "here"
        return f"Execution({self.run!r}, {self.task}, attempt {self.attempt}, {where}{', over' if self.over else ''})"


@dataclass(slots=True, eq=False)
class TaskView:
    """What is known of a task."""

    node: Node
    key: int
    """Of its frame."""
    attempt: int = 0
    ready_at: Seconds = 0.0
    size: Size | None = None
    written: Tokens = 0
    """By executions before, which the next one may continue."""
    places: dict[EngineId | None, Execution] = field(default_factory=dict)
    turns: int = 0
    """LOOP: iterations so far; DYNAMIC: calls."""
    calls: int = 0
    """DYNAMIC: calls that it will make."""
    items: dict[NodeId, int] = field(default_factory=dict)
    """LLM: items that it has streamed, by map."""

    def __repr__(self) -> str:
        return f"TaskView({self.node.name}, attempt {self.attempt}, {list(self.places.values())})"


@dataclass(slots=True, eq=False)
class RunView:
    """What is known of a run."""

    id: RunId
    arrival: Arrival
    frames: dict[FrameId, int] = field(default_factory=dict)
    """Frame -> key."""
    tasks: dict[TaskId, TaskView] = field(default_factory=dict)
    joined: dict[NodeId, tuple[int, ...]] = field(default_factory=dict)
    """Keys of the frames that its SAMPLE nodes were made of."""

    def __repr__(self) -> str:
        return f"RunView({self.id!r}, {len(self.frames)} frames, {len(self.tasks)} tasks)"


class Drive:
    """A scheduler and the world around it. `run` lets time pass until nothing happens any more, or until `until`."""

    def __init__(
        self,
        config: Config,
        engines: list[tuple[EngineSpec, tuple[str, ...]]],
        arrivals: Iterator[Arrival],
        *,
        seed: int = 0,
        services: Services | None = None,
        chaos: Chaos | None = None,
        observer: Observer | None = None,
        log_line: Callable[[str], object] | None = None,
        check: Callable[[SchedulerState], None] | None = None,
        tell_s: Seconds = 2.0,
        kv_events: bool = True,
        rule_args: tuple[tuple[str, float], ...] = (),
    ) -> None:
        """`rule_args`: what certificates say of the rule by which calls may end early."""
        self.state = SchedulerState(config)
        self.heap = Heap()
        self.services = services if services is not None else Services()
        self.chaos = chaos if chaos is not None else Chaos()
        self.seed = seed
        self.observer = observer
        self.rule_args = rule_args
        self.runs: dict[RunId, RunView] = {}
        self.num_runs = self.num_events = 0
        self.commands: list[Command] | None = None
        """All commands so far, where somebody wants them."""
        self._arrivals = arrivals
        self._queue: deque[e.Event] = deque()
        self._log = LogWriter(log_line, config) if log_line is not None else None
        self._check = check
        self._streams: dict[str, dict[NodeId, list[Node]]] = {}
        """By digest of the plan: see `_readers`."""
        self._wake = 0
        members = [
            Member(EngineId(f"engine-{number}"), number, spec, names) for number, (spec, names) in enumerate(engines)
        ]
        self.fleet = Fleet(
            members,
            self.heap,
            self.services,
            self.chaos,
            seed,
            tell_s,
            kv_events,
            self.post,
            self._answered,
            self._tried,
        )

    # --- time --------------------------------------------------------------------------------------------------

    def run(self, until: Seconds = inf) -> None:
        """Ends when all arrivals have come and their runs have ended, or at `until`."""
        self.fleet.start()
        self._drain()
        self._next_arrival()
        heap = self.heap
        while self.runs or self._coming:
            due = heap.next_at()
            if due is None:
                raise InternalError(f"{len(self.runs)} runs are live and nothing will happen any more: {self.state!r}")
            if due > until:
                return
            action, subject = heap.take()
            action(subject)
            self._drain()
            self.fleet.settle()

    def post(self, event: e.Event) -> None:
        self._queue.append(event)

    def _drain(self) -> None:
        queue, now = self._queue, self.heap.now
        while queue:
            event = queue.popleft()
            self.num_events += 1
            if type(event) is e.TokensProduced:
                self._note_written(event)
            if self._log is not None:
                self._log.record(now, event)
            commands = step(self.state, event, now)
            if self._check is not None:
                self._check(self.state)
            for command in commands:
                COMMANDS[type(command)](self, command)
            if self.commands is not None:
                self.commands += commands

    def _note_written(self, event: e.TokensProduced) -> None:
        view = self.runs.get(event.run)
        task = view.tasks.get(event.task) if view is not None else None
        if task is not None and task.attempt == event.attempt and event.engine in task.places:
            task.written += event.count
            self._stream(event, task)

    def _stream(self, event: e.TokensProduced, task: TaskView) -> None:
        """Items of a list are thought to be of equal length."""
        arrival, size = self.runs[event.run].arrival, task.size
        assert size is not None
        for map in self._readers(arrival.plan).get(task.node.id, ()):
            width = arrival.program.choice(map, task.key, 0)
            count = min(width, width * task.written // max(1, size.output))
            if count > task.items.get(map.id, 0):
                task.items[map.id] = count
                self.post(e.Items(event.run, event.task, event.attempt, map.id, count))

    def _readers(self, plan: Plan) -> dict[NodeId, list[Node]]:
        """By LLM node: the maps that take items of its list while it writes."""
        known = self._streams.get(plan.digest)
        if known is None:
            known = self._streams[plan.digest] = {}
            for node in plan.nodes:
                if node.streams is not None:
                    known.setdefault(node.streams, []).append(node)
        return known

    # --- clients -----------------------------------------------------------------------------------------------

    _coming = 0
    """Arrivals that are scheduled."""

    def _next_arrival(self) -> None:
        arrival = next(self._arrivals, None)
        if arrival is not None:
            self._coming += 1
            self.heap.at(arrival.at, self._arrive, (arrival, True))

    def _arrive(self, subject: tuple[Arrival, bool]) -> None:
        arrival, listed = subject
        self._coming -= 1
        self.num_runs += 1
        run = RunId(f"run-{self.num_runs}")
        self.runs[run] = RunView(run, arrival)
        self.post(
            e.RunSubmitted(
                run,
                arrival.plan,
                arrival.deadline_s,
                arrival.tenant,
                arrival.tier,
                arrival.priority,
                arrival.session,
                arrival.degrade,
                arrival.budget,
            )
        )
        if self.chaos.cancelled and uniform(mix(arrival.key, LEAVE)) < self.chaos.cancelled:
            self.heap.after(self.chaos.patience_s * uniform(mix(arrival.key, WHEN)), self._leave, run)
        if listed:
            self._next_arrival()

    def _leave(self, run: RunId) -> None:
        if run in self.runs:
            self.post(e.CancelRequested(run))

    def _ended(self, command: c.Complete | c.Fail | c.Reject) -> None:
        view = self.runs.pop(command.run)
        now = self.heap.now
        if self.observer is not None:
            self.observer.ended(view, command, now)
        free = now + command.retry_after_s if isinstance(command, c.Reject) else now
        after = view.arrival.then(free) if view.arrival.then is not None else None
        if after is not None:
            self._coming += 1
            self.heap.at(after.at, self._arrive, (after, False))

    # --- frames and tasks --------------------------------------------------------------------------------------

    def _open_frame(self, command: c.OpenFrame) -> None:
        view = self.runs[command.run]
        if command.task is None:
            key = view.arrival.key
        else:
            assert command.parent is not None
            owner = view.tasks[command.task].node.id
            key = mix(view.frames[command.parent], owner, command.block, command.index)
        view.frames[command.frame] = key

    def _close_frame(self, command: c.CloseFrame) -> None:
        del self.runs[command.run].frames[command.frame]

    def _mark(self, command: c.Mark) -> None:
        if command.task is None:
            return
        view = self.runs[command.run]
        status = command.status
        if status is Status.READY:
            task = view.tasks.get(command.task)
            if task is None:
                assert command.node is not None and command.frame is not None
                node = view.arrival.plan.nodes[command.node]
                task = view.tasks[command.task] = TaskView(node, view.frames[command.frame])
            task.ready_at = self.heap.now
        elif status is Status.RETRYING:
            view.tasks[command.task].written = 0
            view.tasks[command.task].items = {}
        elif status is Status.COMPLETED or status is Status.FAILED or status is Status.CANCELLED:
            view.tasks.pop(command.task)

    def _size(self, view: RunView, task: TaskView, role: Role, index: int) -> Size:
        if task.size is None:
            task.size = view.arrival.program.size(task.node, task.key, role, index, view.arrival.talk)
        return task.size

    def _measure(self, command: c.Measure) -> None:
        view = self.runs[command.run]
        task = view.tasks[command.task]
        size = self._size(view, task, command.role, command.index)
        chain = size.chain[: size.prompt // self.state.config.pool.prefix_tokens]
        told = (size.prompt, size.limit, 1, size.on_loss, chain, size.rule, size.rule_args or self.rule_args)
        self.post(e.Measured(view.id, command.task, 1, *told))

    def _measure_head(self, command: c.MeasureHead) -> None:
        """Programs do not say which part of a prompt is known before the rest: none."""
        self.post(e.HeadMeasured(command.run, command.frame, command.node, 0))

    def _drop_head(self, command: c.DropHead) -> None:
        """It was never begun."""

    def _dispatch(self, command: c.Dispatch) -> None:
        view = self.runs[command.run]
        task = view.tasks[command.task]
        assert command.attempt > task.attempt and not task.places, f"{command} of {task}"
        task.attempt = command.attempt
        execution = Execution(view, command.task, command.attempt, task.node, command)
        kind = task.node.kind
        if command.engine is not None:
            if not command.resume:
                task.written, task.items = 0, {}
            self._send(execution, task, command.engine)
        elif command.role is Role.TOOL or kind is Kind.TOOL or kind is Kind.SEARCH:
            self._serve(execution, task)
        elif kind is Kind.DYNAMIC:
            task.places[None] = execution
            task.turns, task.calls = 0, view.arrival.program.calls(task.node, task.key)
            self._call(execution)
        elif self._refused(view, task, command.task):
            pass
        elif kind in NUMBERS:
            task.turns = 0
            choice = view.arrival.program.choice(task.node, task.key, 0)
            self.post(e.Evaluated(view.id, command.task, command.attempt, choice))
        else:
            self.post(e.TaskFinished(view.id, command.task, command.attempt))

    def _evaluate(self, command: c.Evaluate) -> None:
        view = self.runs[command.run]
        task = view.tasks[command.task]
        if command.frame is None:
            self._count(view, task, command)
            return
        task.turns += 1
        choice = view.arrival.program.choice(task.node, task.key, task.turns)
        self.post(e.Evaluated(view.id, command.task, command.attempt, choice))

    def _count(self, view: RunView, task: TaskView, command: c.Evaluate) -> None:
        """The list of a map that began early is whole; sometimes it is another."""
        task.attempt = command.attempt
        if not self._refused(view, task, command.task):
            width = view.arrival.program.choice(task.node, task.key, 0)
            anew = uniform(mix(task.key, task.node.id, OTHER)) < self.chaos.other_list
            self.post(e.Evaluated(view.id, command.task, command.attempt, width, anew))

    def _label(self, command: c.Label) -> None:
        view = self.runs[command.run]
        task = view.tasks[command.task]
        label = view.arrival.program.label(task.node, view.frames[command.frame], 0)
        self.post(e.SampleLabelled(view.id, command.task, command.frame, label))

    def _join(self, command: c.Join) -> None:
        view = self.runs[command.run]
        task = view.tasks[command.task]
        task.attempt = command.attempt
        if not self._refused(view, task, command.task):
            if task.node.kind is Kind.SAMPLE:
                view.joined[task.node.id] = tuple(view.frames[frame] for frame in command.frames)
            self.post(e.TaskFinished(view.id, command.task, command.attempt))

    def _refused(self, view: RunView, task: TaskView, id: TaskId) -> bool:
        """An expression that cannot be evaluated."""
        if not self.chaos.join_failure:
            return False
        fails = uniform(mix(task.key, task.node.id, JOINS, task.attempt)) < self.chaos.join_failure
        if fails:
            self.post(e.TaskFailed(view.id, id, task.attempt, Code.INTERNAL))
        return fails

    # --- tools, searches and functions -------------------------------------------------------------------------

    def _serve(self, execution: Execution, task: TaskView) -> None:
        task.places[None] = execution
        command, node, key = execution.command, task.node, task.key
        own = mix(key, node.id, TAKES, command.index, command.attempt)
        seconds = execution.view.arrival.program.seconds(node, key, command.index)
        if seconds is None:
            dist = self.services.search if node.kind is Kind.SEARCH else self.services.tool
            seconds = dist.draw(own)
        if self.chaos.tool_failure and uniform(mix(own, FAIL)) < self.chaos.tool_failure:
            execution.code = Code.RETRIEVAL if node.kind is Kind.SEARCH else Code.TOOL
        self.heap.after(seconds, self._served, execution)

    def _served(self, execution: Execution) -> None:
        if execution.over:
            return
        del execution.view.tasks[execution.task].places[None]
        if execution.code is not None:
            self.post(e.TaskFailed(execution.run, execution.task, execution.attempt, execution.code))
        else:
            self.post(e.TaskFinished(execution.run, execution.task, execution.attempt))

    def _call(self, execution: Execution) -> None:
        """A dynamic function makes its next call, or ends."""
        task = execution.view.tasks[execution.task]
        if task.turns >= task.calls:
            del task.places[None]
            self.post(e.TaskFinished(execution.run, execution.task, execution.attempt))
            return
        callee = execution.view.arrival.program.callee(task.node, task.key, task.turns)
        self.post(e.Called(execution.run, execution.task, execution.attempt, callee, task.turns))
        task.turns += 1

    def _return(self, command: c.Return) -> None:
        execution = self.runs[command.run].tasks[command.task].places.get(None)
        if execution is not None:
            self._call(execution)

    # --- model calls -------------------------------------------------------------------------------------------

    def _send(self, execution: Execution, task: TaskView, engine: EngineId) -> None:
        command, chaos = execution.command, self.chaos
        member = execution.member = self.fleet.members[engine]
        size = execution.size = self._size(execution.view, task, command.role, command.index)
        task.places[engine] = execution
        target = max(1, size.output - task.written)
        own = mix(task.key, task.node.id, int(command.attempt), command.index, member.number)
        if chaos.call_failure and uniform(mix(own, FAIL)) < chaos.call_failure:
            execution.code = CALL_FAILURES[below(mix(own, WHICH), len(CALL_FAILURES))]
            target = 1 + int(target * uniform(mix(own, WHERE)))
        execution.request = Request(execution, size.prompt + task.written, target, size.chain, command.priority)
        execution.sent_at = self.heap.now
        if self.observer is not None:
            self.observer.dispatched(execution, self.heap.now - task.ready_at, self.heap.now)
        if not member.model.fits(execution.request):
            self._end_badly(execution, Code.REQUEST)
        elif chaos.overloaded and uniform(mix(own, BUSY)) < chaos.overloaded:
            self._end_badly(execution, Code.OVERLOADED, uniform(own))
        else:
            delay = self.services.network.draw(mix(own, SENT))
            if delay:
                self.heap.after(delay, self.fleet.add, execution)
            else:
                self.fleet.add(execution)

    def _end_badly(self, execution: Execution, code: Code, again_s: Seconds | None = None) -> None:
        assert execution.member is not None
        execution.view.tasks[execution.task].places.pop(execution.member.id, None)
        execution.over = True
        self.post(e.TaskFailed(execution.run, execution.task, execution.attempt, code, again_s, execution.member.id))

    def _answered(self, execution: Execution, last: bool) -> None:
        """An engine has written the first or last token of a call."""
        request, member, size = execution.request, execution.member, execution.size
        assert request is not None and member is not None and size is not None
        if execution.over:
            return
        if self.observer is not None:
            self.observer.answered(execution, last, self.heap.now)
        self.fleet.tell_tokens(execution, request.target if last else None)
        if not last:
            return
        if execution.code is not None:
            self._end_badly(execution, execution.code)
            return
        self._finished(execution, size, member)

    def _tried(self, execution: Execution, asked: Asked) -> None:
        """A fork of a call has answered."""
        run, task, attempt, trial = execution.run, execution.task, execution.attempt, asked.trial
        assert execution.member is not None
        self.fleet.tell_tokens(execution)
        self.post(e.TokensProduced(run, task, attempt, trial.cost, execution.member.id, trial=True))
        self.post(
            e.TrialAnswered(run, task, attempt, trial.position, trial.label, trial.confidence, trial.cost, trial.closed)
        )

    def _finished(self, execution: Execution, size: Size, member: Member) -> None:
        view = execution.view
        view.tasks[execution.task].places.pop(member.id, None)
        execution.over = True
        command, arrival = execution.command, view.arrival
        tools = 0
        if command.role is Role.STEP and not command.last:
            tools = arrival.program.tools(execution.node, view.tasks[execution.task].key, command.index)
        elif command.role is Role.NODE:
            arrival.program.ended(execution.node, arrival.talk, size)
        self.post(
            e.TaskFinished(
                execution.run,
                execution.task,
                execution.attempt,
                size.prompt,
                size.output,
                (0,) * tools,
                size.chain,
                member.id,
            )
        )

    def _degrade(self, command: c.Degrade) -> None:
        """Less of a node is begun; that follows from the commands after it."""

    def _fork(self, command: c.Fork) -> None:
        """Where the chain is there already, it is forked at once, and says what it said at its place."""
        view = self.runs[command.run]
        task = view.tasks[command.task]
        execution = task.places.get(command.engine)
        asked = view.arrival.program.trial(task.node, task.key, command.position)
        if execution is not None and asked is not None:
            assert execution.request is not None and execution.size is not None
            execution.asked = asked
            resumed = execution.request.prompt - execution.size.prompt
            self.fleet.mark(execution, asked.trial.position - resumed)

    def _exit(self, command: c.Exit) -> None:
        """The answer of the trial is the call's; nothing is read out."""
        view = self.runs[command.run]
        task = view.tasks[command.task]
        execution = task.places[command.engine]
        assert execution.size is not None and execution.member is not None
        self._drop(task, command.engine)
        view.arrival.program.exited(task.node, task.key, command.label)
        written = task.written
        chain = execution.size.chain[: (execution.size.prompt + written) // execution.member.model.spec.prefix_tokens]
        self._finished(execution, replace(execution.size, output=written, chain=chain), execution.member)

    def _hedge(self, command: c.Hedge) -> None:
        task = self.runs[command.run].tasks[command.task]
        [first] = task.places.values()
        second = Execution(first.view, first.task, first.attempt, first.node, first.command)
        self._send(second, task, command.engine)

    def _choose(self, command: c.Choose) -> None:
        self._drop(self.runs[command.run].tasks[command.task], command.other)

    def _cancel(self, command: c.Cancel) -> None:
        task = self.runs[command.run].tasks[command.task]
        for place in list(task.places):
            self._drop(task, place)

    def _drop(self, task: TaskView, place: EngineId | None) -> None:
        execution = task.places.pop(place, None)
        if execution is not None:
            execution.over = True
            self.fleet.remove(execution)

    def _reprioritise(self, command: c.Reprioritise) -> None:
        execution = self.runs[command.run].tasks[command.task].places.get(command.engine)
        if execution is not None:
            self.fleet.reprioritise(execution, command.priority)

    def _preempt(self, command: c.Preempt) -> None:
        execution = self.runs[command.run].tasks[command.task].places.get(command.engine)
        if execution is not None:
            self.fleet.preempt(execution)

    # --- engines and time --------------------------------------------------------------------------------------

    def _probe(self, command: c.Probe) -> None:
        self.fleet.probe(command.engine)

    def _restart(self, command: c.Restart) -> None:
        self.fleet.restart(command.engine)

    def _shut(self, command: c.Close) -> None:
        self.fleet.close(command.engine)

    def _wake_at(self, command: c.WakeAt) -> None:
        self._wake += 1
        self.heap.at(command.at, self._tick, self._wake)

    def _tick(self, number: int) -> None:
        if number == self._wake:
            self.post(e.Tick())


COMMANDS: dict[type, Callable[[Drive, Any], None]] = {
    c.OpenFrame: Drive._open_frame,
    c.Measure: Drive._measure,
    c.MeasureHead: Drive._measure_head,
    c.DropHead: Drive._drop_head,
    c.Dispatch: Drive._dispatch,
    c.Degrade: Drive._degrade,
    c.Fork: Drive._fork,
    c.Exit: Drive._exit,
    c.Hedge: Drive._hedge,
    c.Choose: Drive._choose,
    c.Reprioritise: Drive._reprioritise,
    c.Preempt: Drive._preempt,
    c.Evaluate: Drive._evaluate,
    c.Label: Drive._label,
    c.Join: Drive._join,
    c.Return: Drive._return,
    c.Cancel: Drive._cancel,
    c.Mark: Drive._mark,
    c.CloseFrame: Drive._close_frame,
    c.Complete: Drive._ended,
    c.Fail: Drive._ended,
    c.Reject: Drive._ended,
    c.Probe: Drive._probe,
    c.Restart: Drive._restart,
    c.Close: Drive._shut,
    c.WakeAt: Drive._wake_at,
}
"""What is done with each type of command."""
