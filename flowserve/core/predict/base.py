"""The nouns: a call before it is made, what is expected of it, and who says so."""

from dataclasses import dataclass
from typing import Protocol

from flowserve.core.quick import quick
from flowserve.graphs.output_length import Length
from flowserve.ids import NodeId, Tokens


@quick
@dataclass(frozen=True, slots=True)
class Call:
    """What is known of a model call before it is made."""

    plan: str
    """Digest of the plan."""
    node: NodeId
    tenant: str
    prompt: Tokens
    limit: Tokens
    """Most tokens of output, over all choices, as far as the schema bounds them too; 0: unknown."""
    step: int = 0
    """Of an agent; 0 for nodes and first steps."""
    siblings: Tokens = 0
    """What earlier calls of the same node wrote in the same run, on average; 0: there are none."""
    answer: Length | None = None
    """What the schema of its output says, over all choices; None: it has none, or answers were longer."""


@quick
@dataclass(frozen=True, slots=True)
class Prediction:
    """Tokens of output, as a distribution."""

    mean: float
    p50: float
    p90: float

    def within(self, limit: Tokens) -> "Prediction":
        """Nobody writes beyond the limit; 0: there is none."""
        if not limit or (self.p90 <= limit and self.mean <= limit and self.p50 <= limit):
            return self
        return Prediction(min(self.mean, limit), min(self.p50, limit), min(self.p90, limit))


class Predictor(Protocol):
    """Learns lengths from the calls that end."""

    def predict(self, call: Call) -> Prediction | None:
        """What `call` is expected to write; None: too few calls like it have been seen. Changes nothing."""
        ...

    def observe(self, call: Call, tokens: Tokens) -> None:
        """`call` has written `tokens`."""
        ...
