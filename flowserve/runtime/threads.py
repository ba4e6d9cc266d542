"""Blocking work off the event loop: sync tools and the tokenising of long prompts."""

import asyncio
import contextvars
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

T = TypeVar("T")


class Threads:
    """A pool of threads that keep the caller's context variables.

    A coroutine that is cancelled while it waits stops waiting; the function itself runs on to its end, as Python
    cannot stop a thread.
    """

    def __init__(self, size: int) -> None:
        self._pool = ThreadPoolExecutor(size, thread_name_prefix="flowserve-work")

    async def call(self, function: Callable[..., T], /, *args: Any, **kwargs: Any) -> T:
        context = contextvars.copy_context()
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._pool, lambda: context.run(function, *args, **kwargs))

    def close(self) -> None:
        """Let running work end by itself; take no more."""
        self._pool.shutdown(wait=False, cancel_futures=True)
