"""Equal work at one time is done once; failures and cancellations of one are not those of the others."""

import asyncio
from typing import Any

import pytest

import flowserve as fs
from flowserve.runtime.cache import ResultCache
from flowserve.runtime.flights import Flights


class Work:
    """Counts its beginnings and ends when it is told to."""

    def __init__(self, *ends: Any) -> None:
        self.ends = list(ends)
        self.begun = 0
        self.gate = asyncio.Event()

    async def __call__(self) -> Any:
        self.begun += 1
        end = self.ends.pop(0)
        await self.gate.wait()
        if isinstance(end, Exception):
            raise end
        return end


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_who_comes_second_gets_the_value_of_the_first() -> None:
    flights, work = Flights(ResultCache(8)), Work("a")
    asked = [asyncio.create_task(flights.value("k", work)) for _ in range(3)]
    await settle()
    work.gate.set()
    assert await asyncio.gather(*asked) == ["a", "a", "a"]
    assert work.begun == 1
    assert await flights.value("k", work) == "a"


async def test_other_keys_do_not_wait() -> None:
    flights, slow, quick = Flights(ResultCache(8)), Work("slow"), Work("quick")
    quick.gate.set()
    waiting = asyncio.create_task(flights.value("a", slow))
    await settle()
    assert await flights.value("b", quick) == "quick"
    slow.gate.set()
    assert await waiting == "slow"


async def test_a_failure_is_the_firsts_alone_and_the_next_tries_again() -> None:
    flights, work = Flights(ResultCache(8)), Work(ValueError("hiccup"), "b")
    first = asyncio.create_task(flights.value("k", work))
    second = asyncio.create_task(flights.value("k", work))
    await settle()
    work.gate.set()
    with pytest.raises(ValueError, match="hiccup"):
        await first
    assert await second == "b" and work.begun == 2


async def test_when_the_first_is_cancelled_the_next_leads() -> None:
    flights, work = Flights(ResultCache(8)), Work("lost", "b")
    first = asyncio.create_task(flights.value("k", work))
    second = asyncio.create_task(flights.value("k", work))
    await settle()
    first.cancel()
    await settle()
    assert work.begun == 2
    work.gate.set()
    assert await second == "b"


async def test_a_cancelled_follower_leaves_the_first_alone() -> None:
    flights, work = Flights(ResultCache(8)), Work("a")
    first = asyncio.create_task(flights.value("k", work))
    second = asyncio.create_task(flights.value("k", work))
    await settle()
    second.cancel()
    work.gate.set()
    assert await first == "a" and work.begun == 1


def test_equal_calls_of_runs_that_are_live_together_are_made_once() -> None:
    counted: list[int] = []

    @fs.tool(cache=True)
    async def slow(number: int) -> int:
        """Count the calls."""
        counted.append(number)
        await asyncio.sleep(0)
        return number + 1

    @fs.workflow()
    def flow(numbers: list[int]) -> list[int]:
        return slow.map(numbers)

    with fs.testing.engine():
        assert flow.run([1, 2, 1, 1, 2]) == [2, 3, 2, 2, 3]
    assert sorted(counted) == [1, 2]
