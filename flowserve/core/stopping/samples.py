"""When further samples would not change the vote: rules over counts of answer classes.

A rule is a pure function of the counts, the number of samples that gave no usable answer, and its own
parameters. Label -1 marks an unusable answer: it never agrees with anything, so each is a class of its own.
"""

from collections.abc import Callable, Mapping
from math import comb, log

from flowserve.core.stopping.signals import UNUSABLE

Rule = Callable[[Mapping[int, int], Mapping[str, float]], bool]
"""(counts by label, parameters) -> stop now? Asked after each label that arrives. Among the parameters is `left`: samples
whose label is not known yet."""


def certainty(counts: Mapping[int, int]) -> float:
    """Certaindex of a set of answers: 1 - H / log n, from 0 (all differ) to 1 (all agree).

    Fu et al., Dynasor (arXiv 2412.20993), the case of many paths: H is the entropy of the answer classes and log
    n its greatest value. One answer is no evidence, so n < 2 gives 0; the paper does not define it.
    """
    n = sum(counts.values())
    if n < 2:
        return 0.0
    entropy = 0.0
    for label, count in counts.items():
        if label == UNUSABLE:
            entropy += count / n * log(n)
        elif count:
            entropy -= count / n * log(count / n)
    return max(0.0, (log(n) - entropy) / log(n))


def certaindex(counts: Mapping[int, int], args: Mapping[str, float]) -> bool:
    """Stop when `certainty` reaches `threshold` (0.7, the paper's value for self-consistency on MATH and GSM8K).

    Detection begins at `min_samples` (5) and is repeated `every` so many samples (1); `every` 0 detects once,
    which is what the paper's end-to-end results use.
    """
    n = sum(counts.values())
    first, every = int(args.get("min_samples", 5)), int(args.get("every", 1))
    is_detection = n == first or (every > 0 and n > first and (n - first) % every == 0)
    return is_detection and certainty(counts) >= args.get("threshold", 0.7)


def adaptive_consistency(counts: Mapping[int, int], args: Mapping[str, float]) -> bool:
    """Stop when the leading answer very probably has the majority over the runner-up.

    Aggarwal et al., "Let's Sample Step by Step" (EMNLP 2023), the Beta criterion: stop if P(Beta(a + 1, b + 1)
    > 1/2) >= `threshold` (0.95), where a >= b are the two largest counts. For whole numbers that probability is the
    chance of at most a heads in a + b + 1 fair tosses. Unusable answers do not vote.
    """
    first, second = _leaders(counts)
    tosses = first + second + 1
    probability = sum(comb(tosses, heads) for heads in range(first + 1)) / (1 << tosses)
    return probability >= args.get("threshold", 0.95)


def decided(counts: Mapping[int, int], args: Mapping[str, float]) -> bool:
    """Stop when the samples that are left could not change the vote, whatever they say: exact, not an estimate.

    A tie goes to the class of the earliest sample, which may be one of those left, so the lead has to be greater.
    """
    first, second = _leaders(counts)
    return first - second > args["left"]


def _leaders(counts: Mapping[int, int]) -> tuple[int, int]:
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
    "decided": decided,
}
"""By the name in `SampleSpec.rule`."""
