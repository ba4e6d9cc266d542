import pytest

from flowserve.reasoning.extraction import boxed, final_answer, forced, hesitates

TEXTS = [
    ("so \\boxed{\\frac{1}{2}}.", "\\frac{1}{2}"),
    ("\\boxed{3} first, and then \\boxed{\\text{(B)}}", "\\text{(B)}"),
    ("\\boxed{3} and then \\boxed{4", "3"),
    ("$\\boxed 7$.", "7"),
    ("\\boxed{\\{1, 2\\}}", "\\{1, 2\\}"),
    ("#### 1,234\n", "1,234"),
    ("The answer is 42.", "42"),
    ("the answer is $3.14$. And so on", "$3.14$"),
    ("Final Answer: **17**", "17"),
    ("The final answer is (B).", "B"),
    ("Of these I pick (C)", "C"),
    ("nothing of the kind 7", ""),
]


@pytest.mark.parametrize(("text", "answer"), TEXTS)
def test_the_final_answer_is_taken_from_what_names_it(text: str, answer: str) -> None:
    assert final_answer(text) == answer


@pytest.mark.parametrize(
    ("text", "number"), [("3 and then 7.5", "7.5"), ("it is -1,000 or so", "-1,000"), ("none", "")]
)
def test_the_last_number_is_a_guess_that_has_to_be_asked_for(text: str, number: str) -> None:
    assert final_answer(text) == ""
    assert final_answer(text, last_number=True) == number


def test_an_open_box_is_no_answer() -> None:
    assert boxed("\\boxed{\\frac{1}{2}") == ""
    assert boxed("\\boxed{}") == ""


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("12} \\]", "12"),
        ("\\frac{1}{2}} and", "\\frac{1}{2}"),
        ("\\{1,2\\}}", "\\{1,2\\}"),
        ("\\frac{1}{", "\\frac{1}{"),
        ("}", ""),
    ],
)
def test_a_forced_answer_ends_at_the_first_brace_that_closes_nothing(text: str, answer: str) -> None:
    assert forced(text) == answer


def test_doubt_is_a_word_not_a_part_of_one() -> None:
    assert not hesitates("now the denominator is monotone, a button holds nothing")
    assert hesitates("No, 5") and hesitates("wait...") and hesitates("5, but")
