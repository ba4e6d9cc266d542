"""How many steps are guessed before they are verified: OS3 of RaLMSpec (Zhang et al., arXiv 2401.14021, section 4), and when none is.

A step is a guess and the tokens that are written with it; it takes `a` seconds. A verification of one guess takes `b`, of each one more
in the same batch `more` beside: the paper takes batches to be as fast as single searches, which few indexes are. With a chance
`g` that a guess is right, s guesses bring (1 - g^s) / (1 - g) verified steps: those before the first wrong one, and that one, whose
passage is known then. The paper maximises verified steps per second; without overlap it does not charge a wrong step for being written again. The
paper's choice is ours; but where, with that charge, it would not pay, no step is written before it is verified (stride 0). Guesses
are still made and compared then, which costs a look into the cache, so that speculation comes back when it would pay.
"""

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from flowserve.errors import ConfigError
from flowserve.ids import Seconds

MOST_STEPS = 32
WINDOW = 5
"""Verifications that `g` is estimated from (the paper's w)."""
MOST_CHANCE = 0.6
"""The paper's cap on `g`: a streak of right guesses must not lead to a stride that one wrong guess makes dear."""
MARGIN = 1.02
"""Speculation must be expected to be so many times as fast as none: estimates are not exact."""


def verified_steps(chance: float, steps: int) -> float:
    """Expected steps that a verification of `steps` guesses brings: 1 + g + ... + g^(s-1)."""
    return sum(chance**i for i in range(steps))


def round_s(a: Seconds, b: Seconds, chance: float, steps: int, overlapped: bool, more: Seconds = 0.0) -> Seconds:
    """Expected seconds of a round, as the paper has it. Overlapped: the last step is written while the round is verified."""
    b += more * (steps - 1)
    alone = steps * a + b
    if not overlapped:
        return alone
    right = chance**steps
    return right * ((steps - 1) * a + max(a, b)) + (1 - right) * alone


def best_stride(a: Seconds, b: Seconds, chance: float, overlapped: bool = False, more: Seconds = 0.0) -> int:
    """The stride, 1 to MOST_STEPS, with the most verified steps per second; the smallest of equals."""
    return max(
        range(1, MOST_STEPS + 1),
        key=lambda s: verified_steps(chance, s) / round_s(a, b, chance, s, overlapped, more),
    )


def pays(a: Seconds, b: Seconds, chance: float, steps: int, overlapped: bool = False, more: Seconds = 0.0) -> bool:
    """Is a round, its wrong step written again, expected to be faster than the same steps one by one, each at a + b?

    Overlapped, the paper's own formula has that, but it takes a wrong step to be stopped as soon as the index has answered. An engine
    that is computing its prompt goes on to the end of that, so where searches are quicker than steps the step is charged whole.
    """
    again = (1 - chance**steps) * (max(0.0, a - b - more * (steps - 1)) if overlapped else a)
    took = round_s(a, b, chance, steps, overlapped, more) + again
    return verified_steps(chance, steps) * (a + b) >= MARGIN * took


@dataclass(slots=True)
class Stride:
    """The stride of the next round, for all generations with one retriever: what one learns, the next begins with."""

    overlapped: bool = False
    fixed: int | None = None
    """Always so many. None: OS3."""
    gated: bool = True
    """With OS3: no speculation where it is not expected to pay."""
    steps_s: deque[Seconds] = field(default_factory=lambda: deque(maxlen=WINDOW))
    """Of the latest steps. `a` is their median; the paper takes the last one, which a moment's load on the machine misleads."""
    verifications_s: deque[tuple[int, Seconds]] = field(default_factory=lambda: deque(maxlen=4 * WINDOW))
    """(queries, seconds) of the latest verifications; a line through them gives `b` and `more`."""
    recent: deque[tuple[int, int]] = field(default_factory=lambda: deque(maxlen=WINDOW))
    """(right guesses before the first wrong one, guesses) of the latest verifications."""

    def __post_init__(self) -> None:
        if self.fixed is not None and not 1 <= self.fixed <= MOST_STEPS:
            raise ConfigError(f"stride: expected 1 to {MOST_STEPS} steps or None for OS3, got {self.fixed}")

    @property
    def chance(self) -> float:
        """`g`: right guesses over guesses that were looked at, of the latest verifications, capped."""
        right = sum(matched for matched, _ in self.recent)
        wrong = sum(matched < guessed for matched, guessed in self.recent)
        return min(right / (right + wrong), MOST_CHANCE) if right + wrong else 0.0

    def wrote(self, seconds: Seconds) -> None:
        """A step took so long, its guess included."""
        self.steps_s.append(seconds)

    def verified(self, matched: int, guessed: int, queries: int, seconds: Seconds) -> None:
        """A verification of so many queries. Of them `guessed` were judged, the first `matched` were right."""
        self.verifications_s.append((queries, seconds))
        if guessed:
            self.recent.append((matched, guessed))

    def next(self) -> int:
        """Guesses of the next round; 0: the next step is written when its passage is known."""
        if self.fixed is not None:
            return self.fixed
        if not (self.steps_s and self.verifications_s and self.recent):
            return 1
        a, (b, more), chance = median(tuple(self.steps_s)), line(self.verifications_s), self.chance
        steps = best_stride(a, b, chance, self.overlapped, more)
        if self.gated and not pays(a, b, chance, steps, self.overlapped, more):
            return 0
        return steps


def line(points: Iterable[tuple[int, Seconds]]) -> tuple[Seconds, Seconds]:
    """(seconds of one query, seconds of each one more) by the medians of slopes and of rests (Theil and Sen), which a few wild times
    do not move. Batches of one size only tell no slope: 0."""
    points = tuple(points)
    slopes = [(t - s) / (n - m) for i, (m, s) in enumerate(points) for n, t in points[i + 1 :] if m != n]
    more = max(0.0, median(slopes)) if slopes else 0.0
    return max(0.0, median([seconds - more * (queries - 1) for queries, seconds in points])), more


def median(values: Sequence[float]) -> float:
    """The middle one, or the mean of the two in the middle. values: not empty."""
    ordered, half = sorted(values), len(values) // 2
    return ordered[half] if len(ordered) % 2 else (ordered[half - 1] + ordered[half]) / 2
