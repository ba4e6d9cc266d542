from itertools import pairwise

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from flowserve.errors import ConfigError
from flowserve.retrieval.documents import Document
from flowserve.retrieval.split import CountTokens, Span, Splitting, joined, spans, split


def words(text: str) -> int:
    return len(text.split())


def characters(text: str) -> int:
    return len(text)


def subwords(text: str) -> int:
    """Like WordPiece: every word costs one token per four characters begun."""
    return sum((len(word) + 3) // 4 for word in text.split())


def heavy(text: str) -> int:
    """Every character costs more than small limits allow."""
    return 3 * len(text)


TEXTS = st.one_of(
    st.text(st.sampled_from(list("abcdef.!?\"') \n\n\t。！")), max_size=400),
    st.lists(
        st.sampled_from(["one.", "two", "three", "four!", "\n\n", "\n", "x" * 150, "「五。六」"]), max_size=80
    ).map(" ".join),
    st.text(max_size=200),
)
COUNTS = st.sampled_from([words, characters, subwords, heavy])


@st.composite
def splittings(draw: st.DrawFn) -> Splitting:
    limit = draw(st.integers(1, 40))
    return Splitting(limit, draw(st.integers(0, limit - 1)))


@settings(max_examples=400, deadline=None)
@given(TEXTS, splittings(), COUNTS)
@example("x" * 1000, Splitting(7, 6), characters)
@example("a " * 300 + "y" * 200 + " b" * 300, Splitting(5, 4), subwords)
def test_passages_cover_the_text_in_order_and_keep_the_limits(text: str, splitting: Splitting, count) -> None:  # type: ignore[no-untyped-def]
    found = spans(text, splitting, count)

    covered = set()
    for span in found:
        assert 0 <= span.start < span.end <= len(text)
        piece = text[span.start : span.end]
        assert piece == piece.strip()
        assert count(piece) <= splitting.limit_tokens or len(piece) == 1
        covered.update(range(span.start, span.end))
    assert all(character.isspace() for at, character in enumerate(text) if at not in covered)
    for before, after in pairwise(found):
        assert before.start < after.start and before.end < after.end
        if after.start < before.end:
            assert count(text[after.start : before.end]) <= splitting.overlap_tokens
        else:
            assert not text[before.end : after.start].strip()


@settings(max_examples=200, deadline=None)
@given(TEXTS, COUNTS)
def test_a_text_within_the_limit_is_one_passage(text: str, count) -> None:  # type: ignore[no-untyped-def]
    found = spans(text, Splitting(max(1, count(text)), 0), count)
    assert [text[span.start : span.end] for span in found] == ([text.strip()] if text.strip() else [])


def test_words_that_fit_are_repeated_up_to_the_overlap() -> None:
    text = " ".join(f"w{number}" for number in range(10))
    assert [text[span.start : span.end] for span in spans(text, Splitting(4, 2), words)] == [
        "w0 w1 w2 w3",
        "w2 w3 w4 w5",
        "w4 w5 w6 w7",
        "w6 w7 w8 w9",
    ]


def test_a_passage_ends_at_a_paragraph_rather_than_a_sentence_and_at_a_sentence_rather_than_a_word() -> None:
    text = "a b c d e f.\n\ng h. i j k l m n o p q. r s t u"
    found = [text[span.start : span.end] for span in spans(text, Splitting(10, 0), words)]
    assert found == ["a b c d e f.", "g h. i j k l m n o p", "q. r s t u"]
    found = [text[span.start : span.end] for span in spans(text, Splitting(12, 0), words)]
    assert found == ["a b c d e f.", "g h. i j k l m n o p q.", "r s t u"]


def test_the_overlap_starts_at_a_sentence_where_one_is_near() -> None:
    text = "a b c d e. f g h i j. k l m n o. p q r"
    found = [text[span.start : span.end] for span in spans(text, Splitting(10, 7), words)]
    assert found == ["a b c d e. f g h i j.", "f g h i j. k l m n o.", "k l m n o. p q r"]


def test_a_word_that_is_too_long_is_cut_and_nothing_of_it_lost() -> None:
    text = "x" * 1000
    found = spans(text, Splitting(90, 0), characters)
    assert "".join(text[span.start : span.end] for span in found) == text


def test_passages_carry_document_ordinal_offsets_and_metadata() -> None:
    document = Document("notes/a.md", "  one two three  ", {"type": "markdown"})
    passages = split(document, Splitting(2, 0), words)
    assert [(p.id, p.document, p.text, p.start, p.end, p.metadata) for p in passages] == [
        ("notes/a.md#0", "notes/a.md", "one two", 2, 9, {"type": "markdown"}),
        ("notes/a.md#1", "notes/a.md", "three", 10, 15, {"type": "markdown"}),
    ]


@given(TEXTS, COUNTS, st.integers(1, 12), st.integers(0, 11))
def test_passages_joined_are_the_text_but_for_the_white_space_between_them(
    text: str, count: CountTokens, limit: int, overlap: int
) -> None:
    splitting = Splitting(limit, min(overlap, limit - 1))
    found = joined(split(Document("d", text), splitting, count))
    assert len(found) <= len(text)
    assert all(ours == theirs or (ours == " " and theirs.isspace()) for ours, theirs in zip(found, text, strict=False))
    assert not text[len(found) :].strip()


def test_white_space_alone_gives_no_passages() -> None:
    assert spans(" \n\n ", Splitting(), words) == []


def test_counting_costs_a_few_calls_per_passage_not_one_per_word() -> None:
    calls = 0

    def counted(text: str) -> int:
        nonlocal calls
        calls += 1
        return words(text)

    found = spans("word " * 20_000, Splitting(200, 32), counted)
    assert found[0] == Span(0, 999)
    assert calls < 30 * len(found)


@pytest.mark.parametrize("limit, overlap", [(0, 0), (5, 5), (5, -1)])
def test_impossible_splittings_are_refused(limit: int, overlap: int) -> None:
    with pytest.raises(ConfigError, match=r"must be|between"):
        Splitting(limit, overlap)
