"""One setup at one rate, and the greatest rate at which its programs' p90 is within the target.

Which problem the i-th program has, and the gaps between programs in terms of the mean gap, depend on the seed alone: all setups meet the
same programs at all rates. The first of them warm the engines up and are not counted.
"""

import gc
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from math import inf
from random import Random
from statistics import fmean

from flowserve.bench.reasoning.problems import Bank
from flowserve.bench.reasoning.setups import Setup
from flowserve.core import commands as c
from flowserve.errors import ConfigError
from flowserve.graphs.plan import Plan
from flowserve.ids import Seconds, Tokens
from flowserve.reasoning.replay import elect
from flowserve.sim.chance import mix
from flowserve.sim.drive import Arrival, Drive, Execution, RunView
from flowserve.sim.engine import EngineSpec
from flowserve.sim.report import quantile
from flowserve.sim.simulate import GC_THRESHOLD
from flowserve.sim.voting import SAMPLE, Answer, Voting

ENGINE = EngineSpec()
"""An 8B model on an H100, by its data sheet."""
WARMUP = 0.2
"""Share of programs that are not counted."""
PROMPT: Tokens = 160
"""Prompts were not recorded; these are about as long as a problem of MATH with instructions."""
TRIAL_PROMPT: Tokens = 24
TELL_S: Seconds = 10.0
"""Between two reports of an engine on what its calls have written; calls take minutes."""
APART_S: Seconds = 100_000.0
"""Between programs that shall not meet: longer than any takes."""
WARM, COUNTED = "warm", "counted"
GROWTH = 1.3
"""Step of the search while the rate is only bounded on one side."""
FAR = 1000.0
"""A rate so many times the guess, or less than it, is none."""
PRECISION = 1.04
"""Ratio of the least rate that was seen to fail to the greatest that was seen to hold."""


@dataclass(frozen=True, slots=True)
class Case:
    """What is fixed while setups and rates change."""

    bank: Bank
    samples: int
    engines: int
    programs: int
    seed: int


@dataclass(frozen=True, slots=True)
class Load:
    """What came of one setup at one rate."""

    latencies: list[Seconds]
    """Rising."""
    correct: int
    full_correct: int
    """Programs whose vote over all their samples, each to its end, is right."""
    samples: float
    """Drawn and ended, per program."""
    tokens: float
    """Written by engines per program: by chains, those that were dropped included, and by trials."""
    prefill: float
    """Prompt tokens computed per program."""
    num_programs: int
    utilisation: float

    @property
    def p90(self) -> Seconds:
        return quantile(self.latencies, 0.9)


@dataclass(slots=True)
class _Seen:
    """The observer of a simulation."""

    latencies: list[Seconds] = field(default_factory=list)
    elected: list[Answer] = field(default_factory=list)
    full: list[Answer] = field(default_factory=list)
    samples: list[int] = field(default_factory=list)

    def dispatched(self, execution: Execution, waited_s: Seconds, now: Seconds) -> None: ...

    def answered(self, execution: Execution, last: bool, now: Seconds) -> None: ...

    def ended(self, view: RunView, command: c.Complete | c.Fail | c.Reject, now: Seconds) -> None:
        assert isinstance(command, c.Complete), command
        arrival = view.arrival
        if arrival.mix == WARM:
            return
        program = arrival.program
        assert isinstance(program, Voting)
        frames = view.joined[SAMPLE]
        self.latencies.append(now - arrival.at)
        self.samples.append(len(frames))
        self.elected.append(_elected([program.answer(frame) for frame in frames]))
        self.full.append(_elected([chain.final for chain in program.chains]))


def _elected(answers: list[Answer]) -> Answer:
    return answers[elect([answer.label for answer in answers])]


def run(case: Case, setup: Setup, rate: float) -> Load:
    """Programs arrive at random, so many a second, and all of them are brought to their end."""
    seen = _Seen()
    plan = setup.plan(case.samples)
    spec = replace(ENGINE, priority=setup.policy is not None)
    members: list[tuple[EngineSpec, tuple[str, ...]]] = [(spec, ("",))] * case.engines
    drive = Drive(
        setup.config(),
        members,
        _arrivals(case, plan, rate),
        seed=case.seed,
        observer=seen,
        tell_s=TELL_S,
        kv_events=False,
    )
    before = gc.get_threshold()
    gc.set_threshold(*GC_THRESHOLD)
    try:
        drive.run()
    finally:
        gc.set_threshold(*before)
    models = [member.model for member in drive.fleet.members.values()]
    return Load(
        sorted(seen.latencies),
        sum(answer.correct for answer in seen.elected),
        sum(answer.correct for answer in seen.full),
        fmean(seen.samples),
        sum(model.decode_tokens for model in models) / drive.num_runs,
        sum(model.prefill_tokens for model in models) / drive.num_runs,
        len(seen.latencies),
        sum(model.busy_s for model in models) / (drive.heap.now * len(models)),
    )


def _arrivals(case: Case, plan: Plan, rate: float) -> Iterator[Arrival]:
    rnd, now = Random(case.seed), 0.0
    for number in range(case.programs):
        now += rnd.expovariate(1.0) / rate
        chains = case.bank.sample(rnd, case.samples)
        key = mix(case.seed, number)
        name = WARM if number < WARMUP * case.programs else COUNTED
        yield Arrival(now, Voting(chains, PROMPT, TRIAL_PROMPT, key), plan, key, name)


def unloaded_p90(case: Case, setup: Setup) -> Seconds:
    """Of programs that have the engines to themselves, one after the other."""
    return run(case, setup, 1 / APART_S).p90


def greatest_rate(holds: Callable[[float], bool], guess: float, precision: float = PRECISION) -> float:
    """The greatest rate at which it holds, found by steps of `GROWTH` from `guess`, then bisection on a logarithmic scale."""
    low, high = 0.0, inf
    rate = guess
    while not low or high == inf:
        if holds(rate):
            low, rate = rate, rate * GROWTH
        else:
            high, rate = rate, rate / GROWTH
        if rate < guess / FAR:
            raise ConfigError(f"the target is missed even at {rate:.3g} programs per second; choose a greater --target")
        if rate > guess * FAR:
            raise ConfigError(f"the target is met even at {rate:.3g} programs per second; take more --programs")
    while high / low > precision:
        middle = (low * high) ** 0.5
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low


def at_target(case: Case, setup: Setup, target_s: Seconds, guess: float) -> tuple[float, Load]:
    """(greatest rate within the target, what came of it there)."""
    loads: dict[float, Load] = {}

    def holds(rate: float) -> bool:
        loads[rate] = run(case, setup, rate)
        return loads[rate].p90 <= target_s

    rate = greatest_rate(holds, guess)
    return rate, loads[rate]
