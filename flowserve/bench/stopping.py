"""`flowserve bench stopping`: what a stopping rule would have done to recorded chains and samples.

A rule is replayed on the chains of which what it observes was recorded; the others are counted, not judged. Intervals are at 95 %,
over problems (`flowserve.reasoning.bootstrap`).
"""

import random
import re
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from statistics import fmean
from typing import Any

from flowserve.bench.stopping_plot import Point
from flowserve.clock import SystemClock
from flowserve.core.stopping.chains import CHAIN_RULES, DEFAULT_RULE, ChainRule, Needs
from flowserve.core.stopping.samples import RULES
from flowserve.errors import ConfigError
from flowserve.reasoning.bank import read_bank
from flowserve.reasoning.bootstrap import (
    accuracy_change_interval,
    percent,
    problem_of,
    ratio_interval,
    tokens_saved_interval,
)
from flowserve.reasoning.calibrate import Candidate
from flowserve.reasoning.certificates import Absent, Certificates, Subject
from flowserve.reasoning.crossvalidate import ALLOWED_PP, FOLDS, GRIDS, cross_validate
from flowserve.reasoning.outcomes import Outcome, accuracy_change_pp, tokens_saved_pct
from flowserve.reasoning.replay import (
    Drawn,
    Elected,
    Ended,
    Recording,
    draw,
    label_all,
    label_samples,
    vote,
    vote_of_all,
    walk,
    whole,
)
from flowserve.reasoning.samples_file import read_samples

SEED = 0
ORDERS = 20
"""Orders in which samples are drawn, the recorded one included: one order is one draw of luck."""
Choose = Callable[[Recording], Candidate]
"""By which rule a chain is stopped."""


def read(bank: Path) -> list[Recording]:
    """Raises ConfigError for a bank without chains."""
    recordings = label_all(read_bank(bank))
    if not recordings:
        raise ConfigError(f"--bank: expected recorded chains; {bank} has none")
    return recordings


def run(recordings: Sequence[Recording], name: str, choose: Choose) -> dict[str, Any]:
    """`name`: of the rule or of what chooses it."""
    able = [item for item in recordings if _is_recorded(item, CHAIN_RULES[choose(item).rule])]
    if not able:
        raise ConfigError(
            f"--rule {name} observes what was recorded of none of the {len(recordings):,} chains of the bank"
        )
    ended = [_walked(item, choose(item)) for item in able]
    outcomes = [each.outcome for each in ended]
    rules = {(item.trajectory.model, item.trajectory.dataset): str(choose(item)) for item in able}
    return {
        **_figures(name, outcomes, len(recordings) - len(able)),
        "by_model_set": [
            {"model": model, "dataset": dataset, "rule": rules[model, dataset], **_figures_of(own)}
            for (model, dataset), own in _by_model_set(outcomes)
        ],
        "composed": _composed(ended, [whole(item) for item in able]),
    }


def run_unseen(recordings: Sequence[Recording], family: str, allowed_pp: float = ALLOWED_PP) -> dict[str, Any]:
    """A rule family by cross-validation: each chain under parameters that were chosen without it."""
    if family not in GRIDS:
        raise ConfigError(f"--unseen: expected a rule with a grid, one of {', '.join(GRIDS)}; got '{family}'")
    able = [item for item in recordings if _is_recorded(item, CHAIN_RULES[family])]
    outcomes, choices = cross_validate(family, able, allowed_pp)
    chosen: dict[str, int] = {}
    for choice in choices:
        told = f"{choice.model}: {'none' if choice.args is None else Candidate(family, choice.args)}"
        chosen[told] = chosen.get(told, 0) + 1
    return {
        **_figures(f"{family}, chosen on other problems and seeds", outcomes, len(recordings) - len(able)),
        "allowed_pp": allowed_pp,
        "folds": FOLDS,
        "by_model_set": [
            {"model": model, "dataset": dataset, **_figures_of(own)}
            for (model, dataset), own in _by_model_set(outcomes)
        ],
        "chosen": [{"parameters": told, "folds": count} for told, count in sorted(chosen.items())],
    }


def run_all(recordings: Sequence[Recording]) -> list[dict[str, Any]]:
    """Figures of each rule at its defaults; those that observe nothing that was recorded are left out."""
    found: list[dict[str, Any]] = []
    for name, rule in CHAIN_RULES.items():
        able = [item for item in recordings if _is_recorded(item, rule)]
        if able:
            outcomes = [walk(item, rule({})).outcome for item in able]
            found.append(_figures(name, outcomes, len(recordings) - len(able)))
    return found


def told(name: str, figures: Mapping[str, Any]) -> str:
    """A line for people."""
    change, saved = figures["accuracy_change_95"], figures["tokens_saved_95"]
    return (
        f"{name}: {figures['n']:,} chains, accuracy {figures['accuracy_change_pp']:+.2f} "
        f"[{change['low']:+.2f}, {change['high']:+.2f}] points, tokens saved {figures['tokens_saved_pct']:.1f} "
        f"[{saved['low']:.1f}, {saved['high']:.1f}] %, harmed {figures['harmed']}, rescued {figures['rescued']}"
    )


def pareto(recordings: Sequence[Recording]) -> dict[str, list[Point]]:
    """Per family the settings of its grid that no other one of it beats, by what they save; on chains that all families can be judged on."""
    able = [item for item in recordings if all(_is_recorded(item, CHAIN_RULES[family]) for family in GRIDS)]
    if not able:
        raise ConfigError("--plot: expected chains with trials and probes; the bank has none")
    return {family: _front([_point(able, family, args) for args in grid]) for family, grid in GRIDS.items()}


def run_samples(path: Path, rule: Candidate) -> dict[str, Any]:
    """A rule over votes on recorded samples, in the recorded order and in shuffled ones."""
    if rule.rule not in RULES:
        raise ConfigError(f"--sample-rule: no rule '{rule.rule}' for samples; known: {', '.join(RULES)}")
    questions = [label_samples(item) for item in read_samples(path)]
    if not questions:
        raise ConfigError(f"--samples: expected questions with answers; {path} has none")
    orders: list[list[Drawn]] = []
    for number in range(ORDERS):
        chance = random.Random(SEED + number)
        orders.append(
            [
                draw(chance.sample(labels, len(labels)) if number else labels, target, RULES[rule.rule], rule.args)
                for labels, target in questions
            ]
        )
    recorded, drawn = orders[0], [item for order in orders for item in order]
    by_question = [(number, item) for order in orders for number, item in enumerate(order)]
    change = ratio_interval(
        by_question, lambda each: each[0], lambda each: each[1].correct - each[1].full_correct, lambda each: 1
    )
    mean = ratio_interval(by_question, lambda each: each[0], lambda each: each[1].num_samples, lambda each: 1)
    return {
        "rule": str(rule),
        "n": len(questions),
        "orders": ORDERS,
        "mean": round(fmean(item.num_samples for item in drawn), 3),
        "mean_95": _interval(mean, 3),
        "accuracy_full_pct": round(100 * fmean(item.full_correct for item in drawn), 3),
        "accuracy_change_pp": round(100 * fmean(item.correct - item.full_correct for item in drawn), 3),
        "accuracy_change_95": _interval(percent(change), 3),
        "recorded_order_mean": round(fmean(item.num_samples for item in recorded), 3),
        "recorded_order_change_pp": round(100 * fmean(item.correct - item.full_correct for item in recorded), 3),
    }


def candidate_of(text: str) -> Candidate:
    """`deer` or `deer(threshold=0.99, trials=30)`. Raises ConfigError."""
    match = re.fullmatch(r"\s*([\w-]+)\s*(?:\((.*)\))?\s*", text)
    pairs = [pair.partition("=") for pair in (match[2] or "").split(",") if pair.strip()] if match else []
    try:
        args = {name.strip(): float(value) for name, _, value in pairs}
    except ValueError:
        args = None
    if match is None or args is None:
        raise ConfigError(f"expected a rule such as deer or deer(threshold=0.99, trials=30); got '{text}'")
    return Candidate(match[1], args)


def always(candidate: Candidate) -> Choose:
    """The same rule for all chains. Raises ConfigError for one that is not known or does not fit."""
    complete = Candidate(candidate.rule, _rule(candidate.rule).complete(candidate.args))
    return lambda recording: complete


def certified(folder: Path, template: str, tasks: Mapping[str, str]) -> Choose:
    """What a certificate allows of the chain's model and task class; without one, the conservative default."""
    if not folder.is_dir():
        raise ConfigError(f"--certificates: expected a folder of certificates; there is none at {folder}")
    store, now = Certificates(folder), datetime.fromtimestamp(SystemClock().wall(), UTC)
    fallback = Candidate(DEFAULT_RULE, {})
    known: dict[Subject, Candidate] = {}

    def choose(recording: Recording) -> Candidate:
        item = recording.trajectory
        subject = Subject(item.model, template, tasks.get(item.dataset, item.dataset))
        if subject not in known:
            found = store.lookup(subject, now)
            known[subject] = fallback if isinstance(found, Absent) else Candidate(found.rule, found.args)
        return known[subject]

    return choose


def _rule(name: str) -> ChainRule:
    if name not in CHAIN_RULES:
        raise ConfigError(f"--rule: no rule '{name}' for chains; known: {', '.join(CHAIN_RULES)}, all")
    return CHAIN_RULES[name]


def _is_recorded(item: Recording, rule: ChainRule) -> bool:
    return (item.trials if rule.needs is Needs.TRIALS else item.probes) is not None


def _walked(item: Recording, candidate: Candidate) -> Ended:
    return walk(item, CHAIN_RULES[candidate.rule](candidate.args))


def _figures(name: str, outcomes: Sequence[Outcome], left_out: int) -> dict[str, Any]:
    return {"rule": name, **_figures_of(outcomes), "left_out": left_out}


def _figures_of(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    return {
        "n": len(outcomes),
        "accuracy_change_pp": round(accuracy_change_pp(outcomes), 3),
        "accuracy_change_95": _interval(accuracy_change_interval(outcomes), 2),
        "tokens_saved_pct": round(tokens_saved_pct(outcomes), 3),
        "tokens_saved_95": _interval(tokens_saved_interval(outcomes), 2),
        "stopped": sum(item.stopped for item in outcomes),
        "harmed": sum(item.harm for item in outcomes),
        "rescued": sum(item.rescue for item in outcomes),
    }


def _interval(bounds: tuple[float, float], digits: int) -> dict[str, float]:
    return {"low": round(bounds[0], digits), "high": round(bounds[1], digits)}


def _by_model_set(outcomes: Sequence[Outcome]) -> list[tuple[tuple[str, str], list[Outcome]]]:
    found: dict[tuple[str, str], list[Outcome]] = {}
    for item in outcomes:
        found.setdefault((item.model, item.dataset), []).append(item)
    return sorted(found.items())


def _composed(stopped: Sequence[Ended], whole_chains: Sequence[Ended]) -> dict[str, Any] | None:
    """Votes over the chains of a problem, begun in order of their seeds and only as far as they are needed; accuracies in percent.

    To compare: whole chains (`whole_`), and all of them whether they are needed or not (`all_`). None if no problem has several.
    """
    begun = _problems(whole_chains)
    elected = [vote(chains) for chains in _problems(stopped)]
    if not elected:
        return None
    by_problem = [(chains[0].outcome, each) for chains, each in zip(_problems(stopped), elected, strict=True)]
    tokens = ratio_interval(by_problem, lambda pair: problem_of(pair[0]), lambda pair: pair[1].tokens, lambda pair: 1)
    accuracy = ratio_interval(
        by_problem, lambda pair: problem_of(pair[0]), lambda pair: pair[1].correct, lambda pair: 1
    )
    return {
        **_votes(elected),
        "problems": len(elected),
        "tokens_per_problem_low": round(tokens[0], 1),
        "tokens_per_problem_high": round(tokens[1], 1),
        "accuracy_low": round(100 * accuracy[0], 3),
        "accuracy_high": round(100 * accuracy[1], 3),
        **{f"whole_{name}": value for name, value in _votes([vote(chains) for chains in begun]).items()},
        **{f"all_{name}": value for name, value in _votes([vote_of_all(chains) for chains in begun]).items()},
    }


def _problems(ended: Sequence[Ended]) -> list[list[Ended]]:
    """Chains of one model and problem, where there are several."""
    found: dict[tuple[str, str, str], list[Ended]] = {}
    for each in sorted(ended, key=lambda each: each.outcome.seed):
        found.setdefault((each.outcome.model, each.outcome.dataset, each.outcome.problem), []).append(each)
    return [chains for chains in found.values() if len(chains) > 1]


def _votes(elected: Sequence[Elected]) -> dict[str, float]:
    return {
        "tokens_per_problem": round(fmean(each.tokens for each in elected), 1),
        "accuracy": round(100 * fmean(each.correct for each in elected), 3),
        "chains_per_problem": round(fmean(each.num_chains for each in elected), 3),
    }


def _point(recordings: Sequence[Recording], family: str, args: Mapping[str, float]) -> Point:
    outcomes = [walk(item, CHAIN_RULES[family](args)).outcome for item in recordings]
    return Point(tokens_saved_pct(outcomes), accuracy_change_pp(outcomes))


def _front(points: Sequence[Point]) -> list[Point]:
    """Those that no other one beats, by what they save."""
    found: list[Point] = []
    for point in sorted(points, key=lambda point: (-point.saved_pct, -point.change_pp)):
        if not found or point.change_pp > found[-1].change_pp:
            found.append(point)
    return found[::-1]
