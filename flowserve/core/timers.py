"""Deadlines as a heap with lazy deletion.

A cancelled timer stays in the heap until it surfaces, or until the dead outnumber the living, when the
heap is rebuilt: the heap never holds more than twice the live timers plus a constant.
"""

import heapq
from typing import TYPE_CHECKING

from flowserve.ids import Seconds

if TYPE_CHECKING:
    from flowserve.core.state import Run, Task

SLACK = 64
"""Dead timers that are not worth a rebuild."""


class Timer:
    """One future moment. `subject` says whose: a run's deadline, or a task's time limit or back-off."""

    __slots__ = ("at", "live", "number", "subject")

    def __init__(self, at: Seconds, number: int, subject: "Run | Task") -> None:
        self.at = at
        self.number = number
        """Arrival number; earlier timers fire first at the same moment."""
        self.subject = subject
        self.live = True

    def __lt__(self, other: "Timer") -> bool:
        return (self.at, self.number) < (other.at, other.number)

    def __repr__(self) -> str:
        return f"Timer({self.at:.3f}, #{self.number}, {self.subject!r}{'' if self.live else ', dead'})"


class Timers:
    """All timers of the scheduler."""

    __slots__ = ("dead", "heap", "made")

    def __init__(self) -> None:
        self.heap: list[Timer] = []
        self.dead = 0
        """Cancelled timers still in the heap."""
        self.made = 0
        """Timers made so far."""

    def __len__(self) -> int:
        return len(self.heap) - self.dead

    def start(self, at: Seconds, subject: "Run | Task") -> Timer:
        """A timer that is due at `at`."""
        self.made += 1
        timer = Timer(at, self.made, subject)
        heapq.heappush(self.heap, timer)
        return timer

    def cancel(self, timer: Timer) -> None:
        """Forget `timer`; cancelling one that has fired does nothing."""
        if not timer.live:
            return
        timer.live = False
        self.dead += 1
        if self.dead > len(self.heap) // 2 + SLACK:
            self.heap = [kept for kept in self.heap if kept.live]
            heapq.heapify(self.heap)
            self.dead = 0

    def earliest(self) -> Seconds | None:
        """When the next live timer is due; None without any."""
        heap = self.heap
        while heap and not heap[0].live:
            heapq.heappop(heap)
            self.dead -= 1
        return heap[0].at if heap else None

    def pop_due(self, now: Seconds) -> Timer | None:
        """The next timer that is due at `now`, in order of (time, arrival); it is dead afterwards."""
        due = self.earliest()
        if due is None or due > now:
            return None
        timer = heapq.heappop(self.heap)
        timer.live = False
        return timer
