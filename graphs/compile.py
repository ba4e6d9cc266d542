"""A declaration becomes a Plan: numbers for names, topological order, dependencies, costs, digest.

Blocks are numbered breadth first from the root, nodes block by block, so bodies always have larger numbers
than what holds them. Order is stable: nodes keep the order of their declaration wherever dependencies allow,
so a Plan written as a spec and read again is the same Plan.
"""

import dataclasses
import heapq
import json
from collections.abc import Iterable
from typing import Any, Generic, TypeVar

from flowserve.errors import GraphError, Problem
from flowserve.graphs import analysis
from flowserve.graphs.declaration import (
    MAX_DEGRADATIONS,
    AgentDecl,
    BlockDecl,
    ConstExpr,
    Declaration,
    Expr,
    GetExpr,
    NodeDecl,
    OpExpr,
    OutputExpr,
    ParamExpr,
    references,
)
from flowserve.graphs.encode import digest
from flowserve.graphs.plan import (
    AgentSpec,
    Arg,
    Block,
    Const,
    DynamicSpec,
    Get,
    Kind,
    LLMSpec,
    Node,
    Op,
    Output,
    Param,
    Plan,
    SampleSpec,
    SearchSpec,
    Source,
    ToolSpec,
)
from flowserve.ids import BlockId, NodeId

T = TypeVar("T")


def compile_declaration(declaration: Declaration) -> Plan:
    """The Plan of a declaration whose parts have been checked. Raises GraphError for cycles."""
    plan = _Compiler(declaration).plan()
    return dataclasses.replace(plan, digest=digest(plan))


class _Compiler:
    """The tables of the Plan while they grow."""

    def __init__(self, declaration: Declaration) -> None:
        self.declaration = declaration
        self.blocks: list[BlockDecl] = []
        self.nodes: list[NodeDecl] = []
        self.block_ids: dict[BlockDecl, BlockId] = {}
        self.node_ids: dict[NodeDecl, NodeId] = {}
        self.needs: dict[NodeDecl, list[NodeDecl]] = {}
        """Per node, the nodes of the same block that it waits for."""
        self.consts: list[Any] = []
        self.const_ids: dict[str, int] = {}
        self.llms: _Table[LLMSpec] = _Table()
        self.tools: _Table[ToolSpec] = _Table()
        self.searches: _Table[SearchSpec] = _Table()
        self.samples: _Table[SampleSpec] = _Table()
        self.agents: _Table[AgentSpec] = _Table()
        self.dynamics: _Table[DynamicSpec] = _Table()

    def plan(self) -> Plan:
        d = self.declaration
        self._find_needs(d.root)
        self._number(d.root)
        self._count_degradations()
        nodes = [self._node(node) for node in self.nodes]
        blocks = [self._block(block) for block in self.blocks]
        cost, local = analysis.prior_costs(nodes, blocks, self.llms.items, self.agents.items)
        tails = analysis.tails(nodes, blocks, cost, local)
        return Plan(
            name=d.name,
            digest="",
            nodes=tuple(dataclasses.replace(node, cost_s=c) for node, c in zip(nodes, cost, strict=True)),
            blocks=tuple(blocks),
            input=d.input,
            output=d.output,
            slo=d.slo,
            budget=d.budget,
            description=d.description,
            consts=tuple(self.consts),
            llms=tuple(self.llms.items),
            tools=tuple(self.tools.items),
            searches=tuple(self.searches.items),
            samples=tuple(self.samples.items),
            agents=tuple(self.agents.items),
            dynamics=tuple(self.dynamics.items),
            tails=tails,
            by_tail=analysis.by_tail(blocks[0], tails),
        )

    # --- order --------------------------------------------------------------------------------------

    def _find_needs(self, block: BlockDecl) -> list[NodeDecl]:
        """Fill `needs` for a block and its bodies; returns the outer nodes that it reads."""
        outer: dict[NodeDecl, None] = {}
        for node in block.nodes:
            read = dict.fromkeys(_outputs(e for _, e in node.args))
            for body in node.bodies:
                read.update(dict.fromkeys(self._find_needs(body)))
            self.needs[node] = [n for n in read if n.block is block]
            outer.update(dict.fromkeys(n for n in read if n.block is not block))
        ends = [block.result] if block.until is None else [block.result, block.until]
        outer.update(dict.fromkeys(n for n in _outputs(ends) if n.block is not block))
        return list(outer)

    def _number(self, root: BlockDecl) -> None:
        self.blocks.append(root)
        for block in self.blocks:  # grows while we walk
            self.block_ids[block] = BlockId(len(self.block_ids))
            for node in self._ordered(block):
                self.node_ids[node] = NodeId(len(self.nodes))
                self.nodes.append(node)
                self.blocks.extend(node.bodies)

    def _ordered(self, block: BlockDecl) -> list[NodeDecl]:
        """Topological order; among those that could be next, the one declared first."""
        place = {node: i for i, node in enumerate(block.nodes)}
        waiting = [len(self.needs[node]) for node in block.nodes]
        dependents: list[list[int]] = [[] for _ in block.nodes]
        for i, node in enumerate(block.nodes):
            for need in self.needs[node]:
                dependents[place[need]].append(i)
        ready = [i for i, count in enumerate(waiting) if count == 0]
        order: list[NodeDecl] = []
        while ready:
            i = heapq.heappop(ready)
            order.append(block.nodes[i])
            for d in dependents[i]:
                waiting[d] -= 1
                if waiting[d] == 0:
                    heapq.heappush(ready, d)
        if len(order) < len(block.nodes):
            raise GraphError(self.declaration.name, [self._cycle(block, set(order))])
        return order

    def _cycle(self, block: BlockDecl, done: set[NodeDecl]) -> Problem:
        """Every node that is left waits for another one that is left: walk until one comes twice."""
        node = next(n for n in block.nodes if n not in done)
        path: list[NodeDecl] = []
        while node not in path:
            path.append(node)
            node = next(n for n in self.needs[node] if n not in done)
        names = [n.name for n in path[path.index(node) :]]  # each waits for the next
        shown = " -> ".join([names[0], *reversed(names)])
        return Problem(
            names[0], "nodes that do not wait for themselves", f"the cycle {shown}", "Remove one of these edges."
        )

    def _count_degradations(self) -> None:
        names = [node.name for node in self.nodes if node.degrade is not None]
        if len(names) > MAX_DEGRADATIONS:
            came = f"{len(names)}: {', '.join(names)}"
            remedy = "Keep those that save the most time: take least= and harm= from the others."
            problem = Problem(self.declaration.name, f"at most {MAX_DEGRADATIONS} degradations", came[:300], remedy)
            raise GraphError(self.declaration.name, [problem])

    # --- tables -------------------------------------------------------------------------------------

    def _node(self, node: NodeDecl) -> Node:
        return Node(
            id=self.node_ids[node],
            name=node.name,
            kind=node.kind,
            block=self.block_ids[node.block],
            # By name, as JSON objects have no order; the sequences of a map are told apart by theirs.
            args=tuple(
                Arg(n, self._source(e))
                for n, e in (node.args if node.kind is Kind.MAP else sorted(node.args, key=_first))
            ),
            deps=tuple(sorted(self.node_ids[n] for n in self.needs[node])),
            target=self._target(node),
            bodies=tuple(self.block_ids[b] for b in node.bodies),
            limit=node.limit,
            concurrency=node.concurrency,
            retry=node.retry,
            timeout_s=node.timeout_s,
            cache=node.cache,
            degrade=node.degrade,
            streams=None if node.streams is None else self.node_ids[node.streams],
        )

    def _target(self, node: NodeDecl) -> int:
        match node.payload:
            case LLMSpec() as spec:
                return self.llms.index(spec.name, spec)
            case ToolSpec() as tool:
                return self.tools.index(tool.name, tool)
            case SearchSpec() as search:
                return self.searches.index(repr(search), search)
            case SampleSpec() as sample:
                return self.samples.index(repr(sample), sample)
            case AgentDecl() as agent:
                tools = tuple(self.tools.index(t.name, t) for t in agent.tools)
                return self.agents.index(agent.name, AgentSpec(agent.name, agent.llm, tools, agent.max_parallel_tools))
            case DynamicSpec() as dynamic:
                return self.dynamics.index(dynamic.name, dynamic)
            case None:
                return -1

    def _block(self, block: BlockDecl) -> Block:
        ids = sorted(self.node_ids[n] for n in block.nodes)
        dependents: dict[NodeId, list[NodeId]] = {i: [] for i in ids}
        for i in ids:
            for need in self.needs[self.nodes[i]]:
                dependents[self.node_ids[need]].append(i)
        return Block(
            id=self.block_ids[block],
            name=block.name,
            params=block.params,
            nodes=tuple(ids),
            result=self._source(block.result),
            parent=None if block.owner is None else self.node_ids[block.owner],
            until=None if block.until is None else self._source(block.until),
            dependents=tuple(tuple(dependents[i]) for i in ids),
        )

    def _source(self, expr: Expr) -> Source:
        match expr:
            case ConstExpr(value):
                return Const(self._const(value))
            case ParamExpr(block, index):
                return Param(self.block_ids[block], index)
            case OutputExpr(node):
                return Output(self.node_ids[node])
            case GetExpr(of, key):
                return Get(self._source(of), key)
            case OpExpr(name, args):
                return Op(name, tuple(self._source(a) for a in args))

    def _const(self, value: Any) -> int:
        key = json.dumps(value, sort_keys=True)
        if key not in self.const_ids:
            self.const_ids[key] = len(self.consts)
            self.consts.append(value)
        return self.const_ids[key]


class _Table(Generic[T]):
    """A side table without repetition."""

    def __init__(self) -> None:
        self.items: list[T] = []
        self._ids: dict[str, int] = {}

    def index(self, key: str, item: T) -> int:
        if key not in self._ids:
            self._ids[key] = len(self.items)
            self.items.append(item)
        return self._ids[key]


def _first(pair: tuple[str, Expr]) -> str:
    return pair[0]


def _outputs(exprs: Iterable[Expr]) -> Iterable[NodeDecl]:
    return [ref.node for e in exprs for ref in references(e) if isinstance(ref, OutputExpr)]
