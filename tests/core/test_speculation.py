"""A generation that guesses what it will find: what is asked for, shown, rolled back, in which order."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowserve.core.speculation.stride import Stride
from flowserve.core.speculation.transaction import (
    NOTHING,
    Commit,
    End,
    Found,
    Look,
    Looked,
    Mode,
    RollBack,
    Speculation,
    Verify,
    Write,
    Written,
    begin,
    step,
)
from flowserve.errors import InternalError


def opened(mode: Mode, stride: int = 2) -> Speculation:
    """One whose first step is written, behind passage 7."""
    state = Speculation(mode, Stride(fixed=stride))
    begin(state)
    step(state, Looked(0, None, 0.0))
    step(state, Found((7,), 1.0))
    return state


def wrote(life: int = 0, ended: bool = False) -> Written:
    return Written(life, 4, ended, 0.1)


def test_the_first_passage_is_searched_for_before_anything_is_written() -> None:
    state = Speculation(Mode.SPECULATIVE, Stride(fixed=2))
    assert begin(state) == [Look(0, 0, guess=True)]
    assert step(state, Looked(0, None, 0.0)) == [Verify(0, 1)]
    assert step(state, Found((7,), 1.0)) == [Write(0, 0, 7)]
    assert step(state, wrote()) == [Commit(1), Look(0, 1, guess=True)]


def test_sequential_never_guesses_and_searches_before_each_step() -> None:
    state = opened(Mode.SEQUENTIAL)
    assert step(state, wrote()) == [Commit(1), Look(0, 1, guess=False)]
    assert step(state, Looked(0, None, 0.0)) == [Verify(1, 1)]
    assert step(state, Found((NOTHING,), 1.0)) == [Write(0, 1, NOTHING)]
    assert step(state, wrote(ended=True)) == [Commit(2), End()]
    assert (state.num_guessed, state.num_wasted) == (0, 0)


def test_right_guesses_are_verified_together_then_committed() -> None:
    state = opened(Mode.SPECULATIVE)
    step(state, wrote())
    assert step(state, Looked(0, 7, 0.0)) == [Write(0, 1, 7)]
    assert step(state, wrote()) == [Look(0, 2, guess=True)]
    assert step(state, Looked(0, 8, 0.0)) == [Write(0, 2, 8)]
    assert step(state, wrote()) == [Verify(1, 2)]
    assert step(state, Found((7, 8), 1.0)) == [Commit(3), Look(0, 3, guess=True)]
    assert (state.num_guessed, state.num_right) == (2, 2)


@pytest.mark.parametrize("wrong", [0, 1, 2])
def test_a_wrong_guess_rolls_back_to_itself_and_is_written_again(wrong: int) -> None:
    state = opened(Mode.SPECULATIVE, stride=3)
    step(state, wrote())
    for _ in range(3):
        step(state, Looked(0, 7, 0.0))
        step(state, wrote())
    truth = [7, 7, 7]
    truth[wrong] = 9
    kept = [Commit(1 + wrong)] if wrong else []
    expected = [RollBack(1 + wrong, 4 * (3 - wrong)), *kept, Write(1, 1 + wrong, 9)]
    assert step(state, Found(tuple(truth), 1.0)) == expected
    assert (state.num_guessed, state.num_right) == (wrong + 1, wrong)
    assert step(state, wrote(life=1)) == [Commit(2 + wrong), Look(1, 2 + wrong, guess=True)]


def test_an_end_in_a_guessed_step_is_an_end_only_when_it_is_verified() -> None:
    right, wrong = opened(Mode.SPECULATIVE), opened(Mode.SPECULATIVE)
    for state in (right, wrong):
        step(state, wrote())
        step(state, Looked(0, 7, 0.0))
        assert step(state, wrote(ended=True)) == [Verify(1, 1)]
    assert step(right, Found((7,), 1.0)) == [Commit(2), End()]
    assert step(wrong, Found((8,), 1.0)) == [RollBack(1, 4), Write(1, 1, 8)]


def test_a_step_nobody_can_guess_waits_for_the_index_together_with_what_is_to_be_verified() -> None:
    state = opened(Mode.SPECULATIVE, stride=3)
    step(state, wrote())
    step(state, Looked(0, 7, 0.0))
    step(state, wrote())
    assert step(state, Looked(0, None, 0.0)) == [Verify(1, 2)]
    assert step(state, Found((7, 5), 1.0)) == [Commit(2), Write(0, 2, 5)]


def test_overlapped_verifies_as_soon_as_queries_are_known_and_writes_on() -> None:
    state = opened(Mode.OVERLAPPED)
    step(state, wrote())
    step(state, Looked(0, 7, 0.0))
    step(state, wrote())
    assert step(state, Looked(0, 7, 0.0)) == [Verify(1, 2), Write(0, 2, 7)]
    assert step(state, wrote()) == [Look(0, 3, guess=True)]
    assert step(state, Looked(0, 7, 0.0)) == [Write(0, 3, 7)]
    assert step(state, Found((7, 7), 1.0)) == [Commit(3)]


def test_overlapped_stops_what_is_being_written_behind_a_wrong_guess() -> None:
    state = opened(Mode.OVERLAPPED, stride=1)
    step(state, wrote())
    assert step(state, Looked(0, 7, 0.0)) == [Verify(1, 1), Write(0, 1, 7)]
    assert step(state, Found((8,), 1.0)) == [RollBack(1, 0), Write(1, 1, 8)]
    assert step(state, wrote(life=0)) == []  # of what was stopped
    assert step(state, wrote(life=1)) == [Commit(2), Look(1, 2, guess=True)]


def test_overlapped_guesses_no_more_than_two_rounds_ahead() -> None:
    state = opened(Mode.OVERLAPPED, stride=1)
    step(state, wrote())
    step(state, Looked(0, 7, 0.0))
    step(state, wrote())
    step(state, Looked(0, 7, 0.0))
    assert step(state, wrote()) == []


def test_where_it_does_not_pay_guesses_are_made_but_nothing_is_written_behind_them() -> None:
    stride = Stride()
    stride.wrote(0.1)
    for _ in range(5):
        stride.verified(0, 1, 1, 1.0)
    state = Speculation(Mode.SPECULATIVE, stride)
    begin(state)
    assert step(state, Looked(0, 7, 0.0)) == [Verify(0, 1)]
    assert step(state, Found((7,), 1.0)) == [Write(0, 0, 7)]
    assert list(stride.recent)[-1] == (1, 1)


def test_an_answer_of_the_wrong_length_is_our_mistake() -> None:
    state = Speculation(Mode.SPECULATIVE, Stride(fixed=2))
    begin(state)
    step(state, Looked(0, None, 0.0))
    with pytest.raises(InternalError, match="1 steps were to be verified, 2 were"):
        step(state, Found((1, 2), 1.0))


@given(st.integers(0, 2**32), st.sampled_from(Mode), st.one_of(st.none(), st.integers(1, 8)), st.floats(0, 1))
def test_whatever_is_guessed_and_in_whatever_order_answers_come_the_passages_are_those_of_the_index(
    seed: int, mode: Mode, fixed: int | None, skill: float
) -> None:
    """The passages of committed steps; each is a function of those before it, as queries are of the text."""
    chance = random.Random(seed)
    length = chance.randint(1, 12)
    state = Speculation(mode, Stride(mode is Mode.OVERLAPPED, fixed))
    truth, shown = _truth(length), []
    texts: list[tuple[int, ...]] = [()]  # passages of written steps, by how many
    work: dict[str, Look | Write] = {}
    asked: list[tuple[int, ...]] = []
    commands, over = begin(state), False
    while not over:
        for command in commands:
            match command:
                case Look() | Write():
                    work[type(command).__name__] = command
                case Verify(first, num):
                    assert not asked
                    asked = [texts[place] for place in range(first, first + num)]
                case RollBack(place, _):
                    work.clear()
                    del texts[place + 1 :]
                case Commit(upto):
                    shown = list(texts[upto])
                case End():
                    over = True
        if over:
            break
        choice: str = chance.choice([*sorted(work), *(["found"] if asked else [])])
        if choice == "found":
            commands = step(state, Found(tuple(map(_find, asked)), chance.random()))
            asked = []
        elif choice == "Look":
            look = work.pop(choice)
            right = _find(texts[look.step])
            guess = chance.choice([right if chance.random() < skill else 99, right, None])
            commands = step(state, Looked(look.life, guess, 0.01))
        else:
            write = work.pop(choice)
            assert isinstance(write, Write)
            texts.append((*texts[write.step], write.row))
            commands = step(state, Written(write.life, 4, len(texts) > length, chance.random()))
        assert state.committed <= min(state.verified, len(state.tokens))
    assert shown == truth


def _find(text: tuple[int, ...]) -> int:
    return (3 * sum(text) + len(text)) % 5


def _truth(length: int) -> list[int]:
    found: list[int] = []
    for _ in range(length):
        found.append(_find(tuple(found)))
    return found
