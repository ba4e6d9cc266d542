"""How good an answer is."""

from collections import Counter
from collections.abc import Sequence

from flowserve.bench.retrieval import normalised


def f1(answer: str, golds: Sequence[str]) -> float:
    """Of normalised words, as SQuAD and LongBench score; the best over `golds`. 0 to 1."""
    return max((_f1(normalised(answer).split(), normalised(gold).split()) for gold in golds), default=0.0)


def exact(answer: str, golds: Sequence[str]) -> float:
    """1 if the normalised answer is one of `golds`, else 0."""
    return float(any(normalised(answer) == normalised(gold) for gold in golds))


def _f1(words: Sequence[str], gold: Sequence[str]) -> float:
    """Two empty ones are equal."""
    if not words or not gold:
        return float(words == gold)
    common = (Counter(words) & Counter(gold)).total()
    return 2 * common / (len(words) + len(gold))
