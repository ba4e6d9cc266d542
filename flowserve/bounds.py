"""What a sample says of a rate or a mean, with a stated chance to be wrong, and of several at once.

The unit is the problem, not the trajectory: chains of one problem fail together. Their mean, between -1 and 1, is one value.
Nothing here draws random numbers, and no result depends on the order of values.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from math import exp, inf, isfinite, lgamma, log, log1p, sqrt
from statistics import NormalDist

STAKES = tuple(0.9 / 2**k for k in range(10))
"""Shares of the stake at risk in each bet of `evidence`. The first suits few problems and hardly any harm, the small ones let the
bound come arbitrarily near the mean with many problems."""
WEIGHTS = tuple(0.8 * 0.2**k for k in range(9)) + (0.2**9,)
"""How the stake is divided among `STAKES` beforehand; they sum to 1."""
_ROUNDS = 60


def upper_rate(successes: int, trials: int, error: float) -> float:
    """One-sided Clopper-Pearson bound: the greatest rate at which so few successes have a chance of `error`."""
    if successes >= trials:
        return 1.0
    return _crossing(lambda rate: binomial_cdf(successes, trials, rate) >= error, 0.0, 1.0)


def lower_rate(successes: int, trials: int, error: float) -> float:
    """As `upper_rate`, from below."""
    return 1.0 - upper_rate(trials - successes, trials, error)


def binomial_cdf(successes: int, trials: int, rate: float) -> float:
    """P(X <= successes) of `trials` draws. An incomplete beta function, by its continued fraction (Lentz's method)."""
    if successes < 0:
        return 0.0
    if successes >= trials or rate <= 0:
        return 1.0
    if rate >= 1:
        return 0.0
    a, b, x = trials - successes, successes + 1, 1 - rate
    if x < (a + 1) / (a + b + 2):
        return _beta_tail(a, b, x)
    return 1 - _beta_tail(b, a, rate)


def evidence(values: Iterable[float], mean: float, low: float) -> float:
    """What a gambler has who staked 1 against "the values' mean is at most `mean`"; no value is under `low`.

    If that is so, the chance ever to have as much as 1/error is at most `error`, however often it is looked at: the stake is
    a mixture of the bets of Waudby-Smith and Ramdas (arXiv 2010.09686, section 4), with fixed shares instead of adaptive ones, so
    that it depends on how often each value came and not on the order.
    """
    return evidence_of_counts(Counter(values), mean, low)


def evidence_of_counts(counts: Mapping[float, int], mean: float, low: float) -> float:
    """`evidence` of values that came so often."""
    exponents = [
        log(weight) + sum(count * log1p(share * (value - mean) / (mean - low)) for value, count in counts.items())
        for share, weight in zip(STAKES, WEIGHTS, strict=True)
    ]
    greatest = max(exponents)
    wealth = log(sum(exp(exponent - greatest) for exponent in exponents)) + greatest
    return exp(wealth) if wealth < 700 else inf


def lower_mean(values: Sequence[float], low: float, error: float) -> float:
    """A bound under the mean: the greatest that `evidence` rules out, up to rounding. Wrong with a chance of at most `error`."""
    counts = Counter(values)
    top = max(values)
    return _crossing(lambda mean: mean <= low or evidence_of_counts(counts, mean, low) >= 1 / error, low, top)


def problems_needed(margin: float, error: float) -> int:
    """With fewer, `lower_mean` of outcomes that all are 0 is still under `-margin`: nothing can be certified."""
    few, many = 0, 1
    while evidence_of_counts({0.0: many}, -margin, -1.0) < 1 / error:
        few, many = many, many * 2
    while many - few > 1:
        middle = (few + many) // 2
        enough = evidence_of_counts({0.0: middle}, -margin, -1.0) >= 1 / error
        few, many = (few, middle) if enough else (middle, many)
    return many


def fixed_sequence(evidences: Iterable[float], error: float) -> int:
    """How many hypotheses, from the first on, are rejected before one is not.

    Fixed sequence testing, Learn then Test (Angelopoulos et al., arXiv 2110.01052, section 2.4): the order is set before the data
    are seen, so each is tested at the whole `error`, and the chance that any rejection is wrong is at most `error`.
    """
    rejected = 0
    for each in evidences:
        if each < 1 / error:
            break
        rejected += 1
    return rejected


def ratio_interval(parts: Sequence[float], wholes: Sequence[float], confidence: float) -> tuple[float, float]:
    """Two-sided, of sum(parts) / sum(wholes) over independent problems: normal, by linearisation."""
    n, whole = len(parts), sum(wholes)
    ratio = sum(parts) / whole
    if n < 2:
        return -inf, inf
    squares = sum((part - ratio * each) ** 2 for part, each in zip(parts, wholes, strict=True))
    spread = NormalDist().inv_cdf((1 + confidence) / 2) * sqrt(squares * n / (n - 1)) / whole
    return ratio - spread, ratio + spread


def _crossing(holds: Callable[[float], bool], low: float, high: float) -> float:
    """Where a statement that holds at `low` ceases to."""
    if holds(high):
        return high
    for _ in range(_ROUNDS):
        middle = (low + high) / 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low


def _beta_tail(a: float, b: float, x: float) -> float:
    """The regularised incomplete beta function at an x where its fraction converges fast."""
    front = exp(lgamma(a + b) - lgamma(a) - lgamma(b) + a * log(x) + b * log1p(-x)) / a
    tiny = 1e-300
    c, d = 1.0, 1 / _nonzero(1 - (a + b) * x / (a + 1), tiny)
    fraction = d
    for m in range(1, 10_000):
        for term in (
            m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m)),
            -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1)),
        ):
            d = 1 / _nonzero(1 + term * d, tiny)
            c = _nonzero(1 + term / c, tiny)
            fraction *= c * d
        if abs(c * d - 1) < 1e-15:
            break
    assert isfinite(fraction)
    return front * fraction


def _nonzero(value: float, tiny: float) -> float:
    return value if abs(value) > tiny else tiny
