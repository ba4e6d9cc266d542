"""What the nodes of a plan do when they are executed: how long prompts and answers are, how wide maps, which arms, how many turns.

Nothing here has a state but the length of talks: a draw depends on the run, the place in its tree of frames, and the node.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Protocol

from flowserve.core.commands import Role
from flowserve.core.events import Loss
from flowserve.core.stopping.chains import DEFAULT_RULE
from flowserve.core.stopping.signals import Label, Trial
from flowserve.errors import ConfigError
from flowserve.graphs.plan import Kind, Node, Plan
from flowserve.ids import Seconds, Tokens
from flowserve.sim.chance import below, mix, name_key, uniform
from flowserve.sim.dist import Dist, parse

CHUNK: Tokens = 64
"""Tokens of a chunk of the prefix cache, as `PoolConfig.prefix_tokens` has it by default."""
TRIAL_PROMPT: Tokens = 24
"""That make a fork answer, where nothing was recorded."""
TRIAL_OUTPUT: Tokens = 12
"""Of its answer."""


@dataclass(frozen=True, slots=True)
class Asked:
    """A call that goes on is forked and told to answer now, and what the fork says."""

    prompt: Tokens
    """That tells it to."""
    trial: Trial


@dataclass(frozen=True, slots=True)
class Size:
    """A model call."""

    prompt: Tokens
    output: Tokens
    limit: Tokens
    chain: tuple[int, ...]
    """Chunk numbers of prompt and output."""
    on_loss: Loss = Loss.CONTINUE
    rule: str = DEFAULT_RULE
    """LLM that may end early: by which rule of `core.stopping.chains`, and its parameters."""
    rule_args: tuple[tuple[str, float], ...] = ()


class Program(Protocol):
    """Answers for one run. `key` is the run's and the frame's; equal keys give equal answers."""

    def size(self, node: Node, key: int, role: Role, index: int, talk: int) -> Size:
        """Of a call; `index` is an agent's step, `talk` the key of the run's session, 0 without one."""
        ...

    def ended(self, node: Node, talk: int, size: Size) -> None:
        """A call was answered."""

    def trial(self, node: Node, key: int, position: Tokens) -> Asked | None:
        """The first that can be made of a call from this much output on; None: none can."""
        ...

    def exited(self, node: Node, key: int, label: Label) -> None:
        """A call ended early, with an answer of this class."""

    def choice(self, node: Node, key: int, index: int) -> int:
        """Items, arm, or whether a loop stops before iteration `index`."""
        ...

    def tools(self, node: Node, key: int, index: int) -> int:
        """Tool calls that step `index` of an agent asks for."""
        ...

    def calls(self, node: Node, key: int) -> int:
        """Calls that a dynamic function makes, one after the other."""
        ...

    def callee(self, node: Node, key: int, index: int) -> int:
        """Which of its bodies call `index` of a dynamic function is of."""
        ...

    def label(self, node: Node, key: int, index: int) -> int:
        """Answer class of a sample."""
        ...

    def seconds(self, node: Node, key: int, index: int) -> Seconds | None:
        """Of a tool call or search; None: as services say."""
        ...


@dataclass(frozen=True, slots=True)
class NodeModel:
    """How one node behaves. What a kind does not use is ignored."""

    shared: Tokens = 64
    """LLM, AGENT: tokens that begin the prompt of every call of this node: instructions."""
    prompt: Dist = field(default_factory=lambda: Dist(256.0, 0.6))
    """LLM, AGENT: further tokens of a prompt."""
    output: Dist = field(default_factory=lambda: Dist(96.0, 0.6))
    """LLM, AGENT: tokens written, per step; at most the node's `max_tokens`."""
    on_loss: Loss = Loss.CONTINUE
    """LLM, AGENT: what becomes of what was written when an engine is lost."""
    history: bool = False
    """LLM: the prompt goes on with what was said in the run's session at this node."""
    max_history: Tokens = 8192
    """Longer talks begin anew."""
    width: Dist = field(default_factory=lambda: Dist(6.0, 0.5, least=1.0))
    """MAP: items; at most the node's limit."""
    arms: tuple[float, ...] = ()
    """SWITCH: weights of the arms; none: all alike."""
    stop: float = 0.4
    """LOOP: share of turns after which it is content."""
    tools: Dist = field(default_factory=lambda: Dist(values=(0.0, 1.0, 1.0, 2.0)))
    """AGENT: tool calls that a step asks for; 0 ends it."""
    result: Dist = field(default_factory=lambda: Dist(120.0, 0.8))
    """AGENT: tokens of a tool's result."""
    calls: Dist = field(default_factory=lambda: Dist(values=(0.0, 1.0, 2.0, 3.0)))
    """DYNAMIC: calls."""
    sure: float = 0.0
    """LLM that may end early: share of its trials that are sure of their answer."""
    agree: float = 0.7
    """SAMPLE: share of samples that give the usual answer."""
    valid: float = 0.9
    """RACE: share of arms whose result counts."""
    seconds: Dist | None = None
    """TOOL, SEARCH, and an AGENT's tools: of one execution. None: as services say."""


PROMPT, OUTPUT, WIDTH, ARM, STOP, TOOLS, RESULT, CALLS, CALLEE, LABEL, SECONDS, TRIAL = range(12)
"""What a draw is for."""
DEFAULT = NodeModel()


@dataclass(slots=True)
class Modelled:
    """A plan whose nodes are drawn from models."""

    plan: Plan
    models: Mapping[str, NodeModel] = field(default_factory=dict)
    """By name of node; others are as `DEFAULT`."""
    seed: int = 0
    talks: dict[tuple[int, int], Tokens] = field(default_factory=dict)
    """(session, node) -> tokens said so far."""
    by_node: tuple[NodeModel, ...] = ()
    shared_keys: tuple[int, ...] = ()
    limits: tuple[Tokens, ...] = ()

    def __post_init__(self) -> None:
        names = [node.name for node in self.plan.nodes]
        if unknown := [name for name in self.models if name not in names]:
            raise ConfigError(
                f"workflow '{self.plan.name}' has no node {', '.join(unknown)}; its nodes are {', '.join(names)}"
            )
        self.by_node = tuple(self.models.get(name, DEFAULT) for name in names)
        self.shared_keys = tuple(mix(self.seed, name_key(self.plan.name), name_key(name)) for name in names)
        self.limits = tuple(_limit(self.plan, node) for node in self.plan.nodes)

    def size(self, node: Node, key: int, role: Role, index: int, talk: int) -> Size:
        model = self.by_node[node.id]
        own = mix(key, node.id)
        prompt = model.shared + model.prompt.count(mix(own, PROMPT))
        for step in range(index if role is Role.STEP else 0):
            prompt += self._output(node, model, mix(own, OUTPUT, step)) + model.result.count(mix(own, RESULT, step))
        output = self._output(node, model, mix(own, OUTPUT, index))
        if model.history and talk:
            said = self.talks.get((talk, node.id), 0)
            prompt += said if said <= model.max_history else 0
            own = mix(talk, node.id)
        whole = model.shared // CHUNK
        chunks = (prompt + output) // CHUNK
        shared = self.shared_keys[node.id]
        chain = (*range(shared, shared + min(whole, chunks)), *range(own + whole, own + chunks))
        return Size(prompt, output, self.limits[node.id], chain, model.on_loss)

    def _output(self, node: Node, model: NodeModel, key: int) -> Tokens:
        return max(1, min(self.limits[node.id], model.output.count(key)))

    def ended(self, node: Node, talk: int, size: Size) -> None:
        model = self.by_node[node.id]
        if model.history and talk:
            self.talks[talk, node.id] = size.prompt + size.output - model.shared

    def trial(self, node: Node, key: int, position: Tokens) -> Asked | None:
        sure = uniform(mix(key, node.id, TRIAL, position)) < self.by_node[node.id].sure
        return Asked(TRIAL_PROMPT, Trial(position, 0, 1.0 if sure else 0.5, TRIAL_OUTPUT))

    def exited(self, node: Node, key: int, label: Label) -> None:
        pass

    def choice(self, node: Node, key: int, index: int) -> int:
        model, own = self.by_node[node.id], mix(key, node.id)
        match node.kind:
            case Kind.MAP:
                return min(node.limit, model.width.count(mix(own, WIDTH)))
            case Kind.SWITCH:
                return _weighted(model.arms or (1.0,) * len(node.bodies), uniform(mix(own, ARM)), len(node.bodies))
            case Kind.LOOP:
                return int(index > 0 and uniform(mix(own, STOP, index)) < model.stop)
            case Kind.RACE:
                return len(node.bodies)
            case _:
                return node.limit

    def tools(self, node: Node, key: int, index: int) -> int:
        return self.by_node[node.id].tools.count(mix(key, node.id, TOOLS, index))

    def calls(self, node: Node, key: int) -> int:
        return min(node.limit, self.by_node[node.id].calls.count(mix(key, node.id, CALLS)))

    def callee(self, node: Node, key: int, index: int) -> int:
        return below(mix(key, node.id, CALLEE, index), len(node.bodies))

    def label(self, node: Node, key: int, index: int) -> int:
        own = mix(key, node.id, LABEL, index)
        if node.kind is Kind.RACE:
            return 0 if uniform(own) < self.by_node[node.id].valid else -1
        return 0 if uniform(own) < self.by_node[node.id].agree else 1 + own % 3

    def seconds(self, node: Node, key: int, index: int) -> Seconds | None:
        dist = self.by_node[node.id].seconds
        return None if dist is None else dist.draw(mix(key, node.id, SECONDS, index))


@dataclass(frozen=True, slots=True)
class Recorded:
    """A run of one model call whose size was observed."""

    call: Size

    def size(self, node: Node, key: int, role: Role, index: int, talk: int) -> Size:
        return self.call

    def ended(self, node: Node, talk: int, size: Size) -> None:
        pass

    def trial(self, node: Node, key: int, position: Tokens) -> Asked | None:
        return None

    def exited(self, node: Node, key: int, label: Label) -> None:
        pass

    def choice(self, node: Node, key: int, index: int) -> int:
        return 1

    def tools(self, node: Node, key: int, index: int) -> int:
        return 0

    def calls(self, node: Node, key: int) -> int:
        return 0

    def callee(self, node: Node, key: int, index: int) -> int:
        return 0

    def label(self, node: Node, key: int, index: int) -> int:
        return 0

    def seconds(self, node: Node, key: int, index: int) -> Seconds | None:
        return None


def _limit(plan: Plan, node: Node) -> Tokens:
    if node.kind is Kind.LLM:
        return plan.llms[node.target].max_tokens
    return plan.agents[node.target].llm.max_tokens if node.kind is Kind.AGENT else 0


def _weighted(weights: tuple[float, ...], at: float, most: int) -> int:
    """Which of the weights lies at this share of their sum."""
    rest = at * sum(weights[:most])
    for place, weight in enumerate(weights[:most]):
        rest -= weight
        if rest < 0:
            return place
    return most - 1


_DISTS = ("prompt", "output", "width", "tools", "result", "calls", "seconds")


def parse_model(value: Mapping[str, Any], where: str) -> NodeModel:
    """From a `nodes.NAME` table of a workload file."""
    names = [item.name for item in fields(NodeModel)]
    if unknown := [name for name in value if name not in names]:
        raise ConfigError(f"{where}: expected some of {', '.join(names)}; got {', '.join(unknown)}")
    read: dict[str, Any] = {
        name: parse(item, f"{where}.{name}") if name in _DISTS else item for name, item in value.items()
    }
    if "on_loss" in read:
        read["on_loss"] = Loss(read["on_loss"])
    if "arms" in read:
        read["arms"] = tuple(map(float, read["arms"]))
    return NodeModel(**read)
