"""The demo's language: names are split, answers follow from the documents, draws are repeatable."""

from random import Random

import pytest

from flowserve.demo import language, names, sums


def test_no_name_is_in_both_splits() -> None:
    train, held_out = set(language.names_of("train")), set(language.names_of("eval"))
    assert not train & held_out
    assert len(held_out) > 1000
    assert all(names.split_of(name) == "eval" for name in held_out)


def test_no_name_is_a_word_of_the_language() -> None:
    assert not set(language.words()) & {*language.names_of("train"), *language.names_of("eval")}


@pytest.mark.parametrize("seed", range(20))
def test_every_answer_is_stated_by_its_sources(seed: int) -> None:
    rng = Random(seed)
    documents = language.draw_documents(rng, "train", rng.randint(1, 8))
    text_of = {document.name: document.text for document in documents}
    for kind, questions in language.questions_about(rng, documents).items():
        for question in questions:
            sentences = [f"{sentence}." for sentence in question.answer.rstrip(".").split(". ")]
            assert len(sentences) == len(question.sources) == (1 if kind == "single" else 2)
            for sentence, source in zip(sentences, question.sources, strict=True):
                value = sentence.rstrip(".").split()[-1].removesuffix("people").removesuffix("coins")
                assert sentence.startswith(source)
                assert value in text_of[source]


def test_the_second_hop_is_about_the_first_value() -> None:
    rng = Random(3)
    documents = language.draw_documents(rng, "train", 8)
    facts = [fact for document in documents for fact in document.facts]
    pairs = list(language.two_hops(facts))
    assert pairs
    assert all(first.value == second.subject and second.value != first.subject for first, second in pairs)


def test_a_seed_repeats_its_documents() -> None:
    first, second = (language.draw_documents(Random(5), "eval", 6) for _ in range(2))
    assert first == second
    assert first != language.draw_documents(Random(6), "eval", 6)


@pytest.mark.parametrize("num_steps", [1, 2, 3])
def test_every_step_and_check_of_a_sum_is_true(num_steps: int) -> None:
    rng = Random(num_steps)
    for _ in range(100):
        problem = sums.draw_problem(rng, num_steps, "train")
        equations = [part for part in problem.answer.removeprefix("Check: ").split(". ") if "=" in part]
        assert len(equations) == 2 * num_steps
        for equation in equations:
            left, right = equation.removeprefix("Check: ").split(" = ")
            first, operator, second = left.split()
            value = int(first) + int(second) if operator == "+" else int(first) - int(second)
            assert value == int(right)
            assert 0 <= value <= sums.LARGEST
        assert problem.answer.count(f"The answer is {problem.result}.") == 2


def test_a_sum_of_the_evaluation_is_never_drawn_for_training() -> None:
    rng = Random(1)
    held_out = {sums.draw_problem(rng, 1, "eval").question for _ in range(500)}
    assert not held_out & {sums.draw_problem(rng, 1, "train").question for _ in range(2000)}
