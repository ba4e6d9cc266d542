"""DeepConf (Fu et al., arXiv 2508.15260), online: branches whose token confidence falls too low are stopped and do not vote."""

from math import floor

from flowserve.core.stopping.chains import ChainRule, Needs, Number, Numbers
from flowserve.core.stopping.rules import Continue, Decision, Kill, Spawn, Stop
from flowserve.core.stopping.signals import UNUSABLE, Confidence, Label, Signal, Vote


class DeepConf:
    """For the branches of one program, `budget` in all.

    The first `warm_up` run to their ends. A branch is scored by its lowest window; the threshold is the score that `keep` percent of
    them reach (10: the paper's "low", which stops most; 90: "high"). Of the others, each is stopped when a window is below it. Votes are
    weighted by scores. With the warm-up over, it is enough when one answer has `share` of the weight; the paper says so, its released
    code does not do it.
    """

    def __init__(self, args: Numbers) -> None:
        self._warm_up, self._budget = int(args["warm_up"]), int(args["budget"])
        self._keep, self._share = args["keep"], args["share"]
        self._lowest: dict[int, float] = {}
        self._weights: dict[Label, float] = {}
        self._ended: dict[int, bool] = {}
        """Branches that are over; whether they voted."""
        self._threshold: float | None = None

    def begin(self) -> Decision:
        return Spawn(min(self._warm_up, self._budget))

    def observe(self, signal: Signal) -> Decision:
        if isinstance(signal, Confidence) and signal.branch not in self._ended:
            return self._seen(signal)
        if isinstance(signal, Vote) and signal.branch not in self._ended:
            return self._voted(signal)
        return Continue()

    def _seen(self, signal: Confidence) -> Decision:
        self._lowest[signal.branch] = min(signal.window, self._lowest.get(signal.branch, signal.window))
        if self._threshold is None or signal.window >= self._threshold:
            return Continue()
        self._ended[signal.branch] = False
        return Kill(signal.branch)

    def _voted(self, signal: Vote) -> Decision:
        self._ended[signal.branch] = True
        if signal.label != UNUSABLE:
            score = self._lowest.get(signal.branch, 0.0)
            self._weights[signal.label] = self._weights.get(signal.label, 0.0) + score
        if len(self._ended) < self._warm_up:
            return Continue()
        is_new = self._threshold is None
        if is_new:
            self._threshold = percentile([self._lowest.get(branch, 0.0) for branch in self._ended], 100 - self._keep)
        total = sum(self._weights.values())
        best = max(self._weights, key=lambda label: self._weights[label], default=UNUSABLE)
        if total > 0 and self._weights[best] >= self._share * total:
            return Stop(best, f"{self._weights[best] / total:.3f} of the weight of {len(self._ended)} branches")
        return Spawn(self._budget - self._warm_up) if is_new and self._budget > self._warm_up else Continue()


def percentile(values: list[float], percent: float) -> float:
    """With linear interpolation, as numpy's default."""
    ordered = sorted(values)
    place = (len(ordered) - 1) * percent / 100
    below = floor(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (place - below) * (ordered[above] - ordered[below])


DEEPCONF = ChainRule(
    "deepconf",
    DeepConf,
    {
        "warm_up": Number(16, 1, 1_000_000, whole=True),
        "budget": Number(256, 1, 1_000_000, whole=True),
        "keep": Number(10, 0, 100),
        "share": Number(0.95, 0, 1),
    },
    Needs.CONFIDENCE,
)
"""Not among the rules of one chain: it sees many."""
