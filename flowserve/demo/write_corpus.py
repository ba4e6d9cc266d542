"""Writes the sample corpus and its questions: one seeded draw of the language with names of the evaluation split.

    python -m flowserve.demo.write_corpus

One text file per entity, one paragraph each. A document names every entity that it is linked with, so a question
about either end of a link finds both documents by retrieval.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from random import Random

from flowserve.demo import language
from flowserve.demo.language import QUESTION_TYPES, Document, Question

SEED = 7
NUM_CLUSTERS = 6
QUESTIONS_PER_TYPE = 100


def draw_corpus() -> tuple[list[Document], list[Question]]:
    """30 complete documents in alphabetical order, and questions of every type about them."""
    rng = Random(SEED)
    world = language.draw_world(rng, NUM_CLUSTERS, "eval")
    documents = [language.write_document(rng, world, name) for name in sorted(world.kinds)]
    questions = language.questions_about(rng, documents)
    return documents, [question for kind in QUESTION_TYPES for question in questions[kind][:QUESTIONS_PER_TYPE]]


def file_name(entity: str) -> str:
    return f"{entity.lower()}.txt"


def question_lines(questions: Sequence[Question]) -> list[str]:
    """JSON lines: id, type, question, the exact answer, and the files that state it."""
    records = (
        {
            "id": f"{question.type}-{number}",
            "type": question.type,
            "question": question.text,
            "answer": question.answer,
            "documents": [file_name(source) for source in question.sources],
        }
        for number, question in enumerate(questions)
    )
    return [json.dumps(record) for record in records]


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the demo's corpus and questions.")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    folder: Path = parser.parse_args().out
    documents, questions = draw_corpus()
    (folder / "corpus").mkdir(parents=True, exist_ok=True)
    for document in documents:
        (folder / "corpus" / file_name(document.name)).write_text(document.text + "\n")
    (folder / "corpus_questions.jsonl").write_text("\n".join(question_lines(questions)) + "\n")


if __name__ == "__main__":
    main()
