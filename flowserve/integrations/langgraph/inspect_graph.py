"""From a compiled `StateGraph` to its `Shape`: edges, joins and branches as declared, reads and writes from sources or as told."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from langgraph.constants import END, START

from flowserve.errors import GraphError, Problem
from flowserve.integrations.langgraph.footprint import UNKNOWN, Footprint, footprint
from flowserve.integrations.langgraph.seams import BinaryOperatorAggregate, LastValue, RunnableCallable
from flowserve.integrations.langgraph.shape import Join, Shape

Keys = Mapping[str, Collection[str]]


@dataclass(frozen=True, slots=True)
class Inspected:
    """shape: for the frontier. routers: what each conditional edge (node, name) reads, None when unknown."""

    shape: Shape
    routers: Mapping[tuple[str, str], frozenset[str] | None]


def inspect_graph(graph: Any, reads: Keys, writes: Keys, hold: Collection[str]) -> Inspected:
    """Raises GraphError when `reads`, `writes` or `hold` name a node or a key that the graph does not have."""
    builder = graph.builder
    names = list(builder.nodes)
    _check("hold", hold, names, "node")
    for told, by_node in (("reads", reads), ("writes", writes)):
        _check(told, by_node, names, "node")
        for node, keys in by_node.items():
            _check(f"{told}[{node!r}]", keys, list(builder.channels), "key of the state")
    prints = {name: _print(spec.runnable) for name, spec in builder.nodes.items()}
    everything = frozenset(builder.channels)
    read = {n: _read(builder, n, prints[n], reads, everything) for n in names}
    branches = {node: tuple(named) for node, named in builder.branches.items() if node != START}
    edges = {n: tuple(sorted(end for start, end in builder.edges if start == n and end != END)) for n in names}
    joins = tuple(Join(frozenset(starts), end) for starts, end in sorted(builder.waiting_edges) if end != END)
    shape = Shape(
        reads=read,
        writes={n: frozenset(writes[n]) if n in writes else _or(prints[n].writes, everything) for n in names},
        edges=edges,
        follows={n: _follows(builder, n, prints[n], edges[n], joins) for n in names},
        branches=branches,
        joins=joins,
        held={n: why for n in names if (why := _held(graph, n, read[n], hold))},
        pauses=frozenset(n for n in names if prints[n].interrupts),
        deferred=frozenset(n for n, spec in builder.nodes.items() if spec.defer),
    )
    routers = {
        (node, name): _print(branch.path).reads
        for node, named in builder.branches.items()
        for name, branch in named.items()
    }
    return Inspected(shape, routers)


def refused(graph: Any) -> str:
    """Why this graph as a whole runs as LangGraph runs it; empty when it need not."""
    builder = graph.builder
    if "__root__" in builder.channels:
        return "its state has no keys"
    if any(spec.error_handler_node or spec.is_error_handler for spec in builder.nodes.values()):
        return "it has error handlers"
    if graph.interrupt_before_nodes or graph.interrupt_after_nodes:
        return "it is interrupted before or after named nodes"
    return ""


def _print(runnable: Any) -> Footprint:
    if not isinstance(runnable, RunnableCallable):
        return UNKNOWN
    told: list[Any] = [each for each in (runnable.func, runnable.afunc) if _written_by_user(each)]
    return footprint(told[0]) if len(told) == 1 else UNKNOWN


def _written_by_user(function: Any) -> bool:
    return function is not None and hasattr(function, "__code__")  # LangGraph's own twin in a thread is a partial


def _read(builder: Any, node: str, seen: Footprint, told: Keys, everything: frozenset[str]) -> frozenset[str]:
    if node in told:
        return frozenset(told[node])
    schema = frozenset(builder.schemas[builder.nodes[node].input_schema])
    return schema if seen.reads is None else seen.reads & (schema | everything)


def _or(known: frozenset[str] | None, everything: frozenset[str]) -> frozenset[str]:
    return everything if known is None else known & everything


def _follows(
    builder: Any, node: str, seen: Footprint, edges: tuple[str, ...], joins: tuple[Join, ...]
) -> frozenset[str]:
    every = frozenset(builder.nodes)
    ends = set(edges) | {join.end for join in joins if node in join.starts}
    for branch in builder.branches.get(node, {}).values():
        ends |= every if branch.ends is None else set(branch.ends.values())
    if seen.commands:
        declared = builder.nodes[node].ends
        ends |= set(declared) if declared else every if seen is UNKNOWN or seen.writes is None else set()
    return frozenset(ends) & every


def _held(graph: Any, node: str, reads: frozenset[str], hold: Collection[str]) -> str:
    spec = graph.builder.nodes[node]
    if node in hold:
        return "held by you"
    if spec.defer:
        return "deferred"
    if spec.cache_policy or graph.cache_policy:
        return "cached"
    if not isinstance(spec.runnable, RunnableCallable):
        return f"not a plain function but a {type(spec.runnable).__name__}"
    if graph.nodes[node].mapper is not None:
        return "its state is a model, not a dict"
    for key in sorted(reads):
        channel = graph.channels.get(key)
        if type(channel) not in (LastValue, BinaryOperatorAggregate):
            return f"reads {key!r}, which lives in a {type(channel).__name__}"
    return ""


def _check(what: str, given: Collection[str], known: list[str], kind: str) -> None:
    unknown = sorted(set(given) - set(known))
    if unknown:
        remedy = "Use the names that the graph was built with."
        raise GraphError("serve", [Problem(f"{what}=...", f"a {kind}, one of {sorted(known)}", str(unknown), remedy)])
