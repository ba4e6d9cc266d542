"""Two stages: a cheap look for all calls, a closer one for those that look long (SkipPredict, arXiv 2402.03564).

What the paper saves by it is the cost of a second model. Here it saves time, and keeps what is short in one class: the first stage
looks up what the node writes for prompts of this size, and if half of that is shorter than half of everything, that is the
answer. The second stage weighs all that is known of the call: a naive Bayes classifier over bins of length, of which two make a
doubling, from counts over each node's latest calls.
"""

from collections import deque
from collections.abc import Sequence
from math import exp2

from flowserve.core.predict.base import Call, Prediction
from flowserve.core.predict.recent import Recent, Table
from flowserve.ids import Tokens

NUM_BINS = 48
"""The last one begins at 2**23.5 tokens."""
MOST_NODES = 512
"""Nodes that are remembered; the one that was used least recently goes first."""
KEPT = 256
"""Calls of a node that count."""
ENOUGH = 8
"""Calls of a node after which it is believed."""
SMOOTHING = 1.0
"""Calls that a trait is thought to have had in each bin before any was seen, in proportion to how often it occurs."""
MOST_STEPS = 8
"""Later steps of an agent count alike."""

Trait = tuple[int, object]
"""(which, value)."""


class NodeCounts:
    """The latest calls of one node, counted by bin and trait."""

    __slots__ = ("by_trait", "calls", "latest", "tokens")

    def __init__(self) -> None:
        self.latest: deque[tuple[tuple[Trait, ...], Tokens]] = deque()
        self.calls = [0] * NUM_BINS
        self.tokens = [0] * NUM_BINS
        """Their sum."""
        self.by_trait: dict[Trait, list[int]] = {}
        """Calls, per bin."""

    def add(self, traits: tuple[Trait, ...], tokens: Tokens) -> None:
        if len(self.latest) == KEPT:
            self._count(*self.latest.popleft(), -1)
        self.latest.append((traits, tokens))
        self._count(traits, tokens, 1)

    def _count(self, traits: tuple[Trait, ...], tokens: Tokens, sign: int) -> None:
        place = bin_of(tokens)
        self.calls[place] += sign
        self.tokens[place] += sign * tokens
        for trait in traits:
            counts = self.by_trait.setdefault(trait, [0] * NUM_BINS)
            counts[place] += sign
            if not any(counts):
                del self.by_trait[trait]

    def weights(self, traits: Sequence[Trait]) -> list[float]:
        """Per bin, how likely a call with these traits falls into it; not normalised."""
        found = [float(count) for count in self.calls]
        for trait in traits:
            counts = self.by_trait.get(trait)
            if counts is not None:
                usual = SMOOTHING * sum(counts) / len(self.latest)
                for place, count in enumerate(self.calls):
                    if count:
                        found[place] *= (counts[place] + usual) / (count + SMOOTHING)
        return found

    def prediction(self, weights: Sequence[float]) -> Prediction:
        total = sum(weights)
        mean = sum(
            weight * tokens / count
            for weight, tokens, count in zip(weights, self.tokens, self.calls, strict=True)
            if count
        )
        return Prediction(mean / total, _quantile(weights, 0.5 * total), _quantile(weights, 0.9 * total))


class Bins:
    """Both stages."""

    __slots__ = ("_lengths", "_nodes")

    def __init__(self) -> None:
        self._nodes = Table(NodeCounts, MOST_NODES)
        self._lengths = Recent()
        """Of all calls."""

    def predict(self, call: Call) -> Prediction | None:
        node = self._nodes.find((call.plan, call.node))
        if node is None or len(node.latest) < ENOUGH:
            return None
        traits = _traits(call)
        found = node.prediction(node.by_trait.get(traits[0], node.calls))
        if found.p50 > self._lengths.quantile(0.5):
            found = node.prediction(node.weights(traits))
        return found.within(call.limit)

    def observe(self, call: Call, tokens: Tokens) -> None:
        self._nodes.use((call.plan, call.node)).add(_traits(call), tokens)
        self._lengths.add(tokens)


def bin_of(tokens: Tokens) -> int:
    """Half-octaves, exact: the bit length, and whether the square is in the upper half of its octave."""
    return max(0, min(NUM_BINS - 1, (tokens * tokens).bit_length() - 1))


def _traits(call: Call) -> tuple[Trait, ...]:
    """The size of the prompt comes first."""
    return (
        (0, call.prompt.bit_length()),
        (1, call.tenant),
        (2, min(call.step, MOST_STEPS)),
        (3, call.siblings.bit_length()),
    )


def _quantile(weights: Sequence[float], wanted: float) -> float:
    """Where so much of the weight lies below, in proportion inside a bin."""
    below = 0.0
    for place, weight in enumerate(weights):
        if weight and below + weight >= wanted:
            low, high = exp2(place / 2), exp2((place + 1) / 2)
            return low + (high - low) * (wanted - below) / weight
        below += weight
    raise AssertionError("there is not so much weight")
