import asyncio
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from flowserve.errors import RetrievalError
from flowserve.retrieval.batch import Batcher


class Runs:
    """Holds every batch until the test answers it."""

    def __init__(self) -> None:
        self.batches: list[list[str]] = []
        self.futures: list[asyncio.Future[Any]] = []

    def __call__(self, texts: Sequence[str]) -> "asyncio.Future[Any]":
        self.batches.append(list(texts))
        self.futures.append(asyncio.get_running_loop().create_future())
        return self.futures[-1]

    def answer(self) -> None:
        texts = self.batches[-1]
        self.futures[-1].set_result(np.array([[float(text)] for text in texts], np.float32))


async def turn() -> None:
    """Let everything run that can."""
    for _ in range(5):
        await asyncio.sleep(0)


async def test_texts_that_come_during_a_batch_form_the_next_one() -> None:
    runs = Runs()
    batcher = Batcher(runs, 3, "embedding")
    tasks = [asyncio.create_task(batcher.do(str(number))) for number in range(6)]
    await turn()
    assert runs.batches == [["0"]]
    runs.answer()
    await turn()
    assert runs.batches == [["0"], ["1", "2", "3"]] and len(batcher) == 2
    runs.answer()
    await turn()
    runs.answer()
    assert [vector.tolist() for vector in await asyncio.gather(*tasks)] == [[float(n)] for n in range(6)]
    assert runs.batches[2] == ["4", "5"]


async def test_equal_texts_take_one_place_in_a_batch() -> None:
    runs = Runs()
    batcher = Batcher(runs, 2, "embedding")
    tasks = [asyncio.create_task(batcher.do(text)) for text in ("0", "1", "1", "1", "2")]
    await turn()
    runs.answer()
    await turn()
    assert runs.batches == [["0"], ["1", "2"]]
    runs.answer()
    assert [vector.tolist() for vector in await asyncio.gather(*tasks)] == [[0.0], [1.0], [1.0], [1.0], [2.0]]


async def test_who_leaves_is_not_embedded_and_does_not_disturb_the_others() -> None:
    runs = Runs()
    batcher = Batcher(runs, 8, "embedding")
    running, leaving, staying = (asyncio.create_task(batcher.do(text)) for text in "012")
    await turn()
    leaving.cancel()
    running.cancel()
    await turn()
    runs.answer()
    await turn()
    assert runs.batches == [["0"], ["2"]]
    runs.answer()
    assert (await staying).tolist() == [2.0]


async def test_a_failed_batch_fails_its_own_texts_and_the_next_goes_on() -> None:
    runs = Runs()
    batcher = Batcher(runs, 8, "embedding")
    first, second = (asyncio.create_task(batcher.do(text)) for text in "01")
    await turn()
    runs.futures[0].set_exception(ValueError("broken"))
    with pytest.raises(ValueError, match="broken"):
        await first
    await turn()
    runs.answer()
    assert (await second).tolist() == [1.0]


async def test_once_the_threads_are_gone_everybody_who_waits_is_told() -> None:
    runs = Runs()
    gone = False

    def run(texts: Sequence[str]) -> "asyncio.Future[Any]":
        if gone:
            raise RuntimeError("cannot schedule new futures after shutdown")
        return runs(texts)

    batcher = Batcher(run, 2, "embedding")
    tasks = [asyncio.create_task(batcher.do(str(number))) for number in range(9)]
    await turn()
    gone = True
    runs.futures[0].cancel()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(result) for result in results] == [RetrievalError] * 9
