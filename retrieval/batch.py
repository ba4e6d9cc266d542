"""Micro-batching: texts that arrive while a batch is being embedded go together in the next one.

There is no timer: a text that comes alone is embedded at once, and the busier the embedder, the larger the batches.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
from numpy.typing import NDArray

from flowserve.errors import RetrievalError
from flowserve.retrieval.protocols import Vectors

Waiter = asyncio.Future[NDArray[np.float32]]
Batch = dict[str, list[Waiter]]
"""Distinct texts, each with everybody who waits for its vector."""


class Batcher:
    """Collects single texts for `run`, which is called with one batch at a time. Lives on one event loop at a time."""

    def __init__(self, run: Callable[[Sequence[str]], "asyncio.Future[Vectors]"], limit: int) -> None:
        self._run = run
        self._limit = limit
        self._waiting: deque[tuple[str, Waiter]] = deque()
        self._running = False

    def __len__(self) -> int:
        """Texts that wait for the next batch."""
        return len(self._waiting)

    async def embed(self, text: str) -> NDArray[np.float32]:
        """The vector of `text`, (dimension,)."""
        future: Waiter = asyncio.get_running_loop().create_future()
        self._waiting.append((text, future))
        if not self._running:
            self._start()
        return await future

    def _start(self) -> None:
        """Hand the next batch to `run`, if anybody is still waiting."""
        self._running = False
        while batch := self._next_batch():
            try:
                vectors = self._run(list(batch))
            except RuntimeError as error:  # the threads are gone; whoever else waits gets the same answer
                _fail(batch, RetrievalError(f"nothing can be embedded any more: {error}"))
                continue
            self._running = True
            vectors.add_done_callback(partial(self._deliver, batch))
            return

    def _next_batch(self) -> Batch:
        batch: Batch = {}
        while self._waiting and len(batch) < self._limit:
            text, future = self._waiting.popleft()
            if not future.done():  # its caller may have left
                batch.setdefault(text, []).append(future)
        return batch

    def _deliver(self, batch: Batch, done: "asyncio.Future[Vectors]") -> None:
        if done.cancelled():
            _fail(batch, RetrievalError("embedding was stopped: retrieval is closed"))
        elif (error := done.exception()) is not None:
            _fail(batch, error)
        else:
            for vector, futures in zip(done.result(), batch.values(), strict=True):
                for future in futures:
                    if not future.done():
                        future.set_result(vector)
        self._start()


def _fail(batch: Batch, error: BaseException) -> None:
    for futures in batch.values():
        for future in futures:
            if not future.done():
                future.set_exception(error)
