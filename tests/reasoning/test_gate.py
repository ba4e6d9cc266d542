import os
from datetime import UTC, datetime
from pathlib import Path

import pytest

from flowserve.core.stopping.chains import CHAIN_RULES
from flowserve.errors import ConfigError
from flowserve.reasoning.bank import RecordedProbe, RecordedTrial, Trajectory, read_bank
from flowserve.reasoning.calibrate import Certified, Refused, Risk
from flowserve.reasoning.certificates import Certificates, Subject
from flowserve.reasoning.gate import PATHS, RULES, certificate_of, judge, path_of
from flowserve.reasoning.replay import Recording, label_all

LEVELS = ("mild", "low", "mid", "high", "crazy")


def chain(
    problem: int,
    model: str = "m",
    dataset: str = "set",
    trials: bool = True,
    confidence: float = 0.99999,
    said: str = "9",
) -> Trajectory:
    """Right in the end; asked at 100 and 200 of its 2,000 tokens, it says `said`."""
    return Trajectory(
        model, dataset, str(problem), 1, "9", "9", True, 2000, True,
        probes=tuple(RecordedProbe(at, said, True, 4) for at in (100, 200)),
        trials=tuple(RecordedTrial(at, said, confidence, 6) for at in (100, 200)) if trials else None,
    )  # fmt: skip


def recorded(count: int = 400, **changes: object) -> list[Recording]:
    return label_all(chain(problem, **changes) for problem in range(count))  # type: ignore[arg-type]


def test_every_path_leads_from_strict_to_loose_through_parameters_that_the_rule_knows() -> None:
    for rule, args in PATHS.items():
        path = path_of(rule)
        assert len(path) == len(args)
        for name in args[0]:
            values = [each[name] for each in args]
            assert values == sorted(values, reverse=True), f"{rule}: {name}"


@pytest.mark.parametrize("level", LEVELS)
def test_a_rule_without_a_path_is_judged_by_its_defaults(level: str) -> None:
    (candidate,) = path_of(f"dynasor-{level}")
    assert candidate.args == CHAIN_RULES[f"dynasor-{level}"].complete({})


def test_an_unknown_rule_lists_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="no rule 'dear' for chains; known: default, deer, "):
        judge(recorded(1), ["dear"], Risk())


def test_models_and_sets_are_judged_apart_and_sets_of_one_class_together() -> None:
    chains = [*recorded(3), *recorded(4, model="n"), *recorded(5, dataset="other")]
    apart = judge(chains, ["deer"], Risk())
    assert [each.subject for each in apart] == [
        Subject("m", "boxed", "set"), Subject("n", "boxed", "set"), Subject("m", "boxed", "other")
    ]  # fmt: skip
    together = judge(chains, ["deer"], Risk(), "line", {"set": "math", "other": "math"})
    assert [each.subject for each in together] == [Subject("m", "line", "math"), Subject("n", "line", "math")]
    assert [each.verdict.figures.num_problems for each in together if each.verdict.figures] == [8, 4]


def test_without_trials_a_rule_over_trials_is_refused_by_name_and_one_over_probes_is_tried() -> None:
    first, second = judge(recorded(trials=False), [], Risk())
    assert isinstance(first.verdict, Refused)
    assert (first.rules, first.verdict.reason) == (
        ("evidence",), "rule 'evidence' observes trials, and the bank has none of this model. Record them"
    )  # fmt: skip
    assert second.rules == ("certaindex",)
    assert [each.rules for each in judge(recorded(), [], Risk())] == [(RULES[0],)]


def test_chains_without_signals_do_not_dilute_the_harm_of_those_with() -> None:
    """One in ten has trials, all of them wrong: counted as never stopped, the others would make that 10 % of it."""
    chains = [*recorded(40, said="7"), *label_all(chain(number, trials=False) for number in range(40, 400))]
    (judged,) = judge(chains, ["deer"], Risk(margin=0.2))
    assert isinstance(judged.verdict, Refused)
    assert "has those of 40 of 400 chains of this model" in judged.verdict.reason


def test_a_certificate_says_all_that_was_judged(tmp_path: Path) -> None:
    (judged,) = judge(recorded(), ["deer"], Risk())
    assert isinstance(judged.verdict, Certified)
    created = datetime(2026, 3, 1, tzinfo=UTC)
    certificate = certificate_of(judged, Risk(), "digest", created, 30)
    assert certificate is not None
    assert (certificate.rule, certificate.bank) == ("deer", "digest")
    assert certificate.args == {"threshold": 0.9999, "agreeing": 1, "apart": 1, "trials": 10}
    assert (certificate.expires - certificate.created).days == 30
    assert (certificate.harmed, certificate.num_problems) == (0, 400)
    assert certificate.saved == pytest.approx(1 - 106 / 2000)
    store = Certificates(tmp_path)
    store.write(certificate)
    assert store.lookup(judged.subject, created) == certificate


def test_what_was_refused_has_no_certificate() -> None:
    (judged,) = judge(recorded(said="7"), ["deer"], Risk())
    assert isinstance(judged.verdict, Refused)
    assert judged.verdict.figures is not None and judged.verdict.figures.harmed == 400
    assert certificate_of(judged, Risk(), "digest", datetime(2026, 3, 1, tzinfo=UTC), 30) is None


@pytest.fixture(scope="module")
def real() -> list[Recording]:
    """MATH500 of all four models, 400 or 500 problems with three seeds each."""
    data = os.environ.get("FLOWSERVE_DATA")
    if not data:
        pytest.skip("FLOWSERVE_DATA is not set")
    bank = read_bank(Path(data) / "reasoning/trajectories.dev.jsonl.gz")
    return label_all(item for item in bank if item.dataset == "math500")


@pytest.mark.slow
@pytest.mark.parametrize("level", LEVELS)
def test_dynasor_as_shipped_is_refused_for_every_recorded_model(real: list[Recording], level: str) -> None:
    judged = judge(real, [f"dynasor-{level}"], Risk())
    assert len(judged) == 4
    for each in judged:
        assert isinstance(each.verdict, Refused)
        assert each.verdict.figures is not None
        assert each.verdict.figures.change < -0.08
        assert each.verdict.figures.harmed > 5 * each.verdict.figures.rescued


@pytest.mark.slow
def test_recorded_models_with_trials_are_certified_and_save_a_quarter_of_tokens_on_unseen_problems(
    real: list[Recording],
) -> None:
    verdicts = {each.subject.model: each.verdict for each in judge(real, ["evidence"], Risk())}
    for model in ("deepseek-ai-deepseek-r1-distill-qwen-7b", "qwen-qwen3-8b"):
        verdict = verdicts.pop(model)
        assert isinstance(verdict, Certified)
        assert verdict.cross_fit.saved > 0.2
        assert verdict.cross_fit.change > -0.005
    assert len(verdicts) == 2
    assert all(isinstance(verdict, Refused) and verdict.figures is None for verdict in verdicts.values())
