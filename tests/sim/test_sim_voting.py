"""Recorded chains as programs of a simulation: what is written, when it ends early, and what is voted."""

from random import Random

import pytest

from flowserve.core.config import Config
from flowserve.core.invariants import check
from flowserve.core.stopping.chains import CHAIN_RULES, DEFAULT_RULE
from flowserve.core.stopping.signals import Trial
from flowserve.graphs.plan import Plan
from flowserve.reasoning.bank import Trajectory
from flowserve.reasoning.replay import Recording, walk
from flowserve.sim.drive import Arrival, Drive, Execution, RunView
from flowserve.sim.engine import EngineSpec
from flowserve.sim.voting import SAMPLE, Answer, Chain, Voting, voting_plan

PROMPT, TRIAL_PROMPT = 100, 20
SURE, UNSURE = 0.9999, 0.5
RIGHT, WRONG = 0, 1


class Seen:
    """Which answers each run's vote was made of."""

    def __init__(self) -> None:
        self.answers: list[list[Answer]] = []

    def dispatched(self, execution: Execution, waited_s: float, now: float) -> None: ...

    def answered(self, execution: Execution, last: bool, now: float) -> None: ...

    def ended(self, view: RunView, command: object, now: float) -> None:
        program = view.arrival.program
        assert isinstance(program, Voting)
        self.answers.append([program.answer(frame) for frame in view.joined[SAMPLE]])


def simulated(plan: Plan, *programs: tuple[Chain, ...], kv_tokens: int = 400_000) -> tuple[list[list[Answer]], Drive]:
    """These programs, a second apart on one engine, every step checked."""
    seen = Seen()
    arrivals = (
        Arrival(float(number), Voting(chains, PROMPT, TRIAL_PROMPT, 1 + number), plan, 1 + number)
        for number, chains in enumerate(programs)
    )
    engines: list[tuple[EngineSpec, tuple[str, ...]]] = [(EngineSpec(kv_tokens=kv_tokens), ("",))]
    drive = Drive(Config(measure=True), engines, arrivals, observer=seen, check=check)
    drive.run()
    return seen.answers, drive


def written(drive: Drive) -> int:
    return sum(member.model.decode_tokens for member in drive.fleet.members.values())


def chain(tokens: int, label: int = RIGHT, *trials: tuple[int, int, float], cost: int = 5) -> Chain:
    told = tuple(Trial(position, answer, confidence, cost) for position, answer, confidence in trials)
    return Chain(tokens, Answer(label, label == RIGHT), told, (RIGHT,))


def test_chains_are_as_long_as_they_were_and_all_of_them_vote() -> None:
    [answers], drive = simulated(voting_plan(3), (chain(300), chain(500, WRONG), chain(700)))
    assert answers == [Answer(RIGHT, True), Answer(WRONG, False), Answer(RIGHT, True)]
    assert written(drive) == 1500


def test_a_third_chain_is_not_drawn_where_two_agree() -> None:
    agree, differ = (chain(300), chain(400), chain(900)), (chain(300), chain(400, WRONG), chain(900))
    answers, drive = simulated(voting_plan(3, "decided", wave=1), agree, differ)
    assert [len(each) for each in answers] == [2, 3]
    assert written(drive) == 700 + 1600


def test_a_chain_ends_soon_after_the_trial_that_is_sure() -> None:
    early = chain(5000, WRONG, (100, WRONG, UNSURE), (200, RIGHT, SURE), (300, WRONG, SURE))
    [[answer]], drive = simulated(voting_plan(1, early_exit=True), (early,))
    assert answer == Answer(RIGHT, True)
    assert 200 + 2 * 5 <= written(drive) < 200 + 2 * 5 + 20, "while a trial is answered the chain goes on"


def test_where_nothing_may_end_early_trials_are_not_made() -> None:
    [[answer]], drive = simulated(voting_plan(1), (chain(500, WRONG, (200, RIGHT, SURE)),))
    assert (answer, written(drive)) == (Answer(WRONG, False), 500)


def test_trials_that_are_not_sure_cost_what_they_write_and_change_nothing() -> None:
    [[answer]], drive = simulated(voting_plan(1, early_exit=True), (chain(500, RIGHT, (200, WRONG, UNSURE)),))
    assert (answer, written(drive)) == (Answer(RIGHT, True), 505)


def test_a_chain_that_ends_before_its_fork_has_answered_keeps_its_own_answer() -> None:
    late = chain(202, RIGHT, (200, WRONG, SURE), cost=50)
    [[answer]], drive = simulated(voting_plan(1, early_exit=True), (late,))
    assert answer == Answer(RIGHT, True)
    assert written(drive) < 202 + 50


def test_a_fork_finds_what_its_chain_has_written_in_the_prefix_cache() -> None:
    _, drive = simulated(voting_plan(1, early_exit=True), (chain(5000, RIGHT, (4000, RIGHT, UNSURE)),))
    [member] = drive.fleet.members.values()
    assert member.model.prefill_tokens < PROMPT + TRIAL_PROMPT + 64
    assert member.model.cached_tokens == 4096, "whole chunks of the 4,100 tokens before the fork"


def recorded(rnd: Random) -> Chain:
    positions = sorted(rnd.sample(range(64, 2000), rnd.randint(0, 12)))
    trials = [(position, rnd.randint(0, 3), rnd.choice([SURE, UNSURE, UNSURE])) for position in positions]
    return chain(2000 + rnd.randint(60, 400), rnd.randint(0, 3), *trials, cost=rnd.randint(1, 12))


@pytest.mark.parametrize("kv_tokens", [400_000, 8_000])
def test_the_scheduler_ends_chains_where_their_replay_does(kv_tokens: int) -> None:
    """Also where engines lack memory, and so chains lose their place and go on later."""
    rnd = Random(5)
    programs = [tuple(recorded(rnd) for _ in range(3)) for _ in range(12)]
    answers, _ = simulated(voting_plan(3, early_exit=True), *programs, kv_tokens=kv_tokens)
    expected = [[_replayed(each) for each in chains] for chains in programs]
    assert sorted(answers, key=str) == sorted(expected, key=str)


def _replayed(item: Chain) -> Answer:
    whole = Trajectory("m", "d", "p", 0, "", "", item.final.correct, item.tokens, True, (), ())
    ended = walk(Recording(whole, item.trials, (), item.final.label, item.right), CHAIN_RULES[DEFAULT_RULE]({}))
    return Answer(ended.label, ended.outcome.correct)
