"""What breaks off a call's waiting for its server, and what comes of it."""

import asyncio
from typing import Any

import pytest

from flowserve.engines.openai.work import Interrupted, Work


class Called:
    """As much of a call as Work looks at."""

    priority = 5


async def waiting(work: Work) -> "asyncio.Task[Any]":
    task = asyncio.create_task(work.waiting_for(asyncio.Event().wait))
    await asyncio.sleep(0)
    return task


def made() -> Work:
    call: Any = Called()
    reader: Any = None
    return Work(call, reader)


async def test_a_call_that_is_moved_stops_waiting_and_has_its_new_priority() -> None:
    work = made()
    task = await waiting(work)
    work.move(3)
    with pytest.raises(Interrupted):
        await task
    assert work.priority == 3 and not work.aborted


@pytest.mark.parametrize("turns", range(4))
async def test_a_call_that_is_moved_again_while_it_is_being_broken_off_is_broken_off_once(turns: int) -> None:
    """Seen under load on a GPU: the second move found a timeout that was expiring, and raised."""
    work = made()
    task = await waiting(work)
    work.move(3)
    for _ in range(turns):
        await asyncio.sleep(0)
    if not task.done():
        work.move(2)
        with pytest.raises(Interrupted):
            await task
        assert work.priority == 2
        assert await work.waiting_for(lambda: asyncio.sleep(0, "answer")) == "answer"
    else:
        assert turns > 1, "it takes a turn or two to end"
        task.exception()


async def test_an_interruption_that_finds_nobody_waiting_meets_the_next_who_does() -> None:
    work = made()
    work.abort()
    with pytest.raises(Interrupted):
        await work.waiting_for(lambda: asyncio.sleep(0, "answer"))
    assert work.aborted
