"""The demo's tokenizer: decoding gives the text back, and segments can be tokenised one by one."""

from itertools import pairwise
from pathlib import Path
from random import Random

import pytest

transformers = pytest.importorskip("transformers")

from flowserve.demo import language, stages, sums, tokenizer

READER = tokenizer.reader_tokenizer()
ARITHMETIC = stages.STAGES["arithmetic"].tokenizer()


def encode(text: str) -> list[int]:
    return list(READER.encode(text, add_special_tokens=False))


def some_texts() -> tuple[list[str], list[language.Question]]:
    rng = Random(2)
    documents = [document for _ in range(10) for document in language.draw_documents(rng, "eval", 6)]
    questions = language.questions_about(rng, documents)
    return [document.text for document in documents], [q for kind in questions.values() for q in kind]


def test_texts_come_back_exactly() -> None:
    passages, questions = some_texts()
    texts = [*passages, *(q.text for q in questions), *(q.answer for q in questions)]
    for text in [*texts, language.user_text(passages[:6], questions[0].text), language.SYSTEM]:
        assert READER.decode(encode(text)) == text


def test_sums_come_back_exactly() -> None:
    rng = Random(1)
    for _ in range(50):
        problem = sums.draw_problem(rng, 3, "train")
        for text in (problem.question, problem.answer, sums.SYSTEM):
            assert ARITHMETIC.decode(ARITHMETIC.encode(text)) == text


def test_segments_tokenise_as_the_whole_prompt_does() -> None:
    passages, questions = some_texts()
    whole = encode(language.user_text(passages[:6], questions[0].text))
    parts = [f"{passage}\n" for passage in passages[:6]] + [language.QUESTION, questions[0].text]
    assert [token for part in parts for token in encode(part)] == whole


def test_a_name_is_two_tokens() -> None:
    names = language.names_of("eval") + language.names_of("train")[::7]
    assert all(len(encode(name)) == 2 and READER.decode(encode(name)) == name for name in names)


@pytest.mark.parametrize(
    "text", ["", "Naïve wörds \t and\n\n漢字 🙂", "x" * 500, "don't {break} <|nothing|> 3.14 foo_bar"]
)
def test_any_text_has_tokens(text: str) -> None:
    assert isinstance(READER.decode(encode(text)), str)


def test_decoding_only_appends() -> None:
    tokens = encode("Krekol is a town.\nQuestion: Who leads Krekol, then?")
    texts = [str(READER.decode(tokens[:i])) for i in range(1, len(tokens) + 1)]
    assert all(longer.startswith(shorter) for shorter, longer in pairwise(texts))


def test_the_saved_tokenizer_knows_the_chat_template(tmp_path: Path) -> None:
    tokenizer.save_tokenizer(READER, tmp_path)
    loaded = transformers.AutoTokenizer.from_pretrained(tmp_path)
    messages = [
        {"role": "system", "content": "Answer from the passages only."},
        {"role": "user", "content": "Krekol is led by Mudi.\nQuestion: Who leads Krekol?"},
        {"role": "assistant", "content": "Krekol is led by Mudi."},
        {"role": "user", "content": "Question: Where does Mudi live?"},
    ]
    text = loaded.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert text == (
        "<s><|system|>Answer from the passages only."
        "<|user|>Krekol is led by Mudi.\nQuestion: Who leads Krekol?"
        "<|assistant|>Krekol is led by Mudi.<|end|>"
        "<|user|>Question: Where does Mudi live?<|assistant|>"
    )
    assert loaded.eos_token == "<|end|>"
    assert loaded.apply_chat_template(messages, add_generation_prompt=True)["input_ids"] == encode(text)
