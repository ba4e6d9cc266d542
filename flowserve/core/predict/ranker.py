"""Who writes more than whom, learned from pairs of calls; and how much that is (LTR: Fu et al., NeurIPS 2024).

A score is linear in cheap features of a call. It is trained by the logistic loss on pairs: a call that has ended against some that
ended before it (the paper trains a small language model with ListMLE on prompts; ours sees no text, and learns while it serves).
Scores become lengths by a monotone map: isotonic regression of the latest lengths over their scores, drawn up anew now and
then. So the order of predictions is that of scores, and their size that of what was seen.
"""

import math
from bisect import bisect_left
from collections import deque
from collections.abc import Sequence
from operator import mul

from flowserve.core.estimates import Figure
from flowserve.core.predict.base import Call, Prediction
from flowserve.core.predict.recent import Spread, Table
from flowserve.ids import Tokens

RATE = 0.05
"""Step of the weights per pair."""
PAIRS = 8
"""Earlier calls that a call is compared with."""
CLOSE = 0.2
"""Lengths that differ by less than this share of the greater one say nothing about order (the paper's threshold)."""
KEPT = 256
"""Calls that the map of scores to lengths rests on."""
EVERY = 16
"""Calls after which it is drawn up anew; the first time too."""
NUM_FEATURES = 7
LEAST_VARIANCE = 1e-18
"""A feature that varies less is always the same."""

Features = tuple[float, ...]


class Scale:
    """Makes features comparable: their running mean and deviation (Welford)."""

    __slots__ = ("_factor", "_mean", "_seen", "_squares")

    def __init__(self) -> None:
        self._seen = 0
        self._mean = [0.0] * NUM_FEATURES
        self._squares = [0.0] * NUM_FEATURES
        self._factor = [0.0] * NUM_FEATURES
        """One over the deviation; 0 where there is none."""

    def add(self, raw: Features) -> None:
        self._seen += 1
        for place, value in enumerate(raw):
            off = value - self._mean[place]
            self._mean[place] += off / self._seen
            self._squares[place] += off * (value - self._mean[place])
            variance = self._squares[place] / self._seen
            self._factor[place] = 1.0 / math.sqrt(variance) if variance > LEAST_VARIANCE else 0.0

    def of(self, raw: Features) -> list[float]:
        return [(value - mean) * factor for value, mean, factor in zip(raw, self._mean, self._factor, strict=True)]


class Ranker:
    """The linear model and its map to lengths."""

    __slots__ = (
        "_all",
        "_fresh",
        "_latest",
        "_lengths",
        "_nodes",
        "_scale",
        "_scores",
        "_spread",
        "_tenants",
        "weights",
    )

    def __init__(self) -> None:
        self.weights = [0.0] * NUM_FEATURES
        self._scale = Scale()
        self._nodes = Table(Figure)
        """Logarithms of lengths, of each node; likewise the next two."""
        self._tenants = Table(Figure)
        self._all = Figure()
        self._latest: deque[tuple[Features, Tokens]] = deque(maxlen=KEPT)
        """Raw features."""
        self._fresh = 0
        """Calls since the map was drawn up."""
        self._scores: list[float] = []
        """The map: knots in ascending order, and their lengths, which do not descend."""
        self._lengths: list[float] = []
        self._spread = Spread()

    def predict(self, call: Call) -> Prediction | None:
        if not self._scores:
            return None
        return self._spread.around(self._length(self._score(self._features(call)))).within(call.limit)

    def observe(self, call: Call, tokens: Tokens) -> None:
        raw = self._features(call)
        if self._scores:
            self._spread.add(tokens, self._length(self._score(raw)))
        self._scale.add(raw)
        self._train(raw, tokens)
        self._latest.append((raw, tokens))
        written = math.log1p(tokens)
        for figure in (self._nodes.use((call.plan, call.node)), self._tenants.use(call.tenant), self._all):
            figure.add(written)
        self._fresh += 1
        if self._fresh == EVERY:
            self._fresh = 0
            self._scores, self._lengths = isotonic([(self._score(raw), tokens) for raw, tokens in self._latest])

    def _features(self, call: Call) -> Features:
        node, tenant = self._nodes.find((call.plan, call.node)), self._tenants.find(call.tenant)
        node_mean = node.mean if node is not None else self._all.mean
        return (
            math.log1p(call.prompt),
            math.log1p(call.limit),
            node_mean,
            tenant.mean if tenant is not None else self._all.mean,
            float(call.step),
            math.log1p(call.siblings) if call.siblings else node_mean,
            float(call.siblings > 0),
        )

    def _score(self, raw: Features) -> float:
        return _dot(self.weights, self._scale.of(raw))

    def _length(self, score: float) -> float:
        """Straight lines between the knots."""
        scores, lengths = self._scores, self._lengths
        place = bisect_left(scores, score)
        if place == 0 or place == len(scores):
            return lengths[min(place, len(scores) - 1)]
        share = (score - scores[place - 1]) / (scores[place] - scores[place - 1])
        return lengths[place - 1] + share * (lengths[place] - lengths[place - 1])

    def _train(self, raw: Features, tokens: Tokens) -> None:
        """Logistic loss: the longer one of each pair should have the greater score."""
        own = self._scale.of(raw)
        for place in range(max(0, len(self._latest) - PAIRS), len(self._latest)):
            other, others_tokens = self._latest[place]
            if abs(tokens - others_tokens) < CLOSE * max(tokens, others_tokens, 1):
                continue
            sign = 1.0 if tokens > others_tokens else -1.0
            apart = [sign * (a - b) for a, b in zip(own, self._scale.of(other), strict=True)]
            step = RATE / (1.0 + math.exp(min(50.0, _dot(self.weights, apart))))
            self.weights = [weight + step * value for weight, value in zip(self.weights, apart, strict=True)]


def _dot(a: Sequence[float], b: Sequence[float]) -> float:
    return math.fsum(map(mul, a, b))


def isotonic(points: Sequence[tuple[float, Tokens]]) -> tuple[list[float], list[float]]:
    """Knots of the ascending function that lies closest to `points` in squares: pools of neighbours that would descend (Ayer
    et al. 1955), each at the mean of its scores. No two knots have one score."""
    pools: list[tuple[float, float, int]] = []  # sums of scores and of lengths, and how many
    for score, tokens in sorted(points):
        pool = (score, float(tokens), 1)
        while pools and (pools[-1][1] / pools[-1][2] >= pool[1] / pool[2] or pools[-1][0] / pools[-1][2] >= score):
            before = pools.pop()
            pool = (before[0] + pool[0], before[1] + pool[1], before[2] + pool[2])
        pools.append(pool)
    return [score / count for score, _, count in pools], [tokens / count for _, tokens, count in pools]
