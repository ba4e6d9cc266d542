"""Recorded trajectories walked under a stopping rule: what it would have answered, and at what price.

The chain's tokens up to the stop are charged, and all that trials and probes wrote until then. A chain that was not stopped keeps
its recorded result. A stop with the answer that the chain went on to give is graded as that was; any other is right if it is the
target. (Were our grader to judge the stops and another one the chains, stops would gain or lose what the two disagree on.)
What cannot be seen here: a recorded chain does not change because it was asked, and only the answer is delivered.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from flowserve.core.stopping.rules import ExitRule, ProbeAt, Stop
from flowserve.core.stopping.samples import Rule, Votes, decided
from flowserve.core.stopping.signals import UNUSABLE, Label, Probe, Trial
from flowserve.ids import Tokens
from flowserve.reasoning.answers import Labels
from flowserve.reasoning.bank import Trajectory
from flowserve.reasoning.outcomes import Outcome
from flowserve.reasoning.samples_file import Sampled


@dataclass(frozen=True, slots=True)
class Recording:
    """A trajectory whose answers are classes, as rules see them. Chains of one problem share their classes."""

    trajectory: Trajectory
    trials: tuple[Trial, ...] | None
    """None: none were recorded, so that a rule over trials cannot be replayed."""
    probes: tuple[Probe, ...] | None
    final: Label
    right: tuple[Label, ...]
    """Classes of answers that count as right."""


@dataclass(frozen=True, slots=True)
class Ended:
    """A chain that ended or was stopped."""

    outcome: Outcome
    label: Label
    """Class of its answer."""


@dataclass(frozen=True, slots=True)
class Elected:
    """Several chains of one problem, and the vote among those that were begun."""

    tokens: Tokens
    """Written by all of them, trials and probes included."""
    num_chains: int
    correct: bool


@dataclass(frozen=True, slots=True)
class Drawn:
    """Samples of one question, drawn in one order until a rule stopped."""

    num_samples: int
    correct: bool
    full_correct: bool
    """The vote of all samples was right."""


def label_all(trajectories: Iterable[Trajectory]) -> list[Recording]:
    """In the same order."""
    classes: dict[tuple[str, str, str], Labels] = {}
    return [
        _labelled(item, classes.setdefault((item.model, item.dataset, item.problem), Labels())) for item in trajectories
    ]


def _labelled(item: Trajectory, labels: Labels) -> Recording:
    target, final = labels[item.target], labels[item.final_answer]
    right = [label for label in dict.fromkeys((target, final)) if label != UNUSABLE]
    return Recording(
        item,
        None
        if item.trials is None
        else tuple(Trial(it.position, labels[it.answer], it.confidence, it.cost, it.closed) for it in item.trials),
        None
        if item.probes is None
        else tuple(Probe(it.position, labels[it.answer], not it.certain, it.cost) for it in item.probes),
        final,
        tuple(label for label in right if label != final or item.final_correct),
    )


def walk(recording: Recording, rule: ExitRule) -> Ended:
    """`rule` is fresh, and used up.

    Each ProbeAt is answered by the first trial (or probe, if confidence is not asked for) at or after its position that was not
    shown yet. A rule that asks for nothing, or for what was not recorded, lets the chain end by itself.
    """
    extra: Tokens = 0
    shown = {True: 0, False: 0}
    decision = rule.begin()
    while isinstance(decision, ProbeAt):
        signals = (recording.trials if decision.confident else recording.probes) or ()
        number = shown[decision.confident]
        while number < len(signals) and signals[number].position < decision.position:
            number += 1
        if number == len(signals) or signals[number].position > recording.trajectory.tokens:
            break
        shown[decision.confident] = number + 1
        extra += signals[number].cost
        decision = rule.observe(signals[number])
        if isinstance(decision, Stop):
            return _stopped(recording, decision.label, signals[number].position, extra)
    return _ran_to_its_end(recording, extra)


def whole(recording: Recording) -> Ended:
    """The chain as it was recorded, under no rule."""
    return _ran_to_its_end(recording, 0)


def _stopped(recording: Recording, label: Label, position: Tokens, extra: Tokens) -> Ended:
    outcome = _outcome(recording, position, extra, label in recording.right, stopped=True)
    return Ended(replace(outcome, differs=label != recording.final or label == UNUSABLE), label)


def _ran_to_its_end(recording: Recording, extra: Tokens) -> Ended:
    item = recording.trajectory
    return Ended(_outcome(recording, item.tokens, extra, item.final_correct, stopped=False), recording.final)


def _outcome(recording: Recording, main: Tokens, extra: Tokens, correct: bool, stopped: bool) -> Outcome:
    item = recording.trajectory
    return Outcome(
        item.model,
        item.dataset,
        item.problem,
        item.seed,
        item.tokens,
        main,
        extra,
        item.final_correct,
        correct,
        stopped,
    )


def elect(labels: Sequence[Label]) -> int:
    """Index of the answer that a vote delivers: the earliest of the largest class. An unusable answer has its own vote only."""
    votes = Votes(labels)
    counts = [0 if label == UNUSABLE else votes[label] for label in labels]
    return counts.index(max(counts))


def vote(chains: Sequence[Ended]) -> Elected:
    """Chains of one problem begun one after the other, until those that are left could not change the vote.

    Of three chains the third is begun only if the first two disagree.
    """
    votes = Votes()
    for number, chain in enumerate(chains, 1):
        votes.add(chain.label)
        if decided(votes, {"left": len(chains) - number}):
            return vote_of_all(chains[:number])
    return vote_of_all(chains)


def vote_of_all(chains: Sequence[Ended]) -> Elected:
    """Chains of one problem begun all at once."""
    tokens = sum(chain.outcome.main_tokens + chain.outcome.extra_tokens for chain in chains)
    return Elected(tokens, len(chains), chains[elect([chain.label for chain in chains])].outcome.correct)


def label_samples(sampled: Sampled) -> tuple[list[Label], Label]:
    """(labels of the answers, label of the target)."""
    labels = Labels()
    return [labels[answer] for answer in sampled.answers], labels[sampled.target]


def draw(labels: Sequence[Label], target: Label, rule: Rule, args: Mapping[str, float]) -> Drawn:
    """Samples of one question in this order, until `rule` stops or none is left."""
    votes = Votes()
    full_correct = _is_right(labels, target)
    for number, label in enumerate(labels, 1):
        votes.add(label)
        if rule(votes, {**args, "left": len(labels) - number}):
            return Drawn(number, _is_right(labels[:number], target), full_correct)
    return Drawn(len(labels), full_correct, full_correct)


def _is_right(labels: Sequence[Label], target: Label) -> bool:
    return target != UNUSABLE and labels[elect(labels)] == target
