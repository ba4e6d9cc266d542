"""Advice on the graph of a workflow: what is computed for nothing, waited for in vain, or bounded too late."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from flowserve.errors import Problem
from flowserve.graphs import analysis
from flowserve.graphs.nodes import DEFAULT_MAX_WIDTH
from flowserve.graphs.plan import Const, Get, Kind, Node, Op, Output, Param, Plan, Source
from flowserve.ids import BlockId, NodeId

LONG_CHAIN_CALLS = 100
"""A bound that allows more model calls than this in a row ends nothing that a person would wait for."""
MANY_ROUNDS = 1_000
"""The same for rounds without model calls."""
MAX_NAMES = 6
"""Names in one piece of advice."""

_PURE = frozenset({Kind.LLM, Kind.SEARCH, Kind.COMPUTE, Kind.MAP, Kind.SAMPLE, Kind.SWITCH, Kind.LOOP})
"""Kinds whose results depend on their inputs and on chance alone, where their bodies do."""
_WORDS = {Kind.LOOP: ("rounds", "max_iters"), Kind.AGENT: ("steps", "max_steps"), Kind.DYNAMIC: ("calls", "max_calls")}


@dataclass(frozen=True, slots=True)
class _Contents:
    """What stands in a block, bodies included."""

    pure: bool
    calls: bool
    """A model call."""
    draws: bool
    """A model call that does not take the likeliest token."""


class Structure:
    """What is asked of a whole plan before its nodes are looked at one by one."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._chains = analysis.llm_chains(plan)
        self._unused = frozenset(node.id for node in analysis.unused(plan))
        self._contents = _contents(plan)
        self._read = frozenset(leaf for leaf in _leaves(plan) if isinstance(leaf, Param))
        self._widths = _widths(plan)

    def of(self, node: Node) -> Iterator[Problem]:
        """Advice on one node."""
        if node.id in self._unused and not self._for_its_effect(node):
            remedy = "Remove the call, or return its result."
            yield Problem(node.name, "a result that something uses", "one that nothing reads", remedy)
        if node.kind is Kind.MAP and self._widths[node.id] is None:
            remedy = "Say how many items there can be: .map(items, max_width=100)."
            came = f"no max_width (up to {DEFAULT_MAX_WIDTH:,} calls)"
            yield Problem(node.name, "a width that is known", came, remedy)
        yield from self._bound(node)
        yield from self._rounds(node)
        yield from self._samples(node)
        yield from self._barrier(node)

    def of_all(self) -> Iterator[Problem]:
        """Advice on the whole."""
        plan, root = self._plan, self._plan.blocks[0]
        unread = [name for i, name in enumerate(root.params) if Param(root.id, i) not in self._read]
        if unread:
            came = f"{_listed(unread)} read by nothing"
            yield Problem(plan.name, "inputs that are used", came, "Remove what is not needed, or use it.")
        calls = self._chains.blocks[0]
        if calls > 1:
            seconds = plan.tails[plan.by_tail[0]]
            chain = _listed(self._longest())
            came = f"{calls} one after the other at most: {chain} (about {seconds:.0f} s while nothing is measured)"
            remedy = "Calls that do not need each other run together."
            yield Problem(plan.name, "few model calls on the critical path", came, remedy)

    def _for_its_effect(self, node: Node) -> bool:
        """Whether it is called for what it does: a tool with effects that returns nothing."""
        if node.kind is not Kind.TOOL:
            return False
        spec = self._plan.tools[node.target]
        return spec.effects and spec.returns.get("type") == "null"

    def _bound(self, node: Node) -> Iterator[Problem]:
        """A bound so large that it does not bound; of nested ones, the innermost that is."""
        if node.kind not in _WORDS:
            return
        rounds, setting = _WORDS[node.kind]
        inside = max((self._chains.blocks[body] for body in node.bodies), default=0)
        calls = self._chains.own[node.id]
        remedy = f"Give a {setting} that a run could afford; `timeout=` on the run bounds its time."
        if calls > LONG_CHAIN_CALLS >= inside:
            came = f"{setting}={node.limit:,}: up to {calls:,} model calls one after the other"
            yield Problem(node.name, "a bound that ends a run which goes astray", came, remedy)
        elif not calls and node.limit > MANY_ROUNDS:
            came = f"{setting}={node.limit:,} {rounds}"
            yield Problem(node.name, "a bound that ends a run which goes astray", came, remedy)

    def _rounds(self, node: Node) -> Iterator[Problem]:
        """Rounds of a loop that do not need each other. Greedy ones without `until` are hoisted by a pass."""
        if node.kind is not Kind.LOOP:
            return
        body = self._plan.blocks[node.bodies[0]]
        inside = self._contents[body.id]
        if not (inside.pure and inside.calls) or Param(body.id, 0) in self._read:
            return
        came = "a body that does not read the state"
        if inside.draws:
            remedy = "Draw them at once with .sample(n), or take the first good one with fs.race(..., valid=...)."
            yield Problem(node.name, "rounds that build on each other", f"{came}: they could run together", remedy)
        elif body.until is not None:
            remedy = "Call it once, let it read the state, or give it a temperature."
            yield Problem(node.name, "rounds that can differ", f"{came}: each gives the same again", remedy)

    def _samples(self, node: Node) -> Iterator[Problem]:
        if node.kind is not Kind.SAMPLE or node.limit < 2:
            return
        inside = self._contents[node.bodies[0]]
        if inside.pure and inside.calls and not inside.draws:
            came = f"temperature=0 in all that is sampled: {node.limit} times the same"
            yield Problem(node.name, "samples that can differ", came, "Give it a temperature, or call it once.")

    def _barrier(self, node: Node) -> Iterator[Problem]:
        """A call that waits for a whole map and reads one item."""
        if node.kind not in (Kind.LLM, Kind.TOOL, Kind.AGENT):
            return
        maps = [i for i in node.deps if self._plan.nodes[i].kind is Kind.MAP]
        # What was declared before the map cannot wait for it; of what came after, nobody knows without a search.
        if len(maps) != 1 or maps[0] != node.deps[-1] or any(maps[0] in _whole(arg.source) for arg in node.args):
            return
        name = self._plan.nodes[maps[0]].name
        remedy = f"Call it in the function that is mapped, or call that function for this item outside of '{name}'."
        came = f"one item of '{name}' read, and all of them waited for"
        yield Problem(node.name, "a call that begins when its inputs are there", came, remedy)

    def _longest(self) -> Iterator[str]:
        """The nodes of the longest chain of model calls, with how many each makes."""
        plan, chains, root = self._plan, self._chains, self._plan.blocks[0]
        places = {i: place for place, i in enumerate(root.nodes)}
        ahead: Sequence[NodeId] = root.nodes
        while ahead:
            node = max(ahead, key=lambda i: chains.rest[i])
            own = chains.own[node]
            if own:
                yield plan.nodes[node].name if own == 1 else f"{own} in {plan.nodes[node].name}"
            ahead = root.dependents[places[node]]


def _leaves(plan: Plan) -> Iterator[Param | Output]:
    """What all expressions read, but the conditions that end loops."""
    for node in plan.nodes:
        for arg in node.args:
            yield from analysis.leaves(arg.source)
    for block in plan.blocks:
        yield from analysis.leaves(block.result)
        if block.until is not None:
            yield from (leaf for leaf in analysis.leaves(block.until) if leaf != Param(block.id, 0))


def _contents(plan: Plan) -> tuple[_Contents, ...]:
    """By block. Bodies have larger numbers than the blocks that hold them."""
    found: dict[BlockId, _Contents] = {}
    for block in reversed(plan.blocks):
        nodes = [plan.nodes[i] for i in block.nodes]
        inner = [found[body] for node in nodes for body in node.bodies]
        models = [plan.llms[node.target] for node in nodes if node.kind is Kind.LLM]
        found[block.id] = _Contents(
            pure=all(node.kind in _PURE for node in nodes) and all(one.pure for one in inner),
            calls=bool(models) or any(one.calls for one in inner),
            draws=any(spec.temperature > 0 for spec in models) or any(one.draws for one in inner),
        )
    return tuple(found[block.id] for block in plan.blocks)


def _whole(source: Source) -> Iterator[NodeId]:
    """Nodes whose results an expression reads otherwise than by one constant place."""
    stack = [source]
    while stack:
        match stack.pop():
            case Output(node):
                yield node
            case Get(Output(), int()):
                pass
            case Get(of, _):
                stack.append(of)
            case Op(_, args):
                stack.extend(args)


def _widths(plan: Plan) -> dict[NodeId, int | None]:
    """How many items the list that a node gives can have; None where only the default bound says so, or it gives no list."""
    found: dict[NodeId, int | None] = {}
    for block in plan.blocks:
        for i in block.nodes:
            found[i] = _width(plan, plan.nodes[i], found)
    return found


def _width(plan: Plan, node: Node, known: dict[NodeId, int | None]) -> int | None:
    match node.kind:
        case Kind.MAP:
            bounds = [_items(plan, arg.source, known) for arg in node.args]
            if node.limit != DEFAULT_MAX_WIDTH:
                bounds.append(node.limit)
            return min((bound for bound in bounds if bound is not None), default=None)
        case Kind.SAMPLE if plan.samples[node.target].vote is None:
            return node.limit
        case Kind.SEARCH:
            k = next((arg.source for arg in node.args if arg.name == "k"), None)
            count = plan.consts[k.index] if isinstance(k, Const) else None
            return count if isinstance(count, int) else None
        case Kind.COMPUTE:
            return _items(plan, node.args[0].source, known)
        case _:
            return None


def _items(plan: Plan, source: Source, known: dict[NodeId, int | None]) -> int | None:
    """How many items the list that an expression gives can have."""
    match source:
        case Const(index):
            value = plan.consts[index]
            return len(value) if isinstance(value, list | tuple) else None
        case Op("list" | "tuple", args):
            return len(args)
        case Output(node):
            return known.get(node)
        case _:
            return None


def _listed(names: Iterable[str]) -> str:
    found = list(names)
    return ", ".join(found[:MAX_NAMES]) + (f" and {len(found) - MAX_NAMES} more" if len(found) > MAX_NAMES else "")
