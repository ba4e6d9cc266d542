"""Structured initialisation: the untrained model already finds a statement by its subject and copies its value.

Hidden dimensions, in this order:

    flags     8   constant, first syllable, second syllable, "copy the subject now" (<|assistant|> and ".")
    identity 96   a random code of the token
    slots  4x30   written by layer 0: the token one before, two before, and the two syllables of the subject's name
    free     32   nothing at first

Layer 0 attends by distance: a query that is constant and a key that is constant (or a flag) meet through the rotary
phases, whose sum is largest at the wanted distance. Layer 1 matches content: the row's own token, and its subject's
name, against "token one before" and the subject's name of earlier positions, in the slowest rotary pairs, which
hardly turn within a prompt; the value then copies a third of the identity per head. Other outputs start at zero.
Scores are chosen in units of the softmax's exponent. Without this, training of this size learns to answer in the
right words with the wrong names.
"""

from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from flowserve.demo.model import Attention, Model

CONSTANT, FIRST, SECOND, COPY = range(4)
NUM_FLAGS = 8
IDENTITY = slice(NUM_FLAGS, NUM_FLAGS + 96)
SLOT = 30
BEFORE_1, BEFORE_2, SUBJECT_1, SUBJECT_2 = (
    slice(IDENTITY.stop + SLOT * i, IDENTITY.stop + SLOT * (i + 1)) for i in range(4)
)
COPY_HEADS = 3
FLAG_SIZE = 0.5  # of a flag in an embedding, where the identity has norm 1
SLOT_SIZE = 0.6  # norm of what layer 0 writes to a slot
COPY_SIZE = 2.5  # norm of what layer 1 adds to the identity when it copies
PHASE_PAIRS = 5  # rotary pairs that tell distances; the other pairs match content
SCORE_BEFORE = 16.0
SCORE_NAME = 8.0


@dataclass(frozen=True, slots=True)
class Flags:
    """Token ids that carry a flag."""

    first: list[int]
    second: list[int]
    copy: list[int]


def _orthonormal(rows: int, columns: int, random: Generator) -> Tensor:
    """(rows, columns) with orthonormal rows."""
    basis: Tensor = torch.linalg.qr(torch.randn(columns, rows, generator=random))[0]
    return basis.T


class _Heads:
    """Writes the weights of single heads; `scale` is what the layer's norm multiplies the residual with."""

    def __init__(self, model: Model, layer: int, scale: float) -> None:
        attention = model.model.layers[layer].self_attn
        assert isinstance(attention, Attention)
        self.attention, self.shape, self.scale = attention, model.shape, scale
        self.root = model.shape.head_dim**0.5

    def rows(self, head: int) -> slice:
        return slice(head * self.shape.head_dim, (head + 1) * self.shape.head_dim)

    def by_distance(self, head: int, scores: dict[int, float], distance: float, q_flag: int, k_flag: int) -> None:
        """Score sum_i scores[i] cos(frequency_i (d - distance)) between flagged rows and flagged columns."""
        half = self.shape.head_dim // 2
        query, key = torch.zeros(self.shape.head_dim), torch.zeros(self.shape.head_dim)
        for pair, score in scores.items():
            phase = torch.tensor(-distance * self.shape.theta ** (-pair / half))
            size = (score * self.root) ** 0.5 / (FLAG_SIZE * self.scale)
            query[pair], query[pair + half] = size * phase.cos(), size * phase.sin()
            key[pair] = size
        for weight, row, flag in ((self.attention.q_proj, query, q_flag), (self.attention.k_proj, key, k_flag)):
            weight.weight[self.rows(head)] = 0
            weight.weight[self.rows(head), flag] = row

    def copy(self, head: int, source: slice, read: Tensor, target: slice, write: Tensor, size: float) -> None:
        """Adds size * write @ read @ (identity of the column) to the target dimensions."""
        rows = slice(self.rows(head).start, self.rows(head).start + len(read))
        self.attention.v_proj.weight[self.rows(head)] = 0
        self.attention.v_proj.weight[rows, source] = read
        self.attention.o_proj.weight[target, rows] = write * size / self.scale

    def match(self, head: int, pairs: list[tuple[slice, Tensor, slice, Tensor, float]]) -> None:
        """Sums of scores of (row's slot, its reader, column's slot, its reader, score at equality)."""
        half = self.shape.head_dim // 2
        slow = [*range(PHASE_PAIRS, half), *range(half + PHASE_PAIRS, self.shape.head_dim)]
        self.attention.q_proj.weight[self.rows(head)] = 0
        self.attention.k_proj.weight[self.rows(head)] = 0
        used = 0
        for row_slot, row_reader, column_slot, column_reader, score in pairs:
            dims = [self.rows(head).start + slow[used + i] for i in range(len(row_reader))]
            size = (score * self.root) ** 0.5 / self.scale
            self.attention.q_proj.weight[dims, row_slot] = row_reader * size
            self.attention.k_proj.weight[dims, column_slot] = column_reader * size
            used += len(row_reader)


def _embed(model: Model, flags: Flags, random: Generator) -> None:
    weight = model.model.embed_tokens.weight
    weight.zero_()
    codes = torch.randn(len(weight), IDENTITY.stop - IDENTITY.start, generator=random)
    weight[:, IDENTITY] = codes / codes.norm(dim=1, keepdim=True)
    weight[:, CONSTANT] = FLAG_SIZE
    for flag, tokens in ((FIRST, flags.first), (SECOND, flags.second), (COPY, flags.copy)):
        weight[tokens, flag] = FLAG_SIZE


@torch.no_grad()
def initialise(model: Model, flags: Flags, seed: int) -> None:
    """Sets every weight of the model."""
    random = Generator().manual_seed(seed)
    shape = model.shape
    for name, weight in model.named_parameters():
        if weight.ndim == 1:
            weight.fill_(1.0)
        elif name.endswith(("o_proj.weight", "down_proj.weight")):
            weight.zero_()
        else:
            weight.copy_(torch.randn(weight.shape, generator=random) * 0.5 * shape.hidden**-0.5)
    _embed(model, flags, random)
    identity = IDENTITY.stop - IDENTITY.start
    to_slot = _orthonormal(SLOT, identity, random)
    share = (identity / SLOT) ** 0.5  # a slot's code is shorter than the whole code
    _look_back(model, to_slot, share)
    _find_and_copy(model, to_slot, share, random)


def _look_back(model: Model, to_slot: Tensor, share: float) -> None:
    heads = _Heads(model, 0, model.shape.hidden**0.5 / 1.25**0.5)
    near = {pair: 7.0 for pair in range(PHASE_PAIRS)}
    wide = {1: 14.0, 2: 14.0}
    heads.by_distance(0, near, 1, CONSTANT, CONSTANT)
    heads.by_distance(1, near, 2, CONSTANT, CONSTANT)
    heads.by_distance(2, wide, 4.4, CONSTANT, FIRST)
    heads.by_distance(3, wide, 3.4, CONSTANT, SECOND)
    for head, slot in enumerate((BEFORE_1, BEFORE_2, SUBJECT_1, SUBJECT_2)):
        heads.copy(head, IDENTITY, to_slot, slot, torch.eye(SLOT), SLOT_SIZE * share)


def _find_and_copy(model: Model, to_slot: Tensor, share: float, random: Generator) -> None:
    scale = model.shape.hidden**0.5 / (1.25 + 4 * SLOT_SIZE**2) ** 0.5
    heads = _Heads(model, 1, scale)
    identity = IDENTITY.stop - IDENTITY.start
    slices = torch.split(_orthonormal(identity, identity, random), model.shape.head_dim)

    def reader(size: int) -> Tensor:
        """Codes of slots are read through `size` random directions, made as long as the whole code."""
        long: Tensor = _orthonormal(size, SLOT, random) * (SLOT / size) ** 0.5
        return long

    for head in range(COPY_HEADS):
        before, first, second = reader(8), reader(7), reader(7)
        slot = SLOT_SIZE
        name_score = SCORE_NAME / slot**2
        token = (IDENTITY, before @ to_slot * share, BEFORE_1, before / slot, SCORE_BEFORE)
        if head == 1:
            token = (BEFORE_1, before / slot, BEFORE_2, before / slot, SCORE_BEFORE)
        pairs = [
            token,
            (SUBJECT_1, first, SUBJECT_1, first, name_score),
            (SUBJECT_2, second, SUBJECT_2, second, name_score),
        ]
        heads.match(head, pairs)
        heads.copy(head, IDENTITY, slices[head], IDENTITY, slices[head].T, COPY_SIZE)
    for head in range(COPY_HEADS, 2 * COPY_HEADS):
        piece = slices[head - COPY_HEADS]
        heads.by_distance(head, {1: 14.0, 2: 14.0}, 3, COPY, FIRST)
        heads.copy(head, IDENTITY, piece, IDENTITY, piece.T, COPY_SIZE)
