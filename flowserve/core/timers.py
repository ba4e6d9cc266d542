"""Deadlines as a heap with lazy deletion.

A subject (a run, a task, an engine) has at most one timer and holds it; an entry of the heap counts only while its subject still
holds it. Cancelled entries go when they surface, or when they are the majority and the heap is rebuilt: the heap never
holds more than twice the live timers plus a constant.
"""

import heapq
from typing import TYPE_CHECKING

from flowserve.ids import Seconds

if TYPE_CHECKING:
    from flowserve.core.engine_state import Engine
    from flowserve.core.state import Run, Task

Timer = tuple[Seconds, int, "Run | Task | Engine"]
"""When it is due; its arrival number, which ends ties; whose it is."""

SLACK = 64
"""Dead entries that are not worth a rebuild."""


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

    def start(self, at: Seconds, subject: "Run | Task | Engine") -> None:
        """Give `subject`, which has no timer, one that is due at `at`."""
        assert subject.timer is None
        self.made += 1
        subject.timer = timer = (at, self.made, subject)
        heapq.heappush(self.heap, timer)

    def cancel(self, subject: "Run | Task | Engine") -> None:
        """Take the timer of `subject`, which has one."""
        assert subject.timer is not None
        subject.timer = None
        self.dead += 1
        if self.dead > len(self.heap) // 2 + SLACK:
            self.heap = [timer for timer in self.heap if timer[2].timer is timer]
            heapq.heapify(self.heap)
            self.dead = 0

    def earliest(self) -> Seconds | None:
        """When the next timer is due; None without any."""
        heap = self.heap
        while heap:
            timer = heap[0]
            if timer[2].timer is timer:
                return timer[0]
            heapq.heappop(heap)
            self.dead -= 1
        return None

    def pop_due(self, now: Seconds) -> "Run | Task | Engine | None":
        """Whose timer is due at `now`, in order of (time, arrival); it has none afterwards. None: nobody's."""
        due = self.earliest()
        if due is None or due > now:
            return None
        subject = heapq.heappop(self.heap)[2]
        subject.timer = None
        return subject
