"""What is going to happen, in order of time; what happens at one time, in the order in which it was scheduled."""

from collections.abc import Callable
from heapq import heappop, heappush
from typing import Any

from flowserve.ids import Seconds

Action = Callable[[Any], None]


class Heap:
    """Actions with their times. `now` is the time of the action that was taken out last."""

    __slots__ = ("_entries", "_number", "now")

    def __init__(self) -> None:
        self._entries: list[tuple[Seconds, int, Action, Any]] = []
        self._number = 0
        self.now: Seconds = 0.0

    def at(self, time_s: Seconds, action: Action, subject: Any = None) -> None:
        """Call `action(subject)` at `time_s`, or now if that has passed."""
        self._number += 1
        heappush(self._entries, (max(time_s, self.now), self._number, action, subject))

    def after(self, delay_s: Seconds, action: Action, subject: Any = None) -> None:
        self.at(self.now + delay_s, action, subject)

    def __len__(self) -> int:
        return len(self._entries)

    def next_at(self) -> Seconds | None:
        """When the next action is due; None: there is none."""
        return self._entries[0][0] if self._entries else None

    def take(self) -> tuple[Action, Any]:
        """The next action, whose time is `now` from here on."""
        self.now, _, action, subject = heappop(self._entries)
        return action, subject
