"""The two models that can be trained: what each reads, its size, and where its curriculum starts."""

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from transformers import PreTrainedTokenizerFast

from flowserve.demo import batches, names, sums, tokenizer
from flowserve.demo.batches import Batch, Encoder
from flowserve.demo.initialise import Flags
from flowserve.demo.model import Shape
from flowserve.demo.names import Split


@dataclass(frozen=True, slots=True)
class Stage:
    """`make(rng, encoder, level, budget_tokens, split)` makes a batch.

    Training goes to the next of `levels` when the running share of right answers passes `pass_mark`.
    """

    name: str
    tokenizer: Callable[[], PreTrainedTokenizerFast]
    flags: Callable[[dict[str, int]], Flags]
    shape: Callable[[int], Shape]
    make: Callable[[Random, Encoder, int, int, Split], Batch]
    levels: tuple[int, ...]
    pass_mark: float


def _reader_flags(vocabulary: dict[str, int]) -> Flags:
    return Flags(
        first=[vocabulary[syllable] for syllable in names.FIRST_SYLLABLES],
        second=[vocabulary[f"##{syllable}"] for syllable in names.SECOND_SYLLABLES],
        copy=[vocabulary[tokenizer.ASSISTANT], vocabulary["."]],
    )


def _arithmetic_flags(vocabulary: dict[str, int]) -> Flags:
    digits = "0123456789"
    return Flags(
        first=[vocabulary[digit] for digit in digits],
        second=[vocabulary[f"##{digit}"] for digit in digits],
        copy=[vocabulary[tokenizer.ASSISTANT]],
    )


STAGES = {
    "reader": Stage(
        name="reader",
        tokenizer=tokenizer.reader_tokenizer,
        flags=_reader_flags,
        shape=lambda size: Shape(size),
        make=batches.reader_batch,
        levels=(2, 4, 6, 8),
        pass_mark=0.75,
    ),
    "arithmetic": Stage(
        name="arithmetic",
        tokenizer=lambda: tokenizer.build_tokenizer(tokenizer.arithmetic_vocabulary(sums.words())),
        flags=_arithmetic_flags,
        shape=lambda size: Shape(size, mlp=768),
        make=batches.arithmetic_batch,
        levels=(1, 2, 3),
        pass_mark=0.9,
    ),
}
