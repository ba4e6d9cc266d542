"""Which nodes of a running LangGraph may begin before their super-step: a conservative look ahead over logical steps. Pure.

LangGraph runs in super-steps: a task of step s sees what tasks of steps below s wrote, and step s + 1 begins when the slowest
task of step s has ended. The step of every task is decided by the graph and its data alone, never by time. So a task of a later step may
begin now, with the input that it would get then, as soon as (1) it is certain to run at that step and (2) no task of an
earlier step that has not ended, and none that could still follow from one, may write a key that it reads: conservative
parallel simulation (Chandy and Misra, 1979) with super-steps as time and the graph as look-ahead.

LangGraph itself still runs every super-step in its order. When it comes to a task that was begun early, it takes the result over
(`adopt`), after its input was found equal. Anything unforeseen ends all looking ahead for the rest of the run (`surprised`).
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from flowserve.integrations.langgraph.shape import Shape

Status = Literal["waiting", "running", "done"]
Fold = Callable[[str, Mapping[str, Any], list[Any]], Any]
"""fold(key, state, writes of one step) -> the value after it; applied step by step."""


class Unfoldable(Exception):
    """A key's next value cannot be computed ahead: its reducer is not known to be pure, or its writes get random ids."""


@dataclass(frozen=True, slots=True)
class Push:
    """A task that was sent its input (LangGraph's `Send`). arg: the input itself, compared by identity."""

    node: str
    arg: Any


@dataclass(slots=True, eq=False)
class Task:
    """One run of one node at one super-step. push: None when the node reads the state. ahead: begun before its step.

    given: the input it was begun with, when ahead. writes: what it wrote, None while unknown. unrouted: its conditional edges
    not yet decided.
    """

    step: int
    node: str
    push: Push | None = None
    status: Status = "waiting"
    ahead: bool = False
    adopted: bool = False
    given: Any = None
    writes: dict[str, Any] | None = None
    unrouted: set[str] = field(default_factory=set)

    @property
    def known(self) -> bool:
        """It has ended and all that follows from it is known."""
        return self.status == "done" and self.writes is not None and not self.unrouted


class Frontier:
    """State of one run. The caller serialises calls. `fold` computes a key's value from the writes of one step."""

    def __init__(self, shape: Shape, fold: Fold, *, last_step: int) -> None:
        self.shape = shape
        self.fold = fold
        self.last_step = last_step
        self.begun = False
        self.step = 0
        self.state: Mapping[str, Any] = {}
        self.tasks: list[Task] = []
        self.arrived: list[tuple[int, str, int]] = []  # (join, start, step): who has come to which join, not yet used
        self.surprised = ""

    # what LangGraph does

    def begin(self, step: int, nodes: Iterable[str], state: Mapping[str, Any]) -> None:
        """LangGraph begins super-step `step` with one task for each of `nodes`; `state` is what they see."""
        expected = Counter(task.node for task in self.tasks if task.step == step)
        coming = Counter(nodes)
        late = coming - expected
        if self.begun and (expected - coming or not self._allowed(step).issuperset(late)):
            self.surprise(f"step {step} runs {sorted(coming.elements())}, foreseen was {sorted(expected.elements())}")
        self.begun, self.step, self.state = True, step, dict(state)
        self.tasks = [task for task in self.tasks if task.step >= step]
        for node in sorted(late.elements()):
            self._add(Task(step, node))
        for task in self.tasks:
            if task.step == step and task.status == "waiting":
                task.status = "running"

    def enter(self, node: str, arg: Any, *, sent: bool, equal: Callable[[Any, Any], bool]) -> Task | None:
        """LangGraph runs this node at the present step: its task, `ahead` when its result is to be taken over. None: unforeseen."""
        for task in self.tasks:
            if task.step == self.step and task.node == node and not task.adopted and _matches(task, arg, sent):
                task.adopted = True
                if task.ahead and not sent and not self._same(task, arg, equal):
                    self.surprise(f"{node} was begun with another input than it has at step {self.step}")
                    task.ahead, task.status, task.writes = False, "running", None
                return task
        if sent:  # which of the tasks begun by unforeseen sends it is does not matter: none was begun ahead
            for task in self.tasks:
                if (
                    task.step == self.step
                    and task.node == node
                    and not task.adopted
                    and task.push is None
                    and not task.ahead
                ):
                    task.adopted, task.push = True, Push(node, arg)
                    return task
        self.surprise(f"{node} runs at step {self.step}, which was not foreseen")
        return None

    def finish(self, task: Task, writes: dict[str, Any] | None) -> None:
        """The task's node has ended. writes: None when what it wrote, or where it goes, cannot be told."""
        task.status, task.writes = "done", writes
        if writes is None:
            return
        allowed = self.shape.writes[task.node]
        if not allowed.issuperset(writes):
            extra = sorted(set(writes) - allowed)
            self.surprise(f"{task.node} wrote {extra}, beside the keys that it was said to write: {sorted(allowed)}")
            return
        for target in self.shape.edges.get(task.node, ()):
            self._trigger(task.step + 1, target)
        for index, join in enumerate(self.shape.joins):
            if task.node in join.starts:
                self.arrived.append((index, task.node, task.step))

    def route(self, task: Task, branch: str, targets: Iterable[str | Push]) -> None:
        """A conditional edge of the task was decided."""
        if branch not in task.unrouted:
            return
        task.unrouted.discard(branch)
        for target in targets:
            self._trigger(task.step + 1, target)

    def surprise(self, why: str) -> None:
        """Something was not as foreseen: nothing more is begun early, and what was begun for later steps is not used."""
        self.surprised = self.surprised or why
        self.tasks = [task for task in self.tasks if task.step <= self.step or not task.ahead]

    # what may begin

    def ready(self, room: int) -> list[Task]:
        """Tasks that may begin now, each with its input in `given`; at most `room` of them. They count as running."""
        if self.surprised:
            return []
        self._join()
        begun: list[Task] = []
        for task in sorted(self.tasks, key=lambda each: each.step):
            if len(begun) >= room:
                break
            if task.status != "waiting" or task.step <= self.step or not self._may_begin(task):
                continue
            try:
                task.given = task.push.arg if task.push else self.seen(self.shape.reads[task.node], task.step)
            except Unfoldable:
                continue
            task.status, task.ahead = "running", True
            begun.append(task)
        return begun

    def settled(self, keys: frozenset[str], step: int) -> bool:
        """Nothing that has not ended may still write one of `keys` before `step`, and the order of what was written is known."""
        if any(self.shape.writes[node] & keys for node in self._possible(step)):
            return False
        return not any(self._disordered(key, step) for key in keys)

    def seen(self, keys: Iterable[str], step: int) -> dict[str, Any]:
        """The values of `keys` that a task of `step` sees; a key never written is left out."""
        state = {key: self.state[key] for key in keys if key in self.state}
        before = sorted((t for t in self.tasks if t.step < step and t.writes), key=lambda each: (each.step, each.node))
        for number in range(self.step, step):
            writes = [task.writes for task in before if task.step == number and task.writes]
            for key in sorted(keys):
                values = [each[key] for each in writes if key in each]
                if values:
                    state[key] = self.fold(key, state, values)
        return state

    def routable(self, task: Task, reads: frozenset[str]) -> dict[str, Any] | None:
        """What a conditional edge of `task` sees of `reads`, the task's own writes included; None while it is not settled."""
        if self.surprised or task.writes is None or not self.settled(reads, task.step):
            return None
        state = self.seen(reads, task.step)
        own = {key: self.fold(key, state, [value]) for key, value in task.writes.items() if key in reads}
        return {**state, **own}

    def _allowed(self, step: int) -> frozenset[str]:
        """Nodes that may come at `step` though no task foretold them: `_possible` has counted on them."""
        unknown = [self.shape.follows[task.node] for task in self.tasks if task.step == step - 1 and not task.known]
        return self.shape.deferred.union(*unknown)

    def _may_begin(self, task: Task) -> bool:
        held = task.node in self.shape.held or task.step > self.last_step
        if held or self._possible(task.step) & self.shape.pauses:
            return False
        return task.push is not None or self.settled(self.shape.reads[task.node], task.step)

    def _possible(self, step: int) -> frozenset[str]:
        """Nodes that may still run, or end, at a super-step below `step`."""
        nodes: set[str] = set()
        for task in self.tasks:
            if task.step < step and not task.known:
                if task.writes is None:
                    nodes.add(task.node)
                nodes |= self.shape.within(task.node, step - 1 - task.step)
        return frozenset(nodes)

    def _disordered(self, key: str, step: int) -> bool:
        """Tasks with sent inputs are ordered by when they were sent, which is not known ahead of their step."""
        steps = [t for t in self.tasks if t.step < step and t.writes and key in t.writes]
        many = Counter(task.step for task in steps)
        return any(task.push and many[task.step] > 1 for task in steps)

    def _trigger(self, step: int, target: str | Push) -> None:
        node = target.node if isinstance(target, Push) else target
        if node in self.shape.deferred or node not in self.shape.reads:
            return
        if isinstance(target, Push):
            self._add(Task(step, node, target))
        elif not any(task.step == step and task.node == node and task.push is None for task in self.tasks):
            self._add(Task(step, node))

    def _add(self, task: Task) -> None:
        task.unrouted = set(self.shape.branches.get(task.node, ()))
        self.tasks.append(task)

    def _join(self) -> None:
        for index, join in enumerate(self.shape.joins):
            come = {
                name: [step for at, start, step in self.arrived if at == index and start == name]
                for name in join.starts
            }
            if not all(come.values()):
                continue
            step = max(min(steps) for steps in come.values()) + 1
            if self._possible(step) & join.starts:
                continue
            self.arrived = [each for each in self.arrived if each[0] != index or each[2] >= step]
            self._trigger(step, join.end)

    def _same(self, task: Task, arg: Any, equal: Callable[[Any, Any], bool]) -> bool:
        keys = self.shape.reads[task.node]
        now = {key: arg[key] for key in keys if key in arg} if isinstance(arg, Mapping) else None
        return now is not None and now.keys() == task.given.keys() and all(equal(now[k], task.given[k]) for k in now)


def _matches(task: Task, arg: Any, sent: bool) -> bool:
    if sent:
        return task.push is not None and task.push.arg is arg
    return task.push is None
