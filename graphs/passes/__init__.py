"""Rewriting a Plan: the same results from less work, or sooner.

Every pass is a function over a Declaration that changes it in place and tells what it did; `rewrite` lifts the Plan, runs
the passes in turn until none finds anything, and compiles what is left. Each keeps the result of every run that succeeds
(tests/graphs/test_passes.py compares random workflows), starts no node later than before, and adds no call; but what `stream`
lets begin is done again where the list becomes another.

| pass | what it does | from |
|---|---|---|
| `project` | an item of a list that is written out is that item: its reader waits for nothing else | dependency pruning of Teola/Ayo (ASPLOS'25, section 4) |
| `prune` | values that no prompt reads are not waited for; calls without effects that nothing reads are not made | the same; plan pruning of Helium |
| `merge` | equal calls of one block are one call | common subexpressions; Helium |
| `hoist` | what is the same in every round, item or sample is done once, before | loop-invariant code motion |
| `fuse` | a map over a map is one map: item by item, without the barrier between | map fusion |
| `stream` | a map over the list of a model call takes each item when it is written, not when all are | decode pipelining of Teola/Ayo |
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from flowserve.graphs.compile import compile_declaration
from flowserve.graphs.declaration import Declaration
from flowserve.graphs.passes.fuse import fuse
from flowserve.graphs.passes.hoist import hoist
from flowserve.graphs.passes.lift import declaration_of
from flowserve.graphs.passes.merge import merge
from flowserve.graphs.passes.project import project
from flowserve.graphs.passes.prune import prune
from flowserve.graphs.passes.stream import stream
from flowserve.graphs.plan import Plan

Pass = Callable[[Declaration], list[str]]
"""Changes a declaration in place; gives a sentence about each change, none when there was nothing to do."""
PASSES: dict[str, Pass] = {
    "project": project,
    "prune": prune,
    "merge": merge,
    "hoist": hoist,
    "fuse": fuse,
    "stream": stream,
}
"""In the order in which they run."""


@dataclass(frozen=True, slots=True)
class Change:
    """One thing that a pass did."""

    name: str
    """Of the pass."""
    what: str

    def __str__(self) -> str:
        return f"{self.name}: {self.what}"


@dataclass(frozen=True, slots=True)
class Rewritten:
    """A plan after its passes. Where they found nothing, it is the plan that was given."""

    plan: Plan
    changes: tuple[Change, ...]


def rewrite(plan: Plan, names: Sequence[str] = tuple(PASSES)) -> Rewritten:
    """`plan` after the passes of these names. Its digest is its own; what it is called stays. Raises KeyError."""
    declaration = declaration_of(plan)
    changes: list[Change] = []
    while found := [Change(name, what) for name in names for what in PASSES[name](declaration)]:
        changes += found
    if not changes:
        return Rewritten(plan, ())
    return Rewritten(compile_declaration(declaration), tuple(dict.fromkeys(changes)))


__all__ = ["PASSES", "Change", "Pass", "Rewritten", "rewrite"]
