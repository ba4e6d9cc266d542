"""Blocking work off the event loop: sync tools and the tokenising of long prompts."""

import asyncio
import contextvars
import queue
import threading
from collections.abc import Callable
from typing import Any, TypeVar

from flowserve.errors import Overloaded

T = TypeVar("T")

MAX_THREADS = 1_000
"""More are not started: they are all held by functions that nobody waits for any more."""

Work = tuple[asyncio.AbstractEventLoop, "asyncio.Future[Any]", Callable[[], Any]]


class Threads:
    """Threads that keep the caller's context variables. Used on one event loop, which counts the free ones.

    A coroutine that is cancelled while it waits stops waiting; the function itself runs on to its end, as Python
    cannot stop a thread. Therefore a function that hangs takes no place from others (a thread is started when none
    is free), and these are daemon threads, unlike an executor's: a program ends without waiting for them.
    """

    def __init__(self, kept: int) -> None:
        self._kept = kept
        """Free threads that stay for the next call."""
        self._work: queue.SimpleQueue[Work | None] = queue.SimpleQueue()
        self._free = 0
        self._alive = 0

    async def call(self, function: Callable[..., T], /, *args: Any, **kwargs: Any) -> T:
        """Raises what `function` raises, and Overloaded when too many functions hang."""
        loop, context = asyncio.get_running_loop(), contextvars.copy_context()
        future: asyncio.Future[T] = loop.create_future()
        self._ensure_free()
        self._free -= 1
        self._work.put((loop, future, lambda: context.run(function, *args, **kwargs)))
        return await future

    def _ensure_free(self) -> None:
        if self._free:
            return
        if self._alive >= MAX_THREADS:
            raise Overloaded(f"{MAX_THREADS} threads are held by functions that do not return", retry_after_s=5.0)
        threading.Thread(target=self._serve, name="flowserve-work", daemon=True).start()
        self._alive += 1
        self._free += 1

    def _serve(self) -> None:
        while (work := self._work.get()) is not None:
            loop, future, function = work
            value, error = None, None
            try:
                value = function()
            except BaseException as raised:  # noqa: BLE001  # handed to who waits
                error = raised
            try:
                loop.call_soon_threadsafe(self._returned, future, value, error)
            except RuntimeError:  # the loop has been closed meanwhile: nobody waits
                return
            del work, future, function, value, error

    def _returned(self, future: "asyncio.Future[Any]", value: Any, error: BaseException | None) -> None:
        self._free += 1
        if self._free > self._kept:
            self._end_one()
        if future.done():
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(value)

    def _end_one(self) -> None:
        self._free -= 1
        self._alive -= 1
        self._work.put(None)

    def close(self) -> None:
        """Let running work end by itself; keep no thread for more."""
        self._kept = 0
        while self._free:
            self._end_one()
