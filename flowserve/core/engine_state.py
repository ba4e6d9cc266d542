"""What the scheduler remembers of engines and of the model calls that it gives them. Changed only inside `step`.

Rates and loads are estimates in tokens and seconds, learned from events; a wrong one costs time, never an answer.
"""

from collections import deque
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING

from flowserve.config import Price
from flowserve.core.events import Loss, Passage
from flowserve.core.queues import ReadyQueue
from flowserve.core.residency import Residency
from flowserve.core.step_time import StepTime
from flowserve.core.stopping.chains import DEFAULT_RULE
from flowserve.core.stopping.rules import ExitRule
from flowserve.ids import EngineId, NodeId, Seconds, Tokens

if TYPE_CHECKING:
    from flowserve.core.predict.base import Call, Prediction
    from flowserve.core.state import Frame, Task
    from flowserve.core.timers import Timer

LEARNING = 0.1
"""Weight of the newest observation in a running mean."""
SPAN_S: Seconds = 0.2
"""Tokens are counted for so long before they become one observation of an engine's pace."""


class Health(IntEnum):
    """Whether an engine gets calls; `engines.FOLLOWS` says what may follow what."""

    UP = 0
    SUSPECT = 1
    """It stands still, or seems to: a Probe is out. What it has stays there; nothing new goes there."""
    TRIPPED = 2
    """Too many of its latest calls failed by its fault: nothing goes there until `pause_until`, then one trial call."""
    DOWN = 3
    """It is gone, and the calls that it had with it. It may come back."""
    CLOSED = 4
    """An operator drained it."""


class Drain(IntEnum):
    """What an operator wants of an engine."""

    NO = 0
    CLOSE = 1
    """Empty it, then end it."""
    REPLACE = 2
    """Empty it, then start it anew."""


class ModelCall:
    """What is known of a task that calls a model: how large it is, and how far it has come."""

    __slots__ = (
        "about",
        "avoid",
        "began_at",
        "choices",
        "decode",
        "exited",
        "fork_at",
        "fork_confident",
        "items",
        "kv_tokens",
        "last_at",
        "limit",
        "longer_s",
        "measured",
        "moves",
        "on_loss",
        "paid_at",
        "paid_prompt",
        "passages",
        "passed_at",
        "predicted",
        "prefill",
        "prefix",
        "price",
        "pushed_out",
        "reserve",
        "resident",
        "rival",
        "rule",
        "tokens",
        "told",
        "waited",
        "written",
    )

    def __init__(self) -> None:
        self.measured = False
        """False while a Measure is not answered, or where none is asked."""
        self.tokens: Tokens = 0
        """Of the prompt."""
        self.limit: Tokens = 0
        """Most tokens of output; 0: unknown."""
        self.choices = 1
        self.about: Call | None = None
        """What predictors know of it; None before it is measured."""
        self.predicted: Prediction | None = None
        """What it is expected to write, over all choices; None: too few calls like it have been seen."""
        self.longer_s: Seconds = 0.0
        """What it is expected to take beyond what calls of its node take; counted in its run."""
        self.kv_tokens: Tokens = 0
        """KV memory that it is expected to need in all; counted in its run."""
        self.on_loss = Loss.RESTART
        self.prefix: tuple[int, ...] = ()
        self.passages: tuple[Passage, ...] = ()
        """Of its prompt, those that an engine may paste."""
        self.written: Tokens = 0
        """Output so far: of this execution, and of those before that it continues."""
        self.items = False
        """Of what it has written, items were streamed to maps."""
        self.told: tuple[str, tuple[tuple[str, float], ...]] = (DEFAULT_RULE, ())
        """Name and parameters of the rule that may end it early, where its node allows that."""
        self.rule: ExitRule | None = None
        """That rule, with what it has seen of this execution and those before that it continues; None: none, or not begun."""
        self.fork_at: Tokens | None = None
        """From how many tokens of output on a trial is asked for; None: none is."""
        self.fork_confident = True
        """That trial is to tell how sure it is."""
        self.exited = False
        """The rule has ended it."""
        self.began_at: Seconds = 0.0
        """When it was dispatched."""
        self.last_at: Seconds | None = None
        """When its latest token came; None: none has come since it was dispatched."""
        self.prefill: Tokens = 0
        """Its share of the engine's `backlog`: prompt tokens that are not computed yet, as far as known."""
        self.decode: Tokens = 0
        """Its share of the engine's `ahead`: output that is still expected."""
        self.reserve: Tokens = 0
        """Its share of the engine's `reserved`: KV that it is expected to need."""
        self.resident: Tokens = 0
        """Prompt tokens that the engine was thought to hold when it was dispatched."""
        self.price: Price | None = None
        """What its tokens cost at the engine that has it; None: that has no price."""
        self.paid_at: Seconds = 0.0
        """Until when its time at the engine is counted as spent."""
        self.paid_prompt: Tokens | None = 0
        """Prompt tokens that this execution has been charged with; None: it goes on from another one, which was."""
        self.avoid: Engine | None = None
        """The engine that lost or gave up the call last; another one is preferred."""
        self.rival: Engine | None = None
        """The second engine of a hedged call, until one of the two is chosen."""
        self.moves = 0
        """Times that the scheduler moved it by its own will."""
        self.waited = False
        """It has waited for the engine that holds its prefix, and will not again."""
        self.passed_at: Seconds | None = None
        """When another call went before it for the first time, though it was its turn; None: none has."""
        self.pushed_out = False
        """Preempt was sent: it is at the engine, but not in its batch."""


class Head:
    """The known beginning of a prompt, for which a node still waits; see `heads`."""

    __slots__ = ("added", "engine", "frame", "node")

    def __init__(self, frame: "Frame", node: NodeId) -> None:
        self.frame = frame
        self.node = node
        self.engine: Engine | None = None
        """Where it is being computed; None: it is being measured."""
        self.added: tuple[int, ...] = ()
        """Prefixes that are thought to be there for its sake."""

    def __repr__(self) -> str:
        where = f"at {self.engine.id}" if self.engine is not None else "being measured"
        return f"Head({self.frame.run.id!r}, frame {self.frame.id}, node {self.node}, {where})"


class Engine:
    """One replica that the scheduler has heard of; it stays known after it went down."""

    __slots__ = (
        "ahead",
        "arrival",
        "backlog",
        "backlog_limit",
        "can_preempt",
        "can_reprioritise",
        "can_restart",
        "down_since",
        "drain",
        "drain_until",
        "first_at",
        "head",
        "health",
        "id",
        "kv_used",
        "limit",
        "longest_pause",
        "models",
        "outcomes",
        "pace",
        "passages",
        "pasted",
        "pause_until",
        "preemptions",
        "prefill_seconds",
        "prefill_tokens",
        "probe_until",
        "progress_at",
        "queue",
        "reserved",
        "resident",
        "restarting",
        "rivals",
        "room_tokens",
        "running",
        "seats",
        "span_at",
        "span_busy",
        "span_tokens",
        "starts",
        "step_time",
        "steps",
        "throughput_calls",
        "tiers",
        "timer",
        "trips",
        "up_since",
        "waiting",
    )

    def __init__(self, id: EngineId, arrival: int, judged_by: int) -> None:
        self.id = id
        self.arrival = arrival
        """Number in order of first appearance; ends ties."""
        self.health = Health.DOWN
        self.drain = Drain.NO
        self.models: tuple[str, ...] = ()
        """Names it answers to; kept while it is down."""
        self.limit = 0
        """Choices that may be there at once; 0 while it is down."""
        self.room_tokens: Tokens = 0
        """What its KV memory holds; 0: unknown."""
        self.backlog_limit: Tokens = 0
        """Greatest `backlog` at which it gets another call; 0: no bound."""
        self.can_restart = False
        self.can_reprioritise = False
        self.can_preempt = False

        self.running: dict[Task, None] = {}
        """Calls that are there, in order of dispatch."""
        self.rivals: dict[Task, None] = {}
        """Hedged calls that are there a second time."""
        self.queue = ReadyQueue(f"engine {id}")
        """Calls that wait for just this engine."""
        self.head: Head | None = None
        """What it computes ahead while it has nothing else to do."""
        self.seats = 0
        """Choices of what is there and not pushed out."""
        self.tiers = [0, 0, 0]
        """Of these calls, how many by tier, the most urgent first."""
        self.throughput_calls = 0
        """Of these calls, those that are throughput-bound; see `priority`."""
        self.backlog: Tokens = 0
        """Prompt tokens that it still has to compute."""
        self.ahead: Tokens = 0
        """Tokens of output that it is still expected to write."""
        self.reserved: Tokens = 0
        """KV that its calls are expected to need in the end."""
        self.resident = Residency()
        """Prefixes that its cache is thought to hold."""
        self.passages = Residency()
        """Passages whose KV it is thought to have, whatever stands before them; see `passages`."""
        self.pasted = 0.0
        """Share of the tokens of such a passage that it does not compute; 0: it does not paste."""

        self.waiting = 0
        """Choices that it has not begun or has pushed out, as it said last."""
        self.kv_used = 0.0
        """As it said last."""
        self.steps = 0
        """As it said last."""
        self.preemptions = 0
        """As it said last."""
        self.pace: Seconds = 0.0
        """Seconds between two tokens of a call, a running mean over spans; 0: none seen."""
        self.span_at: Seconds = 0.0
        """When the span that is being counted began."""
        self.span_busy: Seconds = 0.0
        """Of the span: seconds between tokens, summed over choices."""
        self.span_tokens: Tokens = 0
        self.step_time = StepTime()
        """How its steps grow with its batch."""
        self.prefill_seconds: Seconds = 0.0
        """From a call's dispatch, or the first token of another call after it, to its first token; summed, older ones fading."""
        self.prefill_tokens = 0.0
        """Of these calls: prompt tokens that it computed; likewise."""
        self.first_at: Seconds = 0.0
        """When a call had its first token last."""
        self.progress_at: Seconds = 0.0
        """When it was last seen to compute, or last got work."""
        self.longest_pause: Seconds = 0.0
        """Longest time without progress while it had work, fading with each shorter one."""

        self.outcomes: deque[bool] = deque(maxlen=judged_by)
        """Of its latest calls: did it do its part?"""
        self.trips = 0
        """Times in a row that its breaker tripped."""
        self.pause_until: Seconds = 0.0
        """No new calls before this, tripped or overloaded, or no start yet; 0: no pause. Its end comes with a Tick."""
        self.probe_until: Seconds = 0.0
        """SUSPECT: when the probe has failed."""
        self.drain_until: Seconds = 0.0
        """Draining: when what it still has is moved."""
        self.up_since: Seconds = 0.0
        self.down_since: Seconds = 0.0
        self.starts = 0
        """Times in a row that it went down without having been up for long."""
        self.restarting = False
        """Restart was sent, and is not answered."""
        self.timer: Timer | None = None
        """Fires at the next time that matters to it; None: none does."""

    @property
    def prefill_s(self) -> Seconds:
        """Per prompt token; 0: not known."""
        return self.prefill_seconds / self.prefill_tokens if self.prefill_tokens else 0.0

    @property
    def up(self) -> bool:
        """It is there, whether it gets calls or not."""
        return self.health < Health.DOWN

    def __repr__(self) -> str:
        word = self.health.name.lower() + (" draining" if self.drain is not Drain.NO else "")
        return f"Engine({self.id!r}, {word}, {self.seats} of {self.limit})"


@dataclass(frozen=True, slots=True)
class Group:
    """Calls whose prompts begin alike; see `passing`."""

    engine: Engine
    """Where they go."""
    until: Seconds
    """It ends before."""
