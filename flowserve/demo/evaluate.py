"""Measures an exported demo model on names, worlds and expressions that training never saw.

    python -m flowserve.demo.evaluate --stage reader --n 1000

An answer counts when the greedy answer equals the expected one in every token up to <|end|>. This is computed with
the expected answer as input: if every most probable token along it is right, greedy decoding writes exactly it.
Questions about one context do not see each other. Prints a table; publish.py writes the card.
"""

import argparse
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import torch

from flowserve.demo import batches, language, sums
from flowserve.demo.batches import Encoder, Row
from flowserve.demo.export import load, write_json
from flowserve.demo.language import QUESTION_TYPES
from flowserve.demo.model import Model
from flowserve.demo.stages import STAGES

SEED = 20261120
PASSAGES = (1, 2, 4, 6, 8)
ROWS_AT_ONCE = 16


@dataclass(frozen=True, slots=True)
class Score:
    """How many answers of a kind were exactly right, out of n."""

    kind: str
    passages: int | None  # passages in the prompt, None for arithmetic
    right: int
    n: int

    @property
    def accuracy(self) -> float:
        return self.right / self.n

    def record(self) -> dict[str, Any]:
        return {"type": self.kind, "passages": self.passages, "n": self.n, "accuracy": round(self.accuracy, 4)}


def reader_rows(encoder: Encoder, num_passages: int, n: int) -> list[Row]:
    """Contexts of unseen names, each with at most one question per type, until every possible type has n."""
    rng = Random(SEED + num_passages)
    rows: list[Row] = []
    left = {kind: n if kind == "single" or num_passages > 1 else 0 for kind in QUESTION_TYPES}
    while any(left.values()):
        documents = language.draw_documents(rng, "eval", num_passages)
        questions = language.questions_about(rng, documents)
        turns = []
        for kind in QUESTION_TYPES:
            if left[kind] and questions[kind]:
                turns.append(batches.turn(encoder, questions[kind][0]))
                left[kind] -= 1
        if turns:
            rows.append(Row(encoder.context(document.text for document in documents), turns))
    return rows


def arithmetic_rows(encoder: Encoder, n: int) -> list[Row]:
    """n different unseen problems per number of steps, as far as there are so many."""
    rng = Random(SEED)
    context = batches.arithmetic_context(encoder)
    rows = []
    for num_steps in range(1, sums.MAX_STEPS + 1):
        problems = {sums.draw_problem(rng, num_steps, "eval") for _ in range(2 * n)}
        chosen = sorted(problems, key=lambda problem: problem.question)
        rng.shuffle(chosen)
        rows += [Row(list(context), [batches.arithmetic_turn(encoder, problem)]) for problem in chosen[:n]]
    return rows


@torch.inference_mode()
def score(model: Model, encoder: Encoder, rows: list[Row], passages: int | None) -> list[Score]:
    """Exact answers by kind, in the order in which the kinds come."""
    right: dict[str, int] = defaultdict(int)
    total: dict[str, int] = defaultdict(int)
    for start in range(0, len(rows), ROWS_AT_ONCE):
        part = rows[start : start + ROWS_AT_ONCE]
        length = max(len(row.context) + sum(len(turn.prompt) + len(turn.answer) for turn in row.turns) for row in part)
        batch = batches.pack(part, length, encoder.pad)
        states = model(batch.tokens, batch.positions, batch.mask())
        good = model.logits(states.flatten(0, 1)[batch.at]).argmax(-1) == batch.targets
        wrong = set(batch.turn_of[~good].tolist())
        for number, kind in enumerate(batch.kinds):
            total[kind] += 1
            right[kind] += number not in wrong
    return [Score(kind, passages, right[kind], total[kind]) for kind in total]


def evaluate(model: Model, encoder: Encoder, stage: str, n: int) -> list[Score]:
    """All scores of a stage."""
    if stage == "arithmetic":
        return score(model, encoder, arithmetic_rows(encoder, n), None)
    scores: list[Score] = []
    for passages in PASSAGES:
        scores += score(model, encoder, reader_rows(encoder, passages, n), passages)
    return scores


def table(scores: list[Score]) -> str:
    lines = ["| type | passages | n | exact |", "|---|---|---|---|"]
    lines += [f"| {s.kind} | {s.passages or '-'} | {s.n} | {100 * s.accuracy:.1f} % |" for s in scores]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure a demo model.")
    parser.add_argument("--stage", choices=sorted(STAGES), required=True)
    parser.add_argument("--folder", type=Path, help="an exported model; default: the one in this package")
    parser.add_argument("--n", type=int, default=1000, help="questions per type")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, help="also write the scores to this file")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    folder = options.folder or Path(__file__).parent / options.stage
    encoder = Encoder(STAGES[options.stage].tokenizer())
    scores = evaluate(load(folder), encoder, options.stage, options.n)
    print(table(scores))
    if options.json:
        write_json(options.json, [s.record() for s in scores])


if __name__ == "__main__":
    main()
