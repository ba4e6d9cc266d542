"""What the scheduler remembers: runs, their frames and tasks, engines, windows, queues, timers.

Everything here is mutable and slotted, and is changed only inside `step`. Whatever has ended is gone from all
tables at once, so that memory follows what is live. Tables are dicts in order of arrival; nothing in the
core iterates a set. `invariants.check` lists what must hold between steps.
"""

from collections import deque
from collections.abc import Sequence
from enum import IntEnum
from math import inf
from typing import NamedTuple

from flowserve.core.budgets import Doom
from flowserve.core.commands import Command, Role
from flowserve.core.config import Config
from flowserve.core.engine_state import Engine, Group, Head, ModelCall
from flowserve.core.estimates import Estimates
from flowserve.core.events import Code, Event
from flowserve.core.lengths import Lengths
from flowserve.core.placements import PLACEMENTS, Memory, Placement
from flowserve.core.priority import POLICIES, Policy
from flowserve.core.queues import Lane, ReadyQueue
from flowserve.core.service import Tenant
from flowserve.core.shapes import BlockShape, PlanShape
from flowserve.core.spending import Spent
from flowserve.core.stopping.samples import Votes
from flowserve.core.timers import Timer, Timers
from flowserve.errors import ConfigError
from flowserve.graphs.plan import Budget, Kind, Node
from flowserve.ids import EngineId, FrameId, NodeId, RunId, Seconds, TaskId, Tokens


class Phase(IntEnum):
    """Where a task stands; `tasks.TRANSITIONS` says what may follow what."""

    READY = 0
    """Its inputs exist; it waits for room or for the end of this step."""
    RUNNING = 1
    """Dispatched (a LOOP: or evaluating again); the driver owes an answer."""
    OPEN = 2
    """Evaluated and expanded: frames, or an agent's steps and tools, are at work for it."""
    JOINING = 3
    """All parts are done; the driver builds the value."""
    RETRYING = 4
    """Failed; waits for its back-off to pass."""
    COMPLETED = 5
    FAILED = 6
    CANCELLED = 7


class Width(IntEnum):
    """What is known of how many frames an expansion will have."""

    KNOWN = 0
    GROWS = 1
    """MAP that began early: as many as there are items by now."""
    HELD = 2
    """MAP that began early, and in which a frame failed: nothing more before its list is whole."""
    ASKED = 3
    """MAP that began early: its list is whole, and an Evaluate is out."""


class Todo(IntEnum):
    """Sorts of consequences; `step.CONSEQUENCES` names the function for each."""

    FRAME_DONE = 0
    """All nodes of a frame are done."""
    FRAME_FAILED = 1
    """A node of a frame failed for good."""
    START_AGENT = 2
    """An agent's inputs exist."""
    AGENT_FAILED = 3
    """A step of this agent failed for good."""
    TOOL_OVER = 4
    """A tool call of this agent has ended, well or badly."""
    UNSERVED = 5
    """A task wants a model that no engine has."""
    LIST_WHOLE = 6
    """The list of this MAP, which began early, is whole."""
    ITEMS_VOID = 7
    """What this model call has streamed is void: it begins anew."""


class Consequence(NamedTuple):
    """Something that follows from what was just done. Kept in a queue instead of called, so that modules need not
    know each other and deep nesting does not become deep recursion."""

    todo: Todo
    subject: "Task | Frame"
    code: Code | None = None
    """FRAME_FAILED, AGENT_FAILED: why."""
    origin: "Task | None" = None
    """FRAME_FAILED, AGENT_FAILED: the task where it began."""


class Run:
    """One accepted run that has not ended."""

    __slots__ = (
        "arrival",
        "attained",
        "budget",
        "by_node",
        "by_tail",
        "calls",
        "deadline",
        "executions",
        "frames",
        "held",
        "history",
        "id",
        "kv_tokens",
        "lanes",
        "last_frame",
        "last_task",
        "level",
        "longer_s",
        "longest",
        "may_degrade",
        "over",
        "plan",
        "pointer",
        "prepaid",
        "prepaid_money",
        "rank",
        "retries",
        "session",
        "shape",
        "share",
        "spent",
        "started",
        "submitted_at",
        "sure",
        "tails",
        "taken",
        "tasks",
        "tenant",
        "timer",
        "usual_kv_tokens",
        "width",
        "work",
        "works",
        "wrote",
    )

    def __init__(self, id: RunId, arrival: int, shape: PlanShape, submitted_at: Seconds, level: int) -> None:
        self.id = id
        self.tenant = ""
        self.share: Tenant
        """Whose service its calls count for."""
        self.session: str | None = None
        """Whose calls share a growing prefix; None: nobody said."""
        self.arrival = arrival
        """Number in order of acceptance, from 1; ends ties between runs."""
        self.shape = shape
        self.plan = shape.plan
        self.tails: Sequence[Seconds] = shape.tails
        """Per node id: the remaining critical path from its start, as known when the run was accepted."""
        self.sure: Sequence[Seconds] = ()
        """Per node id: as `tails`, of what has been seen alone; empty: nothing has."""
        self.by_tail = shape.by_tail
        """Nodes of block 0, longest tail first."""
        self.submitted_at = submitted_at
        self.level = level
        """Tier and client priority as one number, 0 the most urgent; see `priority.level`."""
        self.deadline: Seconds = inf
        """When the run must have ended; inf: whenever."""
        self.budget: Budget | None = None
        """What its model calls may spend; None: anything."""
        self.spent = Spent()
        """What they have spent."""
        self.by_node: dict[NodeId, Spent] = {}
        """The same for each node that has called."""
        self.timer: Timer | None = None
        """Fires at `deadline`; None without one."""
        self.may_degrade = True
        """The client allows what the author allows."""
        self.taken: tuple[NodeId, ...] = ()
        """Nodes that are degraded since it was accepted, the least harmful first; see `degradation`."""
        self.held = False
        """It waits for another run of its tenant to end, and has nothing at work."""
        self.started = False
        """Something has been dispatched."""
        self.over = False
        """Ended; only objects that are about to go still refer to it."""
        self.tasks: dict[TaskId, Task] = {}
        """Live tasks, in order of id."""
        self.calls: dict[Task, None] = {}
        """Model calls that are at an engine, in order of dispatch."""
        self.frames: dict[FrameId, Frame] = {}
        """Frames that are at work, in order of id. A frame that is done has left."""
        self.last_task = 0
        """Task ids given so far; the first is 1."""
        self.last_frame = -1
        """Last frame id given; the first is 0."""
        self.pointer = 0
        """Into `by_tail`: nodes before it have completed. It only moves forward."""
        self.rank = 0.0
        """Place among runs, lower first; what the policy said last."""
        self.works: Sequence[Seconds] = ()
        """Per node id: estimated seconds of model calls, as known when the run was accepted."""
        self.work: Seconds = 0.0
        """Their sum over nodes of block 0 that are not done."""
        self.width = 1.0
        """Calls that the engines served at once when it was accepted."""
        self.attained: Seconds = 0.0
        """Seconds of model calls that it has had."""
        self.prepaid = 0.0
        """Tokens that its tenant was charged with and that its calls have not taken yet."""
        self.prepaid_money = 0.0
        """Likewise."""
        self.longest: Seconds = 0.0
        """The longest chain of them that was seen."""
        self.wrote: dict[NodeId, tuple[int, Tokens]] = {}
        """Per node whose model calls have ended well: how many, and what they wrote in all."""
        self.longer_s: Seconds = 0.0
        """What its measured calls that are not over, and its samples of which some have voted, are expected to take beyond what those
        of their nodes take."""
        self.kv_tokens: Tokens = 0
        """KV memory that these calls are expected to need."""
        self.usual_kv_tokens = 0.0
        """What calls needed on average when it was accepted; 0: none had ended."""
        self.lanes: dict[tuple[str, Seconds], Lane] = {}
        """Waiting tasks by queue name and how far behind the run they stand."""
        self.executions = 0
        """First executions dispatched; the base of the retry budget."""
        self.retries = 0
        """Retries granted so far."""
        self.history: deque[Seconds | Event | Command] = deque()
        """The latest events and commands, each after its time; bounded by `Config.story_length`. Flat, because pairs
        would be a large share of all objects that the garbage collector has to visit."""

    @property
    def remaining_s(self) -> Seconds:
        """Estimated seconds of its remaining critical path, or 0 when all its nodes have completed."""
        return self.tails[self.by_tail[self.pointer]] if self.pointer < len(self.by_tail) else 0.0

    def __repr__(self) -> str:
        word = "over" if self.over else "held" if self.held else "running" if self.started else "queued"
        return f"Run({self.id!r}, {word}, {len(self.tasks)} tasks, {len(self.frames)} frames)"


class Frame:
    """One instance of a block that is at work."""

    __slots__ = ("block", "deadline", "id", "index", "nodes", "owner", "run", "unfinished")

    def __init__(self, id: FrameId, run: Run, block: BlockShape, owner: "Task | None", index: int) -> None:
        self.id = id
        self.run = run
        self.block = block
        self.owner = owner
        """The task that this frame works for; None for frame 0."""
        self.index = index
        """Item, sample, arm's frame (0), iteration or call."""
        self.nodes: list[int | Task | None] = block.counts.copy()
        """Per position: how many nodes it still waits for; its task while that is live; None when it is done."""
        self.unfinished = len(block.nodes)
        """Nodes that are not done; at 0 the frame is done."""
        self.deadline: Seconds = inf
        """The earliest of the run's deadline and the time limits of the tasks around it."""

    @property
    def parent(self) -> "Frame | None":
        return self.owner.frame if self.owner is not None else None

    def __repr__(self) -> str:
        return f"Frame({self.run.id!r}, {self.id}, block {self.block.id}, {self.unfinished} unfinished)"


class Expansion:
    """What an OPEN (or a running dynamic) task has at work, and what it keeps for its join."""

    __slots__ = (
        "done",
        "failed",
        "labels",
        "last_code",
        "live",
        "longer_s",
        "needed",
        "opened",
        "parts",
        "sure",
        "tools",
        "tools_started",
        "unlabelled",
        "width",
    )

    def __init__(self, width: int = 0, sure: Width = Width.KNOWN) -> None:
        self.width = width
        """Frames wanted: items, samples, greatest number of iterations; 1 for a SWITCH. AGENT, DYNAMIC: the limit."""
        self.sure = sure
        """MAP: whether `width` is that of the whole list."""
        self.opened = 0
        """Frames opened (AGENT: steps made; DYNAMIC: calls answered or open) so far."""
        self.live: dict[FrameId, Frame] = {}
        """Frames at work."""
        self.done: dict[int, FrameId] = {}
        """Index -> frame that is done and whose values are still wanted."""
        self.failed = 0
        """SAMPLE, RACE: samples or arms dropped."""
        self.last_code: Code | None = None
        """Why the latest of them was dropped; None while there is none."""
        self.labels = Votes()
        """SAMPLE with a rule: the classes of its samples. RACE: a 0 for each arm that counts."""
        self.needed = 0
        """SAMPLE with a rule: at least so many further labels come before it stops."""
        self.longer_s: Seconds = 0.0
        """SAMPLE with a rule: what is left of it, beyond what its node takes; part of `Run.longer_s`."""
        self.unlabelled: dict[FrameId, None] = {}
        """SAMPLE with a rule, RACE: what has ended and awaits its label."""
        self.parts: dict[TaskId, Task] = {}
        """AGENT: its live step, or its live tool calls."""
        self.tools = 0
        """AGENT: tool calls that the latest step asked for."""
        self.tools_started = 0
        """AGENT: how many of them have a task or had one."""

    @property
    def complete(self) -> bool:
        """Every frame that is wanted has ended."""
        return self.sure is Width.KNOWN and len(self.done) + self.failed == self.width

    def closing(self) -> list[FrameId]:
        """Frames whose values are kept, in order of index."""
        return [self.done[index] for index in sorted(self.done)]


class Task:
    """One execution of a node, or of a part of an agent's work, until it is over."""

    __slots__ = (
        "attempt",
        "began_at",
        "behind",
        "call",
        "charged",
        "deadline",
        "expansion",
        "failures",
        "frame",
        "id",
        "index",
        "kind",
        "lane",
        "last",
        "losses",
        "node",
        "parent",
        "phase",
        "place",
        "reduced",
        "role",
        "run",
        "timer",
    )

    def __init__(
        self, id: TaskId, frame: Frame, node: Node, role: Role = Role.NODE, parent: "Task | None" = None, index: int = 0
    ) -> None:
        self.id = id
        """Number inside the run in order of readiness, from 1; ends ties."""
        self.run = frame.run
        self.frame = frame
        self.node = node
        self.kind: Kind = node.kind
        self.role = role
        self.parent = parent
        """The agent's task, of which this is a step or a tool call; else None."""
        self.index = index
        """Step number, or place of a tool call in its step; 0 for nodes."""
        self.last = False
        """A step that must be the agent's last."""
        self.phase = Phase.READY
        self.attempt = 1
        """Which execution this is; events that speak of another are stale."""
        self.failures = 0
        """Executions that used up one of the node's attempts."""
        self.losses = 0
        """Executions lost with their engine."""
        self.lane: Lane | None = None
        """Where it waits; None when it does not wait in a queue."""
        self.call: ModelCall | None = None
        """What is known of it as a model call; None for everything else."""
        self.place: Engine | Window | None = None
        """Whose room it takes while it runs; None for kinds that need none."""
        self.timer: Timer | None = None
        """Time limit while it is at work, back-off while RETRYING; None without one."""
        self.began_at: Seconds = 0.0
        """When the present execution was dispatched; an agent's: its first step."""
        self.behind: Seconds = 0.0
        """A model call's: the run's longest chain when it was dispatched."""
        self.charged: Seconds = 0.0
        """A model call's: what its tenant has paid in advance while it is at an engine."""
        self.deadline: Seconds = inf
        """When the present execution must have ended, all limits around it included."""
        self.reduced: int | None = None
        """How much the present execution does of what its node declares, where it was degraded; None: all of it."""
        self.expansion: Expansion | None = None
        """None for kinds without parts, and before they have any."""

    def __repr__(self) -> str:
        what = self.node.name if self.role is Role.NODE else f"{self.node.name}.{self.role.value}[{self.index}]"
        return f"Task({self.run.id!r}, {self.id}, {what}, {self.phase.name}, attempt {self.attempt})"


class Window:
    """Room for a bounded number of executions of one sort."""

    __slots__ = ("limit", "queue", "running")

    def __init__(self, name: str, limit: int) -> None:
        self.limit = limit
        self.queue = ReadyQueue(name)
        self.running: dict[Task, None] = {}
        """In order of dispatch."""

    def __repr__(self) -> str:
        return f"Window({self.queue.name!r}, {len(self.running)} of {self.limit}, {self.queue.size} waiting)"


class SchedulerState:
    """Everything. Give it to `step`, and to nothing else that writes."""

    __slots__ = (
        "agenda",
        "arrivals",
        "at_engines",
        "calls",
        "config",
        "doomed",
        "draining",
        "ended",
        "engines",
        "estimates",
        "groups",
        "heads",
        "hedges",
        "held",
        "homes",
        "immediate",
        "lengths",
        "measuring",
        "models",
        "now",
        "out",
        "parked",
        "placed",
        "placement",
        "policy",
        "prices",
        "rejected",
        "retry_tokens",
        "runs",
        "searches",
        "served",
        "serving",
        "shapes",
        "stale",
        "started_over",
        "stirred",
        "streamed",
        "tenants",
        "timers",
        "tools",
        "urgent",
        "wake_at",
        "width",
        "work",
    )

    def __init__(self, config: Config | None = None) -> None:
        self.config = config = config if config is not None else Config()
        if config.policy not in POLICIES:
            known = ", ".join(sorted(POLICIES))
            raise ConfigError(f"policy: expected one of {known}; got {config.policy!r}")
        if config.placement not in PLACEMENTS:
            known = ", ".join(sorted(PLACEMENTS))
            raise ConfigError(f"placement: expected one of {known}; got {config.placement!r}")
        self.policy: Policy = POLICIES[config.policy]
        self.prices = dict(config.prices)
        """Model -> price."""
        self.placement: Placement = PLACEMENTS[config.placement]
        self.placed = Memory()
        """What the placement remembers of its choices."""
        self.now: Seconds = 0.0
        """Of the latest step."""
        self.runs: dict[RunId, Run] = {}
        """Live runs in order of arrival."""
        self.held = 0
        """Of these, how many wait for another run of their tenant to end."""
        self.arrivals = 0
        """Runs accepted so far."""
        self.shapes: dict[str, PlanShape] = {}
        """Arrays of the plans that live runs use, by digest."""
        self.estimates = Estimates()
        """What was seen of the nodes of each plan."""
        self.heads: dict[tuple[RunId, FrameId, NodeId], Head] = {}
        """Prompts whose beginning is measured or computed before their node is ready."""
        self.lengths = Lengths(config.predictor)
        """What calls are expected to write."""
        self.tenants: dict[str, Tenant] = {}
        """Whose runs are live or were lately."""
        self.measuring = 0
        """Model calls that are being measured, and therefore wait in no queue yet."""
        self.at_engines = 0
        """Model calls that are at engines."""
        self.width = 0.0
        """The most that were there at once, fading."""
        self.work: Seconds = 0.0
        """Estimated seconds of model calls that live runs still have to make."""
        self.engines: dict[EngineId, Engine] = {}
        """Every engine heard of, in order of arrival."""
        self.serving: dict[str, list[Engine]] = {}
        """Model -> engines that are up and answer to it, in order of arrival. Rebuilt when an engine changes."""
        self.models: dict[str, ReadyQueue] = {}
        """Model -> what waits for it. A queue stays when it is empty; models are few."""
        self.homes: dict[tuple[str, str], tuple[Engine, Tokens]] = {}
        """(tenant, session) -> the engine of its latest call, and how many tokens it then held; the latest last."""
        self.groups: dict[int, Group] = {}
        """Number of a common prefix -> the calls that have it; the oldest first. See `passing`."""
        self.urgent: list[Task] = []
        """Model calls that began to wait in this step and may push others out. Empty between steps."""
        self.served: dict[Run, None] = {}
        """Runs whose calls came or went, where ranks follow calls. Empty between steps."""
        self.doomed: dict[Run, Doom] = {}
        """Runs that this step ends, in order. Empty between steps."""
        self.stirred = False
        """This step may have given room. False between steps."""
        self.draining: dict[Engine, None] = {}
        """Engines that are being emptied."""
        self.parked = False
        """Calls may wait for one engine; False: none does."""
        self.calls = 0
        """Model calls dispatched so far."""
        self.hedges = 0
        """Of these, sent to a second engine."""
        self.tools = Window("tools", config.tool_window)
        self.searches = Window("searches", config.search_window)
        self.timers = Timers()
        self.wake_at: Seconds | None = None
        """What the latest WakeAt promised and no Tick has answered; None: nothing."""
        self.retry_tokens = float(config.retry_reserve)
        """Retries the scheduler may grant now; see `retry`."""
        self.ended: deque[Seconds] = deque(maxlen=32)
        """When the latest runs ended; for `admission`."""
        self.rejected = 0
        """Runs rejected since a run last ended."""
        self.stale = 0
        """Events ignored because what they speak of is over."""
        self.streamed = 0
        """Frames of maps opened before their list was whole."""
        self.started_over = 0
        """Of these, dropped again because the list became another, or because a frame of their map failed."""

        self.out: list[Command] = []
        """Commands of the step at work; empty between steps."""
        self.agenda: deque[Consequence] = deque()
        """What this step still has to follow up, in order. Empty between steps."""
        self.immediate: list[Task] = []
        """Ready tasks that need no room; dispatched at the end of this step. Empty between steps."""

    def queue_of(self, model: str) -> ReadyQueue:
        """What waits for `model`."""
        queue = self.models.get(model)
        if queue is None:
            queue = self.models[model] = ReadyQueue(f"model {model}")
        return queue

    def find(self, run: RunId, task: TaskId, attempt: int) -> Task | None:
        """The live task that an event speaks of; None (and one more in `stale`) when that is over."""
        found = self.runs.get(run)
        if found is not None:
            known = found.tasks.get(task)
            if known is not None and known.attempt == attempt:
                return known
        self.stale += 1
        return None

    def __repr__(self) -> str:
        return (
            f"SchedulerState({len(self.runs)} runs, {list(self.engines.values())!r}, {self.tools!r}, "
            f"{self.searches!r}, {len(self.timers)} timers, {self.stale} stale)"
        )
