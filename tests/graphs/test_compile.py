"""Order, dependencies, costs and speed of compilation."""

import gc
import itertools
import time
from types import ModuleType
from typing import Any

import networkx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import flowserve.graphs as fs
from flowserve.errors import GraphError
from flowserve.graphs import analysis
from flowserve.graphs.compile import compile_declaration
from flowserve.graphs.declaration import (
    BlockDecl,
    ConstExpr,
    Declaration,
    Expr,
    NodeDecl,
    OpExpr,
    OutputExpr,
    ParamExpr,
)
from flowserve.graphs.plan import Kind, Plan, SearchSpec


def search(name: str, block: BlockDecl, *needs: NodeDecl) -> NodeDecl:
    args: list[tuple[str, Expr]] = [("query", OpExpr("list", tuple(OutputExpr(n) for n in needs))), ("k", ConstExpr(1))]
    made = NodeDecl(name, Kind.SEARCH, block, args, SearchSpec("i"))
    block.nodes.append(made)
    return made


def compiled(root: BlockDecl) -> Plan:
    return compile_declaration(Declaration("w", root, {"type": "object"}, {}))


@st.composite
def shuffled_graphs(draw: st.DrawFn) -> tuple[BlockDecl, list[tuple[str, str]]]:
    """A random acyclic block, its nodes declared in any order, and its edges by name."""
    count = draw(st.integers(1, 12))
    block = BlockDecl("root")
    edges: list[tuple[str, str]] = []
    made: list[NodeDecl] = []
    for i in range(count):
        needs = draw(st.lists(st.sampled_from(made), unique=True, max_size=4)) if made else []
        made.append(search(f"n{i}", block, *needs))
        edges += [(n.name, f"n{i}") for n in needs]
    block.nodes = draw(st.permutations(block.nodes))
    return block, edges


@settings(max_examples=100, deadline=None)
@given(shuffled_graphs())
def test_every_plan_is_in_topological_order_with_true_edges_and_tails(
    case: tuple[BlockDecl, list[tuple[str, str]]],
) -> None:
    block, edges = case
    plan = compiled(block)
    names = [n.name for n in plan.nodes]
    assert sorted(names) == sorted(n.name for n in block.nodes)
    assert {(names[d], n.name) for n in plan.nodes for d in n.deps} == set(edges)
    assert all(d < n.id for n in plan.nodes for d in n.deps)
    assert {
        (names[i], names[d]) for i, ds in zip(plan.blocks[0].nodes, plan.blocks[0].dependents, strict=True) for d in ds
    } == set(edges)
    oracle = networkx.DiGraph()
    oracle.add_nodes_from(names)
    oracle.add_edges_from(edges)
    for node in plan.nodes:
        below = oracle.subgraph({node.name} | networkx.descendants(oracle, node.name))
        longest = networkx.dag_longest_path_length(below, default_weight=1) + 1
        assert plan.tails[node.id] == pytest.approx(longest * analysis.SEARCH_S)
    assert list(plan.by_tail) == sorted(plan.blocks[0].nodes, key=lambda i: (-plan.tails[i], i))


def test_order_follows_the_declaration_where_it_may() -> None:
    block = BlockDecl("root")
    a = search("a", block)
    search("b", block)
    search("c", block, a)
    assert [n.name for n in compiled(block).nodes] == ["a", "b", "c"]


def test_a_cycle_is_reported_with_its_path() -> None:
    block = BlockDecl("root")
    a = search("a", block)
    b = search("b", block, a)
    c = search("c", block, b)
    a.args.append(("more", OutputExpr(c)))
    with pytest.raises(GraphError, match="the cycle a -> b -> c -> a"):
        compiled(block)


def test_a_body_that_reads_its_own_node_is_a_cycle() -> None:
    block = BlockDecl("root", ("x",))
    node = NodeDecl("m", Kind.MAP, block, [("x", ParamExpr(block, 0))])
    block.nodes.append(node)
    body = BlockDecl("body", ("x",), owner=node, result=OutputExpr(node))
    node.bodies.append(body)
    with pytest.raises(GraphError, match="the cycle m -> m"):
        compiled(block)


def test_captures_of_deep_bodies_become_dependencies_at_every_level(snippets: ModuleType) -> None:
    @fs.workflow
    def deep(q: str, a: bool, b: bool) -> str:
        first = snippets.summarise(q)
        second = snippets.summarise(q)
        return fs.when(
            a,
            then=lambda: fs.when(b, then=lambda: snippets.summarise(first), otherwise=lambda: second),
            otherwise=lambda: q,
        )

    plan = deep.program.plan
    by_name = {n.name: n for n in plan.nodes}
    assert by_name["when"].deps == (by_name["summarise"].id, by_name["summarise_2"].id)
    assert by_name["when_2"].deps == () and by_name["summarise_3"].deps == ()


def test_tails_of_bodies_continue_after_their_node(snippets: ModuleType) -> None:
    plan = snippets.summary.program.plan
    by_name = {n.name: n for n in plan.nodes}
    inner, mapped, combine = by_name["summarise"], by_name["summarise.map"], by_name["combine"]
    assert mapped.cost_s == inner.cost_s == pytest.approx(0.2 + 0.02 * 120)
    assert plan.tails[inner.id] == pytest.approx(inner.cost_s + combine.cost_s)
    assert plan.tails[by_name["split"].id] == pytest.approx(0.2 + mapped.cost_s + combine.cost_s)


def test_costs_follow_bounds_and_concurrency(snippets: ModuleType) -> None:
    @fs.workflow
    def narrow(items: list[str]) -> list[str]:
        return snippets.summarise.map(items, concurrency=3)

    body = snippets.summary.program.plan.nodes[3].cost_s
    assert narrow.program.plan.nodes[0].cost_s == pytest.approx(3 * body)  # 8 items in waves of 3


def test_equal_programs_have_equal_digests_and_a_change_shows(snippets: ModuleType) -> None:
    def wrap(node: Any) -> str:
        @fs.workflow
        def w(q: str) -> str:
            return node(q)

        return w.program.plan.digest

    assert wrap(snippets.summarise) == wrap(snippets.summarise)
    assert wrap(snippets.summarise) != wrap(snippets.summarise.options(max_tokens=121))


@fs.tool
def step(a: int, b: int) -> int:
    return a


def chain(length: int) -> fs.Workflow[..., int]:
    @fs.workflow
    def long(n: int) -> int:
        values = [n]
        for i in range(length):
            values.append(step(values[-1], values[i // 2]))
        return values[-1]

    return long


def seconds(length: int) -> float:
    best = float("inf")
    for _ in range(2):
        workflow = chain(length)
        gc.collect()
        start = time.perf_counter()
        assert len(workflow.program.plan.nodes) == length
        best = min(best, time.perf_counter() - start)
    return best


def test_two_thousand_nodes_compile_well_under_a_second_and_linearly() -> None:
    _ = chain(2).program
    small, large = seconds(500), seconds(2_000)
    assert large < 1.0
    assert large / small < 4 * 2.5, "four times the nodes, about four times the time"


def test_a_small_workflow_is_traced_in_about_a_millisecond(snippets: ModuleType) -> None:
    _ = snippets.rag.program
    times = []
    for _ in range(20):
        fresh = fs.Workflow(snippets.rag.fn)
        start = time.perf_counter()
        _ = fresh.program
        times.append(time.perf_counter() - start)
    assert min(times) < 0.01


def test_unused_nodes_and_chains_of_calls_are_found(snippets: ModuleType) -> None:
    @fs.workflow
    def wasteful(q: str) -> str:
        snippets.summarise(q)
        return snippets.summarise(snippets.summarise(q))

    plan = wasteful.program.plan
    assert [n.name for n in analysis.unused(plan)] == ["summarise"]
    assert analysis.llm_calls_on_path(plan) == 2
    assert analysis.llm_calls_on_path(snippets.research.program.plan) == 6
    assert analysis.llm_calls_on_path(snippets.essay.program.plan) == 4


def test_ids_are_dense_and_bodies_come_after_their_node(snippets: ModuleType) -> None:
    for workflow in (snippets.dyn, snippets.essay, snippets.many):
        plan = workflow.program.plan
        assert [n.id for n in plan.nodes] == list(range(len(plan.nodes)))
        assert [b.id for b in plan.blocks] == list(range(len(plan.blocks)))
        assert list(itertools.chain(*(b.nodes for b in plan.blocks))) == [n.id for n in plan.nodes]
        assert all(b > n.block for n in plan.nodes for b in n.bodies)
        assert all(plan.blocks[b].parent == n.id for n in plan.nodes for b in n.bodies)
