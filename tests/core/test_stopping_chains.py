"""Rules for one chain: what they ask for, when they stop, and what never counts as agreement."""

from collections.abc import Iterable, Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowserve.core.stopping.chains import CHAIN_RULES, DEFAULT_RULE, Evidence
from flowserve.core.stopping.deepconf import DEEPCONF, percentile
from flowserve.core.stopping.rules import Continue, Decision, ExitRule, Kill, ProbeAt, Spawn, Stop
from flowserve.core.stopping.signals import UNUSABLE, Confidence, Label, Probe, Trial, Vote
from flowserve.errors import ConfigError


def told(rule: ExitRule, signals: Iterable[Trial | Probe]) -> list[Decision]:
    """Decisions from the first on, until it stops."""
    decisions = [rule.begin()]
    for signal in signals:
        decisions.append(rule.observe(signal))
        if isinstance(decisions[-1], Stop):
            break
    return decisions


def trials(*said: tuple[Label, float], apart: int = 100) -> list[Trial]:
    return [Trial(apart * number, label, confidence, 6) for number, (label, confidence) in enumerate(said, 1)]


def probes(*labels: Label, doubt: tuple[int, ...] = (), apart: int = 64) -> list[Probe]:
    """`doubt`: numbers of the probes, from 0, that contain a word of doubt."""
    return [Probe(apart * (number + 1), label, number in doubt, 5) for number, label in enumerate(labels)]


def stops_at(name: str, signals: Iterable[Trial | Probe], **args: float) -> tuple[int, Label] | None:
    """(number of the signal, from 1; answer); None: never."""
    decisions = told(CHAIN_RULES[name](args), signals)
    last = decisions[-1]
    return (len(decisions) - 1, last.label) if isinstance(last, Stop) else None


def test_the_default_stops_only_above_its_threshold_and_says_why() -> None:
    decisions = told(CHAIN_RULES[DEFAULT_RULE]({}), trials((0, 0.999), (0, 0.9993)))
    assert decisions == [
        ProbeAt(64),
        ProbeAt(164),
        Stop(0, "confidence 0.99930 > 0.999 at 200 tokens"),
    ]


def test_trials_are_bounded_in_distance_and_number() -> None:
    rule = CHAIN_RULES[DEFAULT_RULE]({"apart": 50, "trials": 2})
    assert told(rule, trials((0, 0.5), (0, 0.5))) == [ProbeAt(50), ProbeAt(150), Continue()]


def test_a_trial_that_went_on_thinking_or_said_nothing_never_stops_a_chain() -> None:
    open_ended, empty = Trial(100, 0, 1.0, 20, closed=False), Trial(200, UNUSABLE, 1.0, 20)
    for name in ("default", "deer", "agree", "evidence"):
        assert not any(isinstance(each, Stop) for each in told(CHAIN_RULES[name]({}), [open_ended, empty] * 4)), name


@pytest.mark.parametrize(
    ("said", "stops"),
    [
        ([(0, 0.5), (0, 0.99)], (2, 0)),
        ([(0, 0.99), (0, 0.5)], None),
        ([(1, 0.99), (0, 0.99), (0, 0.99)], (3, 0)),
        ([(0, 0.99), (UNUSABLE, 0.99), (0, 0.99)], None),
        ([(UNUSABLE, 1.0), (UNUSABLE, 1.0)], None),
    ],
)
def test_agreement_is_of_trials_one_after_the_other(said: list[tuple[Label, float]], stops: object) -> None:
    assert stops_at("agree", trials(*said)) == stops


@pytest.mark.parametrize(
    ("labels", "args", "doubt", "stops"),
    [
        ((0, 0, 0), {}, (), (3, 0)),
        ((0, 0), {}, (), None),
        ((1, 0, 0, 0), {}, (), (4, 0)),
        ((0, 0, 0, 0), {}, (1,), None),
        ((0, 0, 0, 0, 0), {}, (1,), (5, 0)),
        ((0, 0, 0), {"doubt": 0}, (1,), (3, 0)),
        ((0, 1, 0), {"share": 2 / 3}, (), (3, 0)),
        ((0, 0, 1), {"share": 2 / 3}, (), None),
        ((UNUSABLE,) * 9, {}, (), None),
        ((UNUSABLE,) * 9, {"share": 0.1}, (), None),
    ],
)
def test_certaindex_asks_what_share_of_the_window_says_what_the_newest_probe_says(
    labels: tuple[Label, ...], args: Mapping[str, float], doubt: tuple[int, ...], stops: object
) -> None:
    assert stops_at("certaindex", probes(*labels, doubt=doubt), **{"window": 3, "every": 64, **args}) == stops


def test_probes_are_asked_for_without_confidence_at_their_interval() -> None:
    assert told(CHAIN_RULES["certaindex"]({"every": 128}), probes(0, apart=130)) == [
        ProbeAt(128, confident=False),
        ProbeAt(258, confident=False),
    ]


@pytest.mark.parametrize(
    ("effort", "agreeing", "every"),
    [("mild", 8, 64), ("low", 5, 64), ("mid", 3, 64), ("high", 2, 64), ("crazy", 2, 32)],
)
def test_dynasor_s_efforts_are_those_that_it_ships(effort: str, agreeing: int, every: int) -> None:
    name = f"dynasor-{effort}"
    assert CHAIN_RULES[name]({}).begin() == ProbeAt(every, confident=False)
    assert stops_at(name, probes(*[0] * 20)) == (agreeing, 0)


def test_entropy_is_that_of_a_window_and_submits_the_most_frequent_answer() -> None:
    assert stops_at("entropy", probes(1, 0, 0, 0), window=4, threshold=0.5) == (4, 0)
    assert stops_at("entropy", probes(1, 0, 0, 0), window=4, threshold=0.7) is None
    assert stops_at("entropy", probes(0, 0, 1, 1), window=4, threshold=0.5) == (4, 1), "of several the newest"
    assert stops_at("entropy", probes(*[UNUSABLE] * 8), window=4, threshold=0) is None


def test_a_budget_is_kept_whatever_is_answered() -> None:
    rule = CHAIN_RULES["budget"]({"tokens": 1000})
    assert told(rule, [Probe(1024, UNUSABLE, True, 5)]) == [
        ProbeAt(1000, confident=False),
        Stop(UNUSABLE, "a budget of 1,000 tokens"),
    ]


@pytest.mark.parametrize(
    ("said", "stops"),
    [
        ([(0, 0.9991)], (1, 0)),
        ([(0, 0.99), (0, 0.99)], (2, 0)),
        ([(0, 0.99), (1, 0.99), (0, 0.99)], None),
        ([(0, 0.9), (0, 0.9), (0, 0.9), (0, 0.9)], None),
        ([(0, 0.99), (UNUSABLE, 0.99), (0, 0.99)], None),
        ([(0, 0.0), (0, 1.0)], (2, 0)),
    ],
)
def test_nines_of_trials_that_agree_add_up_and_fade(said: list[tuple[Label, float]], stops: object) -> None:
    """0.99 is 2 nines; twice, 2 + 0.5 x 2 = 3. 0.9 is one: 1 + 0.5 + 0.25 + ... stays below 2."""
    assert stops_at("evidence", trials(*said), nines=2.999, keep=0.5) == stops


@given(st.lists(st.tuples(st.integers(-1, 2), st.floats(0, 1)), max_size=20), st.sampled_from([0.9, 0.99, 0.999]))
def test_evidence_that_does_not_keep_is_a_threshold_on_confidence(
    said: list[tuple[Label, float]], threshold: float
) -> None:
    nines = {0.9: 1.0, 0.99: 2.0, 0.999: 3.0}[threshold]
    rounded = [(label, round(confidence, 5)) for label, confidence in said if round(confidence, 5) != threshold]
    assert stops_at("evidence", trials(*rounded), nines=nines, keep=0, trials=30) == stops_at(
        "deer", trials(*rounded), threshold=threshold, trials=30
    )


def test_when_trials_are_used_up_the_chain_is_probed_and_its_answer_has_to_stand() -> None:
    rule = CHAIN_RULES["evidence"]({"trials": 2, "apart": 100, "every": 200, "span": 400, "portion": 0.5})
    assert told(rule, [*trials((1, 0.5), (0, 0.5)), *probes(0, 0, 0, 0)]) == [ProbeAt(100), ProbeAt(200)] + [
        ProbeAt(400, confident=False),
        *(ProbeAt(at, confident=False) for at in (264, 328, 392, 456)),
    ]
    rule = CHAIN_RULES["evidence"]({"trials": 1, "apart": 100, "every": 200, "span": 400, "portion": 0.5})
    chain = [*trials((0, 0.5)), *(Probe(at, 0, False, 5) for at in (300, 499, 500))]
    assert told(rule, chain)[-1] == Stop(0, "unchanged from 100 to 500 tokens")


@pytest.mark.parametrize("between", [Probe(900, 1, False, 5), Probe(900, UNUSABLE, False, 5), Probe(900, 0, True, 5)])
def test_an_answer_that_changed_or_wavered_begins_anew(between: Probe) -> None:
    chain = [Probe(at, 0, False, 5) for at in (300, 600)] + [
        between,
        Probe(1200, 0, False, 5),
        Probe(1500, 0, False, 5),
    ]
    assert stops_at("evidence", chain, trials=0, span=800, portion=0) is None
    assert stops_at("evidence", chain, trials=0, span=300, portion=0) == (2, 0)


def test_the_longer_a_chain_the_longer_its_answer_has_to_stand() -> None:
    chain = [Probe(1000 * number, int(number > 6), False, 5) for number in range(1, 12)]
    assert stops_at("evidence", chain, trials=0, span=1000, portion=0) == (2, 0)
    assert stops_at("evidence", chain[5:], trials=0, span=1000, portion=0.25) == (5, 1), "3,000 of 10,000 tokens"


def test_a_trial_where_a_probe_was_asked_for_is_taken_for_one() -> None:
    """Engines that only make trials."""
    chain = trials((0, 0.5), (0, 0.5), (0, 0.999999), apart=1000)
    assert stops_at("evidence", chain, trials=1, span=2000, portion=0) == (3, 0)


def test_each_rule_keeps_its_own_state() -> None:
    one, other = CHAIN_RULES["evidence"]({}), CHAIN_RULES["evidence"]({})
    assert isinstance(one, Evidence)
    told(one, trials((0, 0.99)))
    assert not isinstance(other.observe(Trial(100, 0, 0.99, 6)), Stop)


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ({"treshold": 0.9}, "rule 'deer' has no parameter 'treshold'; known: threshold, agreeing, apart, trials"),
        ({"threshold": 1.2}, "rule 'deer', threshold: expected a number from 0 to 1; got 1.2"),
        ({"trials": 2.5}, "rule 'deer', trials: expected a whole number from 1 to 1,000,000; got 2.5"),
        ({"threshold": float("nan")}, "expected a number from 0 to 1; got nan"),
    ],
)
def test_parameters_are_checked(args: Mapping[str, float], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        CHAIN_RULES["deer"](args)


def test_every_rule_works_with_its_defaults_and_ignores_signals_that_are_not_for_it() -> None:
    for name, rule in CHAIN_RULES.items():
        assert rule.name == name
        assert rule.complete({}).keys() == rule.numbers.keys()
        made = rule({})
        assert isinstance(made.begin(), ProbeAt), name
        assert made.observe(Vote(0, 0)) == Continue(), name


def confidences(rule: ExitRule, branches: Iterable[tuple[int, float, Label]]) -> list[Decision]:
    """Branches one after the other: (number, its window, its answer)."""
    decisions = []
    for branch, window, label in branches:
        decisions.append(rule.observe(Confidence(branch, 2048, window)))
        decisions.append(rule.observe(Vote(branch, label)))
    return [each for each in decisions if each != Continue()]


def test_deepconf_keeps_branches_that_are_as_sure_as_the_best_of_its_warm_up() -> None:
    rule = DEEPCONF({"warm_up": 4, "budget": 8, "keep": 25})
    assert rule.begin() == Spawn(4)
    warm_up = [(0, 10.0, 0), (1, 12.0, 1), (2, 14.0, 0), (3, 16.0, 2)]
    assert confidences(rule, warm_up) == [Spawn(4)]
    assert percentile([10.0, 12.0, 14.0, 16.0], 75) == 14.5
    assert rule.observe(Confidence(4, 2048, 14.5)) == Continue()
    assert rule.observe(Confidence(5, 2048, 14.4)) == Kill(5)
    assert rule.observe(Vote(5, 0)) == Continue(), "it does not vote"
    assert rule.observe(Confidence(5, 4096, 1.0)) == Continue(), "it is stopped once"


def test_deepconf_is_done_when_one_answer_has_the_weight() -> None:
    rule = DEEPCONF({"warm_up": 2, "budget": 8, "share": 0.9})
    rule.begin()
    assert confidences(rule, [(0, 10.0, 0), (1, 10.0, 1)]) == [Spawn(6)]
    found = confidences(rule, [(2, 90.0, 1), (3, 90.0, 1)])
    assert found == [Stop(1, "0.909 of the weight of 3 branches")] * 1 + [Stop(1, "0.950 of the weight of 4 branches")]


def test_deepconf_without_a_usable_answer_goes_on() -> None:
    rule = DEEPCONF({"warm_up": 2, "budget": 2})
    rule.begin()
    assert confidences(rule, [(0, 10.0, UNUSABLE), (1, 10.0, UNUSABLE)]) == []
