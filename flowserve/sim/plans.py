"""Plans without a program: the built-in shapes of workload files, and random plans for the soak.

A `PlanBuilder` collects nodes and blocks and numbers them; costs, tails and digest are the compiler's own.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from random import Random
from typing import Any

from flowserve.graphs import analysis
from flowserve.graphs.encode import digest
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
from flowserve.ids import BlockId, NodeId, Tokens


def _llm_spec(name: str, model: str | None, max_tokens: Tokens, exit: ExitSpec | None = None) -> LLMSpec:
    return LLMSpec(name, Template(()), {}, None, model=model, max_tokens=max_tokens, exit=exit)


@dataclass
class PlanBuilder:
    """Each method adds a node and returns its id; `deps` are ids of nodes of the same block."""

    name: str
    nodes: list[dict[str, Any]] = field(default_factory=list)
    parents: list[NodeId | None] = field(default_factory=lambda: [None])
    llms: list[LLMSpec] = field(default_factory=list)
    samples: list[SampleSpec] = field(default_factory=list)
    agents: list[AgentSpec] = field(default_factory=list)
    dynamics: list[DynamicSpec] = field(default_factory=list)

    def block(self) -> int:
        """A new body; its parent is the node that is given it."""
        self.parents.append(None)
        return len(self.parents) - 1

    def add(
        self, kind: Kind, deps: Sequence[int], name: str = "", block: int = 0, bodies: Sequence[int] = (), **fields: Any
    ) -> int:
        id = NodeId(len(self.nodes))
        for body in bodies:
            self.parents[body] = id
        self.nodes.append(
            {
                "id": id,
                "name": name or f"{kind.name.lower()}_{id}",
                "kind": kind,
                "block": BlockId(block),
                "args": (),
                "deps": tuple(sorted(NodeId(dep) for dep in deps)),
                "bodies": tuple(BlockId(body) for body in bodies),
                **fields,
            }
        )
        return id

    def llm(
        self,
        *deps: int,
        name: str = "",
        model: str | None = None,
        max_tokens: Tokens = 256,
        exit: ExitSpec | None = None,
        **fields: Any,
    ) -> int:
        self.llms.append(_llm_spec(name, model, max_tokens, exit))
        return self.add(Kind.LLM, deps, name, target=len(self.llms) - 1, **fields)

    def tool(self, *deps: int, name: str = "", **fields: Any) -> int:
        return self.add(Kind.TOOL, deps, name, target=0, **fields)

    def search(self, *deps: int, name: str = "", **fields: Any) -> int:
        return self.add(Kind.SEARCH, deps, name, target=0, **fields)

    def compute(self, *deps: int, name: str = "", **fields: Any) -> int:
        return self.add(Kind.COMPUTE, deps, name, **fields)

    def map(self, body: int, *deps: int, name: str = "", limit: int = 16, **fields: Any) -> int:
        return self.add(Kind.MAP, deps, name, bodies=(body,), limit=limit, **fields)

    def sample(
        self,
        body: int,
        *deps: int,
        name: str = "",
        limit: int = 5,
        rule: str | None = None,
        args: Sequence[tuple[str, float]] = (),
        wave: int | None = None,
        **fields: Any,
    ) -> int:
        self.samples.append(SampleSpec("", rule, tuple(args), wave))
        return self.add(Kind.SAMPLE, deps, name, bodies=(body,), limit=limit, target=len(self.samples) - 1, **fields)

    def switch(self, bodies: Sequence[int], *deps: int, name: str = "", **fields: Any) -> int:
        return self.add(Kind.SWITCH, deps, name, bodies=bodies, **fields)

    def race(self, bodies: Sequence[int], *deps: int, name: str = "", limit: int = 1, **fields: Any) -> int:
        return self.add(Kind.RACE, deps, name, bodies=bodies, limit=limit, **fields)

    def loop(self, body: int, *deps: int, name: str = "", limit: int = 3, **fields: Any) -> int:
        return self.add(Kind.LOOP, deps, name, bodies=(body,), limit=limit, **fields)

    def agent(
        self,
        *deps: int,
        name: str = "",
        limit: int = 6,
        parallel: int = 4,
        model: str | None = None,
        max_tokens: Tokens = 256,
        **fields: Any,
    ) -> int:
        self.agents.append(AgentSpec(name or "agent", _llm_spec(name, model, max_tokens), (0,), parallel))
        return self.add(Kind.AGENT, deps, name, limit=limit, target=len(self.agents) - 1, **fields)

    def dynamic(self, bodies: Sequence[int], *deps: int, name: str = "", limit: int = 3, **fields: Any) -> int:
        self.dynamics.append(DynamicSpec(name or "dynamic", {}, None, tuple(f"b{body}" for body in bodies)))
        return self.add(Kind.DYNAMIC, deps, name, bodies=bodies, limit=limit, target=len(self.dynamics) - 1, **fields)

    def build(self) -> Plan:
        bare = tuple(Node(**fields) for fields in self.nodes)
        blocks = tuple(self._block(bare, number) for number in range(len(self.parents)))
        cost, local = analysis.prior_costs(bare, blocks, self.llms, self.agents)
        nodes = tuple(replace(node, cost_s=cost[node.id]) for node in bare)
        tails = analysis.tails(nodes, blocks, cost, local)
        plan = Plan(
            name=self.name,
            digest="",
            nodes=nodes,
            blocks=blocks,
            input={},
            output={},
            consts=(None,),
            llms=tuple(self.llms),
            tools=(ToolSpec("tool", "", {}, {}),),
            searches=(SearchSpec("index"),),
            samples=tuple(self.samples),
            agents=tuple(self.agents),
            dynamics=tuple(self.dynamics),
            tails=tails,
            by_tail=analysis.by_tail(blocks[0], tails),
        )
        return replace(plan, digest=digest(plan))

    def _block(self, nodes: Sequence[Node], number: int) -> Block:
        members = tuple(node.id for node in nodes if node.block == number)
        waiting = tuple(tuple(later for later in members if id in nodes[later].deps) for id in members)
        parent = self.parents[number]
        until = Const(0) if parent is not None and nodes[parent].kind is Kind.LOOP else None
        return Block(BlockId(number), f"b{number}", (), members, Const(0), parent, until=until, dependents=waiting)


# --- the shapes of workload files ----------------------------------------------------------------------------


def _one() -> Plan:
    b = PlanBuilder("call")
    b.llm(name="call", max_tokens=1 << 20)
    return b.build()


def _chain() -> Plan:
    b = PlanBuilder("chain")
    draft = b.llm(name="draft", max_tokens=256)
    review = b.llm(draft, name="review", max_tokens=128)
    b.llm(review, name="final", max_tokens=256)
    return b.build()


def _map_reduce() -> Plan:
    b = PlanBuilder("map-reduce")
    split = b.tool(name="split")
    body = b.block()
    parts = b.map(body, split, name="parts", limit=16)
    b.llm(name="summarise", block=body, max_tokens=120)
    b.llm(parts, name="combine", max_tokens=400)
    return b.build()


def _rag() -> Plan:
    b = PlanBuilder("rag")
    b.llm(b.search(name="search"), name="answer", max_tokens=256)
    return b.build()


def _agent() -> Plan:
    b = PlanBuilder("agent")
    b.agent(name="agent", limit=6, max_tokens=256)
    return b.build()


def _triage() -> Plan:
    """A short call decides between an answer from the index, an agent, and a refusal."""
    b = PlanBuilder("triage")
    classify = b.llm(name="classify", max_tokens=16)
    arms = [b.block() for _ in range(3)]
    b.switch(arms, classify, name="route")
    search = b.search(name="search", block=arms[0])
    b.llm(search, name="answer", block=arms[0], max_tokens=256)
    b.agent(name="agent", block=arms[1], limit=5, max_tokens=256)
    b.llm(name="refuse", block=arms[2], max_tokens=48)
    return b.build()


SHAPES: dict[str, Callable[[], Plan]] = {
    "call": _one,
    "chain": _chain,
    "map-reduce": _map_reduce,
    "rag": _rag,
    "agent": _agent,
    "triage": _triage,
}
"""By the name that a workload file may use."""


# --- random plans --------------------------------------------------------------------------------------------

LEAVES = (Kind.LLM, Kind.TOOL, Kind.SEARCH, Kind.COMPUTE, Kind.AGENT)


def random_plan(rnd: Random, models: Sequence[str] = (), most_nodes: int = 4) -> Plan:
    """A plan of up to three levels with any kind of node, retries, time limits, stopping rules and degradations.

    `models`: names that calls may ask for besides the default.
    """
    builder = PlanBuilder(f"random{rnd.randrange(10**9)}")
    _random_block(builder, rnd, models, 0, 0, most_nodes)
    return builder.build()


def _random_block(b: PlanBuilder, rnd: Random, models: Sequence[str], block: int, depth: int, most: int) -> None:
    made: list[int] = []
    kinds = list(Kind) if depth < 2 else list(LEAVES)
    for _ in range(rnd.randint(0 if depth else 1, most if depth == 0 else 2)):
        deps = sorted(rnd.sample(made, rnd.randint(0, min(2, len(made)))))
        kind = rnd.choice(kinds)
        bodies: list[int] = []
        if kind not in LEAVES:
            for _ in range(rnd.randint(1, 3) if kind in (Kind.SWITCH, Kind.DYNAMIC, Kind.RACE) else 1):
                bodies.append(b.block())
        made.append(_random_node(b, rnd, models, kind, bodies, deps, {"block": block, **_random_fields(rnd)}))
        for body in bodies:
            _random_block(b, rnd, models, body, depth + 1, most)


def _random_fields(rnd: Random) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    if rnd.random() < 0.5:
        on = rnd.choice([(), ("tool", "engine", "timeout")])
        fields["retry"] = Retry(rnd.randint(1, 3), rnd.choice([0.0, 0.5]), on=on)
    if rnd.random() < 0.2:
        fields["timeout_s"] = rnd.choice([0.5, 3.0])
    return fields


RULES = (
    (None, ()),
    ("certaindex", (("min_samples", 2.0), ("every", 1.0))),
    ("adaptive_consistency", ()),
    ("decided", ()),
    ("esc", (("window", 2.0),)),
    ("agreement", ()),
)


def _random_node(
    b: PlanBuilder,
    rnd: Random,
    models: Sequence[str],
    kind: Kind,
    bodies: list[int],
    deps: list[int],
    fields: dict[str, Any],
) -> int:
    model = rnd.choice([None, None, *models])
    match kind:
        case Kind.MAP:
            if rnd.random() < 0.6:
                writer = b.llm(*deps, model=model, max_tokens=40, **fields)
                deps, fields = [*rnd.choice([[], deps]), writer], {"block": fields["block"], "streams": writer}
            return b.map(bodies[0], *deps, limit=3, concurrency=rnd.randint(0, 2), **fields)
        case Kind.SAMPLE:
            rule, args = rnd.choice(RULES)
            limit = rnd.randint(1, 4)
            wave = rnd.choice([None, 0, 1, 2]) if rule is not None else None
            fields |= {"degrade": _random_degradation(rnd, 1, limit), "concurrency": rnd.choice([0, 0, 2])}
            return b.sample(bodies[0], *deps, limit=limit, rule=rule, args=args, wave=wave, **fields)
        case Kind.SWITCH:
            return b.switch(bodies, *deps, **fields)
        case Kind.RACE:
            return b.race(bodies, *deps, limit=rnd.randint(1, len(bodies)), **fields)
        case Kind.LOOP:
            limit = rnd.randint(1, 3)
            return b.loop(bodies[0], *deps, limit=limit, degrade=_random_degradation(rnd, 0, limit), **fields)
        case Kind.DYNAMIC:
            return b.dynamic(bodies, *deps, limit=3, **fields)
        case Kind.AGENT:
            return b.agent(*deps, model=model, limit=rnd.randint(1, 3), max_tokens=40, **fields)
        case Kind.LLM:
            return b.llm(*deps, model=model, max_tokens=rnd.choice([8, 40]), **fields)
        case Kind.SEARCH:
            return b.search(*deps, limit=8, degrade=_random_degradation(rnd, 1, 8), **fields)
        case _:
            return b.add(kind, deps, target=0, **fields)


def _random_degradation(rnd: Random, lowest: int, limit: int) -> Degradation | None:
    if lowest >= limit or rnd.random() < 0.5:
        return None
    return Degradation(rnd.randrange(lowest, limit), rnd.choice([0.1, 0.5, 1.0]))
