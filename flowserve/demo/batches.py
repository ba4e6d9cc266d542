"""Packs one context and many questions about it into one row, so that a row costs its passages only once.

A row is [context][question 1, answer 1][question 2, answer 2]... Each question sees the context and itself, and its
positions go on from the end of the context: exactly what a prompt with that one question would give. Only the
tokens of answers, and <|end|>, are predicted.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from random import Random

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from flowserve.demo import language, sums, tokenizer
from flowserve.demo.language import Document, Question, QuestionType
from flowserve.demo.names import Split


class Encoder:
    """Tokenises segments, remembering the short ones."""

    def __init__(self, core: PreTrainedTokenizerFast) -> None:
        self.core = core
        self.short = cache(self.encode)

    @property
    def pad(self) -> int:
        """What rows are filled up with."""
        return int(self.core.convert_tokens_to_ids(tokenizer.PAD))  # type: ignore[arg-type]  # one token, one id

    def encode(self, text: str) -> list[int]:
        return list(self.core.encode(text, add_special_tokens=False))

    def context(self, passages: Iterable[str]) -> list[int]:
        """Everything before the question: <s>, the system's text, and one passage per line."""
        head = self.short(f"{tokenizer.BOS}{tokenizer.SYSTEM}{language.SYSTEM}{tokenizer.USER}")
        return head + [token for passage in passages for token in self.encode(f"{passage}\n")]

    def question(self, text: str) -> list[int]:
        return self.short(language.QUESTION) + self.encode(text) + self.short(tokenizer.ASSISTANT)

    def answer(self, text: str) -> list[int]:
        return self.encode(text) + self.short(tokenizer.END)


@dataclass(frozen=True, slots=True)
class Turn:
    """A question's tokens and its answer's; `kind` is what the accuracy is counted by."""

    kind: str
    prompt: list[int]
    answer: list[int]


@dataclass(frozen=True, slots=True)
class Row:
    context: list[int]
    turns: list[Turn]


@dataclass(frozen=True, slots=True)
class Batch:
    """tokens, positions and segments: (rows, length). Segment 0 is the context, -1 is padding.

    `at` and `targets` are (answer tokens,): indices into the flattened batch, and the token that follows there.
    `turn_of` numbers the turn of each answer token; `kinds` has one entry per turn.
    """

    tokens: Tensor
    positions: Tensor
    segments: Tensor
    at: Tensor
    targets: Tensor
    turn_of: Tensor
    kinds: list[str]

    def mask(self) -> Tensor:
        """(rows, 1, length, length): causal, within the own segment or to the context."""
        rows, columns = self.segments[:, :, None], self.segments[:, None, :]
        length = self.tokens.shape[1]
        causal = torch.ones(length, length, dtype=torch.bool).tril()
        return ((causal & ((columns == 0) | (columns == rows)))[:, None]).contiguous()


def pack(rows: Sequence[Row], length: int, pad: int) -> Batch:
    """Rows of one length; turns that do not fit are left out."""
    tokens = torch.full((len(rows), length), pad)
    positions = torch.zeros(len(rows), length, dtype=torch.long)
    segments = torch.full((len(rows), length), -1)
    at: list[int] = []
    targets: list[int] = []
    turn_of: list[int] = []
    kinds: list[str] = []
    for r, row in enumerate(rows):
        here = len(row.context)
        tokens[r, :here] = torch.tensor(row.context)
        positions[r, :here] = torch.arange(here)
        segments[r, :here] = 0
        for number, turn in enumerate(row.turns, start=1):
            piece = turn.prompt + turn.answer[:-1]
            end = here + len(piece)
            if end > length:
                continue
            tokens[r, here:end] = torch.tensor(piece)
            positions[r, here:end] = torch.arange(len(row.context), len(row.context) + len(piece))
            segments[r, here:end] = number
            first = r * length + here + len(turn.prompt) - 1
            at += range(first, first + len(turn.answer))
            targets += turn.answer
            turn_of += [len(kinds)] * len(turn.answer)
            kinds.append(turn.kind)
            here = end
    return Batch(tokens, positions, segments, torch.tensor(at), torch.tensor(targets), torch.tensor(turn_of), kinds)


def turn(encoder: Encoder, question: Question) -> Turn:
    return Turn(question.type, encoder.question(question.text), encoder.answer(question.answer))


def mixed(rng: Random, questions: dict[QuestionType, list[Question]], two_hop_share: float) -> list[Question]:
    """All questions, the types interleaved at random so that a row that is cut short keeps the share."""
    left = {kind: list(items) for kind, items in questions.items()}
    order: list[Question] = []
    while left["single"] and left["two-hop"]:
        order.append(left["two-hop" if rng.random() < two_hop_share else "single"].pop())
    return order + left["single"] + left["two-hop"]


def reader_row(rng: Random, encoder: Encoder, documents: Sequence[Document], two_hop_share: float = 0.5) -> Row:
    questions = mixed(rng, language.questions_about(rng, documents), two_hop_share)
    context = encoder.context(document.text for document in documents)
    return Row(context, [turn(encoder, question) for question in questions])


def row_length(num_passages: int) -> int:
    """Room for the passages and for most of the questions about them."""
    return 96 + 64 * num_passages + (32 if num_passages > 4 else 0)


def reader_batch(rng: Random, encoder: Encoder, max_passages: int, budget: int, split: Split = "train") -> Batch:
    """About `budget` tokens of fresh worlds. All rows have the same number of passages, more often a larger one."""
    num_passages = max(rng.randint(1, max_passages), rng.randint(1, max_passages))
    length = row_length(num_passages)
    rows = [
        reader_row(rng, encoder, language.draw_documents(rng, split, num_passages)) for _ in range(budget // length)
    ]
    return pack(rows, length, encoder.pad)


def arithmetic_batch(rng: Random, encoder: Encoder, max_steps: int, budget: int, split: Split = "train") -> Batch:
    """About `budget` tokens of fresh problems of 1 to `max_steps` steps, more often of more."""
    context = arithmetic_context(encoder)
    length, per_row = 192, 6
    rows = []
    for _ in range(budget // length):
        steps = [max(rng.randint(1, max_steps), rng.randint(1, max_steps)) for _ in range(per_row)]
        problems = [sums.draw_problem(rng, num_steps, split) for num_steps in steps]
        rows.append(Row(list(context), [arithmetic_turn(encoder, problem) for problem in problems]))
    return pack(rows, length, encoder.pad)


def arithmetic_context(encoder: Encoder) -> list[int]:
    """Everything before the problem."""
    return encoder.short(f"{tokenizer.BOS}{tokenizer.SYSTEM}{sums.SYSTEM}{tokenizer.USER}")


def arithmetic_turn(encoder: Encoder, problem: sums.Problem) -> Turn:
    prompt = encoder.encode(problem.question) + encoder.short(tokenizer.ASSISTANT)
    return Turn(problem.kind, prompt, encoder.answer(problem.answer))
