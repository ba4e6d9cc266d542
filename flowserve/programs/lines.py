"""Lines of steps: how searches over a tree grow and judge them, and what they do with those that ended."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from flowserve.core.stopping.programs import CertaindexRule, leading
from flowserve.core.stopping.rules import Decision, Spawn, Stop
from flowserve.core.stopping.samples import certainty
from flowserve.core.stopping.signals import UNUSABLE, Label, Reward, Vote
from flowserve.errors import InputError
from flowserve.graphs.nodes import Node
from flowserve.graphs.signature import Parameter
from flowserve.programs.branches import Bill
from flowserve.programs.program import Checks, Classes, the_node

Steps = tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class Line:
    """Steps from the beginning on, and what they are worth."""

    steps: Steps
    reward: float


@dataclass(frozen=True, slots=True)
class Walk:
    """How lines grow and are judged. Made by `walk`."""

    inputs: tuple[Parameter, ...]
    """Of the program."""
    kind: Any
    """Type of one step."""
    step: Node[..., Any]
    line: str
    """The parameter of `step` that takes the steps so far."""
    judge: Node[..., Any]
    judged: str
    """The parameter of `judge` that takes them."""
    done: Callable[[Any], bool] | None
    depth: int

    def ends(self, steps: Steps) -> bool:
        """Nothing is added to a line that is whole, or as long as allowed."""
        return len(steps) >= self.depth or self.is_whole(steps)

    def is_whole(self, steps: Steps) -> bool:
        """Its last step is an answer. Where nobody says which steps are, lines of full length are whole."""
        if self.done is None:
            return len(steps) >= self.depth
        return bool(steps) and self.done(steps[-1])

    async def grown(self, bill: Bill, inputs: Mapping[str, Any], steps: Steps) -> Any:
        """What `step` gives after `steps`."""
        return await bill.ask(self.step, {**inputs, self.line: list(steps)})

    async def worth(self, bill: Bill, inputs: Mapping[str, Any], steps: Steps) -> Line:
        """The line, judged."""
        known = {p.name: inputs[p.name] for p in self.judge.signature.params if p.name != self.judged}
        return Line(steps, float(await bill.ask(self.judge, {self.judged: list(steps), **known})))

    async def reward(self, bill: Bill, inputs: Mapping[str, Any], steps: Steps) -> Line:
        """As `worth`. Raises InputError for a reward outside 0 to 1, where thresholds and bounds mean nothing."""
        line = await self.worth(bill, inputs, steps)
        if not 0 <= line.reward <= 1:
            raise InputError(f"expected '{self.judge.name}' to give a reward from 0 to 1; got {line.reward:g}")
        return line


def walk(
    check: Checks, step: Node[..., Any], judge: Node[..., Any], done: Callable[[Any], bool] | None, depth: int
) -> Walk:
    """How lines are made of two nodes; what does not fit is noted in `check`."""
    inputs, line, kind = check.step(step)
    judged = check.scorer(the_node(check.name, judge), inputs)
    return Walk(inputs, kind, step, line, judge, judged, done, check.count("depth", depth))


class Leaves:
    """Lines that ended, told to a rule; and the best of those that did not."""

    def __init__(self, rule: CertaindexRule, walk: Walk, vote: str) -> None:
        self._rule = rule
        self._walk = walk
        self._classes = Classes(vote)
        self._labels: dict[int, Label] = {}
        self._rewards: dict[int, float] = {}
        self._lines: dict[int, Line] = {}
        self._longest: Line | None = None
        self.stop: Stop | None = None
        """What the rule said when it was enough."""

    def begin(self) -> Decision:
        """What the rule asks for first."""
        return self._rule.begin()

    def ended(self, line: Line) -> Decision:
        """A line is as long as it gets. One that is cut short has a reward and no answer."""
        number = len(self._labels)
        self._rewards[number] = line.reward
        self._rule.observe(Reward(number, line.reward))
        if self._walk.is_whole(line.steps):
            self._lines[number] = line
            return self._voted(number, self._classes.vote(line.steps[-1]))
        self.reached(line)
        return self._voted(number, UNUSABLE)

    def failed(self) -> Decision:
        """A line broke off."""
        return self._voted(len(self._labels), UNUSABLE)

    def reached(self, line: Line) -> None:
        """A line may go on. The longest, and of these the best, is what there is when nothing ended."""
        best = self._longest
        if best is None or (len(line.steps), line.reward) > (len(best.steps), best.reward):
            self._longest = line

    def _voted(self, number: int, label: Label) -> Decision:
        self._labels[number] = label
        decision = self._rule.observe(Vote(number, label))
        if isinstance(decision, Stop):
            self.stop = decision
        return decision

    def chosen(self) -> Line | None:
        """Of the class with the greatest sum of rewards the line with the greatest; else the longest that did not end."""
        label = leading(self._labels, self._rewards)
        return best([line for number, line in self._lines.items() if self._labels[number] == label]) or self._longest

    def best(self) -> Line | None:
        """The line that ended with the greatest reward; else the longest that did not."""
        return best(list(self._lines.values())) or self._longest

    def told(self, line: Line) -> dict[str, Any]:
        """What every `Search` tells of `line` and of all that ended."""
        counts = {label: list(self._labels.values()).count(label) for label in self._labels.values()}
        return {
            "answer": line.steps[-1],
            "path": list(line.steps),
            "score": line.reward,
            "finished": self._walk.is_whole(line.steps),
            "votes": self._classes.votes,
            "certainty": certainty(counts),
            "rewards": list(self._rewards.values()),
        }


def spawned(decision: Decision) -> int:
    """How many lines a rule asks for."""
    return decision.count if isinstance(decision, Spawn) else 0


def best(lines: Sequence[Line]) -> Line | None:
    """The one with the greatest reward, of equal ones the earliest."""
    return max(lines, key=lambda line: line.reward, default=None)
