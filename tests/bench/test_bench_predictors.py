"""Figures of predictors: from what they are computed, and that recordings are told in an order in which they can happen."""

import gzip
import json
from pathlib import Path

import pytest

from flowserve.bench import predictors
from flowserve.bench.predictors import FIRST, judge
from flowserve.cli import benching
from flowserve.core.learning import Answered
from flowserve.core.predict.base import Call, Prediction
from flowserve.core.predict.shares import Mean
from flowserve.core.predict.table import PREDICTORS
from flowserve.errors import ConfigError, StoreError
from flowserve.ids import NodeId, Tokens
from flowserve.sim import calls
from flowserve.sim.calls import AT_ONCE, in_turns
from flowserve.sim.plans import SHAPES
from flowserve.sim.simulate import simulate
from flowserve.sim.workload import Mix, Workload


class Said:
    """A predictor that says what the prompt's size is."""

    def predict(self, call: Call) -> Prediction | None:
        return Prediction(call.prompt, call.prompt + 2, 2 * call.prompt) if call.prompt else None

    def observe(self, call: Call, tokens: Tokens) -> None:
        pass


def call(prompt: Tokens) -> Call:
    return Call("p", NodeId(0), "", prompt, 100)


def test_figures_are_those_of_the_calls() -> None:
    one, two, three = call(10), call(20), call(30)
    story = [one, two, three, Answered(one, 8), Answered(three, 70), Answered(two, 40)]
    figures = judge(story, Said).figures()
    assert figures["mae"] == pytest.approx((2 + 20 + 40) / 3, abs=0.01)
    assert figures["mae_p50"] == pytest.approx((4 + 18 + 38) / 3, abs=0.01)
    assert figures["relative_error"] == 0.5
    assert figures["order"] == 1.0, "10 < 20 < 30, and so are the answers"
    assert figures["p90_coverage"] == pytest.approx(2 / 3, abs=1e-4)
    assert figures["known"] == 1.0


def test_order_is_judged_between_calls_that_were_at_work_together() -> None:
    one, two, three = call(10), call(20), call(30)
    apart = [one, Answered(one, 9), two, Answered(two, 1), three, Answered(three, 2)]
    assert judge(apart, Said).pairs == 0
    wrong = [one, two, three, Answered(one, 3), Answered(two, 2), Answered(three, 1)]
    assert (judge(wrong, Said).pairs, judge(wrong, Said).agreed) == (3, 0)


def test_what_a_predictor_does_not_know_counts_as_the_scheduler_would_take_it() -> None:
    asked = call(0)
    errors = judge([asked, Answered(asked, 20)], Said)
    assert (errors.of_mean, errors.known) == ([30.0], 0), "half of the limit"


def test_answers_that_only_teach_are_in_no_figure() -> None:
    story: list[Call | Answered] = []
    for _ in range(10):
        story += [call(5), Answered(call(5), 50)]
    assert judge(story, Mean, first=4).of_mean == [0.0] * 6
    assert judge(story, Mean).of_mean[0] == 0.0 and judge(story, Mean).known == 6


def test_programs_go_on_in_turns_and_a_step_is_asked_after_the_one_before() -> None:
    programs = [[Answered(call(100 * number + step), 1) for step in range(3)] for number in range(AT_ONCE + 5)]
    asked: list[Call] = []
    answered: list[Call] = []
    for item in in_turns(programs):
        if isinstance(item, Call):
            assert item.prompt % 100 == 0 or call(item.prompt - 1) in answered
            asked.append(item)
        else:
            assert item.call in asked
            answered.append(item.call)
        assert len(asked) - len(answered) <= AT_ONCE
    assert len(asked) == len(answered) == 3 * (AT_ONCE + 5)


RECORDINGS = {
    "azure.csv": ("TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:17:03.97,4808,10\n", [(4808, 0, 0, 10)]),
    "mooncake.jsonl": ('{"timestamp": 0, "input_length": 67, "output_length": 5, "hash_ids": [0]}\n', [(67, 0, 0, 5)]),
    "bank.jsonl.gz": (
        "".join(
            json.dumps({"model": "m", "dataset": "d", "problem_id": 1, "seed": seed, "tokens_used": tokens}) + "\n"
            for seed, tokens in ((2, 70), (1, 30))
        ),
        [(0, 0, 0, 30), (0, 0, 30, 70)],
    ),
    "agents.jsonl": (
        json.dumps({"segments": [{"prompt_tokens": 9, "completion_tokens": t} for t in (4, 8, 1)]}),
        [(9, 0, 0, 4), (9, 1, 4, 8), (9, 2, 6, 1)],
    ),
}


@pytest.mark.parametrize("name", RECORDINGS)
def test_recordings_are_known_by_their_first_line(tmp_path: Path, name: str) -> None:
    text, wanted = RECORDINGS[name]
    path = tmp_path / name
    with gzip.open(path, "wt") if path.suffix == ".gz" else path.open("w") as file:
        file.write(text)
    answers = [item for item in calls.recorded(path) if isinstance(item, Answered)]
    assert [(a.call.prompt, a.call.step, a.call.siblings, a.tokens) for a in answers] == wanted


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("hello\n", "expected a trace of Azure or Mooncake, or JSON lines with tokens_used or segments; got 'hello"),
        ('{"segments": []}\n{"segment": []}\n', "line 2: expected an object with segments: it has no segments"),
    ],
)
def test_what_is_no_recording_is_refused_by_line(tmp_path: Path, text: str, error: str) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text(text)
    with pytest.raises(StoreError, match=error):
        list(calls.recorded(path))


def test_a_log_tells_what_its_scheduler_asked_and_was_told(tmp_path: Path) -> None:
    plan = SHAPES["chain"]()
    workload = Workload("w", (Mix("chain", plan, {}, rate=2.0),), duration_s=10.0)
    path = tmp_path / "run.log"
    with path.open("w") as file:
        simulate(workload, log_line=file.write)
    story = list(calls.log(path))
    answers = [item for item in story if isinstance(item, Answered)]
    assert answers and {answer.call.limit for answer in answers} == {256, 128}
    assert all(story.index(answer.call) < place for place, answer in enumerate(story) if isinstance(answer, Answered))


def test_the_command_writes_figures_of_every_predictor(tmp_path: Path) -> None:
    path, out = tmp_path / "azure.csv", tmp_path / "out.json"
    rows = [
        f"2023-11-16 18:{number // 60:02}:{number % 60:02},{100 + number},{number % 7 + 1}" for number in range(150)
    ]
    path.write_text("TIMESTAMP,ContextTokens,GeneratedTokens\n" + "\n".join(rows) + "\n")
    benching.predictors(out, [path], [])
    [case] = json.loads(out.read_text())["results"]["cases"]
    assert (case["recording"], case["calls"], list(case["predictors"])) == ("azure.csv", 150, list(PREDICTORS))
    assert all(figures["mae"] < 7 for figures in case["predictors"].values())


def test_nothing_to_read_and_too_little_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="expected --trace FILE or --log FILE"):
        predictors.run([], [], print)
    path = tmp_path / "azure.csv"
    path.write_text(RECORDINGS["azure.csv"][0])
    with pytest.raises(ConfigError, match=f"expected more than {FIRST} model calls that were answered; got 1"):
        predictors.run([path], [], print)
