"""The runtime of programs without an event loop: many threads and loops at once, and its end."""

import asyncio
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

import flowserve as fs
from flowserve import errors


@fs.tool
async def increment(number: int) -> int:
    """One more."""
    return number + 1


@fs.tool
async def forever(number: int) -> int:
    """Waits until it is cancelled."""
    await asyncio.Event().wait()
    return number


@fs.workflow()
def fine(number: int) -> int:
    return increment(number)


@fs.workflow()
def stuck(number: int) -> int:
    return forever(number)


def test_closing_ends_more_runs_than_one_turn_of_the_loop_handles_and_wakes_all_who_wait() -> None:
    with fs.testing.engine():
        handles = [stuck.submit(number) for number in range(400)]
        pool = ThreadPoolExecutor(20)
        waiting = [pool.submit(handle.result) for handle in handles[::40]]
        reading = [pool.submit(lambda h=handle: list(h.events())) for handle in handles[20::40]]
    for future in waiting:
        with pytest.raises(errors.RunCancelled):
            future.result(timeout=10)
    assert {future.result(timeout=10)[-1].type for future in reading} == {"run.cancelled"}
    assert {handle.status for handle in handles} == {"cancelled"}
    pool.shutdown()


def test_a_handle_answers_after_its_runtime_was_closed_and_starts_no_other() -> None:
    with fs.testing.engine():
        events = fine.stream(1)
        next(events)
        handle = fine.submit(1)
        assert handle.result() == 2
    before = threading.active_count()
    events.close()  # type: ignore[attr-defined]
    handle.cancel()
    assert handle.result() == 2
    assert handle.snapshot().status == "completed"
    assert [event.type for event in handle.events()][-1] == "run.completed"
    assert next(handle.events(after=2)).seq == 3
    assert threading.active_count() == before


def test_a_result_that_is_not_there_in_time_can_still_be_waited_for() -> None:
    with fs.testing.engine():
        handle = stuck.submit(1)
        with pytest.raises(TimeoutError):
            handle.result(timeout_s=0.01)
        assert handle.status == "running"
        handle.cancel()
        with pytest.raises(errors.RunCancelled):
            handle.result(timeout_s=10)


def test_threads_and_event_loops_use_one_runtime_at_once() -> None:
    async def on_a_loop(number: int) -> list[int]:
        results = list(await asyncio.gather(*(fine.arun(number + i) for i in range(5))))
        events = [event async for event in fine.astream(number)]
        return [*results, events[-1].data["result"]]

    def work(number: int) -> list[int]:
        if number % 2:
            return asyncio.run(on_a_loop(number))
        results = [fine.run(number + i) for i in range(5)]
        return [*results, list(fine.stream(number))[-1].data["result"]]

    with fs.testing.engine() as session, ThreadPoolExecutor(8) as pool:
        results = list(pool.map(work, range(16)))
        assert session.runner.runtime.runs(status="running") == []
    assert results == [[n + 1, n + 2, n + 3, n + 4, n + 5, n + 1] for n in range(16)]


SCRIPT = """
import asyncio
import flowserve as fs

class Slow(fs.testing.FakeEngine):
    async def close(self) -> None:
        await asyncio.to_thread(print, "engine closed")

@fs.llm()
def say(text: str) -> str:
    fs.prompt("{{ text }}")

@fs.workflow()
def flow(text: str) -> str:
    return say(text)

from flowserve.assemble.engines import ENGINES
ENGINES["slow"] = lambda *_: Slow({"say": "hello"})
fs.configure(engine="slow")
print(flow.run("x"))
"""


def test_a_script_that_ends_without_closing_anything_closes_its_engine_quietly() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.split("\n")[:2] == ["hello", "engine closed"]
    assert done.stderr == ""
