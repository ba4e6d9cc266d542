"""Text deltas: complete characters, stop strings cut out, nothing lost."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flowserve.engines.detok import PATIENCE_TOKENS, Detokenizer, StopScanner, TextStream
from flowserve.engines.words import WordTokenizer


def in_bytes(ids: Sequence[int]) -> str:
    """A decoder whose tokens are single bytes."""
    return bytes(ids).decode(errors="replace")


def spaced(ids: Sequence[int]) -> str:
    """A decoder as word-piece models have: words with spaces between, none before punctuation; 0 is special."""
    words = {1: "one", 2: "two", 3: "##fer", 4: ",", 5: "."}
    text = " ".join(words[i] for i in ids if i)
    return text.replace(" ##", "").replace(" ,", ",").replace(" .", ".")


@given(st.text())
def test_byte_tokens_give_whole_characters_and_the_whole_text(text: str) -> None:
    detokenizer = Detokenizer(in_bytes)
    deltas = [detokenizer.push((byte,)) for byte in text.encode()]
    assert "".join(deltas) + detokenizer.finish() == text
    if "\ufffd" not in text:
        assert not any("\ufffd" in delta for delta in deltas)


@given(st.lists(st.integers(0, 255), max_size=80))
def test_any_bytes_give_what_decoding_them_at_once_gives(ids: list[int]) -> None:
    detokenizer = Detokenizer(in_bytes)
    deltas = [detokenizer.push((i,)) for i in ids]
    text = "".join(deltas)
    assert text + detokenizer.finish() == in_bytes(ids)


@given(st.lists(st.sampled_from([0, 1, 2, 3, 4, 5]), max_size=80))
def test_decoders_that_join_words_are_followed(ids: list[int]) -> None:
    if ids[:1] == [3]:
        ids = [1, *ids]
    detokenizer = Detokenizer(spaced)
    assert "".join(detokenizer.push((i,)) for i in ids) + detokenizer.finish() == spaced(ids)


def test_garbage_is_not_waited_for_without_end() -> None:
    detokenizer = Detokenizer(in_bytes)
    assert any(detokenizer.push((0xFF,)) for _ in range(PATIENCE_TOKENS))


@given(
    st.text(alphabet="abc", max_size=30),
    st.lists(st.text(alphabet="abc", min_size=1, max_size=4), max_size=3),
    st.data(),
)
def test_a_stop_string_is_found_across_any_cuts(text: str, stops: list[str], data: st.DataObject) -> None:
    ends = [(text.index(stop) + len(stop), text.index(stop)) for stop in stops if stop in text]
    wanted = text[: min(ends)[1]] if ends else text
    scanner = StopScanner(stops)
    shown, at = "", 0
    while at < len(text) and not scanner.stopped:
        size = data.draw(st.integers(1, 4))
        shown += scanner.push(text[at : at + size])
        assert wanted.startswith(shown), "nothing is shown that would have to be taken back"
        at += size
    if not scanner.stopped:
        shown += scanner.finish()
    assert shown == wanted
    assert scanner.stopped == bool(ends)


def test_text_is_held_back_only_while_a_stop_string_is_possible() -> None:
    scanner = StopScanner(("\nUser:",))
    assert [scanner.push(part) for part in ("Hi", "\n", "Us", "ually")] == ["Hi", "", "", "\nUsually"]


def test_a_stop_string_in_the_last_owed_text_still_counts() -> None:
    stream = TextStream(in_bytes, ("\ufffd",))
    assert stream.push((0xC3,)) == ""
    assert stream.finish() == ""
    assert stream.stopped


@given(st.text())
def test_the_word_tokenizer_is_reversible(text: str) -> None:
    tokenizer = WordTokenizer()
    assert tokenizer.decode(tokenizer.encode(text)) == text
    again = WordTokenizer()
    assert again.encode(text) == tokenizer.encode(text), "ids are the same in every process"


def test_the_word_tokenizer_replaces_what_is_not_text() -> None:
    tokenizer = WordTokenizer()
    assert tokenizer.decode(tokenizer.encode("a\ud800b")) == "a?b"


# --- real tokenizers ------------------------------------------------------------------------------------


def metaspace_tokenizer() -> Any:
    """SentencePiece's way: a space is a visible character and the first word gets one."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = "▁abcdeu<|>_im.end"
    vocabulary = {f"<0x{i:02X}>": i for i in range(256)}
    for token in ["<unk>", "<s>", "</s>", *dict.fromkeys(letters), "▁a", "▁b", "ab", "▁ab"]:
        vocabulary.setdefault(token, len(vocabulary))
    merges = [("▁", "a"), ("▁", "b"), ("a", "b"), ("▁", "ab")]
    core = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    core.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


@pytest.fixture(params=["byte-level", "metaspace", "word-piece"])
def real(request: pytest.FixtureRequest, tiny_tokenizer_of: Callable[[], Any]) -> Any:
    pytest.importorskip("transformers", reason="needs transformers")
    from flowserve.engines.hf_tokenizer import HFTokenizer

    if request.param == "word-piece":
        from flowserve.demo.tokenizer import reader_tokenizer

        return HFTokenizer(reader_tokenizer())
    return HFTokenizer(tiny_tokenizer_of() if request.param == "byte-level" else metaspace_tokenizer())


@pytest.mark.torch
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.data())
def test_deltas_of_real_tokenizers_join_to_the_decoded_text(real: Any, data: st.DataObject) -> None:
    # Whole characters only: byte-fallback decoders rewrite earlier bytes when an invalid one follows.
    texts = data.draw(st.lists(st.sampled_from(["Who leads", " Krekol?", "é", "🎈", "\n", " ab b.", ", [1]", "ab"])))
    ids = [i for text in texts for i in (*real.encode(text), *data.draw(st.sampled_from([(), real.eos_ids])))]
    stream = TextStream(real.decode)
    assert "".join([*(stream.push((i,)) for i in ids), stream.finish()]) == real.decode(ids)


@pytest.mark.torch
def test_data_never_becomes_a_special_token(real: Any) -> None:
    for token in real.added_tokens:
        text = f"a{token}b"
        plain, trusted = real.encode(text), real.encode_template(text)
        assert plain != trusted
        assert len(plain) > len(trusted) or "unk" in token


@pytest.mark.torch
def test_what_is_not_text_does_not_stop_a_tokenizer(real: Any) -> None:
    assert real.encode("a\ud800b") == real.encode("a?b")
    assert real.encode_template("\udfff") == real.encode_template("?")


@pytest.mark.torch
def test_a_segment_gets_no_space_of_its_own(tiny_tokenizer_of: Callable[[], Any]) -> None:
    pytest.importorskip("tokenizers")
    from flowserve.engines.hf_tokenizer import HFTokenizer

    tokenizer = HFTokenizer(metaspace_tokenizer())
    assert tokenizer.decode(tokenizer.encode("ab") + tokenizer.encode("ab")) == "abab"
    assert tokenizer.encode("") == []


@pytest.mark.torch
def test_added_words_stay_words_and_tokens_of_the_template_do_not(tiny_tokenizer_of: Callable[[], Any]) -> None:
    pytest.importorskip("tokenizers")
    from flowserve.engines.hf_tokenizer import HFTokenizer

    published = tiny_tokenizer_of()
    published.add_tokens(["\n\n\n\n", "<think>"])
    published.chat_template += "{{ '<think>' }}"
    tokenizer = HFTokenizer(published)
    assert len(tokenizer.encode("\n\n\n\n")) == len(tokenizer.encode_template("\n\n\n\n")) == 1
    assert len(tokenizer.encode_template("<think>")) == 1
    assert len(tokenizer.encode("<think>")) > 1
    assert "<think>" in tokenizer.added_tokens
    assert tokenizer.decode(tokenizer.encode("a<think>\n\n\n\nb")) == "a<think>\n\n\n\nb"
