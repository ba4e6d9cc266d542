"""flowserve bench stopping: which chains are judged, by which rule, and what the record holds."""

import json
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from flowserve.bench import stopping
from flowserve.bench.stopping_plot import Point, pareto
from flowserve.cli import benching
from flowserve.errors import ConfigError, FlowServeError
from flowserve.reasoning.calibrate import Candidate
from flowserve.reasoning.certificates import Certificate, Certificates, Subject


def line(model: str, problem: int, seed: int, answer: str, with_trials: bool = True) -> dict[str, Any]:
    """It says `answer`, sure of it, at 100 of 1,000 tokens; 9 is right."""
    found: dict[str, Any] = {
        "model": model, "dataset": "math500", "problem_id": problem, "seed": seed, "target": "9",
        "final_answer": "9", "final_correct": True, "tokens_used": 1000,
        "probes": [[64 * number, answer if number < 8 else "9", True, 4] for number in range(1, 16)],
    }  # fmt: skip
    return found | ({"trials": [[100, answer, 0.9995, 10], [200, "9", 0.9999, 10]]} if with_trials else {})


@pytest.fixture
def bank(tmp_path: Path) -> Path:
    path = tmp_path / "bank.jsonl"
    lines = [
        line("m", problem, seed, "3" if problem == seed == 0 else "9") for problem in range(4) for seed in range(3)
    ]
    lines += [line("n", problem, 0, "9", with_trials=False) for problem in range(4)]
    path.write_text("".join(json.dumps(each) + "\n" for each in lines))
    return path


@pytest.fixture
def samples(tmp_path: Path) -> Path:
    path = tmp_path / "samples.jsonl"
    lines = [{"target": "9", "answers": ["9"] * 10}, {"target": "9", "answers": ["3", "9"] * 5}]
    path.write_text("".join(json.dumps(each) + "\n" for each in lines))
    return path


def measured(bank: Path, out: Path, **options: Any) -> dict[str, Any]:
    settings: dict[str, Any] = {
        "samples": None, "rule": "default", "sample_rule": "adaptive_consistency", "certificates": None,
        "template": "boxed", "tasks": [], "unseen": None, "picture": None,
    }  # fmt: skip
    benching.stopping(out, bank, **settings | options)
    results: dict[str, Any] = json.loads(out.read_text())["results"]
    return results


def test_a_rule_is_judged_on_the_chains_of_which_its_signals_were_recorded(bank: Path, tmp_path: Path) -> None:
    results = measured(bank, tmp_path / "out.json")
    assert (results["rule"], results["n"], results["left_out"]) == ("default", 12, 4)
    assert results["accuracy_change_pp"] == pytest.approx(-100 / 12, abs=0.01)
    assert results["tokens_saved_pct"] == pytest.approx(89)
    assert (results["harmed"], results["rescued"], results["stopped"]) == (1, 0, 12)
    (row,) = results["by_model_set"]
    assert (row["model"], row["dataset"], row["n"]) == ("m", "math500", 12)
    assert row["accuracy_change_95"]["low"] <= row["accuracy_change_pp"] <= row["accuracy_change_95"]["high"]
    probed = measured(bank, tmp_path / "out.json", rule="dynasor-mild")
    assert (probed["n"], probed["left_out"], len(probed["by_model_set"])) == (16, 0, 2)


def test_composed_counts_the_chains_that_a_vote_needs(bank: Path, tmp_path: Path) -> None:
    """Of problem 0 two chains disagree, so the third is begun; of the others two suffice. A chain that is stopped writes 110 tokens."""
    composed = measured(bank, tmp_path / "out.json")["composed"]
    assert composed["tokens_per_problem"] == pytest.approx((3 + 2 + 2 + 2) * 110 / 4)
    assert composed["accuracy"] == 100
    assert composed["whole_tokens_per_problem"] == 2000
    assert composed["all_tokens_per_problem"] == 3000
    assert composed["problems"] == 4


def test_without_several_chains_of_a_problem_nothing_is_composed(tmp_path: Path) -> None:
    path = tmp_path / "bank.jsonl"
    path.write_text(json.dumps(line("m", 0, 0, "9")) + "\n")
    assert measured(path, tmp_path / "out.json")["composed"] is None


def test_parameters_are_given_with_the_name(bank: Path, tmp_path: Path) -> None:
    strict = measured(bank, tmp_path / "out.json", rule="deer(threshold=0.9999, trials=5)")
    assert strict["stopped"] == 0
    assert strict["tokens_saved_pct"] == pytest.approx(-2), "two trials of ten tokens"


def certificate(subject: Subject, **args: float) -> Certificate:
    now = datetime.now(UTC)
    zeros = dict.fromkeys(
        ("change", "change_low", "saved_low", "saved_high", "differing_high", "unseen_change", "unseen_saved"), 0.0
    )
    return Certificate(
        subject=subject, rule="deer", args=args, num_problems=400, num_trajectories=400, stopped=1, harmed=0, rescued=0, differing=0,
        margin=0.01, error=0.05, saved=0.1, bank="0" * 64, created=now, expires=now + timedelta(days=1), **zeros,
    )  # fmt: skip


def test_a_certificate_says_the_rule_of_its_model_and_others_have_the_default(bank: Path, tmp_path: Path) -> None:
    with bank.open("a") as file:
        file.writelines(json.dumps(line("o", problem, 0, "9")) + "\n" for problem in range(3))
    store = Certificates(tmp_path / "certificates")
    store.write(certificate(Subject("m", "boxed", "math"), threshold=0.99995))
    options: dict[str, Any] = {"certificates": tmp_path / "certificates", "tasks": ["math=math500"]}
    results = measured(bank, tmp_path / "out.json", **options)
    assert results["rule"] == "certified"
    stopped = {row["model"]: (row["rule"], row["stopped"]) for row in results["by_model_set"]}
    assert stopped == {"m": ("deer(threshold=0.99995)", 0), "o": ("default()", 3)}
    elsewhere = measured(bank, tmp_path / "out.json", certificates=tmp_path / "certificates")
    assert {row["rule"] for row in elsewhere["by_model_set"]} == {"default()"}, "it is for the class math"


def test_samples_are_drawn_in_the_recorded_order_and_in_others(bank: Path, samples: Path, tmp_path: Path) -> None:
    """The tie of the second question goes to its first answer, which in half of the orders is right."""
    results = measured(bank, tmp_path / "out.json", samples=samples, sample_rule="fixed(samples=4)")
    assert results["samples_mean"] == results["samples"]["mean"] == 4
    assert results["samples"]["n"] == 2
    assert results["samples"]["recorded_order_change_pp"] == 0
    assert 50 < results["samples"]["accuracy_full_pct"] < 100
    again = measured(bank, tmp_path / "out.json", samples=samples, sample_rule="fixed(samples=4)")
    assert again["samples"] == results["samples"]
    unanimous = measured(bank, tmp_path / "out.json", samples=samples)["samples"]
    assert unanimous["recorded_order_mean"] == 7, "four that agree; ten that do not"


def test_all_rules_have_a_row_and_a_family_is_judged_unseen(bank: Path, tmp_path: Path) -> None:
    results = measured(bank, tmp_path / "out.json", rule="all", unseen="deer", picture=tmp_path / "front.svg")
    rows = {row["rule"]: row["n"] for row in results["rules"]}
    assert rows["deer"] == 12 and rows["dynasor-mild"] == 16
    assert results["rule"] == "default"
    assert results["unseen"]["n"] == 12
    assert sum(each["folds"] for each in results["unseen"]["chosen"]) > 1
    assert (tmp_path / "front.svg").read_text().startswith("<svg")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"rule": "dear"}, "no rule 'dear' for chains; known: default, deer, "),
        ({"rule": "deer(0.9)"}, r"expected a rule such as deer or deer\(threshold=0.99, trials=30\); got 'deer\(0.9\)'"),
        ({"rule": "deer(threshold=2)"}, "rule 'deer', threshold: expected a number from 0 to 1; got 2"),
        ({"unseen": "default"}, "--unseen: expected a rule with a grid, one of "),
        ({"certificates": Path("nowhere")}, "--certificates: expected a folder of certificates; there is none at nowhere"),
        ({"certificates": Path(), "rule": "deer"}, "leave out --rule deer"),
    ],
)  # fmt: skip
def test_wrong_options_are_told(bank: Path, tmp_path: Path, options: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        measured(bank, tmp_path / "out.json", **options)


def test_banks_and_samples_that_have_nothing_to_judge_are_told(bank: Path, samples: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty.jsonl"
    empty.write_text("\n")
    with pytest.raises(ConfigError, match="--bank: expected recorded chains"):
        measured(empty, tmp_path / "out.json")
    with pytest.raises(ConfigError, match="--samples: expected questions"):
        measured(bank, tmp_path / "out.json", samples=empty)
    with pytest.raises(ConfigError, match="--sample-rule: no rule 'deer' for samples; known: certaindex"):
        measured(bank, tmp_path / "out.json", samples=samples, sample_rule="deer")
    untried = tmp_path / "untried.jsonl"
    untried.write_text(json.dumps(line("n", 0, 0, "9", with_trials=False)) + "\n")
    with pytest.raises(ConfigError, match="of none of the 1 chains"):
        measured(untried, tmp_path / "out.json")
    with pytest.raises(FlowServeError, match="none.jsonl"):
        measured(tmp_path / "none.jsonl", tmp_path / "out.json")


@pytest.mark.parametrize("text", ["deer", "deer()", " deer ( threshold = 0.99 ) "])
def test_a_rule_is_written_as_it_is_told(text: str) -> None:
    found = stopping.candidate_of(text)
    assert found.rule == "deer"
    assert stopping.candidate_of(str(Candidate("deer", {"threshold": 0.99, "trials": 30}))).args == {
        "threshold": 0.99,
        "trials": 30,
    }


def test_a_front_holds_what_nothing_else_of_its_family_beats() -> None:
    points = [Point(10, -0.5), Point(20, -1), Point(30, -0.7), Point(40, -3), Point(15, -0.5)]
    assert stopping._front(points) == [Point(15, -0.5), Point(30, -0.7), Point(40, -3)]


def test_the_picture_has_a_line_per_family_and_leaves_out_what_nobody_would_use() -> None:
    svg = pareto("a < b", {"deer": [Point(10, 0), Point(30, -2), Point(50, -40)], "x&y": []})
    assert svg.count("<polyline") == 2 and svg.count("<circle") == 2
    assert "a &lt; b" in svg and "x&amp;y" in svg
    assert re.search(r'points="\d+\.\d,\d+\.\d \d+\.\d,\d+\.\d"', svg)
