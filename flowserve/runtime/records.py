"""What the runtime tells about a run: options going in, events and snapshots coming out.

The doors convert these to their wire forms; nothing here knows HTTP.
"""

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

from flowserve.cachestore.segments import Provenance
from flowserve.core.commands import Spending, Status
from flowserve.core.quick import quick
from flowserve.graphs.caller import Caller
from flowserve.graphs.plan import Budget
from flowserve.ids import RunId, Seconds, Tokens
from flowserve.runtime.votes import Tally


@dataclass(frozen=True, slots=True)
class SubmitOptions:
    """How a run is to be treated."""

    timeout_s: Seconds | None = None
    """Deadline of the whole run; None: the runtime's default."""
    priority: int = 0
    """Higher goes first inside a tier."""
    tier: str | None = None
    """`interactive`, `standard`, `batch`; None: the workflow's."""
    tenant: str = ""
    budget: Budget | None = None
    """What it may spend; where it says nothing, the workflow's counts."""
    session: str | None = None
    caller: Caller | None = None
    """Where the call stands in a program of its client; None: not said."""
    metadata: dict[str, str] = field(default_factory=dict)
    overrides: dict[str, dict[str, Any]] = field(default_factory=dict)
    """LLM node name (`"*"`: every) -> sampling fields: max_tokens, temperature, top_p, top_k, seed, stop, model."""
    allow_degraded: bool = True
    """May the degradations that the workflow declares be taken to keep the deadline?"""
    seed: int | None = None
    """Default seed of every sampled node of the run; node and choice numbers are mixed in."""
    stream: bool = True
    """Somebody reads along. False: engines may send what they write in larger pieces."""


@quick
@dataclass(frozen=True, slots=True)
class RunEvent:
    """One thing that happened in a run, in order, from 1. Kept until the run is forgotten.

    type: run.created run.started node.ready node.started node.delta node.completed node.failed node.retrying
    node.continued node.degraded node.exit node.skipped node.cancelled node.progress run.completed run.failed run.cancelled run.timed_out.
    Every `node.*` has the node's label; `node.delta` has data {"text", "result": bool} - `result` says that the text
    belongs to what the run returns. After `node.retrying` the deltas of that node begin anew; after `node.continued`
    (data {"kept_tokens", ...}) they go on, from another engine. `node.degraded` has data {"what", "from", "to", "harm"}, `node.exit` {"did",
    "why"}; `node.completed` of a vote has data {"votes": {...}} (`votes.Tally`). A map that takes items of a list while it is
    written may drop them: their nodes are cancelled, and nodes with the same labels begin. Exactly one terminal `run.*` event comes last.
    """

    seq: int
    run: RunId
    ts: Seconds
    """Wall clock."""
    type: str
    node: str | None = None
    """Label: `answer`, `summarise[3]` (item 3 of a map), `agent.2` (an agent's third step), nested with `/`."""
    task: int | None = None
    data: dict[str, Any] = field(default_factory=dict)

    @property
    def terminal(self) -> bool:
        return self.type in TERMINAL


TERMINAL = frozenset({"run.completed", "run.failed", "run.cancelled", "run.timed_out"})


@dataclass(slots=True)
class NodeRecord:
    """One task of a run, for status tables. Times are seconds since the run was created; None: not yet."""

    task: int
    node: str
    label: str
    kind: str
    """Lower-case `graphs.plan.Kind`, or `step`, `tool` for an agent's parts."""
    status: Status
    attempt: int = 1
    ready_s: Seconds | None = None
    started_s: Seconds | None = None
    first_token_s: Seconds | None = None
    ended_s: Seconds | None = None
    tokens_in: Tokens = 0
    tokens_out: Tokens = 0
    cached_tokens: Tokens = 0
    trial_tokens: Tokens = 0
    """Written by its trials, which are no part of `tokens_out`."""
    wasted_tokens: Tokens = 0
    """Written behind wrongly guessed passages, and rolled back; no part of `tokens_out`."""
    provenance: Provenance | None = None
    """Where the KV of its prompt came from; None: its engine has no cachestore, so nothing was pasted."""
    engine: str | None = None
    error: str | None = None
    degraded: dict[str, Any] | None = None
    """{"node", "what", "from", "to", "harm"} when less of it is done than declared."""
    votes: Tally | None = None
    """How its samples have voted; None: no vote, or not yet."""
    exited: dict[str, Any] | None = None
    """{"node", "did", "why"} when it could end early and did, or when its engine cannot do that: `stopped`, `budget`,
    `unavailable`."""


@dataclass(frozen=True, slots=True)
class RunSnapshot:
    """A run as it stands."""

    id: RunId
    workflow: str
    version: str
    """`Plan.digest`."""
    status: str
    """queued running cancelling completed failed cancelled timed_out."""
    created: Seconds
    """Wall clock."""
    started: Seconds | None
    ended: Seconds | None
    nodes: tuple[NodeRecord, ...]
    tokens_in: Tokens
    tokens_out: Tokens
    cached_tokens: Tokens
    trial_tokens: Tokens = 0
    """Written by trials of calls that may end early; no part of `tokens_out`."""
    wasted_tokens: Tokens = 0
    """Written behind wrongly guessed passages; no part of `tokens_out`."""
    provenance: Provenance | None = None
    """Of the prompts of those calls whose engines told it; None: none did."""
    spent: Spending | None = None
    """What its model calls took, those that failed or were cancelled included; None until it has ended."""
    result: Any = None
    """JSON-ready; None until completed."""
    error: dict[str, Any] | None = None
    """{"type", "message", "node"} when failed."""
    degraded: tuple[dict[str, Any], ...] = ()
    """What was done less of than declared: {"node", "what", "from", "to", "harm"} each."""
    exits: tuple[dict[str, Any], ...] = ()
    """Which calls ended early, so that their answers are approximate: {"node", "did", "why"} each."""
    session: str | None = None
    caller: Caller | None = None
    metadata: dict[str, str] = field(default_factory=dict)
    last_seq: int = 0


def summed(parts: Iterable[Provenance | None]) -> Provenance | None:
    """Of several calls together, with the names of all policies; those of which nothing is known are left out."""
    told = [part for part in parts if part is not None]
    if not told:
        return None
    return Provenance(
        sum(part.exact for part in told),
        sum(part.pasted for part in told),
        sum(part.recomputed for part in told),
        ", ".join(sorted({part.policy for part in told} - {""})),
    )


def reuse_data(provenance: Provenance | None) -> dict[str, Any]:
    """`{"reuse": {...}}` for usage, where anything is known of it."""
    return {} if provenance is None else {"reuse": asdict(provenance)}


@dataclass(frozen=True, slots=True)
class Choice:
    """One of the choices of a raw generation."""

    text: str
    finish: str
    """`stop`, `length`, `tool_calls`."""
    tool_calls: tuple[Any, ...] = ()
    """`graphs.types.ToolCall`s."""
    logprobs: tuple[Any, ...] = ()
    """`engines.base.Logprob`s."""


@dataclass(frozen=True, slots=True)
class Generation:
    """Result of a raw model call (`Runtime.generate`), for the OpenAI door."""

    model: str
    choices: tuple[Choice, ...]
    tokens_in: Tokens
    tokens_out: Tokens
    cached_tokens: Tokens = 0
