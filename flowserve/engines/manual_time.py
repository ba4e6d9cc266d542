"""A clock that tests move by hand, and that delays of the scripted engine pass on."""

import asyncio
import heapq
import itertools

from flowserve.clock import ManualClock
from flowserve.ids import Seconds


class ManualTime(ManualClock):
    """A manual clock that one can also sleep on: `advance` wakes whoever is due, in order of time."""

    def __init__(self, start: Seconds = 0.0) -> None:
        super().__init__(start)
        self._sleepers: list[tuple[Seconds, int, asyncio.Future[None]]] = []
        self._count = itertools.count()

    async def sleep(self, seconds: Seconds) -> None:
        """Returns when the clock has been moved `seconds` forward."""
        if seconds <= 0:
            await asyncio.sleep(0)
            return
        future = asyncio.get_running_loop().create_future()
        heapq.heappush(self._sleepers, (self.now() + seconds, next(self._count), future))
        await future

    def advance(self, seconds: Seconds) -> None:
        super().advance(seconds)
        while self._sleepers and self._sleepers[0][0] <= self.now():
            future = heapq.heappop(self._sleepers)[2]
            if not future.done():
                future.set_result(None)

    @property
    def next_due(self) -> Seconds | None:
        """When the earliest sleeper wakes; None when nobody sleeps."""
        due = [at for at, _, future in self._sleepers if not future.done()]
        return min(due, default=None)

    @property
    def sleeping(self) -> int:
        """How many sleep now."""
        return sum(not future.done() for _, _, future in self._sleepers)
