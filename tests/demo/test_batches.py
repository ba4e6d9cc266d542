"""Packed rows give each question what its own prompt would give, and structured weights find names untrained."""

from random import Random

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from flowserve.demo import batches, language, tokenizer
from flowserve.demo.batches import Encoder
from flowserve.demo.initialise import initialise
from flowserve.demo.model import Model, Shape
from flowserve.demo.stages import STAGES

ENCODER = Encoder(tokenizer.reader_tokenizer())


def test_a_row_is_the_prompt_that_the_chat_template_makes() -> None:
    rng = Random(1)
    documents = language.draw_documents(rng, "train", 4)
    row = batches.reader_row(rng, ENCODER, documents)
    questions = [q for kind in language.questions_about(Random(1), documents).values() for q in kind]
    prompt = ENCODER.core.apply_chat_template(
        [
            {"role": "system", "content": language.SYSTEM},
            {"role": "user", "content": language.user_text([d.text for d in documents], questions[0].text)},
        ],
        add_generation_prompt=True,
        return_dict=False,
    )
    assert prompt == row.context + ENCODER.question(questions[0].text)


def test_a_packed_question_is_read_as_if_it_were_alone() -> None:
    torch.manual_seed(0)
    model = Model(Shape(len(ENCODER.core), layers=2))
    rng = Random(2)
    row = batches.reader_row(rng, ENCODER, language.draw_documents(rng, "train", 3))
    batch = batches.pack([row], 400, ENCODER.pad)
    with torch.inference_mode():
        packed = model(batch.tokens, batch.positions, batch.mask()).flatten(0, 1)[batch.at]
        for number, _ in enumerate(batch.kinds):
            turn = row.turns[number]
            alone = model(torch.tensor([[*row.context, *turn.prompt, *turn.answer[:-1]]]))[0, -len(turn.answer) :]
            assert torch.allclose(packed[batch.turn_of == number], alone, atol=1e-4)
    assert len(batch.kinds) > 3


def test_untrained_structured_weights_begin_with_the_name_that_is_asked_about() -> None:
    stage = STAGES["reader"]
    model = Model(stage.shape(len(ENCODER.core)))
    initialise(model, stage.flags(ENCODER.core.get_vocab()), seed=1)
    batch = batches.reader_batch(Random(3), ENCODER, 1, 4000, "eval")
    starts = torch.cat((torch.tensor([True]), batch.turn_of[1:] != batch.turn_of[:-1]))
    with torch.inference_mode():
        states = model(batch.tokens, batch.positions, batch.mask()).flatten(0, 1)[batch.at[starts]]
        right = model.logits(states).argmax(-1) == batch.targets[starts]
    assert right.float().mean() > 0.9
