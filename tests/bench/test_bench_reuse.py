import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flowserve.bench.retrieval import Question
from flowserve.bench.reuse.quality import Case, Measured, Reply, figures, measure, read_cases, write_cases
from flowserve.bench.reuse.scores import exact, f1
from flowserve.cachestore.divergence import MAX_KL, kl
from flowserve.cachestore.gates import Subject, Thresholds
from flowserve.cachestore.policies import Policy
from flowserve.errors import ConfigError

SAME = Case(1.0, 1.0, 1.0, 1.0, 0.0, True)
LOST = Case(1.0, 0.0, 1.0, 0.0, 3.0, False)
MEASURED = Measured(Subject("f" * 64, "main", Policy("first_k"), "raw16"), "m", "set", "0" * 64, {"torch": "2.9"})


@pytest.mark.parametrize(
    ("answer", "golds", "score"),
    [
        ("Exeter College", ["Exeter College"], 1.0),
        ("The Exeter college.", ["exeter college"], 1.0),
        ("Exeter", ["Exeter College"], 2 / 3),
        ("at Exeter College, Oxford", ["Oxford", "Exeter College"], 4 / 6),
        ("no no", ["no"], 2 / 3),
        ("", ["x"], 0.0),
        ("the", ["a"], 1.0),
        ("x", [], 0.0),
    ],
)
def test_f1_counts_words_in_common_and_takes_the_best_gold(answer: str, golds: Sequence[str], score: float) -> None:
    assert f1(answer, golds) == pytest.approx(score)
    assert exact(answer, golds) == float(score == 1.0)


def log_softmax(logits: Sequence[float]) -> Any:
    return np.asarray(logits) - np.log(np.exp(logits).sum())


@settings(max_examples=50)
@given(st.lists(st.tuples(st.floats(-9, 9), st.floats(-9, 9)), min_size=2, max_size=8))
def test_kl_is_the_sum_that_defines_it(pairs: list[tuple[float, float]]) -> None:
    p, q = (log_softmax(side) for side in zip(*pairs, strict=True))
    assert kl(p, q) == pytest.approx(sum(math.exp(a) * (a - b) for a, b in zip(p, q, strict=True)), abs=1e-12)
    assert kl(p, p) == 0.0


def test_what_is_impossible_or_no_number_is_as_far_as_can_be() -> None:
    sure, other = np.log([1.0, 1e-300]), np.array([-np.inf, 0.0])
    assert kl(sure, other) == MAX_KL
    assert kl(sure, np.array([np.nan, 0.0])) == MAX_KL
    assert kl(np.array([0.0, -np.inf]), np.array([0.0, -np.inf])) == pytest.approx(0.0)


class Scripted:
    """Answers rightly with full prefill, and with a policy too where a question says so."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str]] = []

    def reply(self, question: Question, policy: Policy | None) -> Reply:
        self.asked.append((question.text, str(policy)))
        is_right = policy is None or question.text == "easy"
        return Reply("Paris" if is_right else "Rome", log_softmax([3.0, 0.0] if is_right else [0.0, 1.0]))


def test_each_question_is_answered_in_both_ways_and_graded() -> None:
    replies = Scripted()
    questions = [Question(text, ("paris",), ()) for text in ("easy", "hard")]
    easy, hard = measure(replies, questions, Policy("none"))
    assert easy == SAME
    assert (hard.f1_full, hard.f1_policy, hard.exact_policy, hard.agrees) == (1.0, 0.0, 0.0, False)
    assert hard.kl == pytest.approx(kl(log_softmax([3.0, 0.0]), log_softmax([0.0, 1.0])))
    assert replies.asked == [("easy", "None"), ("easy", "none"), ("hard", "None"), ("hard", "none")]


def test_the_figures_are_those_of_the_cases() -> None:
    found = figures([SAME] * 95 + [LOST] * 5, "f1", Thresholds())
    assert (found.n, found.score_full, found.score_policy, found.far, found.differing) == (100, 1.0, 0.95, 5, 5)
    assert found.loss == pytest.approx(0.05)
    assert 0.09 < found.loss_high < 0.16
    assert found.kl_mean == pytest.approx(0.15)


def test_gains_do_not_count_as_losses_and_more_cases_bring_the_bound_nearer() -> None:
    gained = Case(0.0, 1.0, 0.0, 1.0, 0.0, True)
    assert figures([SAME] * 90 + [gained] * 10, "exact", Thresholds()).loss_high < 0
    few, many = (figures([SAME] * n, "f1", Thresholds()).loss_high for n in (50, 500))
    assert 0 < many < 0.02 < few


def test_cases_are_read_back_as_they_were_written(tmp_path: Path) -> None:
    path = tmp_path / "cases.jsonl"
    write_cases(path, MEASURED, [SAME, LOST])
    assert read_cases(path) == (MEASURED, [SAME, LOST])


@pytest.mark.parametrize(
    ("line", "row", "told"),
    [
        (1, {"schema": 9}, "line 1: expected the head of measured cases of schema 1"),
        (1, {"schema": 1, "model": 3}, "line 1: field 'model': expected text, got 3"),
        (2, {"f1": 1}, "line 2: expected a case with f1_full"),
        (3, {**asdict(LOST), "f1_full": 2.0}, "line 3: expected scores from 0 to 1"),
        (3, {**asdict(LOST), "agrees": 1}, "line 3: expected kl of at least 0 and agrees true or false"),
    ],
)
def test_a_line_of_another_form_is_told(tmp_path: Path, line: int, row: dict[str, Any], told: str) -> None:
    path = tmp_path / "cases.jsonl"
    write_cases(path, MEASURED, [SAME, LOST])
    lines = path.read_text().splitlines()
    lines[line - 1] = json.dumps(row)
    path.write_text("\n".join(lines))
    with pytest.raises(ConfigError, match=told):
        read_cases(path)


@pytest.mark.parametrize(
    ("score", "cases", "told"), [("bleu", [SAME], "score: expected f1"), ("f1", [], "at least one")]
)
def test_what_cannot_be_judged_is_told(score: str, cases: list[Case], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        figures(cases, score, Thresholds())
