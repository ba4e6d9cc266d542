"""The measurement behind `flowserve gate reuse`, on a tiny model: what is computed in full is the same, what is pasted is not."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="the embedded engine needs torch")

from flowserve.bench.retrieval import read_questions
from flowserve.bench.reuse.embedded import EmbeddedReplies, measured_cases
from flowserve.bench.reuse.quality import read_cases
from flowserve.cachestore.gatefiles import Gates
from flowserve.cachestore.gates import Thresholds
from flowserve.cachestore.policies import Policy
from flowserve.cli import gating_reuse
from flowserve.errors import ConfigError

pytestmark = pytest.mark.torch

PASSAGES = [" ".join(f"{word}{number}" for word in ("tides", "moon", "sea", "shore")) for number in range(3)]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    rows = [
        {"question": f"What is {i}?", "answers": ["the moon"], "passages": PASSAGES[i:] + PASSAGES[:i]} for i in (0, 1)
    ]
    path = tmp_path / "questions.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_recomputing_all_equals_full_prefill_and_pasting_does_not(
    tiny_folder: Callable[[str], Path], data: Path
) -> None:
    model = str(tiny_folder("llama"))
    [(_, whole), (about, pasted)] = measured_cases(model, "tiny", data, ["full", "none"])
    assert len(whole) == len(pasted) == 2
    assert all(case.agrees and case.kl < 1e-4 and case.f1_full == case.f1_policy for case in whole)
    assert all(case.kl > 1e-3 for case in pasted)
    assert about.subject.policy == Policy("none") and about.dataset == "questions.jsonl"


def test_a_model_answers_for_the_policy_that_it_was_loaded_with(tiny_folder: Callable[[str], Path], data: Path) -> None:
    replies = EmbeddedReplies(str(tiny_folder("llama")), "none")
    with replies, pytest.raises(ConfigError, match="with which the model was loaded"):
        replies.reply(read_questions(data)[0], Policy("full"))


def test_the_gate_of_a_model_that_knows_nothing_stays_shut_and_its_cases_are_kept(
    tiny_folder: Callable[[str], Path], data: Path, tmp_path: Path
) -> None:
    out = tmp_path / "gates"
    [path] = gating_reuse.cases_of([], str(tiny_folder("llama")), data, ["first_k:4"], 1, out)
    _, cases = read_cases(path)
    assert len(cases) == 1
    assert gating_reuse.reuse([path], out, "f1", Thresholds(), 90, True) == 1
    assert not list(Gates(out))


def test_half_a_measurement_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="expected --cases FILE, or --model, --data and --policy.*got --model"):
        gating_reuse.cases_of([], "demo", None, [], None, tmp_path)
    with pytest.raises(ConfigError, match="got --cases, --policy"):
        gating_reuse.cases_of([tmp_path / "x"], None, None, ["none"], None, tmp_path)
