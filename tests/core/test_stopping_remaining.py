"""How many samples are still to come, by those that came, and what runs are ordered by then."""

from collections.abc import Mapping
from random import Random
from statistics import mean
from types import ModuleType

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowserve.core.stopping.remaining import branch_s, expected
from flowserve.core.stopping.samples import RULES, Votes
from flowserve.core.stopping.signals import UNUSABLE
from flowserve.core.stopping.waves import needed

BETA = RULES["adaptive_consistency"]


@pytest.mark.parametrize(
    ("rule", "args", "labels", "left", "count"),
    [
        ("adaptive_consistency", {}, [0, 0, 0], 37, 1),
        ("adaptive_consistency", {}, [0, 1], 38, 38),  # three of five: too few to make up for the others
        ("adaptive_consistency", {}, [0, 0, 0, 1], 36, 8),  # five of seven go on to agree: 9 to 3
        ("fixed", {"samples": 9.0}, [0, 1], 20, 7),
        ("agreement", {"agreeing": 3.0}, [0, 0, 1], 9, 1),
        ("decided", {}, [0, 0], 6, 3),
        ("agreement", {}, [UNUSABLE, UNUSABLE], 5, 4),
        ("agreement", {}, [0], 0, 0),
    ],
)
def test_as_answers_have_fallen_they_go_on_to_fall(
    rule: str, args: Mapping[str, float], labels: list[int], left: int, count: int
) -> None:
    assert expected(RULES[rule], Votes(labels), args, left) == count


@given(labels=st.lists(st.integers(-1, 2), max_size=8), left=st.integers(0, 20))
def test_it_is_between_the_least_that_could_suffice_and_all(labels: list[int], left: int) -> None:
    for name, rule in RULES.items():
        if name != "entropy":
            assert needed(rule, Votes(labels), {}, left) <= expected(rule, Votes(labels), {}, left) <= left


def test_programs_that_are_expected_to_take_longer_do() -> None:
    """Of programs that are harder and easier, after three votes: what is said of each against what it then took."""
    rnd, told = Random(5), dict[int, list[int]]()
    for _ in range(2000):
        agree = rnd.choice([0.5, 0.7, 0.9])
        votes = Votes(0 if rnd.random() < agree else rnd.randint(1, 3) for _ in range(3))
        said, took = expected(BETA, votes, {}, 37), 0
        while took < 37 and not BETA(votes, {}):
            votes.add(0 if rnd.random() < agree else rnd.randint(1, 3))
            took += 1
        told.setdefault(said, []).append(took)
    groups = [mean(told[said]) for said in sorted(told)]
    assert len(groups) > 1 and groups == sorted(groups)
    assert groups[-1] > 3 * groups[0]


def test_a_branch_takes_longer_where_those_before_wrote_more() -> None:
    assert branch_s(2.0, 100.0, 4, 800) == 4.0
    assert branch_s(2.0, 100.0, 0, 0) == 2.0
    assert branch_s(2.0, 0.0, 4, 800) == 2.0, "nobody knows what is usual"


def test_under_srpt_the_run_whose_samples_agree_goes_first(kit: ModuleType) -> None:
    """Both have had two of twelve samples; one needs two more, the other as many as there are. The seat goes to the first."""
    b = kit.PlanBuilder()
    b.sample(body := b.block(), n=12, rule="adaptive_consistency", wave=1)
    b.llm(block=body)
    plan = b.build()
    bench = kit.Bench(window=4, policy="srpt")
    for run in ("differs", "agrees"):
        bench.submit(plan, run)
        bench.evaluate(1, 12, run=run)
    for task in (2, 3, 4, 5):
        bench.finish(task, run="differs")
    bench.label(1, 1, 0, run="differs")
    bench.label(1, 2, 1, run="differs")
    for task in (2, 3):
        bench.finish(task, run="agrees")
    bench.label(1, 1, 0, run="agrees")
    bench.label(1, 2, 0, run="agrees")
    runs = bench.state.runs
    assert runs["agrees"].rank < runs["differs"].rank
    left = [runs[run].work + runs[run].longer_s for run in ("agrees", "differs")]
    assert left == [2.0, 10.0], "seconds: each sample is thought to take one"
    bench.cancel("differs")
    for task in (4, 5):
        bench.finish(task, run="agrees")
    bench.label(1, 3, 0, run="agrees")
    bench.label(1, 4, 0, run="agrees")
    bench.finish(1, run="agrees")
    assert not runs
