"""What programs give back: the answer, what spoke for it, what was drawn, and why it ended."""

from typing import Any, Generic, Literal, TypeVar

import pydantic
from pydantic import BaseModel, ConfigDict

from flowserve.ids import Tokens

T = TypeVar("T")

Ending = Literal["enough", "complete", "budget"]
"""By its stopping rule; because all that was allowed was drawn; because its budget was spent."""


class Result(BaseModel, Generic[T]):
    """Common to all programs. What branches that were dropped have taken is not counted here, but in the usage of the run."""

    model_config = ConfigDict(frozen=True)

    answer: T
    ended: Ending
    why: str
    """For people, e.g. `certainty 1 >= 0.7 at 5`."""
    drawn: int
    """Branches that were begun."""
    dropped: int
    """Of them, those that nobody waited for any more."""
    failed: int
    """Of them, those that gave nothing."""
    calls: int
    tokens: Tokens
    """Of prompts, cached or not, and outputs."""


class Consensus(Result[T], Generic[T]):
    """Of self-consistency."""

    votes: dict[str, int]
    """By answer, in the order in which they came."""
    certainty: float
    """Certaindex of the votes, 0 to 1 (`core.stopping.samples.certainty`)."""


class Best(Result[T], Generic[T]):
    """Of best-of-n."""

    score: float
    scores: list[float | None]
    """By sample; None for one that failed. Those that were dropped are not among them."""


class Search(Result[T], Generic[T]):
    """Of Rebase and MCTS: `answer` is the last step of `path`."""

    path: list[T]
    finished: bool
    """It ends with an answer, and is not the best part of a line that would."""
    score: float
    """Of the path, as the scorer or reward model gave it."""
    votes: dict[str, int]
    """Lines that ended with an answer, by answer, in the order in which they came."""
    certainty: float
    rewards: list[float]
    """Of lines that ended, in that order."""


class Thoughts(Search[T], Generic[T]):
    """Of a tree of thoughts. `drawn` counts states that were expanded."""

    levels: list[list[float]]
    """Scores of what was kept at each depth, best first."""


def of(result: Any, answer: Any) -> Any:
    """`result` for answers of type `answer`; for Any where that type cannot be written as JSON, which its node is told of."""
    try:
        return result[answer]
    except (pydantic.errors.PydanticUserError, pydantic.errors.PydanticUndefinedAnnotation):
        return result[Any]
