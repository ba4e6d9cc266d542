"""Micro-batching: what arrives while a batch is being worked on goes together in the next one.

There is no timer: an item that comes alone is worked on at once, and the busier the worker, the larger the batches.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from functools import partial
from typing import Generic, TypeVar

from flowserve.errors import RetrievalError

Item = TypeVar("Item", bound=Hashable)
Result = TypeVar("Result")


class Batcher(Generic[Item, Result]):
    """Collects single items for `run`, which is called with distinct ones and answers in their order.

    Up to `lanes` batches are run at a time. Lives on one event loop. `what` it does is for errors: "embedding".
    """

    def __init__(
        self,
        run: Callable[[Sequence[Item]], "asyncio.Future[Sequence[Result]]"],
        limit: int,
        what: str,
        lanes: int = 1,
    ) -> None:
        self._run = run
        self._limit = limit
        self._what = what
        self._lanes = lanes
        self._waiting: deque[tuple[Item, asyncio.Future[Result]]] = deque()
        self._num_running = 0

    def __len__(self) -> int:
        """Items that wait for the next batch."""
        return len(self._waiting)

    @property
    def idle(self) -> bool:
        """Whether nothing waits and nothing runs."""
        return not self._waiting and self._num_running == 0

    async def do(self, item: Item) -> Result:
        """What `run` makes of `item`."""
        future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self._waiting.append((item, future))
        self._start()
        return await future

    def _start(self) -> None:
        """Hand batches to `run` while there is a lane, as far as anybody is still waiting."""
        while self._num_running < self._lanes and (batch := self._next_batch()):
            try:
                results = self._run(list(batch))
            except RuntimeError as error:  # the threads are gone; whoever else waits gets the same answer
                _fail(batch, RetrievalError(f"{self._what} is not possible any more: {error}"))
                continue
            self._num_running += 1
            results.add_done_callback(partial(self._deliver, batch))

    def _next_batch(self) -> "dict[Item, list[asyncio.Future[Result]]]":
        """Distinct items, each with everybody who waits for it."""
        batch: dict[Item, list[asyncio.Future[Result]]] = {}
        while self._waiting and len(batch) < self._limit:
            item, future = self._waiting.popleft()
            if not future.done():  # its caller may have left
                batch.setdefault(item, []).append(future)
        return batch

    def _deliver(
        self, batch: "dict[Item, list[asyncio.Future[Result]]]", done: "asyncio.Future[Sequence[Result]]"
    ) -> None:
        self._num_running -= 1
        if done.cancelled():
            _fail(batch, RetrievalError(f"{self._what} was stopped: retrieval is closed"))
        elif (error := done.exception()) is not None:
            _fail(batch, error)
        else:
            for result, futures in zip(done.result(), batch.values(), strict=True):
                for future in futures:
                    if not future.done():
                        future.set_result(result)
        self._start()


def _fail(batch: "dict[Item, list[asyncio.Future[Result]]]", error: BaseException) -> None:
    for futures in batch.values():
        for future in futures:
            if not future.done():
                future.set_exception(error)
