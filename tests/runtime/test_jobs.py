"""Jobs share a task only while none of them waits, and none can tell."""

import asyncio
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from typing import Any

import pytest

from flowserve.runtime import jobs
from flowserve.runtime.jobs import Jobs

WHO: ContextVar[str] = ContextVar("who", default="nobody")


class Noted:
    """Jobs of a loop, the tasks that were made for them, and what they said."""

    def __init__(self) -> None:
        self.tasks: list[asyncio.Task[None]] = []
        self.said: list[Any] = []
        self.jobs = Jobs(self._spawn)

    def _spawn(self, work: Any) -> asyncio.Task[None]:
        self.tasks.append(asyncio.get_running_loop().create_task(work))
        return self.tasks[-1]

    async def say(self, word: Any, waits_for: Callable[[], Awaitable[Any]] | None = None) -> None:
        self.said.append(word)
        if waits_for is not None:
            try:
                await waits_for()
            except asyncio.CancelledError:
                self.said.append((word, "cancelled"))
                raise
            self.said.append((word, "again"))

    async def over(self) -> None:
        while not all(task.done() for task in self.tasks):
            await asyncio.wait(self.tasks)


@pytest.fixture
def noted(monkeypatch: pytest.MonkeyPatch) -> Noted:
    monkeypatch.setattr(jobs, "TURN_S", 60.0)
    return Noted()


async def test_jobs_that_do_not_wait_share_a_task_and_run_in_order(noted: Noted) -> None:
    for number in range(5):
        noted.jobs.start(noted.say(number))
    assert noted.said == []  # not before the loop's next turn, as a task
    await noted.over()
    assert noted.said == [0, 1, 2, 3, 4] and len(noted.tasks) == 1


async def test_a_job_that_waits_keeps_its_task_and_others_get_another(noted: Noted) -> None:
    gate = asyncio.Event()
    noted.jobs.start(noted.say("a", gate.wait))
    noted.jobs.start(noted.say("b"))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert noted.said == ["a", "b"] and [task.done() for task in noted.tasks] == [False, True]
    gate.set()
    await noted.over()
    assert noted.said == ["a", "b", ("a", "again")]


async def test_what_a_job_sets_in_its_context_no_other_job_sees(noted: Noted) -> None:
    async def sets(name: str) -> None:
        noted.said.append(WHO.get())
        WHO.set(name)
        await asyncio.sleep(0)
        noted.said.append(WHO.get())

    WHO.set("caller")
    noted.jobs.start(sets("a"))
    noted.jobs.start(sets("b"))
    WHO.set("later")
    await noted.over()
    assert noted.said == ["caller", "caller", "a", "b"] and WHO.get() == "later"


async def test_each_job_is_inside_a_task_that_time_limits_can_use(noted: Noted) -> None:
    async def limited() -> None:
        try:
            async with asyncio.timeout(0.0):
                await asyncio.Event().wait()
        except TimeoutError:
            noted.said.append("late")

    noted.jobs.start(limited())
    noted.jobs.start(limited())
    await noted.over()
    assert noted.said == ["late", "late"]


async def test_a_job_that_is_cancelled_before_it_begins_never_does(noted: Noted) -> None:
    noted.jobs.start(noted.say("a"))
    noted.jobs.start(noted.say("b")).cancel()
    noted.jobs.start(noted.say("c"))
    await noted.over()
    assert noted.said == ["a", "c"]


async def test_a_job_that_is_cancelled_while_it_waits_ends_there_alone(noted: Noted) -> None:
    gate = asyncio.Event()
    first = noted.jobs.start(noted.say("a", gate.wait))
    noted.jobs.start(noted.say("b", gate.wait))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    first.cancel()
    await asyncio.sleep(0)
    gate.set()
    await noted.over()
    assert noted.said == ["a", "b", ("a", "cancelled"), ("b", "again")]
    first.cancel()  # it is over
    assert [task.cancelled() for task in noted.tasks] == [True, False]


@pytest.mark.parametrize("raises", [False, True])
async def test_a_job_that_cancels_itself_takes_none_with_it(noted: Noted, raises: bool) -> None:
    async def itself() -> None:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        if raises:
            raise asyncio.CancelledError

    noted.jobs.start(itself())
    noted.jobs.start(noted.say("b", lambda: asyncio.sleep(0)))
    await noted.over()
    assert noted.said == ["b", ("b", "again")] and noted.tasks[0].cancelled()


async def test_the_loop_gets_a_turn_between_jobs_that_take_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "TURN_S", 0.0)
    noted = Noted()
    noted.jobs.start(noted.say("a"))
    noted.jobs.start(noted.say("b"))
    asyncio.get_running_loop().call_soon(noted.said.append, "loop")
    await noted.over()
    assert noted.said == ["a", "loop", "b"]


async def test_what_is_dropped_never_begins(noted: Noted) -> None:
    noted.jobs.start(noted.say("a"))
    noted.jobs.drop()
    await noted.over()
    assert noted.said == []
