"""Rules that end sampling early, as authors and specs name them. What they compute stands in `flowserve.core.stopping.samples`."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Number:
    """A parameter of a rule."""

    default: float
    least: float
    """A share may not be 0; a count begins here."""
    most: float
    whole: bool = False

    def fits(self, value: object) -> bool:
        """Whether a rule can work with `value`."""
        if isinstance(value, bool) or not isinstance(value, int | float):
            return False
        if self.whole:
            return self.least <= value <= self.most and value == int(value)
        return self.least < value <= self.most

    def __str__(self) -> str:
        if self.whole:
            return f"a number from {self.least:g} to {self.most:,.0f}"
        return f"a number above {self.least:g}, at most {self.most:g}"


def _share(default: float) -> Number:
    return Number(default, 0.0, 1.0)


def _count(default: int, least: int = 1) -> Number:
    return Number(default, least, 1_000_000, whole=True)


NUMBERS: dict[str, dict[str, Number]] = {
    "adaptive_consistency": {"threshold": _share(0.95)},
    "agreement": {"agreeing": _count(2)},
    "certaindex": {"threshold": _share(0.7), "min_samples": _count(5), "every": _count(1, least=0)},
    "decided": {},
    "dirichlet": {"threshold": _share(0.95)},
    "entropy": {"threshold": _share(0.75), "min_samples": _count(2)},
    "esc": {"window": _count(5)},
    "majority": {"threshold": _share(0.8), "min_samples": _count(2)},
}
"""Rules by name, and what each may be told. A number that a spec leaves out has its default."""


class Stop:
    """A stopping rule for samples, by name and numbers."""

    def __init__(self, rule: str, **numbers: float) -> None:
        for name, value in numbers.items():
            known = NUMBERS[rule][name]
            if not known.fits(value):
                raise ValueError(f"{name}: expected {known}; got {value!r}")
        self.rule = rule
        self.numbers = tuple(sorted((name, float(value)) for name, value in numbers.items()))

    def __repr__(self) -> str:
        return f"{self.rule}({', '.join(f'{k}={v:g}' for k, v in self.numbers)})"


def decided() -> Stop:
    """Stop sampling as soon as the samples that are left cannot change the vote. Exact: the winning answer is the one that
    all samples would have given. Other fields of the winner come from the first of its samples that was finished."""
    return Stop("decided")


def adaptive_consistency(*, threshold: float = 0.95) -> Stop:
    """Stop sampling when the leading answer has the majority over the second with probability `threshold` (Adaptive-Consistency,
    EMNLP 2023): four that agree, six against one."""
    return Stop("adaptive_consistency", threshold=threshold)


def agreement(agreeing: int = 2) -> Stop:
    """Stop sampling when so many samples agree. `solve.sample(3, vote=..., stop=fs.agreement(2))` draws two, and the third only
    where they differ."""
    return Stop("agreement", agreeing=agreeing)


def certaindex(*, threshold: float, min_samples: int = 5) -> Stop:
    """Stop sampling when 1 - H / log n of the answers is `threshold`, from `min_samples` on (Certaindex, arXiv 2412.20993)."""
    return Stop("certaindex", threshold=threshold, min_samples=min_samples)


def dirichlet(*, threshold: float = 0.95) -> Stop:
    """Stop sampling when the leading answer is the likeliest of all seen with probability `threshold`: as `adaptive_consistency`,
    minding every other answer instead of the second."""
    return Stop("dirichlet", threshold=threshold)


def entropy(*, threshold: float = 0.75, min_samples: int = 2) -> Stop:
    """Stop sampling when the entropy of the answers, over its greatest value for so many different ones, is at most `threshold`,
    from `min_samples` on."""
    return Stop("entropy", threshold=threshold, min_samples=min_samples)


def esc(*, window: int = 5) -> Stop:
    """Stop sampling when the samples of one window agree (Early-Stopping Self-Consistency, ICLR 2024)."""
    return Stop("esc", window=window)


def majority(*, threshold: float = 0.8, min_samples: int = 2) -> Stop:
    """Stop sampling when the leading answer's share is `threshold`, from `min_samples` on."""
    return Stop("majority", threshold=threshold, min_samples=min_samples)
