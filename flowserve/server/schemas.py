"""What goes over the wire on the native door. Inputs are strict and closed: a misspelt field is an error.

Outputs are declared here for the OpenAPI document; `convert` builds them as plain data and a test holds the two together.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from flowserve.server.strict_json import SAFE_INTEGER

MAX_TIMEOUT_S = 86_400.0
MAX_TOKENS = 1_000_000
NAME = r"^[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}$"


def _whole(value: Any) -> Any:
    """JSON knows one kind of number: 3.0 is an integer there."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


Integer = Annotated[int, BeforeValidator(_whole)]
Seed = Annotated[Integer, Field(ge=0, le=SAFE_INTEGER)]
Stop = Annotated[str, Field(min_length=1, max_length=256)]


class In(BaseModel):
    """Base of what clients send."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class Out(BaseModel):
    """Base of what clients get."""

    model_config = ConfigDict(extra="forbid", frozen=True)


# --- runs: asked for ------------------------------------------------------------------------------------------


class SLOIn(In):
    """What the reader of the result was promised."""

    tier: Literal["interactive", "standard", "batch"] = Field(description="Runs of a higher tier go first.")


class BudgetIn(In):
    """What a run may spend on its model calls; it ends with an error when it would go beyond that."""

    tokens: Integer | None = Field(
        default=None, ge=1, le=SAFE_INTEGER, description="Prompt and output that engines compute; cached ones are free."
    )
    seconds: float | None = Field(default=None, gt=0, le=1e9, description="At engines, summed over calls.")
    money: float | None = Field(default=None, gt=0, le=1e15, description="By the server's prices.")


class OverrideIn(In):
    """Sampling of one LLM node, for this run only."""

    max_tokens: Integer | None = Field(default=None, ge=1, le=MAX_TOKENS)
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, gt=0, le=1)
    top_k: Integer | None = Field(default=None, ge=0, le=1_000_000)
    seed: Seed | None = None
    stop: list[Stop] | None = Field(default=None, max_length=16)
    model: str | None = Field(default=None, max_length=200)
    reuse: Literal["exact", "balanced", "fast"] | None = Field(
        default=None, description="Of KV of passages; never more than the workflow allows."
    )


class RunRequest(In):
    """A run of a workflow."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"input": {"question": "What is the town that Rusu governs known for?"}, "mode": "wait"}]
        }
    )

    input: dict[str, Any] = Field(default_factory=dict, description="The workflow's parameters by name.")
    mode: Literal["wait", "stream", "background"] | None = Field(
        default=None,
        description="`wait` answers with the finished run, `stream` with its events, `background` at once with 202. "
        "Left out: `stream` when `Accept` is text/event-stream, else `wait`.",
    )
    timeout: float | None = Field(
        default=None, gt=0, le=MAX_TIMEOUT_S, description="Seconds until the run must have ended."
    )
    priority: Integer = Field(default=0, ge=-1_000, le=1_000, description="Higher goes first, inside a tier.")
    slo: SLOIn | None = None
    budget: BudgetIn | None = Field(default=None, description="Where it says nothing, the workflow's own counts.")
    session_id: str | None = Field(
        default=None, max_length=256, description="Calls of one session share a growing prompt."
    )
    metadata: dict[str, Annotated[str, Field(max_length=512)]] = Field(
        default_factory=dict, max_length=16, description="Kept with the run and given back."
    )
    on_disconnect: Literal["cancel", "continue"] | None = Field(
        default=None,
        description="What happens to the run when this client leaves. Left out: `cancel` for wait and stream, "
        "`continue` for background.",
    )
    overrides: dict[str, OverrideIn] = Field(
        default_factory=dict, max_length=100, description="Sampling by LLM node name; `*` is every node."
    )
    seed: Seed | None = Field(default=None, description="Of every sampled node of the run.")
    degrade: bool = Field(
        default=True, description="Whether degradations that the workflow declares may be taken to keep the deadline."
    )


# --- runs: answered -------------------------------------------------------------------------------------------


class ReuseOut(Out):
    """Where the KV of prompts came from, in tokens."""

    exact: int = Field(description="Reused as computed behind the same text.")
    pasted: int = Field(
        description="Taken from passages computed alone: the answer is approximate where this is not 0."
    )
    recomputed: int
    policy: str = Field(description="Which chose what to recompute; several are joined by a comma.")


class UsageOut(Out):
    """Tokens of all model calls of a run."""

    tokens_in: int
    tokens_out: int
    cached_tokens: int = Field(description="Prompt tokens whose KV was reused.")
    trial_tokens: int = Field(description="Written by trials of calls that may end early; no part of `tokens_out`.")
    wasted_tokens: int = Field(description="Written behind wrongly guessed passages; no part of `tokens_out`.")
    reuse: ReuseOut | None = Field(default=None, description="Left out: no engine that it went to reuses passages.")
    computed_tokens: int | None = Field(
        description="Prompt and output that engines computed, failed and cancelled calls included. Null until it has ended."
    )
    engine_seconds: float | None = Field(description="At engines, summed over calls. Null until it has ended.")
    money: float | None = Field(description="By the server's prices; null: not ended, or a model has none.")


class DegradedOut(Out):
    """Something that a run did less of than its workflow declares, to keep its deadline."""

    node: str = Field(description="Label of the node.")
    what: Literal["samples", "passages", "rounds"]
    declared: int = Field(alias="from", description="How much the workflow asks for.")
    to: int = Field(description="How much was done at most.")
    harm: float = Field(description="What the result loses by it, above 0 and at most 1, as the author judges.")


class VotesOut(Out):
    """How samples have voted."""

    asked: int = Field(description="Samples that the workflow declares, or what a degradation left of them.")
    drawn: int = Field(description="Samples that ended well and count; others failed, were cancelled or not begun.")
    counts: list[int] = Field(description="Samples by answer, the most frequent answer first.")
    unusable: int = Field(description="Samples without an answer; with `counts` they make `drawn`.")
    certainty: float = Field(description="1 - H / log n of the answers: 0 when all differ, 1 when all agree.")
    stopped_by: str | None = Field(description="Rule that ended sampling; null: all that were asked for have ended.")


class NodeVotesOut(VotesOut):
    """A vote of a run."""

    node: str = Field(description="Label of the node.")


class ExitOut(Out):
    """A call that could end early, and what came of it."""

    node: str = Field(description="Label of the node.")
    did: Literal["stopped", "budget", "unavailable"] = Field(
        description="`stopped`: its answer is approximate; `budget`: its thoughts were cut; `unavailable`: its engine cannot do it."
    )
    why: str


class RunErrorOut(Out):
    """Why a run has no result."""

    type: str
    message: str
    node: str | None


RunStatus = Literal["queued", "running", "cancelling", "completed", "failed", "cancelled", "timed_out"]


class CallerOut(Out):
    """Where in a program that its client runs itself a model call came from; what was not said is left out."""

    program: str | None = None
    run: str | None = None
    parent: str | None = None
    node: str | None = None
    step: int | None = None
    index: int | None = None
    triggers: list[str] | None = None


class RunSummary(Out):
    """A run without what it returned."""

    object: Literal["run"]
    id: str
    workflow: str
    version: str = Field(description="Content hash of the workflow.")
    status: RunStatus
    created: float = Field(description="Seconds since 1970.")
    started: float | None
    ended: float | None
    usage: UsageOut
    session_id: str | None
    caller: CallerOut | None
    metadata: dict[str, str]
    last_seq: int = Field(description="Sequence number of its latest event.")


class RunResult(RunSummary):
    """A run and what it returned."""

    result: Any = Field(description="Null until the status is completed.")
    error: RunErrorOut | None
    degraded: list[DegradedOut]
    votes: list[NodeVotesOut] = Field(description="Of every node that has voted so far.")
    exits: list[ExitOut]


class NodeOut(Out):
    """One execution of a node. Times are seconds since the run was created; null: not yet."""

    task: int
    node: str
    label: str
    kind: str
    status: str
    attempt: int
    ready_s: float | None
    started_s: float | None
    first_token_s: float | None
    ended_s: float | None
    tokens_in: int
    tokens_out: int
    cached_tokens: int
    trial_tokens: int
    wasted_tokens: int
    reuse: ReuseOut | None = Field(default=None, description="Left out: no engine that it went to reuses passages.")
    engine: str | None
    error: str | None
    votes: VotesOut | None = Field(description="Null: not a vote, or not yet.")


class RunDetail(RunResult):
    """A run with its table of nodes."""

    nodes: list[NodeOut]


class RunPage(Out):
    """Runs, newest first."""

    object: Literal["list"]
    data: list[RunSummary]
    has_more: bool
    next: str | None = Field(description="What to give as `after` for the next page.")


class EventOut(Out):
    """One event of a run: the `data` of a server-sent event. Its `event` is `type`, its `id` is `seq`."""

    seq: int
    run_id: str
    ts: float
    type: str
    node: str | None
    task: int | None
    data: dict[str, Any]


# --- workflows ------------------------------------------------------------------------------------------------


class WorkflowSummary(Out):
    """A workflow that is served."""

    object: Literal["workflow"]
    name: str
    version: str
    description: str
    nodes: int


class WorkflowOut(WorkflowSummary):
    """A workflow with the shapes of what goes in and comes out."""

    input: dict[str, Any] = Field(description="JSON Schema.")
    output: dict[str, Any] = Field(description="JSON Schema.")
    slo: dict[str, Any]


class WorkflowList(Out):
    object: Literal["list"]
    data: list[WorkflowSummary]


class SchemaOut(Out):
    """JSON Schemas of a workflow."""

    input: dict[str, Any]
    output: dict[str, Any]


class GraphNode(Out):
    id: int
    name: str
    kind: str
    block: int
    deps: list[int]
    bodies: list[int]
    limit: int


class GraphBlock(Out):
    id: int
    name: str
    params: list[str]
    nodes: list[int]
    parent: int | None


class GraphOut(Out):
    """The compiled graph: nodes refer to nodes and blocks by number; block 0 is the workflow's own body."""

    name: str
    version: str
    nodes: list[GraphNode]
    blocks: list[GraphBlock]


class ProblemItem(Out):
    where: str
    expected: str
    came: str
    remedy: str


class CheckOut(Out):
    """Whether a spec could be served, and all that is wrong with it."""

    ok: bool
    name: str | None
    version: str | None
    problems: list[ProblemItem]
    advice: list[ProblemItem] = Field(description="What could be better.")


# --- programs of clients ----------------------------------------------------------------------------------------

Named = Annotated[str, Field(min_length=1, max_length=256)]


class EdgeIn(In):
    source: Named
    target: Named
    conditional: bool = False


class ProgramIn(In):
    """The graph of a program that its client runs itself. Nodes that an edge names must be among the nodes."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"nodes": ["plan", "search"], "edges": [{"source": "plan", "target": "search"}]}]
        }
    )

    nodes: list[Named] = Field(min_length=1, max_length=256)
    edges: list[EdgeIn] = Field(default_factory=list, max_length=4_096)


class ProgramNodeOut(Out):
    name: str
    next: list[str] = Field(description="Nodes that may come next.")
    calls: int = Field(description="Model calls of it so far.")


class ProgramOut(Out):
    name: str
    nodes: list[ProgramNodeOut]


class SessionEnd(In):
    model_config = ConfigDict(json_schema_extra={"examples": [{"session_id": "thread-7"}]})

    session_id: Named


class SessionEnded(Out):
    session_id: str


# --- indexes --------------------------------------------------------------------------------------------------


class DocumentIn(In):
    id: str = Field(min_length=1, max_length=512, description="Ingesting the same id again replaces the document.")
    text: str
    metadata: dict[str, Annotated[str, Field(max_length=2048)]] = Field(default_factory=dict, max_length=64)


class IngestRequest(In):
    """Documents to add or replace."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"documents": [{"id": "notes.md", "text": "Rusu governs Velol. Velol is known for apples."}]}]
        }
    )

    documents: list[DocumentIn] = Field(max_length=1_000, description="None: only the kind is changed.")
    kind: str | None = Field(
        default=None,
        max_length=200,
        description="What the index is from now on: `exact`, `ivf`, `hnsw`, `pq`, `bm25`, `hybrid`, with parameters as in `ivf:nprobe=32`.",
    )


class DocumentIds(In):
    """Documents by their ids."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"ids": ["notes.md"]}]})

    ids: list[Annotated[str, Field(min_length=1, max_length=512)]] = Field(min_length=1, max_length=1_000)


class DocumentOut(Out):
    id: str
    text: str = Field(description="White space between its passages comes back as spaces.")
    metadata: dict[str, str]


class DocumentsOut(Out):
    documents: list[DocumentOut] = Field(description="Those that are there, in the order of the ids.")


class DeletedOut(Out):
    deleted: int = Field(description="How many of them there were.")


class IndexOut(Out):
    name: str
    documents: int
    passages: int
    embedder: str
    generation: int = Field(description="Grows with every change.")
    kind: str = Field(description="How it is searched, with all parameters.")


class IndexList(Out):
    object: Literal["list"]
    data: list[IndexOut]


class DrainRequest(In):
    """How to empty an engine."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"replace": True}]})

    replace: bool = Field(default=False, description="Start it anew when it is empty; else it is closed.")


class EngineOut(Out):
    """An engine of the pool."""

    model_config = ConfigDict(extra="allow")

    id: str
    models: list[str] = Field(description="Names it answers to; the first is its own.")
    roles: list[str] = Field(description="Further names, given by the pool.")
    default: bool = Field(description="Gets calls that name no model.")
    up: bool
    state: Literal["starting", "up", "suspect", "tripped", "down", "closed"]
    draining: bool
    reason: str = Field(description="Why it is not up.")
    window: int = Field(description="Choices it can have in its batch.")
    running: int
    waiting: int
    kv_used: float = Field(description="Share of its KV memory in use.")


class EngineList(Out):
    object: Literal["list"]
    data: list[EngineOut]


class SearchRequest(In):
    """What to look for."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"query": "who governs Velol", "k": 3}]})

    query: str = Field(min_length=1, max_length=20_000, pattern=r"\S")
    k: Integer = Field(default=5, ge=1, le=1_000)
    where: dict[str, Annotated[str, Field(max_length=2048)]] = Field(
        default_factory=dict, max_length=16, description="Metadata that passages must have, all of it."
    )
    rerank: Integer = Field(
        default=0, ge=0, le=1_000, description="Candidates that the reranker puts in order; 0: none."
    )


class HitOut(Out):
    text: str
    id: str
    document: str
    score: float = Field(description="Higher is better.")
    metadata: dict[str, str]


class SearchOut(Out):
    hits: list[HitOut]


# --- operations -----------------------------------------------------------------------------------------------


class HealthOut(Out):
    status: Literal["ok"]


class ReadyOut(Out):
    status: Literal["ready"]
    engines: int


class VersionOut(Out):
    name: Literal["flowserve"]
    version: str


class PointerMessage(Out):
    pointer: str = Field(description="JSON pointer into the body, or `query/NAME`, `path/NAME`.")
    message: str


class Problem(BaseModel):
    """RFC 9457 problem details, with members of our own."""

    model_config = ConfigDict(extra="allow")

    type: str = Field(description="A reference into /docs.")
    title: str
    status: int
    detail: str
    code: str = Field(description="Stable; programs may switch on it.")
    request_id: str
    instance: str | None = Field(default=None, description="The run, when there is one.")
    run_id: str | None = None
    node: str | None = None
    errors: list[PointerMessage] | None = None


class OpenAIErrorBody(BaseModel):
    message: str
    type: str
    param: str | None
    code: str | None


class OpenAIError(BaseModel):
    """OpenAI's error body."""

    error: OpenAIErrorBody
