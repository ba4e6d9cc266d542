"""Replay: what is charged, what counts as right, when a chain keeps its own result, and votes over several chains."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import pytest

from flowserve.core.stopping.rules import Continue, Decision, ProbeAt, Stop
from flowserve.core.stopping.samples import Votes
from flowserve.core.stopping.signals import UNUSABLE, Label, Probe, Signal, Trial
from flowserve.reasoning.bank import RecordedProbe, RecordedTrial, Trajectory
from flowserve.reasoning.outcomes import accuracy_change_pp, tokens_saved_pct
from flowserve.reasoning.replay import Drawn, Ended, draw, elect, label_all, label_samples, vote, walk
from flowserve.reasoning.samples_file import Sampled

TRIALS = (("", 0.99), ("5", 0.4), ("7", 0.6), ("9", 0.97))
"""At 100, 200, 300 and 400 tokens; each wrote 6."""


def chain(final: str = "9", correct: bool = True, target: str = "9", seed: int = 1, tokens: int = 500) -> Trajectory:
    return Trajectory(
        "m", "math500", "1", seed, target, final, correct, tokens, True,
        probes=tuple(RecordedProbe(100 * number, answer, True, 4) for number, (answer, _) in enumerate(TRIALS, 1)),
        trials=tuple(RecordedTrial(100 * number, *trial, 6) for number, trial in enumerate(TRIALS, 1)),
    )  # fmt: skip


@dataclass
class Scripted:
    """Asks every so many tokens, from the first time on, and stops at the signal of that number."""

    stops_at: int | None
    every: int = 100
    confident: bool = True
    seen: list[Signal] = field(default_factory=list)

    def begin(self) -> Decision:
        return ProbeAt(self.every, self.confident)

    def observe(self, signal: Signal) -> Decision:
        assert isinstance(signal, Trial if self.confident else Probe)
        self.seen.append(signal)
        if len(self.seen) == self.stops_at:
            return Stop(signal.label, "scripted")
        return ProbeAt(signal.position + self.every, self.confident)


class Silent:
    """Asks for nothing."""

    def begin(self) -> Decision:
        return Continue()

    def observe(self, signal: Signal) -> Decision:
        raise AssertionError("nothing was asked for")


def test_a_rule_that_asks_for_nothing_changes_nothing_and_costs_nothing() -> None:
    recordings = label_all([chain(), chain(final="3", correct=False)])
    outcomes = [walk(recording, Silent()).outcome for recording in recordings]
    assert (accuracy_change_pp(outcomes), tokens_saved_pct(outcomes)) == (0, 0)
    assert [outcome.correct for outcome in outcomes] == [True, False]


def test_a_rule_that_never_stops_costs_its_trials_and_nothing_else() -> None:
    (recording,) = label_all([chain()])
    ended = walk(recording, Scripted(None))
    assert (ended.outcome.main_tokens, ended.outcome.extra_tokens) == (500, 24)
    assert (ended.outcome.correct, ended.outcome.stopped, ended.label) == (True, False, recording.final)


def test_a_stop_charges_the_chain_up_to_it_and_all_trials_so_far() -> None:
    (recording,) = label_all([chain()])
    outcome = walk(recording, Scripted(3)).outcome
    assert (outcome.main_tokens, outcome.extra_tokens, outcome.stopped) == (300, 18, True)
    assert (outcome.correct, outcome.harm) == (False, True), (
        "7 is neither the target nor what the chain went on to find"
    )


def test_what_was_not_asked_for_is_neither_shown_nor_charged() -> None:
    (recording,) = label_all([chain()])
    rule = Scripted(None, every=150)
    assert walk(recording, rule).outcome.extra_tokens == 12
    assert [signal.position for signal in rule.seen if isinstance(signal, Trial)] == [200, 400]


def test_probes_are_walked_as_trials_are() -> None:
    (recording,) = label_all([chain()])
    outcome = walk(recording, Scripted(4, confident=False)).outcome
    assert (outcome.main_tokens, outcome.extra_tokens, outcome.correct) == (400, 16, True)


def test_a_signal_beyond_the_end_of_the_chain_is_none() -> None:
    (recording,) = label_all([chain(tokens=350)])
    rule = Scripted(4)
    assert walk(recording, rule).outcome.stopped is False
    assert len(rule.seen) == 3


@pytest.mark.parametrize(
    ("final", "correct", "target", "right"),
    [
        ("9", True, "9", True),
        ("3", False, "9", True),
        ("9", True, "nine", True),
        ("9", False, "8", False),
        ("9", False, "9.0", False),
        ("9", True, "", True),
        ("9.0", True, "18/2", True),
    ],
)
def test_a_stop_is_graded_as_the_chain_that_said_the_same_or_else_by_the_target(
    final: str, correct: bool, target: str, right: bool
) -> None:
    (recording,) = label_all([chain(final, correct, target)])
    assert walk(recording, Scripted(4)).outcome.correct is right


def test_an_empty_answer_is_never_right_whatever_the_target_is() -> None:
    (recording,) = label_all([chain(final="", correct=True, target="")])
    assert recording.right == ()
    assert walk(recording, Scripted(1)).outcome.correct is False


def ended(label: Label, correct: bool, tokens: int = 100, seed: int = 1) -> Ended:
    (recording,) = label_all([chain("9" if correct else "3", correct, seed=seed, tokens=tokens)])
    outcome = walk(recording, Silent()).outcome
    return Ended(outcome, label)


@pytest.mark.parametrize(
    ("labels", "tokens", "num_chains", "elected"),
    [
        ((0, 0, 1), 200, 2, 0),
        ((0, 1, 0), 300, 3, 0),
        ((0, 1, 1), 300, 3, 1),
        ((0, 1, 2), 300, 3, 0),
        ((UNUSABLE, UNUSABLE, 4), 300, 3, 2),
        ((UNUSABLE, UNUSABLE, UNUSABLE), 300, 3, 0),
        ((3,), 100, 1, 0),
    ],
)
def test_the_third_chain_is_begun_only_if_two_disagree(
    labels: tuple[Label, ...], tokens: int, num_chains: int, elected: int
) -> None:
    found = vote([ended(label, number == elected) for number, label in enumerate(labels)])
    assert (found.tokens, found.num_chains, found.correct) == (tokens, num_chains, True)
    assert elect(labels[:num_chains]) == elected


def test_chains_of_one_problem_share_their_classes() -> None:
    one, other, elsewhere = label_all(
        [
            chain("3", False),
            chain("3.0", False, seed=2),
            Trajectory("m", "amc23", "1", 1, "3", "3", True, 9, True, (), ()),
        ]
    )
    assert one.final == other.final
    assert elsewhere.right == (0,)


def fixed(votes: Votes, args: Mapping[str, float]) -> bool:
    assert args["left"] == 5 - len(votes.order)
    return len(votes.order) == args["samples"]


def test_samples_are_drawn_until_the_rule_stops() -> None:
    labels, target = label_samples(Sampled("7", ("5", "7.0", "", "7", "5")))
    assert (labels, target) == ([0, 1, UNUSABLE, 1, 0], 1)
    assert draw(labels, target, fixed, {"samples": 4}) == Drawn(4, correct=True, full_correct=False)
    assert draw(labels, target, fixed, {"samples": 9}) == Drawn(5, correct=False, full_correct=False)


def test_a_target_without_a_form_is_met_by_no_vote() -> None:
    labels, target = label_samples(Sampled("", ("", "5")))
    assert draw(labels, target, lambda counts, args: True, {}) == Drawn(1, correct=False, full_correct=False)
