"""When further samples would not change the vote: rules over counts of answer classes.

A rule is a pure function of the votes, and its own parameters. Label -1 marks an unusable answer: it never agrees
with anything, so each is a class of its own.

| rule                 | stops when                                                       | after                               |
|----------------------|------------------------------------------------------------------|-------------------------------------|
| certaindex           | 1 - H / log n is `threshold`                                     | Dynasor (arXiv 2412.20993)          |
| adaptive_consistency | the leader very probably has the majority over the runner-up     | Adaptive-Consistency (EMNLP 2023)   |
| dirichlet            | the leader is very probably the largest of all classes           | its library                         |
| entropy              | H / log classes is `threshold` or less                           | its library                         |
| majority             | the leader has a share of `threshold`                            | its library                         |
| esc                  | all of a window agree                                            | Early-Stopping SC (ICLR 2024)       |
| agreement            | `agreeing` agree: two chains, a third only where they differ     | sequential voting, k of n           |
| decided              | the samples that are left cannot change the vote                 | exact                               |
| fixed                | there are `samples` of them                                      | plain self-consistency, to compare  |
"""

from collections.abc import Callable, Iterable, Mapping
from math import comb, exp, lgamma, log, sqrt

from flowserve.core.stopping.signals import UNUSABLE, Label


class Votes(dict[Label, int]):
    """Samples by answer class, and their classes in the order in which they became known."""

    __slots__ = ("order",)

    def __init__(self, labels: Iterable[Label] = ()) -> None:
        super().__init__()
        self.order: list[Label] = []
        for label in labels:
            self.add(label)

    def add(self, label: Label) -> None:
        """One more sample, of class `label`."""
        self[label] = self.get(label, 0) + 1
        self.order.append(label)


Rule = Callable[[Votes, Mapping[str, float]], bool]
"""(votes, parameters) -> stop now? Asked after each label that arrives. Among the parameters is `left`: samples
whose label is not known yet."""


def certainty(counts: Mapping[Label, int]) -> float:
    """Certaindex of a set of answers: 1 - H / log n, from 0 (all differ) to 1 (all agree).

    Fu et al., Dynasor (arXiv 2412.20993), the case of many paths: H is the entropy of the answer classes and log
    n its greatest value. One answer is no evidence, so n < 2 gives 0; the paper does not define it.
    """
    n = sum(counts.values())
    return max(0.0, 1.0 - _entropy(counts) / log(n)) if n > 1 else 0.0


def certaindex(counts: Mapping[Label, int], args: Mapping[str, float]) -> bool:
    """Stop when `certainty` reaches `threshold` (0.7, the paper's value for self-consistency on MATH and GSM8K).

    Detection begins at `min_samples` (5) and is repeated `every` so many samples (1); `every` 0 detects once,
    which is what the paper's end-to-end results use.
    """
    n = sum(counts.values())
    first, every = int(args.get("min_samples", 5)), int(args.get("every", 1))
    is_detection = n == first or (every > 0 and n > first and (n - first) % every == 0)
    return is_detection and certainty(counts) >= args.get("threshold", 0.7)


def adaptive_consistency(counts: Mapping[Label, int], args: Mapping[str, float]) -> bool:
    """Stop when the leading answer very probably has the majority over the runner-up.

    Aggarwal et al., "Let's Sample Step by Step" (EMNLP 2023), the Beta criterion: stop if P(Beta(a + 1, b + 1)
    > 1/2) >= `threshold` (0.95), where a >= b are the two largest counts. For whole numbers that probability is the
    chance of at most a heads in a + b + 1 fair tosses. Unusable answers do not vote.
    """
    first, second = _leaders(counts)
    tosses = first + second + 1
    probability = sum(comb(tosses, heads) for heads in range(first + 1)) / (1 << tosses)
    return probability >= args.get("threshold", 0.95)


def dirichlet(counts: Mapping[Label, int], args: Mapping[str, float]) -> bool:
    """Stop when the leading answer is with probability `threshold` (0.95) the likeliest of all that were seen.

    The Dirichlet criterion of the AdaptiveConsistency library, which draws from the posterior; here it is integrated. Where
    one answer was seen, another that was not counts as its rival; so up to two answers this is `adaptive_consistency`.
    """
    return leads(counts) >= args.get("threshold", 0.95)


def entropy(counts: Mapping[Label, int], args: Mapping[str, float]) -> bool:
    """Stop when the entropy of the answers over its greatest value for so many classes is at most `threshold` (0.75), from
    `min_samples` (2) on.

    The criterion of the AdaptiveConsistency library, which may stop at the first answer; one answer is no evidence here.
    """
    n = sum(counts.values())
    classes = sum(count if label == UNUSABLE else 1 for label, count in counts.items())
    spread = _entropy(counts) / log(classes) if classes > 1 else 0.0
    return n >= args.get("min_samples", 2) and spread <= args.get("threshold", 0.75) and _leaders(counts)[0] > 0


def majority(counts: Mapping[Label, int], args: Mapping[str, float]) -> bool:
    """Stop when the leading answer's share of all samples is `threshold` (0.8), from `min_samples` (2) on; as `entropy`, from
    the AdaptiveConsistency library."""
    n = sum(counts.values())
    return n >= args.get("min_samples", 2) and _leaders(counts)[0] >= args.get("threshold", 0.8) * n


def esc(votes: Votes, args: Mapping[str, float]) -> bool:
    """Stop when a window of `window` (5) samples is unanimous; windows follow one another and do not overlap.

    Li et al., "Escape Sky-high Cost" (ICLR 2024). There a window is drawn at once; here it is the samples whose answers
    became known one after the other, which is the same when they are drawn in waves.
    """
    window = int(args.get("window", 5))
    drawn, latest = votes.order, votes.order[-window:]
    if not drawn or len(drawn) % window or drawn[-1] == UNUSABLE:
        return False
    return all(label == drawn[-1] for label in latest)


def agreement(counts: Mapping[Label, int], args: Mapping[str, float]) -> bool:
    """Stop when `agreeing` (2) samples agree: of three, the third is drawn only where the first two differ."""
    return _leaders(counts)[0] >= args.get("agreeing", 2)


def decided(counts: Mapping[Label, int], args: Mapping[str, float]) -> bool:
    """Stop when the samples that are left could not change the vote, whatever they say: exact, not an estimate.

    A tie goes to the class of the earliest sample, which may be one of those left, so the lead has to be greater.
    """
    first, second = _leaders(counts)
    return first - second > args["left"]


def fixed(counts: Mapping[Label, int], args: Mapping[str, float]) -> bool:
    """Stop after `samples` (5), whatever they say."""
    return sum(counts.values()) >= args.get("samples", 5)


def leads(counts: Mapping[Label, int]) -> float:
    """Probability that the leading class is the likeliest, by a posterior Dirichlet(counts + 1) over the classes seen and at
    least two; unusable answers do not vote.

    Shares of a Dirichlet are independent Gammas over their sum, so this is the chance that the leader's Gamma is the largest,
    the integral of its density times the others' distribution functions (Simpson's rule; the error is below 1e-5).
    """
    usable = sorted((count for label, count in counts.items() if label != UNUSABLE), reverse=True)
    first, *others = [*usable, 0, 0][: max(2, len(usable))]
    most = first + 8 * sqrt(first + 1) + 20
    width = most / _STEPS

    def height(x: float) -> float:
        density = exp(first * log(x) - x - lgamma(first + 1)) if x else float(first == 0)
        for count in others:
            density *= _gamma_below(count, x)
        return density

    odd = sum(height(i * width) for i in range(1, _STEPS, 2))
    even = sum(height(i * width) for i in range(2, _STEPS, 2))
    return (height(0.0) + 4 * odd + 2 * even + height(most)) * width / 3


_STEPS = 400


def _gamma_below(count: int, x: float) -> float:
    """P(Gamma(count + 1) <= x): more than `count` arrivals by time x."""
    term = total = exp(-x)
    for i in range(1, count + 1):
        term *= x / i
        total += term
    return 1.0 - total


def _entropy(counts: Mapping[Label, int]) -> float:
    """In nats; every unusable answer is a class of its own."""
    n = sum(counts.values())
    found = 0.0
    for label, count in counts.items():
        if label == UNUSABLE:
            found += count / n * log(n)
        elif count:
            found -= count / n * log(count / n)
    return found


def _leaders(counts: Mapping[Label, int]) -> tuple[int, int]:
    """The two largest counts; unusable answers do not vote."""
    first, second = 0, 0
    for label, count in counts.items():
        if label == UNUSABLE:
            continue
        if count > first:
            first, second = count, first
        elif count > second:
            second = count
    return first, second


RULES: dict[str, Rule] = {
    "certaindex": certaindex,
    "adaptive_consistency": adaptive_consistency,
    "dirichlet": dirichlet,
    "entropy": entropy,
    "majority": majority,
    "esc": esc,
    "agreement": agreement,
    "decided": decided,
    "fixed": fixed,
}
"""By the name in `SampleSpec.rule`."""
