"""Rules for programs of many branches: how many are begun at first, when more are, and when those that ended are enough.

A branch that ends is told as its Reward, where there is one, and then its Vote; after a Vote the rule decides. A branch that failed
votes UNUSABLE. What a branch is, is the program's affair: a sample, a leaf of a tree, a roll-out.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from math import isnan

from flowserve.core.stopping.rules import Continue, Decision, Spawn, Stop
from flowserve.core.stopping.samples import RULES, Votes, certainty
from flowserve.core.stopping.signals import UNUSABLE, Label, Reward, Signal, Vote
from flowserve.core.stopping.waves import needed


@dataclass(frozen=True, slots=True)
class Certaindex:
    """When a program is certain enough: all thresholds that are given are reached (Fu et al., Dynasor, arXiv 2412.20993v2,
    section 3.2). Looked at when `first` branches have ended, and then after `every` more; 0 is once, as in the paper's
    end-to-end results."""

    first: int
    certainty: float | None = None
    """Of the votes: 1 - H / log n (`samples.certainty`)."""
    mean_reward: float | None = None
    """Over the branches that ended; one that failed has earned nothing."""
    max_reward: float | None = None
    every: int = 0

    def __post_init__(self) -> None:
        for name, least in (("first", 1), ("every", 0)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ValueError(f"{name}: expected a number from {least}; got {value!r}")
        given = {name: getattr(self, name) for name in ("certainty", "mean_reward", "max_reward")}
        if all(value is None for value in given.values()):
            raise ValueError(f"expected a threshold: {', '.join(given)}; got none")
        for name, value in given.items():
            if value is not None and (isinstance(value, bool) or not isinstance(value, int | float) or isnan(value)):
                raise ValueError(f"{name}: expected a number or None; got {value!r}")

    def detects(self, ended: int) -> bool:
        """Whether it is looked at now."""
        return ended == self.first or (self.every > 0 and ended > self.first and (ended - self.first) % self.every == 0)


PUBLISHED: dict[str, Certaindex] = {
    "consistency": Certaindex(5, certainty=0.7),
    "consistency-code": Certaindex(5, certainty=0.4),
    "mcts": Certaindex(3, certainty=0.99, mean_reward=0.4),
    "mcts-reward": Certaindex(3, mean_reward=0.4),
    "rebase": Certaindex(16, certainty=0.85, max_reward=0.99),
    "rebase-certainty": Certaindex(16, certainty=0.75),
}
"""Table 3 of the paper: self-consistency on MATH and GSM8K, on LiveCodeBench; MCTS on GSM8K, on ASDiv; Rebase on GSM8K, on MATH."""


class CertaindexRule:
    """Stops by `Certaindex`; None: never. `wave` branches are begun, and as many again whenever all have ended, up to `most`."""

    def __init__(self, certain: Certaindex | None, wave: int, most: int) -> None:
        self._certain = certain
        self._wave = wave
        self._most = most
        self._begun = 0
        self._labels: dict[int, Label] = {}
        self._rewards: dict[int, float] = {}

    def begin(self) -> Decision:
        return self._more()

    def observe(self, signal: Signal) -> Decision:
        if isinstance(signal, Reward):
            self._rewards[signal.branch] = signal.value
            return Continue()
        if not isinstance(signal, Vote):
            return Continue()
        self._labels[signal.branch] = signal.label
        ended = len(self._labels)
        label = leading(self._labels, self._rewards)
        if self._certain is not None and label != UNUSABLE and self._certain.detects(ended):
            why = self._passed(self._certain)
            if why:
                return Stop(label, f"{why} at {ended}")
        return self._more() if ended == self._begun < self._most else Continue()

    def _more(self) -> Spawn:
        count = min(self._wave, self._most - self._begun)
        self._begun += count
        return Spawn(count)

    def _passed(self, certain: Certaindex) -> str:
        """What was reached, for people; empty if a threshold was not."""
        earned = self._rewards.values()
        measured = {
            "certainty": (certainty(Counter(self._labels.values())), certain.certainty),
            "mean reward": (sum(earned) / len(self._labels), certain.mean_reward),
            "reward": (max(earned, default=0.0), certain.max_reward),
        }
        asked = [(name, value, least) for name, (value, least) in measured.items() if least is not None]
        if any(value < least for _, value, least in asked):
            return ""
        return ", ".join(f"{name} {value:.3g} >= {least:g}" for name, value, least in asked)


class VoteRule:
    """Stops by a rule over votes (`samples.RULES`); None: never. As many branches are begun as are sure to be needed
    (`waves.needed`), and `wave` at least."""

    def __init__(self, rule: str | None, args: Mapping[str, float], most: int, wave: int = 1) -> None:
        self._rule = RULES[rule] if rule is not None else None
        self._name = rule
        self._args = args
        self._most = most
        self._wave = wave
        self._begun = 0
        self._votes = Votes()
        self._labels: dict[int, Label] = {}

    def begin(self) -> Decision:
        return self._more()

    def observe(self, signal: Signal) -> Decision:
        if not isinstance(signal, Vote):
            return Continue()
        self._votes.add(signal.label)
        self._labels[signal.branch] = signal.label
        ended = len(self._labels)
        label = leading(self._labels, {})
        args = {**self._args, "left": self._most - ended}
        if self._rule is not None and label != UNUSABLE and self._rule(self._votes, args):
            return Stop(label, f"{self._name}: {self._votes[label]} of {ended} agree")
        return self._more() if ended == self._begun < self._most else Continue()

    def _more(self) -> Spawn:
        left = self._most - self._begun
        sure = left if self._rule is None else needed(self._rule, self._votes, self._args, left)
        count = min(left, max(sure, self._wave))
        self._begun += count
        return Spawn(count)


def leading(labels: Mapping[int, Label], rewards: Mapping[int, float]) -> Label:
    """The class with the most votes by branch, each weighing its reward (1 where no branch has any); ties go to the class of
    the earliest branch. UNUSABLE if none is usable."""
    weights: dict[Label, float] = {}
    for branch, label in sorted(labels.items()):
        if label != UNUSABLE:
            weights[label] = weights.get(label, 0.0) + (rewards.get(branch, 0.0) if rewards else 1.0)
    return max(weights, key=weights.__getitem__, default=UNUSABLE)
