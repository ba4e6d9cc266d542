"""The compiled form of a workflow: integers and tuples, immutable, without code.

A `Plan` is a table of nodes and a table of blocks. A block is a dataflow graph with parameters and
one result; block 0 is the workflow's own body, the others are bodies of maps, samples, branches,
loops and the callables of dynamic nodes. A node that has bodies is *evaluated* first (how wide?
which arm? once more?) and then *expanded*: each instance of a body is a *frame*.

The scheduler reads only kinds, dependencies, bodies, limits and times. Values never enter it: the
runtime keeps them and evaluates `Source` expressions. Templates, schemas and tool names stand in
side tables that only the runtime opens.

Read next: graphs/compile.py (how a Plan is made), flowserve/core/step.py (what is done with it).
"""

import math
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

from flowserve.ids import BlockId, NodeId, Seconds


class Kind(IntEnum):
    """What a node does when it is dispatched."""

    LLM = 0
    """One generation by an engine. `target` indexes `Plan.llms`."""
    TOOL = 1
    """One call of a registered function. `target` indexes `Plan.tools`."""
    SEARCH = 2
    """One search of a named index. `target` indexes `Plan.searches`."""
    COMPUTE = 3
    """A pure expression over values that exist (`args[0]`); no I/O, done by the runtime at once."""
    MAP = 4
    """One frame of `bodies[0]` per item; evaluates to the number of items. Result: list in item order."""
    SAMPLE = 5
    """`limit` frames of `bodies[0]` over the same inputs, then a vote. `target` indexes `Plan.samples`."""
    SWITCH = 6
    """Exactly one frame, of `bodies[choice]`; `choice` is what the node evaluates to."""
    LOOP = 7
    """Frames of `bodies[0]` one after the other, until it evaluates to 1 or `limit` frames have run."""
    AGENT = 8
    """Model calls and tool calls in turn, at most `limit` model calls. `target` indexes `Plan.agents`."""
    DYNAMIC = 9
    """An async function that calls nodes while it runs; call `i` opens a frame of `bodies[callee]`;
    at most `limit` calls. `target` indexes `Plan.dynamics`."""
    RACE = 10
    """A frame of each of `bodies` at once; the first `limit` that end well count, and the others are cancelled. Result: theirs,
    in the order of the bodies; of `limit` 1 the one itself."""


# --- values -----------------------------------------------------------------------------------------
# A Source says where a value comes from. It is evaluated in a frame: Param reads the frame's own
# parameters (or those of the enclosing frame whose block is `block`), Output the result of a node of
# that frame's block or of an enclosing one.


@dataclass(frozen=True, slots=True)
class Const:
    """`Plan.consts[index]`: a JSON-like value that was written in the program."""

    index: int


@dataclass(frozen=True, slots=True)
class Param:
    """Parameter number `index` of the (own or enclosing) frame of `block`."""

    block: BlockId
    index: int


@dataclass(frozen=True, slots=True)
class Output:
    """The result of `node`, which stands in this frame's block or in an enclosing one."""

    node: NodeId


@dataclass(frozen=True, slots=True)
class Get:
    """Field or item of another value: attribute of a model or dataclass, key of a dict, index of a list."""

    of: "Source"
    key: str | int


@dataclass(frozen=True, slots=True)
class Op:
    """A total function of values: `eq ne lt le gt ge and or not in len list tuple dict`.

    `list` and `tuple` collect their arguments; `dict` takes key and value in turn; `in` is (item, container).
    """

    name: str
    args: tuple["Source", ...]


Source = Const | Param | Output | Get | Op


@dataclass(frozen=True, slots=True)
class Arg:
    """One argument of a node."""

    name: str
    source: Source


# --- what the scheduler reads -------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Retry:
    """How often and when a failed node is tried again. Full jitter is applied by the scheduler."""

    attempts: int = 1
    """Executions in all; 1 means no retry."""
    backoff_s: Seconds = 0.5
    """Before the second execution; doubles each time."""
    max_backoff_s: Seconds = 30.0
    on: tuple[str, ...] = ()
    """Failure codes (`core.events.Code` values) to retry; empty means every retryable one."""


@dataclass(frozen=True, slots=True)
class Degradation:
    """How much less of a node its author allows when a run would be late."""

    least: int
    """At least so many of its `limit`: samples, passages or rounds."""
    harm: float
    """What the result loses by it, above 0 and at most 1, as the author judges; of several the least harmful goes first."""


@dataclass(frozen=True, slots=True)
class Node:
    """One node of the graph. Everything the scheduler needs is a number or a tuple of numbers."""

    id: NodeId
    name: str
    """Unique in the plan: `answer`, `answer_2`, `outer/answer` inside a nested workflow."""
    kind: Kind
    block: BlockId
    args: tuple[Arg, ...]
    """What the runtime evaluates when the node is dispatched. By kind:
    LLM, TOOL, SEARCH, AGENT, DYNAMIC: the parameters by name. COMPUTE: one, `value`.
    MAP: the sequences that are zipped, in the order of the body's leading parameters.
    SAMPLE, RACE: none (the bodies capture their inputs). SWITCH: `value`, a bool (arm 0 when true, else 1), or the matched
    value and `cases`, a constant list: the arm of the first equal case, else the arm after them (evaluate.choose).
    LOOP: one, `init`."""
    deps: tuple[NodeId, ...]
    """Nodes of the same block that must have finished first, ascending: those `args` read, those the bodies
    capture from this block, and declared orders. A node with none is ready when its frame opens."""
    target: int = -1
    bodies: tuple[BlockId, ...] = ()
    limit: int = 1
    """Greatest number of frames, steps or calls; see `Kind`. MAP: `max_width`. SEARCH with a `degrade`: its `k`."""
    concurrency: int = 0
    """Frames open at once; 0 is no bound of its own."""
    retry: Retry = Retry()
    timeout_s: Seconds | None = None
    """Of one execution; None leaves only the run's deadline."""
    cache: bool = False
    """Equal inputs may be answered from an earlier result."""
    degrade: Degradation | None = None
    """SAMPLE, SEARCH, LOOP: what may be given up of it; None: nothing."""
    streams: NodeId | None = None
    """MAP: the LLM node that writes its list, where items are taken while it still writes. One of `deps`; such a map has no
    retry and no time limit of its own. None: it begins when the list is whole. Set by passes."""
    cost_s: Seconds = 0.0
    """Prior estimate of one execution, expansion included; see analysis.tails."""


@dataclass(frozen=True, slots=True)
class Block:
    """A dataflow graph with parameters and one result."""

    id: BlockId
    name: str
    params: tuple[str, ...]
    """MAP body: one per zipped sequence. LOOP body: the state. A dynamic's callable: its parameters. Else none,
    but block 0: the workflow's parameters."""
    nodes: tuple[NodeId, ...]
    """In topological order."""
    result: Source
    parent: NodeId | None
    """The node that expands into this block; None for block 0."""
    until: Source | None = None
    """LOOP bodies: stop condition over the block's parameter (the state before an iteration). RACE bodies: whether the result
    counts, over what `result` reads. Else None."""
    dependents: tuple[tuple[NodeId, ...], ...] = ()
    """For each of `nodes`, which nodes of this block wait for it."""


# --- side tables that only the runtime opens ----------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Span:
    """A piece of a compiled template.

    kind `const`: `text` is literal. kind `var`: `text` is Jinja source over the node's parameters, rendered whole.
    kind `each`: `text` is the Jinja source of one iteration of a top-level loop over the parameter expression
    `over`, with loop variable `item`; gives one segment per element.
    """

    kind: str
    text: str
    over: str = ""
    item: str = ""


@dataclass(frozen=True, slots=True)
class Template:
    """A prompt: spans of the user message, of the system message, and the name of a history parameter."""

    user: tuple[Span, ...]
    system: tuple[Span, ...] = ()
    history: str | None = None
    """Name of a parameter of type list[Message] that goes between system and user."""
    source: str = ""
    """As the author wrote it, for people."""
    system_source: str = ""


@dataclass(frozen=True, slots=True)
class ToolSpec:
    """A registered function: by name only, its code never travels."""

    name: str
    description: str
    params: dict[str, Any]
    """JSON Schema of the arguments (an object)."""
    returns: dict[str, Any]
    """JSON Schema of the result."""
    effects: bool = True
    """False: calling it twice or in vain does no harm."""


TRIAL = "\n**Final Answer**\n\\boxed"
"""What makes most models answer with a boxed text (DEER, arXiv 2504.15895)."""


@dataclass(frozen=True, slots=True)
class ExitSpec:
    """That a model call may end before its chain of thought does: forks of it are told to answer at once, and an answer that is
    sure enough ends it. Approximate: the whole chain might have come to another answer."""

    answer: str
    """How an answer is read and written; one of `exits.ANSWERS`."""
    rule: str = "default"
    """`default`: the conservative rule. `certified`: what a certificate for the model, this prompt and `task` allows; without
    one the conservative rule."""
    deliver: str = "answer_only"
    """What follows the chain when it is stopped: `answer_only`, the answer of the trial in its form; `readout`, what the model
    writes when it is told to answer there."""
    trial: str = TRIAL
    """What makes a fork answer. It follows the chain as it stands, thoughts open."""
    at: str = "\n\n"
    """Forks are made behind this text only: by default the ends of paragraphs."""
    think: tuple[str, str] | None = None
    """Marks around the thoughts of a reasoning model; it is left alone behind the second. None: the whole text is one chain."""
    budget: int | None = None
    """Most tokens of thought; then the model is told to answer. None: no bound."""
    mean: str = "arithmetic"
    """Of the probabilities of an answer's tokens, which is the confidence: `arithmetic` or `geometric`."""
    skip: int = 1
    """Tokens of a trial that do not count for the confidence: those that only open the answer."""
    must_close: bool = False
    """Only a trial that goes on to end its thoughts by itself counts, as some models need (DEER asks it of Qwen3)."""
    task: str = ""
    """Class of tasks, for the certificate."""


@dataclass(frozen=True, slots=True)
class LLMSpec:
    """What one LLM node asks of an engine."""

    name: str
    template: Template
    params: dict[str, Any]
    """JSON Schema of the parameters (an object)."""
    output: dict[str, Any] | None
    """JSON Schema of the result; None means plain text."""
    model: str | None = None
    """Model name or role (`small`, `large`); None is the pool's default."""
    max_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    quality: str = "exact"
    """How much approximation the author allows: `exact`, `balanced`, `fast`."""
    reuse: str | None = None
    """The same for KV of passages that is pasted where they stand in the prompt; None: as `quality`."""
    stream: bool = True
    regex: str | None = None
    """What the whole text must match; None: anything."""
    grammar: str | None = None
    """A grammar in Lark's syntax that the whole text must follow; None: none."""
    thinking_budget: int | None = None
    """Most tokens between a reasoning model's thinking marks; None: no bound."""
    on_loss: str | None = None
    """What becomes of a call that has written something when its engine is lost: `restart`, `continue`, `fail`. None:
    `continue` where that gives what an undisturbed call may give, else `restart`."""
    any_order: str | None = None
    """Name of a list parameter whose items may stand in the prompt in any order; None: each list in its own order."""
    exit: ExitSpec | None = None
    """May the call end early? None: it writes to its end."""
    retrieve_every: int | None = None
    """A passage is looked up each so many tokens of the answer and put in front of the user's text, in place of the one before.
    None: none is."""
    retrieve_from: str | None = None
    """The index; None with `retrieve_every`."""
    retrieve_mode: str | None = None
    """One of `retrieving.MODES`, all of which write the same; None: `speculative`."""


SAMPLING = (
    "model", "max_tokens", "temperature", "top_p", "top_k", "seed", "stop", "quality", "reuse", "stream", "regex", "grammar",
    "thinking_budget", "on_loss", "any_order", "exit", "retrieve_every", "retrieve_from", "retrieve_mode",
)  # fmt: skip
"""Fields of LLMSpec that an author sets by keyword."""


@dataclass(frozen=True, slots=True)
class SearchSpec:
    """A search of a named index; arguments `query: str` and `k: int` come with the node."""

    index: str
    where: tuple[tuple[str, str], ...] = ()
    """Metadata that a passage must have, all of it, ordered by name."""
    rerank: int = 0
    """So many candidates are put in order by the reranker; 0: they stay as the index ranks them."""


@dataclass(frozen=True, slots=True)
class SampleSpec:
    """How samples are merged and when enough is enough."""

    vote: str | None
    """Field to compare, `""` for the whole value, None for the list of all samples."""
    rule: str | None = None
    """Stopping rule by name, e.g. `certaindex`; None runs all samples."""
    rule_args: tuple[tuple[str, float], ...] = ()
    wave: int | None = None
    """With a rule: at least so many samples are under way; 0: all of them. None: those without which the rule cannot stop, and
    more where there are seats at engines that nobody waits for."""


@dataclass(frozen=True, slots=True)
class AgentSpec:
    """A bounded loop of model calls and tool calls."""

    name: str
    llm: LLMSpec
    """The model call; its template renders instructions and task, the conversation follows."""
    tools: tuple[int, ...]
    """Indices into `Plan.tools`."""
    max_parallel_tools: int = 8


@dataclass(frozen=True, slots=True)
class DynamicSpec:
    """A registered async function: by name only. `callees[i]` is the name of `bodies[i]`."""

    name: str
    params: dict[str, Any]
    returns: dict[str, Any] | None
    callees: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class SLO:
    """What the author promises the reader of the result. None means no promise."""

    ttft: Seconds | None = None
    """Seconds to the first token of the result."""
    e2e: Seconds | None = None
    """Seconds to the whole result."""
    tpot: Seconds | None = None
    """Seconds per output token after the first."""
    tier: str = "standard"
    """`interactive`, `standard` or `batch`."""
    binding: bool = False
    """A run that is expected to take far longer than `e2e` is refused at once, as one that cannot meet its deadline is."""


@dataclass(frozen=True, slots=True)
class Budget:
    """What a run may spend on its model calls. None means no bound."""

    tokens: int | None = None
    """Computed by engines: prompt and output, without prompt tokens that an engine had in its cache."""
    seconds: Seconds | None = None
    """Of calls at engines, summed: two calls side by side spend two seconds a second."""
    money: float | None = None
    """By the prices of the runtime."""

    def problems(self) -> list[tuple[str, str]]:
        """What is wrong with it: (what was expected, what came)."""
        found = []
        for name, value in (("tokens", self.tokens), ("seconds", self.seconds), ("money", self.money)):
            whole = name == "tokens"
            number = isinstance(value, int if whole else int | float) and not isinstance(value, bool)
            if value is not None and not (number and 0 < value < math.inf):
                found.append((f"{name}= a {'whole ' if whole else ''}number above 0", repr(value)))
        return found

    def over(self, other: "Budget") -> "Budget":
        """This budget where it says something, else `other`."""
        return Budget(
            self.tokens if self.tokens is not None else other.tokens,
            self.seconds if self.seconds is not None else other.seconds,
            self.money if self.money is not None else other.money,
        )


@dataclass(frozen=True, slots=True)
class Plan:
    """A workflow ready to run. Equal plans have equal `digest`."""

    name: str
    digest: str
    """sha256 (hex) of the canonical spec; the workflow's version."""
    nodes: tuple[Node, ...]
    blocks: tuple[Block, ...]
    input: dict[str, Any]
    """JSON Schema of the workflow's parameters (an object)."""
    output: dict[str, Any]
    """JSON Schema of its result."""
    slo: SLO = SLO()
    budget: Budget = Budget()
    """What a run may spend that names no budget of its own."""
    description: str = ""
    consts: tuple[Any, ...] = ()
    llms: tuple[LLMSpec, ...] = ()
    tools: tuple[ToolSpec, ...] = ()
    searches: tuple[SearchSpec, ...] = ()
    samples: tuple[SampleSpec, ...] = ()
    agents: tuple[AgentSpec, ...] = ()
    dynamics: tuple[DynamicSpec, ...] = ()
    tails: tuple[Seconds, ...] = field(default=())
    """For each node, estimated seconds from its start to the end of the run (its own cost included):
    the remaining critical path. Same order as `nodes`."""
    by_tail: tuple[NodeId, ...] = field(default=())
    """Nodes of block 0 in descending order of tail, ties by id."""

    def __repr__(self) -> str:
        return f"Plan({self.name!r}, {self.digest[:12]}, {len(self.nodes)} nodes, {len(self.blocks)} blocks)"
