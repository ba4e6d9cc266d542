"""Time as a value that is handed in.

The scheduler never reads a clock: `now` is an argument of `core.step`. Drivers own one of these.
`SystemClock` is monotonic; wall-clock time is for display only. `ManualClock` is for tests.
"""

import time
from typing import Protocol

from flowserve.ids import Seconds


class Clock(Protocol):
    """Where a driver takes `now` from."""

    def now(self) -> Seconds:
        """Seconds since an arbitrary start; never goes back."""
        ...

    def wall(self) -> Seconds:
        """Seconds since 1970, for people and records; may jump."""
        ...


class SystemClock:
    """The machine's own clocks."""

    def now(self) -> Seconds:
        return time.monotonic()

    def wall(self) -> Seconds:
        return time.time()


class ManualClock:
    """A clock that moves when it is told to."""

    def __init__(self, start: Seconds = 0.0) -> None:
        self._now = start

    def now(self) -> Seconds:
        return self._now

    def wall(self) -> Seconds:
        return self._now

    def advance(self, seconds: Seconds) -> None:
        """Move forward by `seconds` (not negative)."""
        if seconds < 0:
            raise ValueError(f"a clock cannot go back: advance({seconds})")
        self._now += seconds
