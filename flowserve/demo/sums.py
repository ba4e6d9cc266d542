"""Sums of two to four numbers between 0 and 99, solved step by step and then checked backwards.

    Compute 17 + 25 - 8.
    17 + 25 = 42. 42 - 8 = 34. The answer is 34. Check: 34 + 8 = 42. 42 - 25 = 17. The answer is 34.

The answer stands before the check, so a reader may stop early. An expression belongs to the evaluation when its
checksum says so; such an expression is never a problem in training.
"""

import re
import zlib
from dataclasses import dataclass
from random import Random

from flowserve.demo.names import Split

SYSTEM = "Compute step by step."
LARGEST = 99
MAX_STEPS = 3
_INVERSE = {"+": "-", "-": "+"}
_SHARE = 8


@dataclass(frozen=True, slots=True)
class Problem:
    """A question, its whole exact answer, the result, and the number of steps as a kind to count by."""

    question: str
    answer: str
    result: int
    kind: str


def split_of(expression: str) -> Split:
    return "eval" if zlib.crc32(expression.encode()) % _SHARE == 0 else "train"


def solve(first: int, steps: list[tuple[str, int]]) -> Problem:
    """The problem of a first number and (operator, number) steps."""
    values = [first]
    for operator, number in steps:
        values.append(values[-1] + number if operator == "+" else values[-1] - number)
    forward = [
        f"{before} {op} {n} = {after}." for before, (op, n), after in zip(values, steps, values[1:], strict=False)
    ]
    backward = [
        f"{after} {_INVERSE[op]} {n} = {before}."
        for before, (op, n), after in zip(values, steps, values[1:], strict=False)
    ]
    conclusion = f"The answer is {values[-1]}."
    answer = " ".join([*forward, conclusion, "Check:", *reversed(backward), conclusion])
    return Problem(f"Compute {expression(first, steps)}.", answer, values[-1], f"{len(steps)} step")


def expression(first: int, steps: list[tuple[str, int]]) -> str:
    return " ".join([str(first), *(f"{operator} {number}" for operator, number in steps)])


def draw_problem(rng: Random, num_steps: int, split: Split) -> Problem:
    """A problem of the split; every value on the way lies between 0 and 99."""
    while True:
        value = first = rng.randint(0, LARGEST)
        steps: list[tuple[str, int]] = []
        for _ in range(num_steps):
            operator = rng.choice("+-")
            number = rng.randint(0, LARGEST - value if operator == "+" else value)
            value = value + number if operator == "+" else value - number
            steps.append((operator, number))
        if split_of(expression(first, steps)) == split:
            return solve(first, steps)


def words() -> tuple[str, ...]:
    """Every word of the problems and answers, sorted."""
    return tuple(sorted(set(re.findall(r"[A-Za-z]+", f"{SYSTEM} Compute The answer is Check"))))
