"""Which parameters of a rule may be used: the loosest whose net harm is bounded on recorded problems, or a refusal with figures.

Net harm is the share of right answers lost by stopping less that of right answers gained (harm and rescue, `outcomes.py`). A rule
is asked for as a path: its parameters from strict to loose, in an order set before the data are seen. They are tested one after
the other until one fails (`bounds.fixed_sequence`), several paths at an equal part of the error each, so the certified ones are
all within the bound at the stated confidence, and the one that saves most can be chosen freely. No problems are set aside for this:
of 400, half would be too few to certify a rule that never errs (`bounds.problems_needed`).

What the choice does on problems that it has not seen is estimated by cross-fitting: the problems, each with all its seeds, are
dealt into folds; for each fold parameters are chosen on the other ones and applied to it. With a fifth fewer problems the same
evidence is reached at a risk a quarter greater, and that is what the folds are held to.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from math import inf

from flowserve.bounds import (
    evidence,
    fixed_sequence,
    lower_mean,
    problems_needed,
    ratio_interval,
    upper_rate,
)
from flowserve.errors import ConfigError
from flowserve.ids import Tokens
from flowserve.reasoning.outcomes import Outcome, untouched

FOLDS = 5
LOWEST = -1.0
"""Of a problem's change of accuracy: every chain lost a right answer."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A rule with its parameters."""

    rule: str
    args: Mapping[str, float]

    def __str__(self) -> str:
        args = ", ".join(f"{name}={value:g}" for name, value in self.args.items())
        return f"{self.rule}({args})"


Path = Sequence[Candidate]
"""From strict to loose."""


@dataclass(frozen=True, slots=True)
class Risk:
    """What is allowed."""

    margin: float = 0.01
    """Net harm, as a share of problems.

    One percentage point: with 400 to 500 problems much less cannot be certified of any rule, and it is about what two runs of the
    same benchmark with other seeds differ by.
    """
    error: float = 0.05
    """Chance that a certificate is wrong."""

    def __post_init__(self) -> None:
        if not 0 < self.margin < 1:
            raise ConfigError(f"margin: expected a share of problems between 0 and 1; got {self.margin}")
        if not 0 < self.error < 0.5:
            raise ConfigError(f"error: expected a chance between 0 and 0.5; got {self.error}")


@dataclass(frozen=True, slots=True)
class Figures:
    """Of one candidate on one set of problems."""

    num_problems: int
    num_trajectories: int
    stopped: int
    """Trajectories, as the next three."""
    harmed: int
    rescued: int
    differing: int
    """Stopped with another answer than the whole chain gave."""
    change: float
    """Mean over problems of accuracy with the rule less accuracy without."""
    change_low: float
    """Bound under it, one-sided."""
    evidence: float
    """Against a net harm of the margin or more; what is needed is one over the error."""
    saved: float
    """Share of the tokens of whole chains, net of trials and probes."""
    saved_low: float
    saved_high: float
    """Two-sided interval at one minus the error."""
    differing_high: float
    """Bound above the share of problems of which some chain stopped with another answer."""


@dataclass(frozen=True, slots=True)
class CrossFit:
    """On problems that took no part in the choice."""

    change: float
    saved: float
    refused_folds: int
    """Folds for which nothing could be chosen; they count as never stopped."""


@dataclass(frozen=True, slots=True)
class Certified:
    candidate: Candidate
    figures: Figures
    cross_fit: CrossFit


@dataclass(frozen=True, slots=True)
class Refused:
    reason: str
    failed: Candidate | None
    """The one that came nearest, of those tested; None if none was."""
    figures: Figures | None
    """Of `failed`."""


Verdict = Certified | Refused
Outcomes = Mapping[str, Sequence[Outcome]]


def calibrate(paths: Sequence[Path], replay: Callable[[Candidate], Sequence[Outcome]], risk: Risk) -> Verdict:
    """`replay` says what a candidate did to the same recorded chains; it is asked for each once."""
    if not paths or not all(paths):
        raise ConfigError("paths: expected at least one, each with a candidate")
    table = {str(candidate): replay(candidate) for path in paths for candidate in path}
    certified = _certified(paths, table, risk)
    if certified:
        best = max(certified, key=lambda candidate: _saved(table[str(candidate)]))
        figures = figures_of(table[str(best)], risk, len(paths))
        if figures.saved > 0:
            return Certified(best, figures, cross_fit(paths, table, risk))
        return Refused(f"{best} is safe and saves nothing: {100 * figures.saved:.1f} % of tokens", best, figures)
    tested = [path[0] for path in paths]
    nearest = max(tested, key=lambda candidate: _change(table[str(candidate)]))
    figures = figures_of(table[str(nearest)], risk, len(paths))
    return Refused(_reason(nearest, figures, risk, len(paths)), nearest, figures)


def figures_of(outcomes: Sequence[Outcome], risk: Risk, num_paths: int = 1) -> Figures:
    """`num_paths`: among how many the error is divided."""
    changes = _changes(outcomes)
    error = risk.error / num_paths
    used, full = _tokens(outcomes)
    low, high = ratio_interval(used, full, 1 - risk.error)
    differing = {_problem(item) for item in outcomes if item.differs}
    return Figures(
        num_problems=len(changes),
        num_trajectories=len(outcomes),
        stopped=sum(item.stopped for item in outcomes),
        harmed=sum(item.harm for item in outcomes),
        rescued=sum(item.rescue for item in outcomes),
        differing=sum(item.differs for item in outcomes),
        change=sum(changes) / len(changes),
        change_low=lower_mean(changes, LOWEST, error),
        evidence=evidence(changes, -risk.margin, LOWEST),
        saved=_saved(outcomes),
        saved_low=1 - high,
        saved_high=1 - low,
        differing_high=upper_rate(len(differing), len(changes), risk.error),
    )


def cross_fit(paths: Sequence[Path], table: Outcomes, risk: Risk) -> CrossFit:
    """`table`: outcomes of each candidate, by its text."""
    wider = Risk(risk.margin * FOLDS / (FOLDS - 1), risk.error)
    unseen: list[Outcome] = []
    refused = 0
    for fold in range(FOLDS):
        seen = {name: [item for item in outcomes if _fold(item) != fold] for name, outcomes in table.items()}
        certified = _certified(paths, seen, wider) if any(seen.values()) else []
        if certified:
            best = str(max(certified, key=lambda candidate: _saved(seen[str(candidate)])))
            unseen += [item for item in table[best] if _fold(item) == fold]
        else:
            refused += 1
            unseen += [untouched(item) for item in next(iter(table.values())) if _fold(item) == fold]
    return CrossFit(_change(unseen), _saved(unseen), refused)


def _certified(paths: Sequence[Path], table: Outcomes, risk: Risk) -> list[Candidate]:
    found: list[Candidate] = []
    for path in paths:
        evidences = (evidence(_changes(table[str(candidate)]), -risk.margin, LOWEST) for candidate in path)
        found += path[: fixed_sequence(evidences, risk.error / len(paths))]
    return found


def _reason(candidate: Candidate, figures: Figures, risk: Risk, num_paths: int) -> str:
    needed = problems_needed(risk.margin, risk.error / num_paths)
    wanted = f"at most {100 * risk.margin:g} pp lost at {100 * (1 - risk.error):g} % confidence"
    if figures.num_problems < needed:
        return (
            f"{figures.num_problems} problems are too few: {wanted} takes {needed} even of a rule that never errs. "
            "Record more problems or allow a greater risk"
        )
    return (
        f"{candidate}, the strictest, changes accuracy by {100 * figures.change:+.2f} pp, at worst by "
        f"{100 * figures.change_low:+.2f} pp; allowed are {wanted}"
    )


def _changes(outcomes: Sequence[Outcome]) -> list[float]:
    """Mean change of each problem, over its seeds."""
    seeds: dict[tuple[str, str], list[int]] = {}
    for item in outcomes:
        seeds.setdefault(_problem(item), []).append(item.correct - item.full_correct)
    return [sum(each) / len(each) for each in seeds.values()]


def _change(outcomes: Sequence[Outcome]) -> float:
    changes = _changes(outcomes)
    return sum(changes) / len(changes) if changes else -inf


def _tokens(outcomes: Sequence[Outcome]) -> tuple[list[Tokens], list[Tokens]]:
    """(used, of whole chains), by problem."""
    used: dict[tuple[str, str], Tokens] = {}
    full: dict[tuple[str, str], Tokens] = {}
    for item in outcomes:
        problem = _problem(item)
        used[problem] = used.get(problem, 0) + item.main_tokens + item.extra_tokens
        full[problem] = full.get(problem, 0) + item.full_tokens
    return list(used.values()), list(full.values())


def _saved(outcomes: Sequence[Outcome]) -> float:
    used, full = _tokens(outcomes)
    return 1 - sum(used) / sum(full)


def _problem(outcome: Outcome) -> tuple[str, str]:
    return outcome.dataset, outcome.problem


def _fold(outcome: Outcome) -> int:
    """By the problem's name alone, so that another bank with the same problems deals them alike."""
    return int.from_bytes(sha256("\0".join(_problem(outcome)).encode()).digest()[:8], "big") % FOLDS
