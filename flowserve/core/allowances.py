"""What a tenant may take in an hour or a day: an amount that is there at once and is back as a whole when the period is over.

Periods follow each other from the time on at which the tenant was first seen. What was taken beyond the amount, since only
the end of a run tells what it took, is taken from the periods that follow; what was not taken is not saved up. A token
bucket (`quotas.Bucket`) gives its amount back steadily instead, and bounds how fast; this bounds how much.
"""

import math

from flowserve.ids import Seconds

ROUNDING = 1e-9
"""Share of an amount or a period that does not count: who waited as long as it was told is let in."""


class Allowance:
    """One amount per period."""

    __slots__ = ("amount", "ends_at", "period_s", "spent")

    def __init__(self, amount: float, period_s: Seconds, now: Seconds) -> None:
        self.amount = amount
        self.period_s = period_s
        self.spent = 0.0
        """In the period that ends at `ends_at`; more than the amount: it owes."""
        self.ends_at = now + period_s

    @property
    def most(self) -> float:
        """What it can hold."""
        return self.amount

    def _ended(self, now: Seconds) -> int:
        """Periods that are over and were not told yet."""
        late = now - self.ends_at
        return 1 + math.floor(late / self.period_s + ROUNDING) if late >= -ROUNDING * self.period_s else 0

    def holds(self, now: Seconds) -> float:
        """What may still be taken in the period of `now`; below 0: it owes."""
        return self.amount - max(0.0, self.spent - self._ended(now) * self.amount)

    def has(self, amount: float, now: Seconds) -> bool:
        """Does it hold `amount` now, but for rounding?"""
        return self.holds(now) >= amount - ROUNDING * self.amount

    def take(self, amount: float, now: Seconds) -> None:
        """Whether it holds that much or not; a negative amount is given back."""
        ended = self._ended(now)
        self.spent = max(0.0, max(0.0, self.spent - ended * self.amount) + amount)
        self.ends_at += ended * self.period_s

    def wait_s(self, amount: float, now: Seconds) -> Seconds:
        """Until it holds `amount`, which is at most its own."""
        missing = amount - self.holds(now)
        if missing <= ROUNDING * self.amount:
            return 0.0
        periods = self._ended(now) + math.ceil(missing / self.amount - ROUNDING)
        return max(0.0, self.ends_at + (periods - 1) * self.period_s - now)

    def __repr__(self) -> str:
        return f"Allowance({self.spent:.4g} of {self.amount:g} until {self.ends_at:.3f})"
