"""Answers at the beginning of what a fork writes: found as soon as nothing can change them, and not before."""

import pytest

from flowserve.graphs.exits import ANSWERS
from flowserve.reasoning.forms import FORMS, Read


def test_every_form_that_can_be_declared_can_be_read() -> None:
    assert tuple(FORMS) == ANSWERS


@pytest.mark.parametrize(
    ("form", "text", "answer", "rest"),
    [
        ("boxed", "{42}$. So", "42", "$. So"),
        ("boxed", " {\\frac{1}{2}} and", "\\frac{1}{2}", " and"),
        ("boxed", "42} is", "42", " is"),  # the opening brace was the end of the trial's text
        ("boxed", "{ }", "", ""),
        ("number", " 42.\nSo", "42", ".\nSo"),
        ("number", " -3.5 m", "-3.5", " m"),
        ("number", "about 1,234 of", "1,234", " of"),
        ("choice", " B.", "B", "."),
        ("choice", " (C) since", "C", ") since"),
        ("line", " north by west\nBut", "north by west", "\nBut"),
    ],
)
def test_an_answer_is_read_up_to_its_end(form: str, text: str, answer: str, rest: str) -> None:
    assert FORMS[form](text, False) == Read(answer, len(text) - len(rest))


@pytest.mark.parametrize(
    ("form", "text"),
    [
        ("boxed", "{\\frac{1}{2}"),
        ("boxed", ""),
        ("number", " 4"),
        ("number", " 42."),
        ("number", " 42,"),
        ("number", " none"),
        ("choice", " B"),
        ("choice", " Because"),
        ("line", " north by west"),
    ],
)
def test_what_may_still_change_is_no_answer(form: str, text: str) -> None:
    assert FORMS[form](text, False) is None


@pytest.mark.parametrize(
    ("form", "text", "answer"),
    [("number", " 42", "42"), ("number", "42.", "42"), ("choice", " B", "B"), ("line", " north", "north")],
)
def test_at_the_end_of_the_fork_nothing_changes_any_more(form: str, text: str, answer: str) -> None:
    read = FORMS[form](text, True)
    assert read is not None and read.answer == answer


def test_a_box_that_was_never_closed_is_no_answer_even_at_the_end() -> None:
    assert FORMS["boxed"]("{42", True) is None
