"""Who gets the next sample, where several programs share a number of them.

Damani et al., "Learning How Hard to Think" (ICLR 2025, arXiv 2410.04707): of programs i with b_i samples each, make the sum of
q_i(b_i), the expected reward of the best of b_i, as great as can be while the sum of b_i is within a budget. What decides is the gain
of one more, q(b + 1) - q(b). Where gains only fall, taking the greatest of all again and again is the best that there is.

A program that hardly ever succeeds gains next to nothing from a sample, so it may get none at all: the samples go where they help.
Whoever must answer it all the same says `least`.
"""

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

Gains = Sequence[float]
"""Of the first sample, the second, ... Each at most the one before."""
K = TypeVar("K")


# --- what a sample gains ---------------------------------------------------------------------------------


def binary_gains(chance: float, most: int) -> tuple[float, ...]:
    """Where a sample succeeds with probability `chance` and one success is all that counts: q(b) = 1 - (1 - chance)^b."""
    return tuple(chance * (1.0 - chance) ** drawn for drawn in range(most))


def posterior_gains(successes: int, failures: int, most: int) -> tuple[float, ...]:
    """As `binary_gains`, of a chance that nobody has predicted: the mean over Beta(successes + 1, failures + 1), of samples of the same
    kind that were judged. The mean of c (1 - c)^d is B(a + 1, b + d) / B(a, b)."""
    a, b = successes + 1.0, failures + 1.0
    gains, gain = [], a / (a + b)
    for drawn in range(most):
        gains.append(gain)
        gain *= (b + drawn) / (a + b + 1.0 + drawn)
    return tuple(gains)


# --- offline: all at once --------------------------------------------------------------------------------


def allocate(gains: Sequence[Gains], budget: int, least: int = 0) -> list[int]:
    """Samples per program that gain the most together, at most `budget` in all; `least` for each come first, while they last. Of
    equal gains the earlier program's is taken; a gain of 0 is worth no sample."""
    given = [0] * len(gains)
    for program, own in enumerate(gains):
        given[program] = min(least, len(own), budget)
        budget -= given[program]
    heap = [(-own[given[program]], program) for program, own in enumerate(gains) if given[program] < len(own)]
    heapq.heapify(heap)
    while budget and heap:
        gain, program = heapq.heappop(heap)
        if gain >= 0.0:
            break
        budget -= 1
        given[program] += 1
        if given[program] < len(gains[program]):
            heapq.heappush(heap, (-gains[program][given[program]], program))
    return given


@dataclass(frozen=True, slots=True)
class Bin:
    """Programs that look equally hard."""

    up_to: float
    """Predicted difficulty of the hardest."""
    programs: int
    """How many of those seen fell into it."""
    gains: Gains
    """Of one of them, on average."""


def table(bins: Sequence[Bin], per_program: float) -> list[tuple[float, int]]:
    """Samples by predicted difficulty, as (`up_to`, samples), so that programs that fall into `bins` as those seen did get `per_program`
    on average. All of a bin get one more or none; what does not fit is passed over for the next best that does."""
    room = per_program * sum(one.programs for one in bins)
    given = [0] * len(bins)
    steps = [(-gain, number, one.programs) for number, one in enumerate(bins) for gain in one.gains]
    shut: dict[int, None] = {}
    for gain, number, cost in sorted(steps):
        if gain >= 0.0:
            break
        if number in shut:
            continue
        if cost > room + 1e-9:
            shut[number] = None
            continue
        room -= cost
        given[number] += 1
    return [(one.up_to, samples) for one, samples in zip(bins, given, strict=True)]


def look_up(entries: Sequence[tuple[float, int]], difficulty: float) -> int:
    """Samples for a program of predicted `difficulty`; what is harder than anything seen gets what the hardest get."""
    hardest = entries[-1][1] if entries else 0
    return next((samples for up_to, samples in entries if difficulty <= up_to), hardest)


# --- online: one at a time -------------------------------------------------------------------------------


def next_sample(offers: Mapping[K, float], floor: float = 0.0) -> K | None:
    """Whose next sample gains most, if that is more than `floor`; the earliest of equals. Ask again after each answer, with gains anew: what
    `allocate` does when it knows the gains beforehand."""
    best = max(offers, key=lambda program: offers[program], default=None)
    return best if best is not None and offers[best] > floor else None
