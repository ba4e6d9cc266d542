"""The event log of one run and the readers that follow it.

Events are appended by the runtime on its loop and read by any number of followers, each at its own
pace: a follower keeps only its position, so a slow reader costs nothing but its place. The log lives as
long as the run is remembered.
"""

import asyncio
from collections.abc import AsyncIterator

from flowserve.runtime.records import TERMINAL, RunEvent

YIELD_EVERY = 64
"""A follower that replays a long log gives the loop back this often, so that one reader cannot freeze a server."""


class EventLog:
    """Append-only events of one run."""

    def __init__(self) -> None:
        self.events: list[RunEvent] = []
        self.closed = False
        """The terminal event is in."""
        self._more: asyncio.Future[None] | None = None

    @property
    def last_seq(self) -> int:
        return len(self.events)

    def append(self, event: RunEvent) -> None:
        """Add the next event (`event.seq` is `last_seq + 1`) and wake the followers."""
        assert event.seq == len(self.events) + 1 and not self.closed
        self.events.append(event)
        self.closed = event.type in TERMINAL
        if self._more is not None:
            if not self._more.done():
                self._more.set_result(None)
            self._more = None

    async def follow(self, after: int = 0) -> AsyncIterator[RunEvent]:
        """Every event with `seq > after`, in order, ending with the terminal one."""
        position = max(0, after)
        since_yield = 0
        while True:
            while position < len(self.events):
                event = self.events[position]
                position += 1
                yield event
                if event.terminal:
                    return
                since_yield += 1
                if since_yield >= YIELD_EVERY:
                    since_yield = 0
                    await asyncio.sleep(0)
            if self.closed:
                return
            if self._more is None:
                self._more = asyncio.get_running_loop().create_future()
            since_yield = 0
            # Shielded: one follower that goes away must not cancel what the others wait for.
            await asyncio.shield(self._more)
