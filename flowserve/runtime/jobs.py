"""Tasks of the event loop that carry out jobs: one after the other while none of them waits, each on its own as soon as it does.

A job that never waits, such as a tool that only computes, would else cost a task of asyncio, which is a tenth of all that a
node without work takes. Code in a job cannot tell: it runs inside a task and in a context of its own, it begins in order, and
it is cancelled as a task is. Only the task that it finds may have carried out others before.
"""

import asyncio
import time
import types
from collections import deque
from collections.abc import Callable, Coroutine, Generator
from contextvars import Context, copy_context
from typing import Any

from flowserve.ids import Seconds

TURN_S: Seconds = 0.001
"""After so long the loop gets a turn, whatever else could begin."""

Work = Coroutine[Any, Any, None]


class Job:
    """A coroutine that is at work, or will be."""

    __slots__ = ("context", "task", "work")

    def __init__(self, work: Work) -> None:
        self.work: Work | None = work
        """None: it will not begin any more."""
        self.context: Context = copy_context()
        self.task: asyncio.Task[None] | None = None
        """That carries it out; None before and after."""

    def cancel(self) -> None:
        """It ends at what it waits for, by CancelledError; one that has not begun never does."""
        if self.task is not None:
            self.task.cancel()
        elif self.work is not None:
            self.work.close()
            self.work = None


class Jobs:
    """Of one event loop; `spawn` makes a task there."""

    def __init__(self, spawn: Callable[[Work], asyncio.Task[None]]) -> None:
        self._spawn = spawn
        self._waiting: deque[Job] = deque()
        self._served = False
        """A task is at work, or about to be, that begins what waits."""

    def start(self, work: Work) -> Job:
        """Begin `work` soon, in the context of the caller. It must not raise anything but CancelledError."""
        job = Job(work)
        self._waiting.append(job)
        self._ensure_served()
        return job

    def drop(self) -> None:
        """Nothing begins any more."""
        while self._waiting:
            self._waiting.popleft().cancel()

    def _ensure_served(self) -> None:
        if self._waiting and not self._served:
            self._served = True
            self._spawn(self._serve())

    async def _serve(self) -> None:
        task = asyncio.current_task()
        assert task is not None
        job: Job | None = None
        until = time.monotonic() + TURN_S
        try:
            while self._waiting and not task.cancelling():
                job = self._waiting.popleft()
                if job.work is None:
                    continue
                job.task = task
                try:
                    waits_for = job.context.run(job.work.send, None)
                except StopIteration:
                    job.task = job.work = None
                else:
                    break  # the task is this job's from here on
                if time.monotonic() > until:
                    return
            else:
                return
        finally:
            self._served = False
            self._ensure_served()
        try:
            await _rest(job.work, job.context, waits_for)
        finally:
            job.task = job.work = None


@types.coroutine
def _rest(work: Work, context: Context, waits_for: Any) -> Generator[Any, Any, None]:
    """Bring `work` to its end, which waits for something now: what `yield from` does, in another context."""
    try:
        while True:
            try:
                value = yield waits_for
            except GeneratorExit:
                context.run(work.close)
                raise
            except BaseException as error:  # noqa: BLE001  # it is for the work to bear or to raise
                waits_for = context.run(work.throw, error)
            else:
                waits_for = context.run(work.send, value)
    except StopIteration:
        return
