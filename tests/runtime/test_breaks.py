"""Ends of paragraphs as positions of tokens, however the engine cuts its pieces."""

import pytest

from flowserve.engines.words import WordTokenizer
from flowserve.runtime.breaks import Breaks
from flowserve.runtime.trials import mean

TEXT = "One two.\n\nThree four.\n\nFive </think>\n\nSix.\n\n"


@pytest.mark.parametrize("piece", [1, 2, 3, 7, 100])
def test_positions_do_not_depend_on_the_pieces(piece: int) -> None:
    words = WordTokenizer()
    ids = words.encode(TEXT)
    breaks = Breaks(words.decode, "\n\n", None)
    places = [place for at in range(0, len(ids), piece) for place in breaks.push(ids[at : at + piece])]
    assert breaks.position == len(ids)
    texts = [words.decode(ids[:place]) for place in places]
    assert texts == [TEXT[: at + 2] for at in range(len(TEXT)) if TEXT.startswith("\n\n", at)]


def test_behind_the_mark_that_ends_thoughts_there_is_no_place() -> None:
    words = WordTokenizer()
    breaks = Breaks(words.decode, "\n\n", "</think>")
    places = breaks.push(words.encode(TEXT))
    assert [words.decode(words.encode(TEXT)[:place]) for place in places] == [TEXT[:10], TEXT[:23]]
    assert breaks.closed


def test_a_place_may_be_the_end_of_a_sentence() -> None:
    words = WordTokenizer()
    breaks = Breaks(words.decode, ".", None)
    ids = words.encode("2 + 2 = 4. 4 - 1 = 3.")
    assert [words.decode(ids[:place]) for place in breaks.push(ids)] == ["2 + 2 = 4.", "2 + 2 = 4. 4 - 1 = 3."]


def test_a_confidence_is_a_mean_of_probabilities() -> None:
    assert mean([0.5, 1.0], "arithmetic") == 0.75
    assert mean([0.25, 1.0], "geometric") == pytest.approx(0.5)
    assert mean([0.0, 1.0], "geometric") == 0.0
    assert mean([], "arithmetic") == 0.0
