"""A compiled graph as the frontier sees it: who may follow whom, who reads and writes what, who must not begin early and why."""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Join:
    """`end` runs when every one of `starts` has ended (an edge from a list of nodes)."""

    starts: frozenset[str]
    end: str


@dataclass(frozen=True, slots=True)
class Shape:
    """Facts of one graph; names of nodes and keys of the state are LangGraph's.

    reads, writes: keys that a node may read and write. edges: plain edges, certain to be followed. branches: names of a node's
    conditional edges. follows: every node that may be started by a node, by any means. held: nodes that never begin early, with
    the reason. pauses: nodes that may interrupt the run. deferred: nodes that wait until nothing else is left.
    """

    reads: Mapping[str, frozenset[str]]
    writes: Mapping[str, frozenset[str]]
    edges: Mapping[str, tuple[str, ...]]
    follows: Mapping[str, frozenset[str]]
    branches: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    joins: tuple[Join, ...] = ()
    held: Mapping[str, str] = field(default_factory=dict)
    pauses: frozenset[str] = frozenset()
    deferred: frozenset[str] = frozenset()

    def within(self, node: str, steps: int) -> frozenset[str]:
        """Nodes that may run up to `steps` super-steps after `node` because of it."""
        reached: frozenset[str] = frozenset()
        edge = frozenset({node})
        for _ in range(steps):
            edge = frozenset().union(*(self.follows.get(each, frozenset()) for each in edge))
            if edge <= reached:
                break
            reached |= edge
        return reached
