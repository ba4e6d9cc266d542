"""The demo: two small models of our own, a sample corpus in their language, and questions about it.

Importing this package imports no torch. The training and evaluation of the models live in its modules.
"""

import json
from dataclasses import dataclass
from pathlib import Path

_HERE = Path(__file__).parent


@dataclass(frozen=True, slots=True)
class CorpusQuestion:
    """A question about the sample corpus; `documents` are the files that state the exact `answer`."""

    id: str
    type: str  # "single" or "two-hop"
    question: str
    answer: str
    documents: tuple[str, ...]


def reader_path() -> Path:
    """The folder of the model that answers questions from passages."""
    return _HERE / "reader"


def arithmetic_path() -> Path:
    """The folder of the model that computes step by step."""
    return _HERE / "arithmetic"


def corpus_path() -> Path:
    """The folder of the sample documents."""
    return _HERE / "corpus"


def questions(type: str | None = None) -> list[CorpusQuestion]:
    """The held-back questions about the sample corpus; of one type, or all."""
    lines = (_HERE / "corpus_questions.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    found = [CorpusQuestion(**{**record, "documents": tuple(record["documents"])}) for record in records]
    return [question for question in found if type in (None, question.type)]
