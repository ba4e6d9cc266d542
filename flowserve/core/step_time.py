"""How long an engine's step takes by how many calls are in its batch: a + b * n, fitted to what was seen.

Least squares over spans, older ones fading. Says nothing before batches of different sizes were seen, or where larger ones
were not slower: then nobody has to wait for anybody's sake.
"""

from flowserve.ids import Seconds

FADING = 0.98
"""Weight that all earlier spans keep when one is added."""
LEAST_SPANS = 6.0
LEAST_SPREAD = 2.0
"""Variance of batch sizes below which a slope means nothing."""


class StepTime:
    """Of one engine."""

    __slots__ = ("_line", "count", "n", "nn", "ns", "s")

    def __init__(self) -> None:
        self.count = self.n = self.s = self.nn = self.ns = 0.0
        self._line: tuple[Seconds, Seconds] | None = None
        """Asked for far more often than a span ends."""

    def add(self, calls: float, seconds: Seconds) -> None:
        """A span in which `calls` were decoding on average and a step took `seconds`."""
        self.count = FADING * self.count + 1.0
        self.n = FADING * self.n + calls
        self.s = FADING * self.s + seconds
        self.nn = FADING * self.nn + calls * calls
        self.ns = FADING * self.ns + calls * seconds
        self._line = self._fitted()

    def line(self) -> tuple[Seconds, Seconds] | None:
        """(a, b), both above 0; None: not known."""
        return self._line

    def _fitted(self) -> tuple[Seconds, Seconds] | None:
        if self.count < LEAST_SPANS:
            return None
        mean_n, mean_s = self.n / self.count, self.s / self.count
        spread = self.nn / self.count - mean_n * mean_n
        if spread < LEAST_SPREAD:
            return None
        slope = (self.ns / self.count - mean_n * mean_s) / spread
        base = mean_s - slope * mean_n
        return (base, slope) if slope > 0.0 and base > 0.0 else None

    def beside(self, urgent: int, slowdown: float) -> float:
        """How many calls may be in the batch beside `urgent` ones before a step takes `slowdown` times as long as for one call
        alone; infinite where that is not known. Below 0 when the urgent ones are too many by themselves."""
        line = self.line()
        if line is None:
            return float("inf")
        base, slope = line
        return (slowdown - 1.0) * base / slope + slowdown - urgent

    def __repr__(self) -> str:
        line = self.line()
        return "StepTime(unknown)" if line is None else f"StepTime({1e3 * line[0]:.2f} + {1e3 * line[1]:.3f} n ms)"
