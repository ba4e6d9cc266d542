"""Rules for programs of many branches and the arithmetic of their searches, against hand-computed and published figures."""

import itertools
from collections.abc import Sequence
from math import e, inf, log, sqrt
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowserve.core.stopping.programs import PUBLISHED, Certaindex, CertaindexRule, VoteRule, leading
from flowserve.core.stopping.rules import Continue, Decision, ExitRule, Spawn, Stop
from flowserve.core.stopping.search import balanced, uct
from flowserve.core.stopping.signals import UNUSABLE, Confidence, Reward, Vote


def said(rule: ExitRule, labels: Sequence[int], rewards: Sequence[float] = ()) -> list[Decision]:
    """What a rule says at the beginning and after each vote, until it stops."""
    decisions = [rule.begin()]
    for branch, label in enumerate(labels):
        if branch < len(rewards):
            assert rule.observe(Reward(branch, rewards[branch])) == Continue()
        decisions.append(rule.observe(Vote(branch, label)))
        if isinstance(decisions[-1], Stop):
            break
    return decisions


def test_five_equal_answers_are_enough_and_four_of_five_are_not() -> None:
    rule = CertaindexRule(PUBLISHED["consistency"], wave=5, most=30)
    assert said(rule, [0] * 5) == [Spawn(5), *[Continue()] * 4, Stop(0, "certainty 1 >= 0.7 at 5")]
    rule = CertaindexRule(PUBLISHED["consistency"], wave=5, most=30)
    assert said(rule, [0, 0, 0, 0, 1]) == [Spawn(5), *[Continue()] * 4, Spawn(5)], "0.689 is below 0.7"


def test_what_was_missed_at_the_one_detection_is_not_looked_at_again() -> None:
    rule = CertaindexRule(PUBLISHED["consistency"], wave=5, most=30)
    assert not any(isinstance(decision, Stop) for decision in said(rule, [1] + [0] * 29))
    rule = CertaindexRule(Certaindex(5, certainty=0.7, every=5), wave=5, most=30)
    assert said(rule, [1] + [0] * 29)[-1] == Stop(0, "certainty 0.859 >= 0.7 at 10")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"first": 0, "certainty": 0.7}, "first: expected a number from 1; got 0"),
        ({"first": 3, "certainty": 0.7, "every": -1}, "every: expected a number from 0; got -1"),
        ({"first": 3}, "expected a threshold: certainty, mean_reward, max_reward; got none"),
        ({"first": 3, "max_reward": "high"}, "max_reward: expected a number or None; got 'high'"),
    ],
)
def test_thresholds_that_mean_nothing_are_refused(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Certaindex(**given)


def test_mcts_needs_certainty_and_mean_reward_together() -> None:
    def decided(labels: list[int], rewards: list[float]) -> Decision:
        return said(CertaindexRule(PUBLISHED["mcts"], wave=1, most=20), labels, rewards)[-1]

    assert decided([0, 0, 0], [0.4, 0.4, 0.4]) == Stop(0, "certainty 1 >= 0.99, mean reward 0.4 >= 0.4 at 3")
    assert decided([0, 0, 0], [0.4, 0.4, 0.3]) == Spawn(1)
    assert decided([0, 1, 0], [0.9, 0.9, 0.9]) == Spawn(1)
    assert decided([0, 0, UNUSABLE], [1.0, 0.5]) == Spawn(1), "one that failed agrees with nobody"


def test_rebase_needs_certainty_and_one_great_reward() -> None:
    def decided(rewards: list[float]) -> Decision:
        return said(CertaindexRule(PUBLISHED["rebase"], wave=16, most=128), [0] * 16, rewards)[-1]

    assert decided([0.1] * 15 + [0.99]) == Stop(0, "certainty 1 >= 0.85, reward 0.99 >= 0.99 at 16")
    assert decided([0.98] * 16) == Spawn(16)


def test_one_that_failed_has_earned_nothing() -> None:
    rule = CertaindexRule(Certaindex(2, mean_reward=0.4), wave=2, most=2)
    assert said(rule, [0, UNUSABLE], [0.7])[-1] == Continue(), "0.7 over two is 0.35"


def test_nothing_usable_is_never_enough() -> None:
    rule = CertaindexRule(Certaindex(1, max_reward=0.5, every=1), wave=3, most=3)
    assert said(rule, [UNUSABLE] * 3, [0.9] * 3)[-1] == Continue()


def test_the_answer_of_a_stop_is_that_with_the_greatest_sum_of_rewards() -> None:
    assert leading({0: 0, 1: 1, 2: 1}, {0: 0.9, 1: 0.5, 2: 0.5}) == 1
    assert leading({0: 0, 1: 1, 2: 1}, {0: 0.9, 1: 0.5, 2: 0.3}) == 0
    assert leading({0: 1, 1: 0}, {}) == 1, "ties go to the earliest"
    assert leading({0: UNUSABLE, 1: UNUSABLE, 2: 4}, {}) == 4
    assert leading({}, {}) == UNUSABLE


def test_branches_are_begun_in_waves_up_to_the_most() -> None:
    assert said(CertaindexRule(None, wave=2, most=5), [0, 1, 2, 3, 4]) == [
        Spawn(2), Continue(), Spawn(2), Continue(), Spawn(1), Continue(),
    ]  # fmt: skip
    assert said(CertaindexRule(None, wave=8, most=3), [0, 0, 0]) == [Spawn(3), *[Continue()] * 3]


def test_other_signals_are_not_for_rules_of_branches() -> None:
    for rule in (CertaindexRule(None, wave=1, most=1), VoteRule(None, {}, 1)):
        rule.begin()
        assert rule.observe(Confidence(0, 10, 1.0)) == Continue()


def test_any_rule_over_votes_begins_what_is_sure_to_be_needed() -> None:
    rule = VoteRule("decided", {}, most=7)
    assert said(rule, [0, 1, 0, 0, 0]) == [Spawn(4), *[Continue()] * 3, Spawn(1), Stop(0, "decided: 4 of 5 agree")]
    rule = VoteRule("adaptive_consistency", {"threshold": 0.95}, most=40)
    assert said(rule, [2, 2, 2, 2]) == [Spawn(4), *[Continue()] * 3, Stop(2, "adaptive_consistency: 4 of 4 agree")]
    rule = VoteRule("esc", {"window": 2}, most=6)
    assert said(rule, [0, 1, 1, 1])[-1] == Stop(1, "esc: 3 of 4 agree"), "windows are counted in order"
    assert said(VoteRule("agreement", {"agreeing": 2}, most=9, wave=3), [0, 1, 2]) == [
        Spawn(3), Continue(), Continue(), Spawn(3),
    ]  # fmt: skip
    assert said(VoteRule(None, {}, most=3), [0, 0, 0]) == [Spawn(3), *[Continue()] * 3]


# --- REBASE -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rewards", "width", "temperature", "counts"),
    [
        ([0.0], 16, 0.2, (16,)),
        ([0.5, 0.5], 16, 0.2, (8, 8)),
        ([log(3), 0.0], 8, 1.0, (6, 2)),  # weights 3 : 1
        ([log(2), log(2), 0.0], 10, 1.0, (4, 4, 2)),
        ([0.5, 0.5, 0.5], 4, 1.0, (2, 1, 1)),  # 4/3 each: one is left, for the earliest
        ([0.0, log(2)], 4, 1.0, (1, 3)),  # 4/3 and 8/3: the greater remainder gets what is left
        ([1.0, 0.0], 4, 1.0, (3, 1)),  # 4e/(e+1) = 2.924 and 1.076
        ([1.0, 0.0], 16, 0.2, (16, 0)),  # weights e^5 : 1, that is 15.89 and 0.107
        ([900.0, 0.0], 3, 0.1, (3, 0)),
        ([], 5, 1.0, ()),
    ],
)
def test_a_width_is_shared_by_softmax_of_reward(
    rewards: list[float], width: int, temperature: float, counts: tuple[int, ...]
) -> None:
    assert balanced(rewards, width, temperature) == counts


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12), st.integers(0, 64), st.floats(0.05, 2))
def test_shares_add_up_and_are_within_one_of_exact(rewards: list[float], width: int, temperature: float) -> None:
    counts = balanced(rewards, width, temperature)
    assert sum(counts) == width
    weights = [e ** (reward / temperature) for reward in rewards]
    for count, weight in zip(counts, weights, strict=True):
        assert abs(count - width * weight / sum(weights)) < 1 + 1e-6
    for (a, n), (b, m) in itertools.combinations(zip(rewards, counts, strict=True), 2):
        assert a <= b + 1e-9 or n >= m, "a greater reward never gets less"


# --- MCTS ---------------------------------------------------------------------------------------------------


def test_uct_is_the_mean_and_a_bonus_for_what_was_tried_little() -> None:
    assert uct(1.5, 3, 9, 0.0) == 0.5
    assert uct(1.5, 3, 9, 1.0) == pytest.approx(0.5 + sqrt(2.1972245773 / 3))
    assert uct(0.0, 0, 9, 1.0) == inf
    assert uct(0.9, 1, 10, 1.4) > uct(0.95 * 9, 9, 10, 1.4), "the better one was tried nine times"
