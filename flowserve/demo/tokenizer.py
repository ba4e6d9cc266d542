"""The demo models' tokenizers: greedy word pieces from a fixed list, nothing trained.

Spaces are not tokens: the decoder puts one between words and none before punctuation. "\\n" is a token of its own.
So decode(encode(text)) == text for the demo's language, and encode(a) + encode(b) == encode(a + b) wherever `a`
ends or `b` begins with a space, a newline or a special token. Unknown words fall back to letters, unknown characters
to <unk>.
"""

import string
from collections.abc import Callable, Iterable
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import WordPiece
from transformers import PreTrainedTokenizerFast

from flowserve.demo import language, names

PAD, BOS, END, UNKNOWN = "<pad>", "<s>", "<|end|>", "<unk>"
SYSTEM, USER, ASSISTANT = "<|system|>", "<|user|>", "<|assistant|>"
SPECIAL = (PAD, BOS, END, UNKNOWN, SYSTEM, USER, ASSISTANT)
NEWLINE = "\n"
PUNCTUATION = ".,?!:;'\"()[]{}<>|/\\-_+=*&%$#@~^`"
TIGHT = ".,?!:;"  # punctuation that is written without a space before it

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}<|assistant|>{{ message['content'] }}<|end|>"
    "{% elif message['role'] == 'system' %}<|system|>{{ message['content'] }}"
    "{% else %}<|user|>{{ message['content'] }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
MAX_LENGTH = 2048


def _unique(pieces: Iterable[str]) -> dict[str, int]:
    return {piece: i for i, piece in enumerate(dict.fromkeys(pieces))}


def _letters() -> list[str]:
    characters = string.ascii_letters + string.digits
    return [*characters, *(f"##{character}" for character in characters)]


def reader_vocabulary() -> dict[str, int]:
    """Special tokens, punctuation, letters, the language's words, and the syllables of names."""
    syllables = [*names.FIRST_SYLLABLES, *(f"##{syllable}" for syllable in names.SECOND_SYLLABLES)]
    return _unique([*SPECIAL, NEWLINE, *PUNCTUATION, *_letters(), *language.words(), *syllables])


def arithmetic_vocabulary(words: Iterable[str]) -> dict[str, int]:
    """Special tokens, punctuation, letters, and the given words; numbers are digit by digit."""
    return _unique([*SPECIAL, NEWLINE, *PUNCTUATION, *_letters(), *words])


def build_tokenizer(vocabulary: dict[str, int]) -> PreTrainedTokenizerFast:
    """The tokenizer of a vocabulary, with the chat template in it."""
    core = Tokenizer(WordPiece(vocabulary, unk_token=UNKNOWN, max_input_chars_per_word=100))
    core.normalizer = normalizers.Replace(Regex(r"[^\S\n ]"), " ")
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(NEWLINE, "isolated"),
            pre_tokenizers.Split(" ", "removed"),
            pre_tokenizers.Split(Regex(r"[^\w\s]|_"), "isolated"),
        ]
    )
    tight = [decoders.Replace(f" {mark}", mark) for mark in (*TIGHT, NEWLINE)]
    core.decoder = decoders.Sequence(
        [
            decoders.WordPiece(prefix="##", cleanup=False),
            decoders.Fuse(),
            *tight,
            decoders.Replace(f"{NEWLINE} ", NEWLINE),
        ]
    )
    core.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    make: Callable[..., PreTrainedTokenizerFast] = PreTrainedTokenizerFast
    return make(
        tokenizer_object=core,
        bos_token=BOS,
        eos_token=END,
        unk_token=UNKNOWN,
        pad_token=PAD,
        chat_template=CHAT_TEMPLATE,
        model_max_length=MAX_LENGTH,
        clean_up_tokenization_spaces=False,
    )


def reader_tokenizer() -> PreTrainedTokenizerFast:
    return build_tokenizer(reader_vocabulary())


def save_tokenizer(tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Writes tokenizer.json and tokenizer_config.json, the chat template inside the latter."""
    tokenizer.save_pretrained(folder, save_jinja_files=False)
