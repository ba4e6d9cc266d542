"""One call under way: what interrupts it, and with which priority it goes on."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from flowserve.engines.base import Call
from flowserve.engines.openai.reading import Reader

T = TypeVar("T")


class Interrupted(Exception):
    """`Work.abort` or `Work.move` was called."""


class Work:
    """Of one event loop. Its reader may be suspended anywhere; only its waiting for the server is ever broken off."""

    def __init__(self, call: Call, reader: Reader) -> None:
        self.call = call
        self.reader = reader
        self.priority = call.priority
        self.requests = 0
        """Sent to the server for it."""
        self.aborted = False
        self._interrupted = False
        self._waiting: asyncio.Timeout | None = None

    def abort(self) -> None:
        """End it."""
        self.aborted = True
        self._interrupt()

    def move(self, priority: int) -> None:
        """Send it anew, with what it has written so far."""
        self.priority = priority
        self._interrupt()

    async def waiting_for(self, ask: Callable[[], Awaitable[T]]) -> T:
        """What `ask` gives. Raises Interrupted."""
        if not self._interrupted:
            try:
                async with asyncio.timeout(None) as self._waiting:
                    return await ask()
            except TimeoutError:
                if not self._interrupted:
                    raise
            finally:
                self._waiting = None
        self._interrupted = False
        raise Interrupted

    def _interrupt(self) -> None:
        if self._interrupted:
            return  # it is being broken off already, and a timeout that expires can be told nothing
        self._interrupted = True
        if self._waiting is not None:
            self._waiting.reschedule(0)
