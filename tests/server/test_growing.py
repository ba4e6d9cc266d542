"""Text that was sent cannot be taken back."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowserve.server.growing import Diverged, Growing


def test_text_passes_through_as_it_grows() -> None:
    text = Growing()
    assert [text.add("a"), text.add(""), text.add("bc")] == ["a", "", "bc"]
    assert text.finish("abcd") == "d"


def test_a_second_attempt_only_adds_what_is_new() -> None:
    text = Growing()
    text.add("one two")
    text.restart()
    assert [text.add("one"), text.add(" two th"), text.add("ree")] == ["", " th", "ree"]
    assert text.finish("one two three") == ""


def test_a_second_attempt_that_says_something_else_is_an_error() -> None:
    text = Growing()
    text.add("one two")
    text.restart()
    text.add("one")
    with pytest.raises(Diverged):
        text.add(" three")


def test_a_second_attempt_that_says_less_is_an_error_at_the_end() -> None:
    text = Growing()
    text.add("one two")
    text.restart()
    text.add("one")
    with pytest.raises(Diverged):
        text.finish("one")


@given(
    whole=st.text(max_size=40),
    attempts=st.lists(st.lists(st.integers(0, 40), max_size=5), min_size=1, max_size=4),
)
def test_whatever_the_attempts_the_reader_gets_the_text_once(whole: str, attempts: list[list[int]]) -> None:
    text, got = Growing(), ""
    for attempt in attempts:
        text.restart()
        at = 0
        for size in attempt:
            got += text.add(whole[at : at + size])
            at = min(len(whole), at + size)
    assert got + text.finish(whole) == whole
