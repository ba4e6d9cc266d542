"""Plans built by hand, and `Driver`: a model of what a real driver does with commands, which objects when they
make no sense. Shared by the tests of this folder through the fixture `kit`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from random import Random
from typing import Any

from flowserve.core import commands as c
from flowserve.core import events as e
from flowserve.core.commands import Command, Role, Status
from flowserve.core.config import Config
from flowserve.core.events import Code, Event
from flowserve.core.invariants import check
from flowserve.core.state import SchedulerState
from flowserve.core.step import step
from flowserve.graphs.plan import (
    AgentSpec,
    Block,
    Const,
    Degradation,
    DynamicSpec,
    ExitSpec,
    Kind,
    LLMSpec,
    Node,
    Plan,
    Retry,
    SampleSpec,
    SearchSpec,
    Template,
    ToolSpec,
)
from flowserve.ids import BlockId, EngineId, FrameId, NodeId, RunId, TaskId

TIMELESS = float("inf")


def llm_spec(model: str | None = None, exit: ExitSpec | None = None, output: dict[str, Any] | None = None) -> LLMSpec:
    return LLMSpec("llm", Template(()), {}, output, model=model, exit=exit)


class PlanBuilder:
    """Collects nodes and blocks; `build` fills in ids, dependents and tails. Each method returns the node's id."""

    def __init__(self, name: str = "plan") -> None:
        self.name = name
        self.nodes: list[dict[str, Any]] = []
        self.parents: list[NodeId | None] = [None]
        self.llms: list[LLMSpec] = []
        self.samples: list[SampleSpec] = []
        self.agents: list[AgentSpec] = []
        self.dynamics: list[DynamicSpec] = []

    def block(self) -> BlockId:
        """A new body; its parent is whichever node names it."""
        self.parents.append(None)
        return BlockId(len(self.parents) - 1)

    def add(self, kind: Kind, deps: Sequence[int] = (), block: int = 0, **fields: Any) -> NodeId:
        id = NodeId(len(self.nodes))
        for body in fields.get("bodies", ()):
            self.parents[body] = id
        fields.setdefault("cost_s", 1.0)
        fields["deps"] = tuple(sorted(NodeId(dep) for dep in deps))
        fields["bodies"] = tuple(fields.get("bodies", ()))
        self.nodes.append({"id": id, "name": f"n{id}", "kind": kind, "block": BlockId(block), "args": (), **fields})
        return id

    def llm(
        self,
        *deps: int,
        model: str | None = None,
        exit: ExitSpec | None = None,
        output: dict[str, Any] | None = None,
        **fields: Any,
    ) -> NodeId:
        self.llms.append(llm_spec(model, exit, output))
        return self.add(Kind.LLM, deps, target=len(self.llms) - 1, **fields)

    def tool(self, *deps: int, **fields: Any) -> NodeId:
        return self.add(Kind.TOOL, deps, target=0, **fields)

    def search(self, *deps: int, **fields: Any) -> NodeId:
        return self.add(Kind.SEARCH, deps, target=0, **fields)

    def compute(self, *deps: int, **fields: Any) -> NodeId:
        return self.add(Kind.COMPUTE, deps, cost_s=fields.pop("cost_s", 0.0), **fields)

    def map(self, body: int, *deps: int, limit: int = 8, **fields: Any) -> NodeId:
        return self.add(Kind.MAP, deps, bodies=(body,), limit=limit, **fields)

    def sample(
        self,
        body: int,
        *deps: int,
        n: int = 3,
        rule: str | None = None,
        args: Sequence[tuple[str, float]] = (),
        wave: int | None = None,
        **fields: Any,
    ) -> NodeId:
        self.samples.append(SampleSpec("", rule, tuple(args), wave))
        return self.add(Kind.SAMPLE, deps, bodies=(body,), limit=n, target=len(self.samples) - 1, **fields)

    def switch(self, bodies: Sequence[int], *deps: int, **fields: Any) -> NodeId:
        return self.add(Kind.SWITCH, deps, bodies=bodies, **fields)

    def race(self, bodies: Sequence[int], *deps: int, limit: int = 1, **fields: Any) -> NodeId:
        return self.add(Kind.RACE, deps, bodies=bodies, limit=limit, **fields)

    def loop(self, body: int, *deps: int, limit: int = 3, **fields: Any) -> NodeId:
        return self.add(Kind.LOOP, deps, bodies=(body,), limit=limit, **fields)

    def agent(self, *deps: int, limit: int = 3, parallel: int = 2, model: str | None = None, **fields: Any) -> NodeId:
        self.agents.append(AgentSpec("agent", llm_spec(model), (0,), parallel))
        return self.add(Kind.AGENT, deps, limit=limit, target=len(self.agents) - 1, **fields)

    def dynamic(self, bodies: Sequence[int], *deps: int, limit: int = 3, **fields: Any) -> NodeId:
        self.dynamics.append(DynamicSpec("dynamic", {}, None, tuple(f"b{body}" for body in bodies)))
        return self.add(Kind.DYNAMIC, deps, bodies=bodies, limit=limit, target=len(self.dynamics) - 1, **fields)

    def build(self) -> Plan:
        nodes = tuple(Node(**fields) for fields in self.nodes)
        members = [tuple(n.id for n in nodes if n.block == number) for number in range(len(self.parents))]
        waiting = {n.id: tuple(m.id for m in nodes if n.id in m.deps) for n in nodes}
        tails = [0.0] * len(nodes)
        for node in reversed(nodes):
            tails[node.id] = node.cost_s + max((tails[later] for later in waiting[node.id]), default=0.0)
        for number, parent in enumerate(self.parents):  # bodies come after the blocks that hold them
            if parent is not None:
                for member in members[number]:
                    tails[member] += tails[parent] - nodes[parent].cost_s
        blocks = tuple(
            Block(
                BlockId(number),
                f"b{number}",
                (),
                members[number],
                Const(0),
                self.parents[number],
                until=Const(0) if (p := self.parents[number]) is not None and nodes[p].kind is Kind.LOOP else None,
                dependents=tuple(waiting[n] for n in members[number]),
            )
            for number in range(len(members))
        )
        rest = (tuple(self.llms), tuple(self.samples), tuple(self.agents), tuple(self.dynamics))
        return Plan(
            name=self.name,
            digest=sha256(repr((self.name, nodes, blocks, rest)).encode()).hexdigest(),
            nodes=nodes,
            blocks=blocks,
            input={},
            output={},
            consts=(None,),
            llms=rest[0],
            tools=(ToolSpec("tool", "", {}, {}),),
            searches=(SearchSpec("index"),),
            samples=rest[1],
            agents=rest[2],
            dynamics=rest[3],
            tails=tuple(tails),
            by_tail=tuple(sorted(members[0], key=lambda n: (-tails[n], n))),
        )


class Bench:
    """A state and a clock: feeds events, checks the state after each, and returns the commands."""

    def __init__(self, engines: int = 1, window: int = 4, **config: Any) -> None:
        self.state = SchedulerState(Config(**config))
        self.now = 0.0
        for number in range(engines):
            self.engine(f"e{number}", window, models=self.serves(f"e{number}"))

    def serves(self, engine: str) -> tuple[str, ...]:
        """Models of an engine."""
        return ("",)

    def engine(
        self, id: str, window: int = 4, up: bool = True, models: tuple[str, ...] = ("",), **facts: Any
    ) -> list[Command]:
        return self.feed(e.EngineChanged(EngineId(id), up, models, window, **facts))

    def feed(self, event: Event, after: float = 0.0) -> list[Command]:
        self.now += after
        out = step(self.state, event, self.now)
        check(self.state)
        return out

    def submit(self, plan: Plan, run: str = "r", **fields: Any) -> list[Command]:
        return self.feed(e.RunSubmitted(RunId(run), plan, **fields))

    def finish(self, task: int, attempt: int = 1, run: str = "r", tools: tuple[int, ...] = ()) -> list[Command]:
        return self.feed(e.TaskFinished(RunId(run), TaskId(task), attempt, tools=tools))

    def fail(
        self, task: int, code: Code, attempt: int = 1, run: str = "r", again: float | None = None
    ) -> list[Command]:
        return self.feed(e.TaskFailed(RunId(run), TaskId(task), attempt, code, again))

    def measured(self, task: int, tokens: int = 100, attempt: int = 1, run: str = "r", **facts: Any) -> list[Command]:
        return self.feed(e.Measured(RunId(run), TaskId(task), attempt, tokens, **facts))

    def tokens(
        self, task: int, count: int = 1, attempt: int = 1, run: str = "r", engine: str | None = None, after: float = 0.0
    ) -> list[Command]:
        where = EngineId(engine) if engine is not None else None
        return self.feed(e.TokensProduced(RunId(run), TaskId(task), attempt, count, where), after)

    def report(self, engine: str, waiting: int = 0, kv_used: float = 0.0, steps: int = 0, **more: Any) -> list[Command]:
        return self.feed(e.EngineReported(EngineId(engine), 1, waiting, kv_used, steps, **more))

    def evaluate(self, task: int, choice: int, attempt: int = 1, run: str = "r") -> list[Command]:
        return self.feed(e.Evaluated(RunId(run), TaskId(task), attempt, choice))

    def items(self, task: int, map: int, count: int, attempt: int = 1, run: str = "r") -> list[Command]:
        return self.feed(e.Items(RunId(run), TaskId(task), attempt, NodeId(map), count))

    def settle(self, task: int, width: int, anew: bool = False, run: str = "r") -> list[Command]:
        return self.feed(e.Evaluated(RunId(run), TaskId(task), 1, width, anew))

    def label(self, task: int, frame: int, label: int, run: str = "r") -> list[Command]:
        return self.feed(e.SampleLabelled(RunId(run), TaskId(task), FrameId(frame), label))

    def call(self, task: int, call: int, callee: int = 0, attempt: int = 1, run: str = "r") -> list[Command]:
        return self.feed(e.Called(RunId(run), TaskId(task), attempt, callee, call))

    def cancel(self, run: str = "r") -> list[Command]:
        return self.feed(e.CancelRequested(RunId(run)))

    def tick(self, after: float = 0.0) -> list[Command]:
        return self.feed(e.Tick(), after)


def brief(out: Sequence[Command]) -> list[str]:
    """Commands as short lines, for tests that assert the exact list.

    `ready 1`, `dispatch 1`, `open 2 block 1 for 1[0]`, `retrying 1 tool`, `run queued`, ...
    """
    return [_brief(command) for command in out]


def _brief(command: Command) -> str:
    match command:
        case c.OpenFrame():
            owner = f" for {command.task}[{command.index}]" if command.task is not None else ""
            return f"open {command.frame} block {command.block}{owner}"
        case c.Measure():
            return f"measure {command.task}" + (" last" if command.last else "")
        case c.MeasureHead():
            return f"measure head of node {command.node} in {command.frame}"
        case c.ComputeHead():
            return f"compute head of node {command.node} in {command.frame} at {command.engine}"
        case c.DropHead():
            where = f" at {command.engine}" if command.engine is not None else ""
            return f"drop head of node {command.node} in {command.frame}{where}"
        case c.Degrade():
            return f"degrade {command.task} to {command.to}"
        case c.Fork():
            return f"fork {command.task} at {command.engine} from {command.position}"
        case c.Exit():
            return f"exit {command.task} at {command.engine} with {command.label}"
        case c.Hedge():
            return f"hedge {command.task} at {command.engine}"
        case c.Choose():
            return f"choose {command.task} at {command.engine} not {command.other}"
        case c.Reprioritise():
            return f"reprioritise {command.task} at {command.engine} to {command.priority}"
        case c.Preempt():
            return f"preempt {command.task} at {command.engine}"
        case c.Probe() | c.Restart() | c.Close():
            return f"{type(command).__name__.lower()} {command.engine}"
        case c.Dispatch():
            part = f" {command.role}[{command.index}] of {command.parent}" if command.role is not Role.NODE else ""
            attempt = f" attempt {command.attempt}" if command.attempt > 1 else ""
            last = " last" if command.last else ""
            where = f" at {command.engine}" if command.engine is not None else ""
            resume = " resume" if command.resume else ""
            limit = f" limit {command.limit}" if command.limit is not None else ""
            return f"dispatch {command.task}{part}{attempt}{last}{where}{resume}{limit}"
        case c.Evaluate():
            return f"evaluate {command.task}" + (f" after {command.frame}" if command.frame is not None else "")
        case c.Label():
            return f"label {command.task} frame {command.frame}"
        case c.Join():
            stopped = f" stopped by {command.stopped_by}" if command.stopped_by is not None else ""
            return f"join {command.task} of {list(command.frames)}{stopped}"
        case c.Return():
            what = f"frame {command.frame}" if command.code is None else f"error {command.code}"
            return f"return {command.task} call {command.call} {what}"
        case c.Cancel():
            return f"cancel {command.task}" + (f" at {command.engine}" if command.engine is not None else "")
        case c.Mark():
            if command.status is Status.SKIPPED:
                return f"skipped node {command.node} in {command.frame}"
            who = command.task if command.task is not None else f"run {command.run}"
            return f"{command.status} {who}" + (f" {command.code}" if command.code is not None else "")
        case c.CloseFrame():
            return f"close {command.frame}"
        case c.Complete():
            return f"complete {command.run}"
        case c.Fail():
            cause = f" by {command.task} {command.code}" if command.task is not None else ""
            return f"fail {command.run} {command.status}{cause}"
        case c.Reject():
            over = f" {command.over.bound}" if command.over is not None else ""
            return f"reject {command.run} for {command.retry_after_s:g}" + (" outage" if command.outage else over)
        case c.WakeAt():
            return f"wake at {command.at:g}"


# --- a model of the driver ------------------------------------------------------------------------------


@dataclass
class Work:
    """One execution that the driver holds."""

    dispatch: c.Dispatch
    node: Node
    owes: str
    """`value`, `number`, `step`, `join`, or `` while the scheduler has something at work for it."""
    calls: int = 0
    open_calls: dict[int, None] = field(default_factory=dict)
    last_status: Status = Status.RUNNING


@dataclass
class RunView:
    """What the driver knows of one run."""

    plan: Plan
    frames: dict[FrameId, c.OpenFrame] = field(default_factory=dict)
    work: dict[TaskId, Work] = field(default_factory=dict)
    labels: list[c.Label] = field(default_factory=list)
    measures: dict[TaskId, c.Measure] = field(default_factory=dict)
    heads: dict[tuple[FrameId, NodeId], EngineId | None] = field(default_factory=dict)
    """Being measured (None) or computed."""
    written: dict[TaskId, int] = field(default_factory=dict)
    rivals: dict[TaskId, EngineId] = field(default_factory=dict)
    forks: dict[TaskId, int] = field(default_factory=dict)
    """From how many tokens on a trial is wanted of the present execution."""
    exited: dict[TaskId, None] = field(default_factory=dict)
    """Whose present execution was told to end."""
    status: dict[TaskId, Status] = field(default_factory=dict)
    attempts: dict[TaskId, int] = field(default_factory=dict)
    places: dict[TaskId, c.Mark] = field(default_factory=dict)
    """What was said first of each task."""
    items: dict[tuple[TaskId, NodeId], int] = field(default_factory=dict)
    """By call and map: items streamed by the present execution."""
    running: dict[TaskId, int] = field(default_factory=dict)
    """The attempt that was marked RUNNING last."""


FOLLOWS: dict[Status | None, tuple[Status, ...]] = {
    None: (Status.READY,),
    Status.READY: (Status.RUNNING, Status.FAILED, Status.CANCELLED),
    Status.RUNNING: (Status.COMPLETED, Status.FAILED, Status.CANCELLED, Status.RETRYING, Status.CONTINUED),
    Status.RETRYING: (Status.READY, Status.CANCELLED),
    Status.CONTINUED: (Status.READY, Status.CANCELLED),
}
"""What observers may be told after what."""


class Driver(Bench):
    """Carries commands out as a real driver would, objects to senseless ones, and can be driven at random."""

    def __init__(self, rnd: Random, engines: int = 2, window: int = 2, **config: Any) -> None:
        self.rnd = rnd
        self.views: dict[RunId, RunView] = {}
        self.ended: dict[RunId, Command] = {}
        self.log: list[tuple[float, Event]] = []
        self.outs: list[list[Command]] = []
        self.window = window
        self.num_runs = 0
        self.wake_at = TIMELESS
        self.up: dict[EngineId, tuple[str, ...]] = {}
        self.plans: dict[RunId, Plan] = {}
        self.facts: dict[str, Any] = {}
        """What else every engine says of itself."""
        self.probes: dict[EngineId, None] = {}
        self.restarts: dict[EngineId, None] = {}
        self.closed: dict[EngineId, None] = {}
        self.finishing: tuple[RunId, TaskId] | None = None
        """A hedged call that is being answered: its work is over when one of the two is chosen."""
        super().__init__(engines, window, **config)

    def feed(self, event: Event, after: float = 0.0) -> list[Command]:
        if isinstance(event, e.EngineChanged):
            if event.up:
                self.up[event.engine] = event.models
            else:
                self.up.pop(event.engine, None)
        out = super().feed(event, after)
        self.log.append((self.now, event))
        self.outs.append(out)
        for command in out:
            self.carry_out(command)
        if not isinstance(event, e.TokensProduced):
            self._forget_losses()
        wakes = [command for command in out if isinstance(command, c.WakeAt)]
        assert len(wakes) <= 1 and (not wakes or out[-1] is wakes[0])
        for window in (self.state.tools, self.state.searches):
            assert len(window.running) <= window.limit
        for run, view in self.views.items():
            assert set(self.state.runs[run].frames) <= set(view.frames)
        return out

    def serves(self, engine: str) -> tuple[str, ...]:
        return ("", "large") if engine == "e1" else ("",)

    def start(self, plan: Plan, **fields: Any) -> RunId:
        run = RunId(f"run{self.num_runs}")
        self.num_runs += 1
        self.plans[run] = plan
        self.submit(plan, run, **fields)
        return run

    # commands

    def carry_out(self, command: Command) -> None:
        if isinstance(command, c.WakeAt):
            self.wake_at = command.at
            return
        if isinstance(command, c.Reject):
            self.ended[command.run] = command
            return
        if isinstance(command, c.Probe):
            assert command.engine in self.up and command.engine not in self.probes
            self.probes[command.engine] = None
            return
        if isinstance(command, c.Restart):
            assert command.engine not in self.restarts
            self.restarts[command.engine] = None
            self.probes.pop(command.engine, None)
            self.up.pop(command.engine, None)
            self.closed.pop(command.engine, None)
            return
        if isinstance(command, c.Close):
            self.closed[command.engine] = None
            self.up.pop(command.engine, None)
            return
        assert command.run not in self.ended, f"{command} after the end"
        view = self.views.setdefault(command.run, RunView(self.plans[command.run]))
        match command:
            case c.OpenFrame():
                assert command.frame not in view.frames
                assert (command.parent is None) == (command.task is None) == (command.frame == 0)
                if command.task is not None:
                    if command.task not in view.work:
                        self._began_early(view, command.task)
                    assert command.parent in view.frames
                    owner = view.work[command.task]
                    assert not owner.owes or owner.node.kind is Kind.DYNAMIC, f"{command} before {owner.owes} is known"
                view.frames[command.frame] = command
            case c.Measure():
                assert command.task not in view.measures and command.frame in view.frames
                view.measures[command.task] = command
            case c.MeasureHead():
                assert (command.frame, command.node) not in view.heads and command.frame in view.frames
                view.heads[command.frame, command.node] = None
            case c.ComputeHead():
                assert view.heads[command.frame, command.node] is None
                assert command.engine not in [at for view in self.views.values() for at in view.heads.values()]
                assert command.engine in self.up and not self.state.engines[command.engine].running
                view.heads[command.frame, command.node] = command.engine
            case c.DropHead():
                assert view.heads.pop((command.frame, command.node)) == command.engine
            case c.Dispatch():
                self._dispatched(view, command)
            case c.Degrade():
                degrade = view.plan.nodes[self.state.runs[command.run].tasks[command.task].node.id].degrade
                assert degrade is not None and degrade.least <= command.to
            case c.Fork():
                assert view.work[command.task].dispatch.engine == command.engine
                assert command.task not in view.forks and command.task not in view.exited
                view.forks[command.task] = command.position
            case c.Exit():
                assert view.work[command.task].dispatch.engine == command.engine
                assert command.task not in view.forks and command.task not in view.exited
                view.exited[command.task] = None
            case c.Hedge():
                work = view.work[command.task]
                assert command.engine != work.dispatch.engine and command.engine in self.up
                assert not view.written.get(command.task) and command.task not in view.rivals
                view.rivals[command.task] = command.engine
            case c.Choose():
                work = view.work[command.task]
                pair = (work.dispatch.engine, view.rivals.pop(command.task))
                assert pair in ((command.engine, command.other), (command.other, command.engine))
                work.dispatch = replace(work.dispatch, engine=command.engine)
                if self.finishing == (command.run, command.task):
                    del view.work[command.task]
            case c.Reprioritise() | c.Preempt():
                assert view.work[command.task].dispatch.engine == command.engine
            case c.Evaluate():
                work = view.work[command.task]
                if command.frame is None:
                    assert work.node.kind is Kind.MAP and work.node.streams is not None and not work.owes
                else:
                    assert work.node.kind is Kind.LOOP and not work.owes and command.frame in view.frames
                work.owes = "number"
            case c.Label():
                assert command.frame in view.frames and command.task in view.work
                view.labels.append(command)
            case c.Join():
                work = view.work[command.task]
                assert not work.owes and command.attempt == work.dispatch.attempt
                assert all(frame in view.frames for frame in command.frames)
                work.owes = "join"
            case c.Return():
                del view.work[command.task].open_calls[command.call]
                assert command.frame is None or command.frame in view.frames
            case c.Cancel():
                assert view.work.pop(command.task).dispatch.attempt == command.attempt
                view.rivals.pop(command.task, None)
            case c.Mark():
                if command.task is not None:
                    before = view.status.get(command.task)
                    assert command.status in FOLLOWS[before], (before, command)
                    view.status[command.task] = command.status
                    view.places.setdefault(command.task, command)
                    if command.status is Status.RUNNING:
                        view.running[command.task] = command.attempt
                    if command.status is Status.RETRYING:
                        view.written.pop(command.task, None)
                        view.items = {key: count for key, count in view.items.items() if key[0] != command.task}
            case c.CloseFrame():
                del view.frames[command.frame]
                assert all(frame.parent != command.frame for frame in view.frames.values()), command
            case c.Complete():
                assert not view.work and not view.heads and list(view.frames) == [0]
                assert all(status not in FOLLOWS for status in view.status.values())
                self._over(command)
            case c.Fail():
                assert not view.work and not view.heads
                assert all(status not in FOLLOWS for status in view.status.values())
                self._over(command)

    def _began_early(self, view: RunView, task: TaskId) -> None:
        """A map whose list is still being written has a frame though it was never dispatched."""
        mark = view.places[task]
        assert mark.node is not None and mark.frame is not None
        node = view.plan.nodes[mark.node]
        assert node.streams is not None and any(map == node.id for _, map in view.items)
        view.work[task] = Work(c.Dispatch(mark.run, task, node.id, mark.frame, 1), node, "")

    def _over(self, command: c.Complete | c.Fail) -> None:
        del self.views[command.run]
        self.ended[command.run] = command

    def _dispatched(self, view: RunView, command: c.Dispatch) -> None:
        node = view.plan.nodes[command.node]
        assert command.frame in view.frames and command.task not in view.work
        assert command.attempt > view.attempts.get(command.task, 0)
        assert command.task not in view.measures, "dispatched before it was measured"
        assert command.resume == (view.written.get(command.task, 0) > 0)
        view.attempts[command.task] = command.attempt
        view.forks.pop(command.task, None)
        view.exited.pop(command.task, None)
        owes = "value"
        if command.role is Role.STEP:
            owes = "step"
            assert command.parent is not None
            view.work.setdefault(
                command.parent, Work(c.Dispatch(command.run, command.parent, node.id, command.frame, 0), node, "")
            )
            parent = view.work[command.parent]
            attempt = view.running[command.parent]
            parent.dispatch = c.Dispatch(command.run, command.parent, node.id, command.frame, attempt)
            assert command.index < node.limit and command.last == (command.index == node.limit - 1)
        elif command.role is Role.NODE and node.kind in (Kind.MAP, Kind.SAMPLE, Kind.SWITCH, Kind.LOOP, Kind.RACE):
            owes = "number"
        view.work[command.task] = Work(command, node, owes)
        if command.engine is not None:
            assert command.engine in self.up
            spec = view.plan.agents[node.target].llm if node.kind is Kind.AGENT else view.plan.llms[node.target]
            assert (spec.model or "") in self.up[command.engine]
            engine = self.state.engines[command.engine]
            assert engine.seats <= max(self.window, 1 + self.most_choices)
        assert (command.engine is not None) == (
            command.role is Role.STEP or (command.role is Role.NODE and node.kind is Kind.LLM)
        )

    # events

    def _forget_losses(self) -> None:
        """What is not in the scheduler's tables any more has no tokens to go on with."""
        for run, view in self.views.items():
            view.measures = {id: m for id, m in view.measures.items() if id in self.state.runs[run].tasks}

    def answer_measure(self, run: RunId, command: c.Measure) -> None:
        del self.views[run].measures[command.task]
        if self.rnd.random() < 0.03:
            self.fail(command.task, Code.REQUEST, run=run)
            return
        tokens, choices = self.rnd.choice([1, 50, 400, 5000]), self.rnd.choice([1, 1, 1, self.most_choices])
        loss = self.rnd.choice(list(e.Loss)) if choices == 1 else e.Loss.RESTART
        prefix = tuple(self.rnd.choice([7, 8]) * 1000 + i for i in range(tokens // 64))
        limit = self.rnd.choice([0, 10, 300])
        self.measured(command.task, tokens, run=run, limit=limit, choices=choices, on_loss=loss, prefix=prefix)

    def answer_head(self, run: RunId, key: tuple[FrameId, NodeId], engine: EngineId | None) -> None:
        if engine is not None:
            del self.views[run].heads[key]
            self.feed(e.HeadComputed(run, *key))
            return
        tokens = self.rnd.choice([0, 50, 400, 5000])
        prefix = tuple(self.rnd.choice([7, 8]) * 1000 + i for i in range(tokens // 64))
        self.feed(e.HeadMeasured(run, *key, tokens, prefix))

    most_choices = 3

    def random_tokens(self) -> None:
        """Some engine writes something."""
        calls = [
            (run, task, work)
            for run, view in self.views.items()
            for task, work in view.work.items()
            if work.owes and work.dispatch.engine is not None
        ]
        if not calls:
            return
        run, task, work = self.rnd.choice(calls)
        view = self.views[run]
        engine = self.rnd.choice([work.dispatch.engine, view.rivals.get(task, work.dispatch.engine)])
        count = self.rnd.randint(1, 5)
        view.written[task] = view.written.get(task, 0) + count
        self.tokens(
            task,
            count,
            work.dispatch.attempt,
            run,
            self.rnd.choice([None, engine]) if engine == work.dispatch.engine and task not in view.rivals else engine,
        )

    def random_trial(self) -> None:
        """Some fork has answered."""
        forks = [
            (run, task, view.work[task].dispatch.attempt, position)
            for run, view in self.views.items()
            for task, position in view.forks.items()
            if task in view.work
        ]
        if forks:
            run, task, attempt, position = self.rnd.choice(forks)
            del self.views[run].forks[task]
            label, confidence = self.rnd.randint(-1, 1), self.rnd.choice([0.5, 0.9995])
            position += self.rnd.randint(0, 5)
            if self.rnd.random() < 0.5:
                self.feed(e.TokensProduced(run, task, attempt, 3, trial=True))
            if run in self.views:  # it may have gone beyond its budget
                self.feed(e.TrialAnswered(run, task, attempt, position, label, confidence, 3))

    def random_items(self) -> None:
        """Some call has written one or two more items of a list that a map waits for."""
        calls = [
            (run, task, work, map.id)
            for run, view in self.views.items()
            for task, work in view.work.items()
            for map in view.plan.nodes
            if work.owes and work.node.kind is Kind.LLM and map.streams == work.node.id and task not in view.rivals
        ]
        if calls:
            run, task, work, map = self.rnd.choice(calls)
            items = self.views[run].items
            items[task, map] = items.get((task, map), 0) + self.rnd.randint(1, 2)
            self.items(task, map, items[task, map], work.dispatch.attempt, run)

    def random_news(self) -> None:
        """An engine reports, is drained or wanted back, answers a probe, or comes up again."""
        rnd, id = self.rnd, EngineId(f"e{self.rnd.randint(0, 1)}")
        dice = rnd.random()
        if self.restarts and dice < 0.4:
            id = rnd.choice(list(self.restarts))
            del self.restarts[id]
            self.engine(id, self.window, up=rnd.random() < 0.7, models=self.serves(id), **self.facts)
        elif self.probes and dice < 0.6:
            id = rnd.choice(list(self.probes))
            del self.probes[id]
            self.feed(e.Probed(id, rnd.random() < 0.6))
        elif dice < 0.8:
            self.report(
                id, rnd.randint(0, 2), rnd.choice([0.1, 0.97]), rnd.randint(0, 99), preemptions=rnd.randint(0, 3)
            )
        elif dice < 0.9:
            numbers = tuple(rnd.choice([7, 8]) * 1000 + rnd.randint(0, 9) for _ in range(3))
            self.feed(e.KVChanged(id, numbers, numbers[:1], rnd.random() < 0.1))
        elif dice < 0.96:
            self.feed(e.DrainRequested(id, rnd.random() < 0.5))
        else:
            self.feed(e.ResumeRequested(id))

    def owed(self) -> list[tuple[RunId, TaskId, Work]]:
        return [(run, task, work) for run, view in self.views.items() for task, work in view.work.items() if work.owes]

    def answer(self, run: RunId, task: TaskId, work: Work) -> None:
        """Give one good answer."""
        rnd, node, attempt = self.rnd, work.node, work.dispatch.attempt
        if work.owes == "number":
            work.owes = ""
            choice = {
                Kind.MAP: lambda: rnd.randint(0, min(4, node.limit)),
                Kind.SAMPLE: lambda: node.limit,
                Kind.SWITCH: lambda: rnd.randrange(len(node.bodies)),
                Kind.LOOP: lambda: rnd.randint(0, 1),
                Kind.RACE: lambda: len(node.bodies),
            }[node.kind]()
            self.feed(e.Evaluated(run, task, attempt, choice, node.streams is not None and rnd.random() < 0.3))
            return
        if node.kind is Kind.DYNAMIC and work.calls < node.limit and rnd.random() < 0.6:
            work.calls += 1
            work.open_calls[work.calls - 1] = None
            self.feed(e.Called(run, task, attempt, rnd.randrange(len(node.bodies)), work.calls - 1))
            return
        tools = (0,) * rnd.randint(0, 3) if work.owes == "step" and not work.dispatch.last else ()
        view = self.views[run]
        view.written.pop(task, None)
        engine = rnd.choice([work.dispatch.engine, view.rivals.get(task, work.dispatch.engine)])
        self.finishing = (run, task)
        if task not in view.rivals:
            del view.work[task]
        self.feed(e.TaskFinished(run, task, attempt, 3, 2, tools, (7000, 7001), engine))
        self.finishing = None

    def random_answer(self) -> bool:
        measures = [(run, measure) for run, view in self.views.items() for measure in view.measures.values()]
        if measures and self.rnd.random() < 0.5:
            self.answer_measure(*self.rnd.choice(measures))
            return True
        heads = [(run, key, at) for run, view in self.views.items() for key, at in view.heads.items()]
        if heads and self.rnd.random() < 0.5:
            self.answer_head(*self.rnd.choice(heads))
            return True
        owed = self.owed()
        labels = [label for view in self.views.values() for label in view.labels]
        if labels and (not owed or self.rnd.random() < 0.5):
            label = self.rnd.choice(labels)
            self.views[label.run].labels.remove(label)
            self.feed(e.SampleLabelled(label.run, label.task, label.frame, self.rnd.randint(-1, 1)))
            return True
        if owed:
            self.answer(*self.rnd.choice(owed))
        return bool(owed or measures)

    def random_failure(self) -> None:
        owed = self.owed()
        if owed:
            run, task, work = self.rnd.choice(owed)
            if task in self.views[run].rivals:
                engine = self.rnd.choice([work.dispatch.engine, self.views[run].rivals[task]])
                self.feed(e.TaskFailed(run, task, work.dispatch.attempt, Code.ENGINE, None, engine))
                return
            del self.views[run].work[task]
            # agents' and samples' parts stay until the scheduler cancels them
            code = self.rnd.choice(list(Code))
            again = self.rnd.choice([None, 0.5, 1e9])
            self.feed(e.TaskFailed(run, task, work.dispatch.attempt, code, again))

    def random_noise(self) -> None:
        """Something stale: it must change nothing."""
        runs = [*self.views, *self.ended, RunId("unknown")]
        run, attempt = self.rnd.choice(runs), self.rnd.choice([0, 99])
        task = TaskId(self.rnd.randint(0, 12))
        before = self.state.stale
        event = self.rnd.choice(
            [
                e.TaskFinished(run, task, attempt),
                e.TaskFailed(run, task, attempt, Code.ENGINE),
                e.Evaluated(run, task, attempt, 1),
                e.Items(run, task, attempt, NodeId(0), 1),
                e.Called(run, task, attempt, 0, 0),
                e.TokensProduced(run, task, attempt, 1),
                e.TrialAnswered(run, task, attempt, 64, 0, 1.0, 3),
                e.SampleLabelled(run, task, FrameId(999), 0),
                e.CancelRequested(RunId("unknown")),
            ]
        )
        assert self.feed(event) == [] and self.state.stale == before + 1

    def random_engine(self) -> None:
        id = EngineId(f"e{self.rnd.randint(0, 1)}")
        if id not in self.closed and id not in self.restarts:
            self.probes.pop(id, None)
            self.engine(id, self.window, up=id not in self.up, models=self.serves(id), **self.facts)

    def random_event(self) -> None:
        dice = self.rnd.random()
        self.now += self.rnd.choice([0.0, 0.01, 0.5])
        if self.facts and self.rnd.random() < 0.4:
            events = [self.random_tokens, self.random_tokens, self.random_trial, self.random_news, self.wake]
            self.rnd.choice(events)()
            return
        if self.rnd.random() < 0.2:
            self.rnd.choice([self.random_items, self.random_trial])()
        elif dice < 0.75:
            self.random_answer()
        elif dice < 0.85:
            self.random_failure()
        elif dice < 0.88:
            self.random_noise()
        elif dice < 0.92:
            self.random_engine()
        elif dice < 0.94 and self.views:
            self.cancel(self.rnd.choice(list(self.views)))
        else:
            self.wake()

    def wake(self) -> None:
        """Let the promised time come."""
        if self.wake_at < TIMELESS:
            self.now = max(self.now, self.wake_at)
            self.wake_at = TIMELESS
        self.tick()

    def drain(self) -> None:
        """Answer everything well until no run is live."""
        for number in range(2):
            id = EngineId(f"e{number}")
            self.feed(e.ResumeRequested(id))
            if id not in self.up and id not in self.restarts:
                self.engine(id, self.window, models=self.serves(id), **self.facts)
        for _ in range(20_000):
            if not self.state.runs:
                return
            for id in list(self.restarts):
                del self.restarts[id]
                self.engine(id, self.window, models=self.serves(id), **self.facts)
            for id in list(self.probes):
                del self.probes[id]
                self.feed(e.Probed(id, True))
            if not self.random_answer() and self.state.runs:  # news of an engine may have ended the last one
                assert self.wake_at < TIMELESS, f"stuck: {self.state!r}"
                self.wake()
        raise AssertionError("does not end")

    def assert_nothing_left(self) -> None:
        state = self.state
        assert not state.runs and not self.views and not state.shapes
        assert len(state.timers) == sum(engine.timer is not None for engine in state.engines.values())
        for place in [*state.engines.values(), state.tools, state.searches]:
            assert not place.running
        own = [engine.queue for engine in state.engines.values()]
        for queue in [*state.models.values(), *own, state.tools.queue, state.searches.queue]:
            assert queue.size == 0 and all(not line.lanes and len(line.heap) <= 32 for line in queue.lines.values())


def random_plan(rnd: Random) -> Plan:
    """A plan of up to three levels with every kind of node, retries, time limits and degradations."""
    builder = PlanBuilder(f"random{rnd.randrange(10**9)}")
    _random_block(builder, rnd, 0, 0)
    return builder.build()


def _random_block(builder: PlanBuilder, rnd: Random, block: int, depth: int) -> None:
    made: list[int] = []
    kinds = list(Kind) if depth < 2 else [Kind.LLM, Kind.TOOL, Kind.SEARCH, Kind.COMPUTE, Kind.AGENT]
    for _ in range(rnd.randint(0 if depth else 1, 4 if depth == 0 else 2)):
        deps = sorted(rnd.sample(made, rnd.randint(0, min(2, len(made)))))
        kind = rnd.choice(kinds)
        fields: dict[str, Any] = {"block": block, "cost_s": rnd.choice([0.0, 1.0, 5.0])}
        if rnd.random() < 0.5:
            fields["retry"] = Retry(
                rnd.randint(1, 3), rnd.choice([0.0, 0.5]), on=rnd.choice([(), ("tool", "engine", "timeout")])
            )
        if rnd.random() < 0.2:
            fields["timeout_s"] = rnd.choice([0.5, 3.0])
        bodies: list[int] = []
        if kind >= Kind.MAP and kind is not Kind.AGENT:
            for _ in range(rnd.randint(1, 3) if kind in (Kind.SWITCH, Kind.DYNAMIC, Kind.RACE) else 1):
                bodies.append(builder.block())
                _random_block(builder, rnd, bodies[-1], depth + 1)
        made.append(_random_node(builder, rnd, kind, bodies, deps, fields))


def _random_node(
    builder: PlanBuilder, rnd: Random, kind: Kind, bodies: list[int], deps: list[int], fields: dict[str, Any]
) -> int:
    match kind:
        case Kind.MAP:
            if rnd.random() < 0.7:
                writer = builder.llm(*deps, **fields)
                plain = {"block": fields["block"], "cost_s": fields["cost_s"], "streams": writer}
                deps, fields = [*rnd.choice([[], deps]), writer], plain
            return builder.map(bodies[0], *deps, limit=3, concurrency=rnd.randint(0, 2), **fields)
        case Kind.SAMPLE:
            rule, args = rnd.choice(
                [
                    (None, ()),
                    ("certaindex", (("min_samples", 2.0), ("every", 1.0))),
                    ("adaptive_consistency", ()),
                    ("decided", ()),
                    ("esc", (("window", 2.0),)),
                    ("agreement", ()),
                ]
            )
            n, wave = rnd.randint(1, 4), rnd.choice([None, 0, 1, 2]) if rule is not None else None
            fields |= {"degrade": _random_degradation(rnd, 1, n), "concurrency": rnd.choice([0, 0, 2])}
            return builder.sample(bodies[0], *deps, n=n, rule=rule, args=args, wave=wave, **fields)
        case Kind.SWITCH:
            return builder.switch(bodies, *deps, **fields)
        case Kind.RACE:
            return builder.race(bodies, *deps, limit=rnd.randint(1, len(bodies)), **fields)
        case Kind.LOOP:
            limit = rnd.randint(1, 3)
            return builder.loop(bodies[0], *deps, limit=limit, degrade=_random_degradation(rnd, 0, limit), **fields)
        case Kind.DYNAMIC:
            return builder.dynamic(bodies, *deps, limit=3, **fields)
        case Kind.AGENT:
            return builder.agent(*deps, model=rnd.choice([None, None, "large"]), limit=rnd.randint(1, 3), **fields)
        case Kind.LLM:
            exit = rnd.choice([None, ExitSpec("number")])
            return builder.llm(*deps, model=rnd.choice([None] * 12 + ["large"] * 4 + ["nowhere"]), exit=exit, **fields)
        case Kind.SEARCH:
            return builder.search(*deps, limit=8, degrade=_random_degradation(rnd, 1, 8), **fields)
        case _:
            return builder.add(kind, deps, target=0, **fields)


def _random_degradation(rnd: Random, lowest: int, limit: int) -> Degradation | None:
    if lowest >= limit or rnd.random() < 0.5:
        return None
    return Degradation(rnd.randrange(lowest, limit), rnd.choice([0.1, 0.5, 1.0]))
