"""Files of sampled answers: many answers to each of many questions, for rules over votes.

JSON lines of `{"target": "5", "answers": ["5", "7", ...]}`, packed (.gz) or not, in the order in which the answers were drawn.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flowserve.reasoning.bank import field, records


@dataclass(frozen=True, slots=True)
class Sampled:
    """One question."""

    target: str
    answers: tuple[str, ...]
    """An empty one was not usable."""


def read_samples(path: Path) -> Iterator[Sampled]:
    """The questions in the order of the file. Raises StoreError with file and line for what is none."""
    return records(path, _sampled)


def _sampled(value: Mapping[str, Any]) -> Sampled:
    answers = [_text(answer, f"'answers'[{number}]") for number, answer in enumerate(field(value, "answers", list))]
    if not answers:
        raise ValueError("'answers': expected one or more; got none")
    return Sampled(str(field(value, "target", str, int, float)), tuple(answers))


def _text(answer: object, where: str) -> str:
    """Numbers are taken as written; null is an answer that was not usable."""
    match answer:
        case None:
            return ""
        case bool():
            pass
        case str() | int() | float():
            return str(answer)
    raise ValueError(f"{where}: expected a string, a number or null; got {type(answer).__name__}")
