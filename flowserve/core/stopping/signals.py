"""What a stopping rule observes. Positions count the tokens of the chain itself: what a trial or a probe wrote is not among them."""

from dataclasses import dataclass

from flowserve.ids import Tokens

Label = int
"""Class of an answer: equal answers have equal labels, counted from 0 within one request."""
UNUSABLE: Label = -1
"""Label of an empty or unusable answer: it agrees with nothing, not even with itself."""


@dataclass(frozen=True, slots=True)
class Trial:
    """The chain was forked, told to answer now, and did (DEER, arXiv 2504.15895)."""

    position: Tokens
    label: Label
    confidence: float
    """Mean or geometric mean of the probabilities of the answer's tokens, 0 to 1."""
    cost: Tokens
    """Written by the fork."""
    closed: bool = True
    """The fork ended its thinking by itself; models that have to, and did not, get confidence 0."""
    branch: int = 0


@dataclass(frozen=True, slots=True)
class Probe:
    """As a trial, without confidence (probe in the middle; Dynasor, arXiv 2412.20993, section 3)."""

    position: Tokens
    label: Label
    hesitates: bool
    """The answer contains a word of doubt."""
    cost: Tokens
    branch: int = 0


@dataclass(frozen=True, slots=True)
class Vote:
    """A branch has ended by itself or was stopped; `label` is its answer."""

    branch: int
    label: Label


@dataclass(frozen=True, slots=True)
class Reward:
    """A reward model's or a scorer's opinion of a branch that ended, 0 to 1."""

    branch: int
    value: float


@dataclass(frozen=True, slots=True)
class Confidence:
    """Token confidence of a branch: minus the mean log-probability of the `k` likeliest tokens, averaged over the last window
    (DeepConf, arXiv 2508.15260). Greater is more confident."""

    branch: int
    position: Tokens
    window: float


Signal = Trial | Probe | Vote | Reward | Confidence
