"""Problems of a bank, each with the chains that were recorded of it, and with more of its kind where more samples are wanted."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random

from flowserve.core.stopping.signals import UNUSABLE, Label
from flowserve.errors import ConfigError
from flowserve.reasoning.bank import read_bank
from flowserve.reasoning.replay import Recording, label_all
from flowserve.sim.voting import Answer, Chain

Class = tuple[str, str, int]
"""Problems that are alike: model, data set, and how many of the recorded chains are right."""
OTHERS: Label = 1 << 20
"""Where classes of answers begin that no chain of a problem ended with."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One problem, and what one model makes of it."""

    kind: Class
    chains: tuple[Chain, ...]
    """As recorded, in order of seed."""


class Bank:
    """All problems of models of which trials were recorded."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        self._alike: dict[Class, list[Problem]] = {}
        for problem in problems:
            self._alike.setdefault(problem.kind, []).append(problem)

    def sample(self, rnd: Random, count: int) -> list[Chain]:
        """A problem and `count` chains of it in random order. Where more are wanted than were recorded, the others are chains of
        problems that are alike, each with the answer that stands for its own: right is right, and a wrong answer is
        as frequent among the wrong ones here as it was there."""
        problem = rnd.choice(self.problems)
        chains = list(problem.chains)
        rnd.shuffle(chains)
        alike = self._alike[problem.kind]
        while len(chains) < count:
            other = rnd.choice(alike)
            chains.append(translated(rnd.choice(other.chains), other, problem))
        return chains[:count]


def read_problems(path: Path, model: str | None = None) -> Bank:
    """Raises ConfigError where nothing is left to run."""
    recordings = label_all(item for item in read_bank(path) if model is None or item.model == model)
    with_trials = {recording.trajectory.model for recording in recordings if recording.trials is not None}
    groups: dict[tuple[str, str, str], list[Recording]] = {}
    for recording in recordings:
        item = recording.trajectory
        if item.model in with_trials:
            groups.setdefault((item.model, item.dataset, item.problem), []).append(recording)
    if not groups:
        which = "" if model is None else f" of the model {model!r}"
        raise ConfigError(
            f"{path}: expected chains{which} with trials; there are none. Choose another --bank or --model"
        )
    return Bank([_problem(group) for group in groups.values()])


def _problem(recordings: Iterable[Recording]) -> Problem:
    ordered = sorted(recordings, key=lambda recording: recording.trajectory.seed)
    item = ordered[0].trajectory
    right = sum(recording.trajectory.final_correct for recording in ordered)
    return Problem((item.model, item.dataset, right), tuple(map(_chain, ordered)))


def _chain(recording: Recording) -> Chain:
    item = recording.trajectory
    final = Answer(recording.final, item.final_correct)
    return Chain(item.tokens, final, recording.trials or (), recording.right)


def translated(chain: Chain, source: Problem, target: Problem) -> Chain:
    """A chain of `source` as one of `target`: equal answers stay equal, right ones are right, and those that are neither right
    nor among the final answers of `target` are classes of their own."""
    right = {label for each in source.chains for label in each.right}
    rights = [label for each in target.chains for label in each.right]
    classes = dict(zip(_wrong(source), _wrong(target), strict=False))

    def named(label: Label) -> Label:
        if label == UNUSABLE:
            return label
        if label in right and rights:
            return rights[0]
        return classes.get(label, OTHERS + label)

    trials = tuple(replace(trial, label=named(trial.label)) for trial in chain.trials)
    final = Answer(named(chain.final.label), chain.final.correct)
    return replace(chain, final=final, trials=trials, right=tuple(map(named, chain.right)))


def _wrong(problem: Problem) -> list[Label]:
    """Classes of its wrong final answers, the most frequent first."""
    wrong = [chain.final.label for chain in problem.chains if not chain.final.correct]
    return sorted({label for label in wrong if label != UNUSABLE}, key=lambda label: (-wrong.count(label), label))
