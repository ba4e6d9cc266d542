"""The shipped weights: they load, agree with the training model, are small, and answer a fixed list of questions."""

import json
from pathlib import Path
from random import Random
from typing import Any

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from flowserve import demo
from flowserve.demo import language, sums, train
from flowserve.demo.export import load
from flowserve.demo.stages import STAGES

FOLDERS = {"reader": demo.reader_path(), "arithmetic": demo.arithmetic_path()}
LIMIT_BYTES = 16_000_000
each_stage = pytest.mark.parametrize("stage", sorted(FOLDERS))


@pytest.fixture(scope="module")
def models() -> dict[str, Any]:
    load_model = transformers.AutoModelForCausalLM.from_pretrained
    return {stage: load_model(folder, dtype=torch.float32).eval() for stage, folder in FOLDERS.items()}


def answer(model: Any, stage: str, system: str, user: str) -> str:
    core = transformers.AutoTokenizer.from_pretrained(FOLDERS[stage])
    messages = [{"role": "system", "content": system}, {"role": "user", "content": user}]
    inputs = core.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    tokens = model.generate(**inputs, max_new_tokens=96, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    return str(core.decode(tokens, skip_special_tokens=True))


def test_the_weights_are_small() -> None:
    assert sum((folder / "model.safetensors").stat().st_size for folder in FOLDERS.values()) < LIMIT_BYTES


@each_stage
def test_the_export_agrees_with_the_training_model(models: dict[str, Any], stage: str) -> None:
    tokens = torch.randint(7, 150, (2, 80), generator=torch.Generator().manual_seed(0))
    ours = load(FOLDERS[stage])
    with torch.inference_mode():
        difference = ours.logits(ours(tokens)) - models[stage](tokens).logits
    assert difference.abs().max() < 1e-4


@each_stage
def test_the_saved_tokenizer_is_the_one_that_is_built(stage: str) -> None:
    saved = transformers.AutoTokenizer.from_pretrained(FOLDERS[stage])
    assert saved.get_vocab() == STAGES[stage].tokenizer().get_vocab()


@each_stage
def test_the_card_reports_enough_questions(stage: str) -> None:
    card = json.loads((FOLDERS[stage] / "card.json").read_text())
    assert all(score["n"] >= 500 for score in card["evaluation"]["scores"])


def reader_questions() -> list[tuple[list[str], demo.CorpusQuestion]]:
    """Twelve questions of the corpus, each with its documents and others, six passages in all."""
    texts = {path.name: path.read_text().strip() for path in sorted(demo.corpus_path().iterdir())}
    asked: list[tuple[list[str], demo.CorpusQuestion]] = []
    rng = Random(11)
    for question in demo.questions("single")[:6] + demo.questions("two-hop")[:6]:
        others = [name for name in texts if name not in question.documents]
        chosen = [*question.documents, *rng.sample(others, 6 - len(question.documents))]
        rng.shuffle(chosen)
        asked.append(([texts[name] for name in chosen], question))
    return asked


def test_the_reader_answers_questions_about_the_corpus(models: dict[str, Any]) -> None:
    for passages, question in reader_questions():
        user = language.user_text(passages, question.question)
        assert answer(models["reader"], "reader", language.SYSTEM, user) == question.answer


@pytest.mark.parametrize("num_steps", [1, 2, 3])
def test_the_calculator_computes(models: dict[str, Any], num_steps: int) -> None:
    rng = Random(num_steps)
    for _ in range(3):
        problem = sums.draw_problem(rng, num_steps, "eval")
        assert answer(models["arithmetic"], "arithmetic", sums.SYSTEM, problem.question) == problem.answer


def test_a_resumed_run_takes_the_same_next_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train, "BUDGET_TOKENS", 600)
    first = train.Trainer(STAGES["reader"], seed=3, minutes=1)
    first.step()
    train.save(first, tmp_path / "checkpoint.pt")
    second = train.Trainer(STAGES["reader"], seed=4, minutes=1)
    second.restore(torch.load(tmp_path / "checkpoint.pt", weights_only=False))
    first.step()
    second.step()
    for name, weight in first.model.state_dict().items():
        assert torch.equal(weight, second.model.state_dict()[name]), name
