"""All setups over several seeds: the greatest rate within the target, against first come first served on the same programs.

The target is a multiple of the p90 of programs that have the engines to themselves and draw all their samples. A ratio of rates is
that of one seed; the interval is Student's over seeds. Accuracy is of the votes of the same programs, beside that of all their samples.
"""

import multiprocessing
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import inf, sqrt
from multiprocessing.pool import Pool
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from flowserve.bench.reasoning.loads import Case, Load, at_target, run, unloaded_p90
from flowserve.bench.reasoning.problems import Bank, read_problems
from flowserve.bench.reasoning.setups import BASELINE, Setup, setups
from flowserve.errors import ConfigError
from flowserve.ids import Seconds
from flowserve.sim.report import quantile

T_975 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
"""Student's t for 95 % of 2, 3, ... 10 values."""
MOST_SEEDS = len(T_975) + 1
AT_WORK = 10.0
"""The search begins with the rate at which about so many programs would be at work per engine, did they not disturb each other."""

SHOWN = (
    "rate_at_p90",
    "ratio_vs_fcfs",
    "ci",
    "accuracy",
    "accuracy_change_pp",
    "tokens_per_program",
    "samples_mean",
    "p50_s",
    "p99_s",
)
"""Of a case, in the table for people."""


@dataclass(frozen=True, slots=True)
class Options:
    """What is measured."""

    bank: Path
    model: str | None = None
    """Only its chains; None: those of all models of which trials were recorded."""
    samples: int = 3
    engines: int = 1
    programs: int = 400
    """Per load."""
    seeds: int = 4
    targets: tuple[float, ...] = (2.0,)
    """Multiples of the unloaded p90."""
    seed: int = 0
    jobs: int = 2

    def __post_init__(self) -> None:
        if self.samples < 1 or self.engines < 1 or self.programs < 10 or self.jobs < 1:
            raise ConfigError(
                f"expected samples, engines and jobs of at least 1, and programs of at least 10; got {self}"
            )
        if not 1 <= self.seeds <= MOST_SEEDS:
            raise ConfigError(f"--seeds: expected 1 to {MOST_SEEDS}; got {self.seeds}")
        if unusable := [target for target in self.targets if not 1 < target < inf]:
            raise ConfigError(f"--target: expected a number above 1; got {unusable[0]:g}")


@dataclass(frozen=True, slots=True)
class Found:
    """One setup, target and seed."""

    rate: float
    load: Load


def measure(options: Options, say: Callable[[str], object]) -> dict[str, Any]:
    """`{"target": .., "cases": [..]}`: a case per target and setup, the baseline first."""
    bank = read_problems(options.bank, options.model)
    say(f"{options.bank}: {len(bank.problems):,} problems")
    seeds = [options.seed + number for number in range(options.seeds)]
    compared = setups(options.samples)
    with multiprocessing.Pool(options.jobs, _begin, (bank, options)) as pool:
        alone = fmean(pool.map(_unloaded, seeds))
        say(f"p90 of programs that have the engines to themselves: {alone:.0f} s")
        cases = [case for target in options.targets for case in _cases(pool, compared, seeds, target, alone, say)]
    return {
        "bank": options.bank.name,
        "models": sorted({problem.kind[0] for problem in bank.problems}),
        "problems": len(bank.problems),
        "samples": options.samples,
        "engines": options.engines,
        "programs_per_load": options.programs,
        "seeds": options.seeds,
        "unloaded_p90_s": round(alone, 2),
        "cases": cases,
    }


def _cases(
    pool: Pool, compared: Sequence[Setup], seeds: list[int], target: float, alone: Seconds, say: Callable[[str], object]
) -> list[dict[str, Any]]:
    """Of one target. At the rates of the baseline all setups run once more, so that their latencies can be compared."""
    found: list[list[Found]] = []
    searches = pool.imap(_search, [(setup, seeds, target * alone, AT_WORK / alone) for setup in compared])
    for setup, each in zip(compared, searches, strict=True):
        found.append(each)
        rate = fmean(one.rate for one in each)
        say(f"p90 x{target:g}, {len(found)} of {len(compared)}: {setup.name}: {rate:.4g} programs per second")
    rates = [one.rate for one in found[0]]
    say(f"p90 x{target:g}: all of them at the rates of {compared[0].name}")
    beside = pool.map(_means_at, [(setup, seeds, rates) for setup in compared])
    return [
        _case(setup, target, target * alone, each, found[0]) | _slowness(means, beside[0])
        for setup, each, means in zip(compared, found, beside, strict=True)
    ]


def _slowness(means: Sequence[Seconds], baseline: Sequence[Seconds]) -> dict[str, Any]:
    gain, interval = ratio(baseline, means)
    return {
        "mean_s_at_fcfs_rate": round(fmean(means), 2),
        "mean_ratio_at_fcfs_rate": gain,
        "mean_ratio_ci": interval,
    }


def _case(
    setup: Setup, target: float, target_s: Seconds, found: Sequence[Found], baseline: Sequence[Found]
) -> dict[str, Any]:
    loads = [one.load for one in found]
    programs = sum(load.num_programs for load in loads)
    rates = [one.rate for one in found]
    gain, interval = ratio(rates, [one.rate for one in baseline])
    right, fully_right = (sum(load.correct for load in loads), sum(load.full_correct for load in loads))
    return {
        "policy": setup.name,
        "target": target,
        "target_s": round(target_s, 2),
        "rate_at_p90": round(fmean(rates), 4),
        "ratio_vs_fcfs": gain,
        "ci": interval,
        "accuracy": round(right / programs, 4),
        "accuracy_change_pp": round(100 * (right - fully_right) / programs, 3),
        "tokens_per_program": round(fmean(load.tokens for load in loads), 1),
        "prefill_per_program": round(fmean(load.prefill for load in loads), 1),
        "samples_mean": round(fmean(load.samples for load in loads), 3),
        "mean_s": round(fmean(map(_mean_s, loads)), 2),
        "p50_s": round(fmean(quantile(load.latencies, 0.5) for load in loads), 2),
        "p90_s": round(fmean(load.p90 for load in loads), 2),
        "p99_s": round(fmean(quantile(load.latencies, 0.99) for load in loads), 2),
        "utilisation": round(fmean(load.utilisation for load in loads), 3),
        "programs": programs,
        "rates_by_seed": [round(rate, 4) for rate in rates],
    }


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> tuple[float, list[float]]:
    """(mean, its 95 % interval) of the ratios of pairs; one pair has no interval, and gets its own ratio twice."""
    ratios = [one / other for one, other in zip(ours, theirs, strict=True)]
    mean = fmean(ratios)
    half = T_975[len(ratios) - 2] * stdev(ratios) / sqrt(len(ratios)) if len(ratios) > 1 else 0.0
    return round(mean, 3), [round(mean - half, 3), round(mean + half, 3)]


def _mean_s(load: Load) -> Seconds:
    return fmean(load.latencies)


# --- in the processes that simulate ------------------------------------------------------------------------------

_given: list[tuple[Bank, Options]] = []
"""What the process was begun with."""


def _begin(bank: Bank, options: Options) -> None:
    _given[:] = [(bank, options)]


def _of_seed(seed: int) -> Case:
    bank, options = _given[0]
    return Case(bank, options.samples, options.engines, options.programs, seed)


def _unloaded(seed: int) -> Seconds:
    return unloaded_p90(_of_seed(seed), BASELINE)


def _search(task: tuple[Setup, list[int], Seconds, float]) -> list[Found]:
    """Each seed's search begins where that of the one before ended."""
    setup, seeds, target_s, per_engine = task
    found: list[Found] = []
    for case in map(_of_seed, seeds):
        guess = found[-1].rate if found else per_engine * case.engines
        found.append(Found(*at_target(case, setup, target_s, guess)))
    return found


def _means_at(task: tuple[Setup, list[int], list[float]]) -> list[Seconds]:
    setup, seeds, rates = task
    return [_mean_s(run(_of_seed(seed), setup, rate)) for seed, rate in zip(seeds, rates, strict=True)]
