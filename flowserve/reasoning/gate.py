"""The gate: which recorded models may be stopped by which rule, each on its own problems, with a certificate or a refusal."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta

from flowserve.core.stopping.chains import CHAIN_RULES, ChainRule, Needs
from flowserve.errors import ConfigError
from flowserve.reasoning.calibrate import Candidate, Path, Refused, Risk, Verdict, calibrate
from flowserve.reasoning.certificates import Certificate, Subject
from flowserve.reasoning.outcomes import Outcome
from flowserve.reasoning.replay import Recording, walk

RULES = ("evidence", "certaindex")
"""What is tried where no rule is asked for: the first of them whose signals were recorded."""
TEMPLATE = "boxed"
"""Where none is named: the prompt that makes a fork answer in LaTeX's `\\boxed{}`."""

_THRESHOLDS = (0.9999, 0.9995, 0.999, 0.998, 0.995, 0.99, 0.98, 0.95)
_NINES = (6.0, 5.5, 5.0, 4.5, 4.25, 4.0, 3.75, 3.5, 3.25, 3.0, 2.75, 2.5, 2.25, 2.0)
_WINDOWS = (32, 28, 24, 20, 16, 12, 8, 4)
PATHS: Mapping[str, Sequence[Mapping[str, float]]] = {
    "default": [{"threshold": threshold} for threshold in _THRESHOLDS],
    "deer": [{"threshold": threshold} for threshold in _THRESHOLDS],
    "agree": [{"threshold": threshold} for threshold in _THRESHOLDS],
    "evidence": [{"nines": nines, "span": 2048 * nines} for nines in _NINES],
    "certaindex": [{"window": window, "every": 256} for window in _WINDOWS],
}
"""Parameters from strict to loose, by rule; one that is not named is judged by its defaults. Evenly in the nines of confidence, an
answer having to stand the longer the more nines are asked for; in windows of 8,192 tokens down to 1,024. The error of a certificate holds for banks that had no part in what stands here, nor in the
defaults of a rule's other parameters."""


@dataclass(frozen=True, slots=True)
class Judged:
    """A rule, or several that were judged together, for one subject."""

    subject: Subject
    rules: tuple[str, ...]
    verdict: Verdict


def path_of(rule: str) -> Path:
    """Raises ConfigError for a rule that is not known."""
    known = _rule(rule)
    return [Candidate(rule, known.complete(args)) for args in PATHS.get(rule, [{}])]


def judge(
    recordings: Sequence[Recording],
    rules: Sequence[str],
    risk: Risk,
    template: str = TEMPLATE,
    tasks: Mapping[str, str] | None = None,
) -> list[Judged]:
    """For each model and task class of a bank. `tasks`: class by dataset; a dataset that is not named is a class of its own.

    `rules` are judged together and share the error. If there are none, the first of RULES whose signals were recorded is.
    """
    subjects: dict[Subject, list[Recording]] = {}
    for recording in recordings:
        item = recording.trajectory
        subject = Subject(item.model, template, (tasks or {}).get(item.dataset, item.dataset))
        subjects.setdefault(subject, []).append(recording)
    return [judged for subject, chains in subjects.items() for judged in _judge(subject, chains, rules, risk)]


def certificate_of(judged: Judged, risk: Risk, bank: str, created: datetime, days: int) -> Certificate | None:
    """None if it was refused. `bank`: digest of the file."""
    verdict = judged.verdict
    if isinstance(verdict, Refused):
        return None
    figures = asdict(verdict.figures)
    del figures["evidence"]
    return Certificate(
        subject=judged.subject,
        rule=verdict.candidate.rule,
        args=verdict.candidate.args,
        **figures,
        margin=risk.margin,
        error=risk.error,
        unseen_change=verdict.cross_fit.change,
        unseen_saved=verdict.cross_fit.saved,
        bank=bank,
        created=created,
        expires=created + timedelta(days=days),
    )


def _judge(subject: Subject, chains: Sequence[Recording], rules: Sequence[str], risk: Risk) -> list[Judged]:
    unrecorded = {rule: _unrecorded(_rule(rule), chains) for rule in rules or RULES}
    refused = [Judged(subject, (rule,), Refused(why, None, None)) for rule, why in unrecorded.items() if why]
    able = [rule for rule, why in unrecorded.items() if not why]
    together = tuple(able if rules else able[:1])
    if not together:
        return refused
    verdict = calibrate([path_of(rule) for rule in together], lambda each: _replay(chains, each), risk)
    return [*refused, Judged(subject, together, verdict)]


def _replay(chains: Sequence[Recording], candidate: Candidate) -> list[Outcome]:
    rule = _rule(candidate.rule)
    return [walk(chain, rule(candidate.args)).outcome for chain in chains]


def _unrecorded(rule: ChainRule, chains: Sequence[Recording]) -> str:
    """Why it cannot be replayed, empty if it can. Chains without signals would count as never stopped and so never harmed."""
    found = [chain.trials if rule.needs is Needs.TRIALS else chain.probes for chain in chains]
    missing = found.count(None)
    if not missing:
        return ""
    which = "none" if missing == len(chains) else f"those of {len(chains) - missing:,} of {len(chains):,} chains"
    return f"rule '{rule.name}' observes {rule.needs.value}, and the bank has {which} of this model. Record them"


def _rule(name: str) -> ChainRule:
    if name not in CHAIN_RULES:
        raise ConfigError(f"no rule '{name}' for chains; known: {', '.join(CHAIN_RULES)}")
    return CHAIN_RULES[name]
