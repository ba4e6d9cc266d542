"""`bench reasoning` on a tiny bank: what it reads, what it searches, and that equal seeds give equal figures."""

import json
from pathlib import Path
from random import Random
from typing import Any

import pytest

from flowserve.bench.reasoning import compare, loads
from flowserve.bench.reasoning.compare import Options, measure, ratio
from flowserve.bench.reasoning.loads import Case, Load, at_target, greatest_rate, run
from flowserve.bench.reasoning.picture import picture
from flowserve.bench.reasoning.problems import OTHERS, Bank, Problem, read_problems, translated
from flowserve.bench.reasoning.setups import BASELINE, Setup, setups
from flowserve.core.stopping.signals import UNUSABLE, Trial
from flowserve.errors import ConfigError
from flowserve.sim.engine import EngineSpec
from flowserve.sim.voting import Answer, Chain

MODEL = "m"


def line(problem: int, seed: int, tokens: int, answer: str, trials: list[Any] | None, model: str = MODEL) -> str:
    """The right answer to each problem is 7."""
    row = {
        "model": model,
        "dataset": "d",
        "problem_id": problem,
        "seed": seed,
        "target": "7",
        "final_answer": answer,
        "final_correct": answer == "7",
        "tokens_used": tokens,
    }
    return json.dumps(row if trials is None else {**row, "trials": trials})


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Twelve problems of three chains; every second chain is sure of its answer after a third of it."""
    lines = []
    for problem in range(12):
        for seed in range(3):
            tokens, answer = 300 + 97 * problem + 211 * seed, "7" if (problem + seed) % 4 else "8"
            trials = [[100, "3", 0.4, 6], [tokens // 3, answer, 1.0, 6]] if seed != 1 and tokens > 330 else []
            lines.append(line(problem, seed, tokens, answer, trials))
    lines.append(line(0, 0, 500, "7", None, model="other"))
    file = tmp_path / "bank.jsonl"
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return file


# --- problems --------------------------------------------------------------------------------------------------


def test_models_without_trials_are_left_out(path: Path) -> None:
    bank = read_problems(path)
    assert len(bank.problems) == 12
    assert {problem.kind[0] for problem in bank.problems} == {MODEL}
    assert bank.problems[1].kind == (MODEL, "d", 3)


def test_a_bank_without_trials_is_refused(path: Path) -> None:
    with pytest.raises(ConfigError, match="of the model 'other' with trials; there are none"):
        read_problems(path, "other")


def test_up_to_the_recorded_chains_a_program_has_no_others(path: Path) -> None:
    bank, rnd = read_problems(path), Random(3)
    own = {problem.chains for problem in bank.problems}
    for _ in range(20):
        drawn = bank.sample(rnd, 3)
        assert any(sorted(map(repr, drawn)) == sorted(map(repr, chains)) for chains in own)


def test_further_chains_come_from_problems_that_are_alike(path: Path) -> None:
    bank = read_problems(path)
    for seed in range(20):
        drawn = bank.sample(Random(seed), 8)
        lengths = {chain.tokens for chain in drawn}
        kinds = [kind for kind in {p.kind for p in bank.problems} if lengths <= _lengths(bank, kind)]
        assert len(drawn) == 8 and kinds


def _lengths(bank: Bank, kind: tuple[str, str, int]) -> set[int]:
    return {chain.tokens for problem in bank.problems if problem.kind == kind for chain in problem.chains}


def test_answers_of_another_problem_become_those_that_stand_for_them_here() -> None:
    source = _problem((4, True), (9, False), (9, False))
    target = _problem((0, True), (2, False), (3, False))
    trials = (Trial(10, 9, 0.5, 1), Trial(20, 4, 1.0, 1), Trial(30, UNUSABLE, 0.1, 1), Trial(40, 11, 0.1, 1))
    found = translated(Chain(99, Answer(9, False), trials, (4,)), source, target)
    assert found.final == Answer(2, False)
    assert found.right == (0,)
    assert [trial.label for trial in found.trials] == [2, 0, UNUSABLE, OTHERS + 11]


def _problem(*finals: tuple[int, bool]) -> Problem:
    """The first answer is the right one."""
    chains = [Chain(100, Answer(label, correct), (), (finals[0][0],)) for label, correct in finals]
    return Problem((MODEL, "d", sum(correct for _, correct in finals)), tuple(chains))


# --- rates -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bound", [0.013, 0.1, 4.2])
@pytest.mark.parametrize("guess", [0.05, 1.0])
def test_the_greatest_rate_is_found_within_the_precision(bound: float, guess: float) -> None:
    found = greatest_rate(lambda rate: rate <= bound, guess, precision=1.02)
    assert bound / 1.02 <= found <= bound


def test_a_target_that_nothing_meets_is_an_error() -> None:
    with pytest.raises(ConfigError, match="choose a greater --target"):
        greatest_rate(lambda rate: False, 1.0)


def test_a_target_that_everything_meets_is_an_error() -> None:
    with pytest.raises(ConfigError, match="take more --programs"):
        greatest_rate(lambda rate: True, 1.0)


def test_at_the_rate_that_is_found_the_p90_is_within_the_target(path: Path) -> None:
    case = Case(read_problems(path), 3, 1, 30, 1)
    target_s = 1.5 * run(case, BASELINE, 1e-5).p90
    rate, load = at_target(case, BASELINE, target_s, 1.0)
    assert load.p90 <= target_s < run(case, BASELINE, 1.1 * rate).p90


@pytest.mark.parametrize("setup", setups(3), ids=lambda setup: setup.name)
def test_every_setup_serves_the_same_programs(path: Path, setup: Setup) -> None:
    case = Case(read_problems(path), 3, 2, 30, 1)
    plain, load = run(case, BASELINE, 0.5), run(case, setup, 0.5)
    assert (load.num_programs, load.full_correct) == (plain.num_programs, plain.full_correct) == (24, load.full_correct)
    if setup.early_exit or setup.rule:
        assert load.tokens < plain.tokens
    else:
        assert (load.tokens, load.samples, load.correct) == (plain.tokens, 3, load.full_correct)


def test_what_is_left_out_is_not_what_would_have_changed_the_vote(path: Path) -> None:
    case = Case(read_problems(path), 3, 1, 30, 1)
    exact = run(case, Setup("exact", None, "decided", wave=1), 0.5)
    assert exact.samples < 3
    assert exact.correct == exact.full_correct


# --- the comparison --------------------------------------------------------------------------------------------


def test_equal_seeds_give_equal_figures_in_any_number_of_processes(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    three = [BASELINE, Setup("chains", None, early_exit=True), Setup("votes", "shortest_work", "decided")]
    monkeypatch.setattr(compare, "setups", lambda _: three)
    monkeypatch.setattr(loads, "ENGINE", EngineSpec(max_num_seqs=4))
    options = {"bank": path, "programs": 20, "seeds": 2, "targets": (2.0,)}
    said: list[str] = []
    one = measure(Options(**options, jobs=1), said.append)
    assert one == measure(Options(**options, jobs=2), lambda _: None)
    names = [setup.name for setup in three]
    assert [case["policy"] for case in one["cases"]] == names
    assert all(any(name in text for text in said) for name in names), "progress is told"
    baseline = one["cases"][0]
    assert (baseline["ratio_vs_fcfs"], baseline["mean_ratio_at_fcfs_rate"]) == (1.0, 1.0)
    assert baseline["accuracy_change_pp"] == 0
    assert all(case["p90_s"] <= case["target_s"] for case in one["cases"])
    drawn = picture("title", one["cases"])
    assert all(f">{name}</text>" in drawn for name in names)


def test_a_ratio_has_students_interval() -> None:
    mean, (low, high) = ratio([2.0, 4.0], [1.0, 1.0])
    assert (mean, low, high) == (3.0, pytest.approx(3 - 12.706, abs=1e-3), pytest.approx(3 + 12.706, abs=1e-3))
    assert ratio([2.0], [1.0]) == (2.0, [2.0, 2.0])


@pytest.mark.parametrize(("field", "value"), [("seeds", 11), ("targets", (1.0,)), ("samples", 0)])
def test_options_that_make_no_sense_are_refused(path: Path, field: str, value: Any) -> None:
    with pytest.raises(ConfigError, match="expected"):
        Options(path, **{field: value})


def test_p90_is_that_of_the_latencies() -> None:
    load = Load([float(second) for second in range(11)], 1, 1, 3.0, 1.0, 1.0, 11, 0.5)
    assert load.p90 == pytest.approx(9.0)
