"""Doing less of what an author allows to be done less of, when a run would else be late.

Twice. When a run is accepted (`wanted`), by what its plan was seen to take: degradations are taken in order of harm, the least
first, until the run is expected to be on time; then those are given back without which it is on time as well, the most
harmful first. And before a node begins that may be degraded (`due`), when the rest of the run does not fit the time that is left.
Nothing is taken from a run without a deadline, and nothing on the word of the compiler's priors.

Harm decides before seconds gained: harm is what the author knows, seconds are guesses. What a smaller `k` saves is in the
prompts that read it, which no figure tells; so a search is degraded only where all that is known to help does not suffice.
"""

from math import inf
from typing import Any

from flowserve.core import admission
from flowserve.core.commands import Degrade
from flowserve.core.estimates import PlanFigures, lessened
from flowserve.core.state import Run, SchedulerState, Task
from flowserve.graphs.plan import Kind, Node
from flowserve.ids import NodeId, Seconds

Taken = tuple[NodeId, ...]
"""Nodes whose degradations are taken, in order of harm."""


WORDS = {Kind.SAMPLE: "samples", Kind.SEARCH: "passages", Kind.LOOP: "rounds"}
"""What there is less of."""


def wanted(state: SchedulerState, run: Run) -> Taken:
    """What is to be taken of `run`, which is about to be accepted; all of it where that does not suffice either."""
    known, declared = run.shape.figures, run.shape.degradable
    if not declared or not _watched(run):
        return ()
    left = run.deadline - state.now
    if _alone_s(state, known) + state.work / run.width <= left:
        return ()
    wait = admission.wait_s(state, run)

    def on_time(taken: Taken) -> bool:
        return _alone_s(state, lessened(known, taken)) + wait <= left

    taken: Taken = ()
    while len(taken) < len(declared) and not on_time(taken):
        taken = declared[: len(taken) + 1]
    if on_time(taken):
        for node in reversed(taken):
            without = tuple(other for other in taken if other != node)
            taken = without if on_time(without) else taken
    return taken


def due(state: SchedulerState, task: Task) -> bool:
    """Whether what `task` is about to begin must be done less of. Of a LOOP: whether another round must not be begun."""
    run, node = task.run, task.node
    if node.degrade is None or not run.may_degrade:
        return False
    if node.id in run.taken:
        return True
    return _watched(run) and state.now + _rest_s(state, task) > run.deadline


def describe(node: Node, label: str, to: int) -> dict[str, Any]:
    """What a run's readers are told of a degradation; `label` says which execution of `node` it was."""
    assert node.degrade is not None
    return {"node": label, "what": WORDS[node.kind], "from": node.limit, "to": to, "harm": node.degrade.harm}


def take(state: SchedulerState, task: Task, to: int) -> None:
    """Do no more than `to` of `task`, and tell."""
    task.reduced = to
    state.out.append(Degrade(task.run.id, task.id, task.attempt, to))


def _watched(run: Run) -> bool:
    return run.may_degrade and run.deadline < inf and run.shape.figures.learned


def _alone_s(state: SchedulerState, known: PlanFigures) -> Seconds:
    """Seconds of a run by itself, at least: its critical path, or all its model calls through the room that there is."""
    path = known.tails[known.by_tail[0]] if known.by_tail else 0.0
    return max(path, known.work / _room(state))


def _rest_s(state: SchedulerState, task: Task) -> Seconds:
    """Seconds from the beginning of `task` to the end of its run, at least; of a LOOP: from that of its next round."""
    known = lessened(task.run.shape.figures, task.run.taken)
    node = task.node
    if node.kind is Kind.LOOP:
        inside = task.run.plan.blocks[node.bodies[0]].nodes
        return max((known.tails[inner] for inner in inside), default=0.0)
    return max(known.tails[node.id], known.works[node.id] / _room(state))


def _room(state: SchedulerState) -> int:
    """Model calls that the engines have at once, at most."""
    return max(1, sum(engine.limit for engine in state.engines.values()))
