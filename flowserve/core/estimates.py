"""How long nodes take and how wide they are: what was seen, for each node of each plan.

The compiler's priors order work until something has been seen; after that a node's running mean counts, and critical
paths are computed anew from it. Seconds are learned for nodes that do something (LLM, TOOL, SEARCH, AGENT: from dispatch
to answer), counts for those that have bodies (items, samples, iterations, calls, and which arm), so that a body which is
slow makes every node around it long. A model call nobody has seen yet counts as its prior times what other calls took
in terms of theirs: else what is new would look a hundred times longer on a fast engine than what is known.

A run keeps the critical paths that it was accepted with: its rank only falls, and the order inside it stays one order.
"""

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING

from flowserve.core.events import Learned, Lesson
from flowserve.core.predict.base import Call
from flowserve.core.shapes import shape_plan
from flowserve.graphs.analysis import by_tail, costs, expanded_s, prior_count, tails
from flowserve.graphs.plan import Kind, Node, Plan
from flowserve.ids import NodeId, Seconds, Tokens

if TYPE_CHECKING:
    from flowserve.core.shapes import PlanShape
    from flowserve.core.state import SchedulerState, Task

LEARNING = 0.1
"""Weight of the newest observation in a mean of many; the first ones count alike."""
FRESH = 8
"""Observations (and at least one per node) after which a plan's critical paths are computed anew."""
MOST_PLANS = 1024
"""Plans that are remembered; the one that was used least recently goes first."""

_CALLS = (Kind.LLM, Kind.AGENT)
_TIMED = (Kind.LLM, Kind.TOOL, Kind.SEARCH, Kind.AGENT)
_COUNTED = (Kind.MAP, Kind.SAMPLE, Kind.LOOP, Kind.DYNAMIC)


class Figure:
    """A running mean that forgets."""

    __slots__ = ("mean", "seen")

    def __init__(self, mean: float = 0.0, seen: int = 0) -> None:
        self.mean = mean
        self.seen = seen

    def add(self, value: float) -> None:
        self.seen += 1
        self.mean += max(LEARNING, 1.0 / self.seen) * (value - self.mean)

    def __repr__(self) -> str:
        return f"Figure({self.mean:.4g} of {self.seen})"


class PlanFigures:
    """What was seen of one plan's nodes."""

    __slots__ = (
        "arms",
        "by_hops",
        "by_tail",
        "figures",
        "fresh",
        "hops",
        "learned",
        "least",
        "lesser",
        "money",
        "plan",
        "scale",
        "sure",
        "tails",
        "tokens",
        "work",
        "works",
        "written",
    )

    def __init__(self, shape: "PlanShape") -> None:
        self.plan: Plan = shape.plan
        self.figures = [Figure() for _ in self.plan.nodes]
        """Per node: seconds, or a count; see the module."""
        self.written: dict[NodeId, Figure] = {}
        """Per LLM node: tokens that one call writes."""
        self.arms: dict[NodeId, list[float]] = {}
        """Per SWITCH: how often each arm was taken, fading."""
        self.scale = 1.0
        """What `tails` take a model call that nobody has seen for, per second of its prior."""
        self.least: dict[NodeId, int] = {}
        """Nodes that are degraded -> what is left of them; see `lessened`."""
        self.lesser: dict[tuple[NodeId, ...], PlanFigures] = {}
        """By what is degraded: figures of such runs. Empty whenever `tails` are computed anew."""
        self.tails = shape.tails
        self.by_tail = shape.by_tail
        self.hops, self.by_hops = _hops(self.plan)
        """As `tails` and `by_tail`, in model calls instead of seconds."""
        self.works = _works(self, 1.0)
        """Per node: seconds of model calls of one execution, side by side or not."""
        self.work = _sum(self)
        """Of a whole run."""
        self.tokens = Figure()
        """Of a whole run: tokens that its model calls computed."""
        self.money = Figure()
        """Of a whole run: what these cost, models without a price apart."""
        self.fresh = 0
        """Observations since `tails` were computed."""
        self.learned = False
        """`tails` rest on what was seen of this plan."""
        self.sure: tuple[Seconds, ...] = ()
        """As `tails`, but nodes that were not seen cost nothing; empty while nothing was."""


class Estimates:
    """Of all plans."""

    __slots__ = ("plans", "scale")

    def __init__(self) -> None:
        self.plans: dict[str, PlanFigures] = {}
        """By digest, the one used least recently first."""
        self.scale = Figure()
        """Seconds that model calls took, per second of their prior."""

    def of(self, shape: "PlanShape") -> PlanFigures:
        """Of this plan; it counts as used."""
        digest = shape.plan.digest
        known = self.plans.pop(digest, None)
        if known is None:
            known = PlanFigures(shape)
            known.fresh = FRESH + len(known.figures) if self.scale.seen >= FRESH else 0
            if len(self.plans) >= MOST_PLANS:
                del self.plans[next(iter(self.plans))]
        self.plans[digest] = known
        return known

    def tokens(self, digest: str) -> float:
        """That a run of this plan computes; at least 1, which is also what counts where nobody knows."""
        known = self.plans.get(digest)
        return max(1.0, known.tokens.mean) if known is not None else 1.0

    def money(self, digest: str) -> float:
        """That a run of this plan costs; 0 where nobody knows. What was charged and taken back may leave a rounding error under 0."""
        known = self.plans.get(digest)
        return max(0.0, known.money.mean) if known is not None else 0.0


def begin(state: "SchedulerState", shape: "PlanShape") -> PlanFigures:
    """Figures for a run that is being accepted, with critical paths that are up to date."""
    known = shape.figures = state.estimates.of(shape)
    if known.fresh >= max(FRESH, len(known.figures)):
        _recompute(state.estimates, known)
    return known


def lessened(known: PlanFigures, taken: tuple[NodeId, ...]) -> PlanFigures:
    """Figures of runs in which these nodes are degraded, by what was seen of all."""
    if not taken:
        return known
    found = known.lesser.get(taken)
    if found is None:
        found = known.lesser[taken] = copy.copy(known)
        found.least = {id: node.degrade.least for id in taken if (node := known.plan.nodes[id]).degrade is not None}
        _compute(found)
    return found


def _recompute(estimates: Estimates, known: PlanFigures) -> None:
    known.scale = estimates.scale.mean if estimates.scale.seen >= FRESH else 1.0
    known.learned = any(figure.seen for figure in known.figures)
    known.fresh = 0
    known.lesser.clear()
    _compute(known)


def _compute(known: PlanFigures) -> None:
    """Critical paths and work, of the counts and seconds that were seen."""
    scale = known.scale

    def cost_of(node: Node, bodies: Sequence[Seconds]) -> Seconds:
        if node.bodies:
            return expanded_s(node, _counted(known, node), bodies, _shares(known, node))
        return _seconds(known, node, scale)

    plan = known.plan
    cost, local = costs(plan.nodes, plan.blocks, cost_of)
    known.tails = tails(plan.nodes, plan.blocks, cost, local)
    known.by_tail = by_tail(plan.blocks[0], known.tails)
    known.works = _works(known, scale)
    known.work = _sum(known)
    known.sure = _sure(known)


def _sure(known: PlanFigures) -> tuple[Seconds, ...]:
    """Critical paths that no prior is part of; of a SWITCH that was not seen the shortest arm counts."""

    def cost_of(node: Node, bodies: Sequence[Seconds]) -> Seconds:
        seen = known.figures[node.id].seen > 0
        if node.kind is Kind.SWITCH and not _shares(known, node):
            return min(bodies)
        if node.kind in (Kind.SWITCH, Kind.RACE) or (node.bodies and seen):
            return expanded_s(node, _counted(known, node), bodies, _shares(known, node))
        return known.figures[node.id].mean if seen else 0.0

    plan = known.plan
    return tails(plan.nodes, plan.blocks, *costs(plan.nodes, plan.blocks, cost_of))


def _seconds(known: PlanFigures, node: Node, scale: float) -> Seconds:
    """Of a node without bodies."""
    figure = known.figures[node.id]
    if figure.seen:
        return figure.mean
    return node.cost_s * scale if node.kind in _CALLS else node.cost_s


def _counted(known: PlanFigures, node: Node) -> float:
    """Frames or calls of a node with bodies."""
    figure = known.figures[node.id]
    count = figure.mean if figure.seen else prior_count(node)
    return min(count, known.least.get(node.id, count))


def _works(known: PlanFigures, scale: float) -> list[Seconds]:
    """Bodies have larger numbers than the blocks that hold them, so one pass from the last block to the first does it."""
    plan = known.plan
    works = [0.0] * len(plan.nodes)
    for block in reversed(plan.blocks):
        for id in block.nodes:
            node = plan.nodes[id]
            if node.bodies:
                bodies = [sum(works[inner] for inner in plan.blocks[body].nodes) for body in node.bodies]
                works[id] = _repeated(known, node, bodies)
            elif node.kind in _CALLS:
                works[id] = _seconds(known, node, scale)
    return works


def _repeated(known: PlanFigures, node: Node, bodies: Sequence[Seconds]) -> Seconds:
    if node.kind is Kind.SWITCH:
        return expanded_s(node, 1, bodies, _shares(known, node))
    if node.kind is Kind.RACE:
        return sum(bodies)
    return _counted(known, node) * max(bodies, default=0.0)


def _sum(known: PlanFigures) -> Seconds:
    return sum(known.works[id] for id in known.plan.blocks[0].nodes)


def _hops(plan: Plan) -> tuple[tuple[float, ...], tuple[NodeId, ...]]:
    """Remaining critical paths when every model call counts 1 and everything else nothing."""

    def one(node: Node, bodies: Sequence[float]) -> float:
        return expanded_s(node, prior_count(node), bodies) if node.bodies else float(node.kind in _CALLS)

    found = tails(plan.nodes, plan.blocks, *costs(plan.nodes, plan.blocks, one))
    return found, by_tail(plan.blocks[0], found)


def _shares(known: PlanFigures, node: Node) -> list[float]:
    """How often each arm is taken; none: nobody knows."""
    taken = known.arms.get(node.id)
    if taken is None:
        return []
    total = sum(taken)
    return [count / total for count in taken]


# --- what is seen -------------------------------------------------------------------------------------


def completed(state: "SchedulerState", task: "Task") -> None:
    """A node's value exists. Executions that were retried, moved, continued or degraded say nothing of the whole."""
    if task.reduced is not None:
        return
    known = task.run.shape.figures
    kind = task.kind
    if kind in _TIMED:
        if task.attempt > 1:
            return
        seconds = state.now - task.began_at
        known.figures[task.node.id].add(seconds)
        if kind is Kind.LLM and task.node.cost_s:
            state.estimates.scale.add(seconds / task.node.cost_s)
    elif kind in _COUNTED and task.expansion is not None:
        known.figures[task.node.id].add(_count(task))
    else:
        return
    known.fresh += 1


def _count(task: "Task") -> int:
    expansion = task.expansion
    assert expansion is not None
    if task.kind is Kind.MAP:
        return expansion.width
    return len(expansion.done) if task.kind is Kind.SAMPLE else expansion.opened


def learned(state: "SchedulerState", event: Learned) -> None:
    """An earlier scheduler has seen this plan; the next run of it is accepted with critical paths from that."""
    known = state.estimates.of(shape_plan(event.plan))
    known.figures = [Figure() for _ in event.plan.nodes]
    for lesson in event.figures:
        known.figures[lesson.node] = Figure(lesson.mean, lesson.seen)
    known.written = {lesson.node: Figure(lesson.mean, lesson.seen) for lesson in event.written}
    known.arms = {node: list(taken) for node, taken in event.arms}
    known.fresh = FRESH + len(known.figures)
    state.estimates.scale = Figure(event.scale, event.scale_seen)


def lesson(estimates: Estimates, known: PlanFigures, answers: tuple[tuple[Call, Tokens], ...]) -> Learned:
    """The event from which `learned` makes the same figures."""
    return Learned(
        known.plan,
        tuple(Lesson(NodeId(id), figure.mean, figure.seen) for id, figure in enumerate(known.figures) if figure.seen),
        tuple(Lesson(node, figure.mean, figure.seen) for node, figure in known.written.items()),
        tuple((node, tuple(taken)) for node, taken in known.arms.items()),
        estimates.scale.mean,
        estimates.scale.seen,
        answers,
    )


def chose(task: "Task", arm: int) -> None:
    """A SWITCH takes an arm."""
    known = task.run.shape.figures
    taken = known.arms.setdefault(task.node.id, [0.0] * len(task.node.bodies))
    for other in range(len(taken)):
        taken[other] *= 1.0 - LEARNING
    taken[arm] += 1.0
    known.fresh += 1
