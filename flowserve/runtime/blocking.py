"""A runtime for programs that have no event loop: it lives in a thread of its own.

This is what `wf.run(...)`, `wf.arun(...)`, `wf.stream(...)` and `wf.submit(...)` use. The runtime is built at the
first use and closed with `close` or at the end of the program.
"""

import asyncio
import atexit
import queue
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Mapping
from concurrent.futures import Future
from typing import Any, TypeVar

from flowserve.graphs.program import Program
from flowserve.runtime.records import RunEvent, RunSnapshot, SubmitOptions
from flowserve.runtime.run import Run
from flowserve.runtime.runner import Runtime

T = TypeVar("T")

Factory = Callable[[], Awaitable[Runtime]]
"""Builds and starts a runtime on the loop that it is called on."""


FAREWELL_S = 5.0
"""How long closing waits for readers that still replay the events of an ended run."""


class Handle:
    """A submitted run, usable from any thread."""

    def __init__(self, run: Run, runner: "BlockingRunner") -> None:
        self._run = run
        self._runner = runner

    def __repr__(self) -> str:
        return f"Handle({self.id}, {self.status})"

    @property
    def id(self) -> str:
        return self._run.id

    @property
    def status(self) -> str:
        """queued, running, completed, failed, cancelled or timed_out."""
        return self._run.status.value

    def snapshot(self) -> RunSnapshot:
        """Status, node table, timings, tokens."""
        return self._run.snapshot() if self._run.settled else self._runner.on_loop(_call(self._run.snapshot))

    def cancel(self) -> None:
        """End the run now. Does nothing to an ended one."""
        if not self._run.settled:
            self._runner.call(self._run.cancel)

    def result(self, timeout_s: float | None = None) -> Any:
        """Wait for the typed result. Raises RunFailed, RunCancelled, RunTimedOut, or TimeoutError after `timeout_s`
        (the run goes on)."""
        if self._run.settled:
            return self._run.outcome()
        waiting = self._runner.future(self._run.result())
        try:
            return waiting.result(timeout_s)
        finally:
            waiting.cancel()

    def events(self, after: int = 0) -> Iterator[RunEvent]:
        """Events with `seq > after` as they come, ending with the terminal one."""
        if self._run.settled:
            return iter(self._run.log.events[max(0, after) :])
        return self._runner.iterate(self._run, after)


class BlockingRunner:
    """Runs workflows from ordinary code; `graphs.runner.Runner` is the seam it fills."""

    def __init__(self, factory: Factory) -> None:
        self._factory = factory
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._runtime: Runtime | None = None
        self._lock = threading.Lock()

    # --- the seam ---------------------------------------------------------------------------------------------

    def run(self, program: Program, inputs: Mapping[str, Any], **options: Any) -> Any:
        """Submit, wait, return the typed result."""
        return self.submit(program, inputs, **options).result()

    async def arun(self, program: Program, inputs: Mapping[str, Any], **options: Any) -> Any:
        """`run` for async code, on any event loop. Cancelling it cancels the run."""
        handle = await self._submitted(program, inputs, options)
        run = handle._run
        try:
            return await self._elsewhere(run.result())
        except asyncio.CancelledError:
            handle.cancel()
            raise

    def submit(self, program: Program, inputs: Mapping[str, Any], **options: Any) -> Handle:
        """Start a run and return at once."""
        return self.on_loop(self._submit(program, inputs, options))

    def stream(self, program: Program, inputs: Mapping[str, Any], **options: Any) -> Iterator[RunEvent]:
        """Start a run and yield its events. Leaving the iteration early cancels the run."""
        handle = self.submit(program, inputs, **options)
        try:
            yield from handle.events()
        finally:
            handle.cancel()

    async def astream(self, program: Program, inputs: Mapping[str, Any], **options: Any) -> AsyncIterator[RunEvent]:
        """`stream` for async code, on any event loop."""
        handle = await self._submitted(program, inputs, options)
        events = handle._run.events()
        try:
            while (event := await self._elsewhere(_next(events))) is not None:
                yield event
        finally:
            handle.cancel()

    def close(self) -> None:
        """Cancel what runs, close the engines, end the thread. The next use starts afresh."""
        with self._lock:
            loop, thread, runtime = self._loop, self._thread, self._runtime
            self._loop = self._thread = self._runtime = None
        if loop is None or thread is None:
            return
        _up.discard(self)
        if runtime is not None:
            asyncio.run_coroutine_threadsafe(_closed(runtime), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()

    # --- crossing threads ---------------------------------------------------------------------------------------

    @property
    def runtime(self) -> Runtime:
        """The runtime, started. Use it on its own loop only (`on_loop`)."""
        self._start()
        assert self._runtime is not None
        return self._runtime

    def future(self, coroutine: Coroutine[Any, Any, T]) -> "Future[T]":
        """Start `coroutine` on the runtime's loop, for a thread that will wait for it."""
        if threading.current_thread() is self._thread:
            coroutine.close()
            raise RuntimeError(
                "this would wait for a run on the event loop that has to work on it; "
                "in an async tool await wf.arun(...), in a workflow call the node itself"
            )
        return asyncio.run_coroutine_threadsafe(coroutine, self._start())

    def call(self, function: Callable[[], object]) -> None:
        """Have `function` called on the runtime's loop, which may be the caller's own."""
        if threading.current_thread() is self._thread:
            function()
        else:
            self.on_loop(_call(function))

    def on_loop(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run `coroutine` on the runtime's loop and wait for it."""
        return self.future(coroutine).result()

    def iterate(self, run: Run, after: int) -> Iterator[RunEvent]:
        """Events of `run`, handed over through a queue."""
        passed: queue.SimpleQueue[RunEvent | BaseException | None] = queue.SimpleQueue()

        async def pump() -> None:
            try:
                async for event in run.events(after):
                    passed.put(event)
                passed.put(None)
            except BaseException as error:
                passed.put(error)
                raise

        pumping = self.future(pump())
        try:
            while (item := passed.get()) is not None:
                if isinstance(item, BaseException):
                    raise item
                yield item
        finally:
            pumping.cancel()

    async def _elsewhere(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Await something about a run on the caller's loop. When the runtime is closed it has ended, and waits for nothing."""
        loop = self._loop
        if loop is None:
            return await coroutine
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(coroutine, loop))

    async def _submitted(self, program: Program, inputs: Mapping[str, Any], options: dict[str, Any]) -> Handle:
        """A run started from the caller's loop. If the caller is cancelled meanwhile, so is the run that may come of it."""
        started = self._loop
        if started is None:
            started = await asyncio.to_thread(self._start)
        future = asyncio.run_coroutine_threadsafe(self._submit(program, inputs, options), started)
        try:
            return await asyncio.shield(asyncio.wrap_future(future))
        except asyncio.CancelledError:
            future.add_done_callback(lambda done: None if done.exception() else done.result()._run.cancel())
            raise

    async def _submit(self, program: Program, inputs: Mapping[str, Any], options: dict[str, Any]) -> Handle:
        assert self._runtime is not None
        return Handle(await self._runtime.submit(program, inputs, SubmitOptions(**options)), self)

    def _start(self) -> asyncio.AbstractEventLoop:
        with self._lock:
            if self._loop is not None:
                return self._loop
            loop = asyncio.new_event_loop()
            thread = threading.Thread(target=loop.run_forever, name="flowserve-runtime", daemon=True)
            thread.start()
            try:
                self._runtime = asyncio.run_coroutine_threadsafe(_made(self._factory), loop).result()
            except BaseException:
                loop.call_soon_threadsafe(loop.stop)
                thread.join()
                loop.close()
                raise
            self._loop, self._thread = loop, thread
            _up.add(self)
            return loop


_up: set[BlockingRunner] = set()


def _close_all() -> None:
    for runner in list(_up):
        runner.close()


# Closing an engine or an index takes a thread, and when `atexit` calls it is too late to get one: pools have shut down
# then. `threading` calls in reverse order, so this comes before the pools, which were imported above.
getattr(threading, "_register_atexit", atexit.register)(_close_all)


async def _closed(runtime: Runtime) -> None:
    """Close, and let those who wait for a run hear how it ended before the loop stops."""
    await runtime.aclose()
    others = asyncio.all_tasks() - {asyncio.current_task()}
    if others:
        await asyncio.wait(others, timeout=FAREWELL_S)


async def _made(factory: Factory) -> Runtime:
    return await factory()


async def _call(function: Callable[[], T]) -> T:
    return function()


async def _next(events: AsyncIterator[RunEvent]) -> RunEvent | None:
    return await anext(events, None)
