"""What functions of users may do to a runtime: fail, in every way Python knows, and nothing else."""

import asyncio
import functools
import sys
import threading
from collections.abc import Callable
from typing import Any

import pytest

import flowserve as fs
from flowserve import errors
from flowserve.config import RuntimeConfig


@fs.tool
def first_of_nothing(number: int) -> int:
    """A StopIteration cannot be put into a future."""
    return int(next(iter([])))


@fs.tool
def leaves_in_a_thread(number: int) -> int:
    """Asks the process to end."""
    sys.exit(3)


@fs.tool
async def leaves_on_the_loop(number: int) -> int:
    """A SystemExit out of a task ends its event loop."""
    sys.exit(3)


@fs.tool
async def awaits_something_cancelled(number: int) -> int:
    """Looks as if the runtime had cancelled the job."""
    other = asyncio.ensure_future(asyncio.sleep(10))
    other.cancel()
    await other
    return number


@fs.tool
async def waits_for_a_run_on_its_own_loop(number: int) -> int:
    """Would wait for itself."""
    return fine.run(number)


@fs.tool
async def increment(number: int) -> int:
    """One more."""
    return number + 1


@fs.workflow()
def fine(number: int) -> int:
    return increment(number)


def only(tool: Callable[..., int]) -> fs.Workflow[..., Any]:
    @fs.workflow()
    def flow(number: int) -> int:
        return tool(number)

    return flow.options(timeout_s=20)


@pytest.mark.parametrize(
    ("tool", "told"),
    [
        (first_of_nothing, "tool first_of_nothing raised StopIteration"),
        (leaves_in_a_thread, "tool leaves_in_a_thread raised SystemExit: 3"),
        (leaves_on_the_loop, "tool leaves_on_the_loop raised SystemExit: 3"),
        (awaits_something_cancelled, "raised CancelledError: something that it awaited was cancelled"),
        (waits_for_a_run_on_its_own_loop, "in an async tool await wf.arun"),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_a_tool_fails_its_node_and_the_runtime_goes_on(tool: Any, told: str) -> None:
    with fs.testing.engine():
        with pytest.raises(errors.RunFailed, match=told):
            only(tool).run(1)
        assert fine.run(1) == 2


def test_a_dynamic_that_asks_the_process_to_end_fails_like_any_other() -> None:
    @fs.dynamic(calls=[increment], max_calls=1)
    async def leaving(number: int) -> int:
        sys.exit("enough")

    with fs.testing.engine():
        with pytest.raises(errors.RunFailed, match="dynamic node leaving raised SystemExit: enough"):
            only(leaving).run(1)
        assert fine.run(1) == 2


def test_an_async_tool_may_await_another_workflow_and_be_cancelled_in_it() -> None:
    reached = threading.Event()

    @fs.tool
    async def forever(number: int) -> int:
        """Waits until it is cancelled."""
        reached.set()
        await asyncio.Event().wait()
        return number

    inner = only(forever)

    @fs.tool
    async def outer(number: int) -> int:
        """Awaits a run on the loop that it works on."""
        return int(await inner.arun(number))

    with fs.testing.engine():
        handle = only(outer).submit(1)
        assert reached.wait(10)
        handle.cancel()
        with pytest.raises(errors.RunCancelled):
            handle.result()
        assert fine.run(1) == 2


def test_a_tool_that_swallows_its_cancellation_cannot_overwrite_the_next_attempt() -> None:
    attempts: list[int] = []
    second = threading.Event()

    @fs.tool(timeout=0.05, retry=fs.Retry(attempts=2, backoff_s=0.0))
    async def stubborn(number: int) -> int:
        """Its first attempt answers after the second has begun."""
        attempts.append(number)
        if len(attempts) == 1:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                await asyncio.to_thread(second.wait, 10)
                return -1
        second.set()
        return number

    @fs.tool
    def linger(number: int) -> int:
        """Gives the first attempt time to answer."""
        assert second.wait(10)
        return number

    @fs.workflow()
    def flow(number: int) -> list[int]:
        value = stubborn(number)
        return [value, linger(value), increment(value)]

    with fs.testing.engine():
        assert flow.run(7) == [7, 7, 8]
    assert attempts == [7, 7]


def test_a_tool_whose_result_holds_itself_fails_its_node() -> None:
    @fs.tool
    def endless(number: int) -> list[Any]:
        """A list that is its own only item."""
        found: list[Any] = [number]
        found.append(found)
        return found

    @fs.workflow()
    def flow(number: int) -> list[Any]:
        return endless(number)

    with fs.testing.engine(), pytest.raises(errors.RunFailed, match="nested too deeply"):
        flow.run(1)


def test_tools_that_hang_take_no_place_from_others() -> None:
    release = threading.Event()

    @fs.tool(timeout=0.05)
    def hang(number: int) -> int:
        """Goes on after nobody waits any more."""
        release.wait(30)
        return number

    @fs.tool
    def add(number: int) -> int:
        """Needs a thread."""
        return number + 1

    with fs.testing.engine(config=RuntimeConfig(tool_window=2)):
        for _ in range(4):
            with pytest.raises(errors.RunFailed, match="its time was up"):
                only(hang).run(1)
        assert only(add).run(1) == 2
        release.set()
        assert [only(add).run(n) for n in range(20)] == list(range(1, 21))
        working = [thread for thread in threading.enumerate() if thread.name == "flowserve-work"]
        assert len(working) <= 8


def test_wrong_options_of_a_run_are_refused_before_it_starts() -> None:
    with fs.testing.engine():
        with pytest.raises(errors.InputError, match="timeout_s: expected a number of seconds above 0; got nan"):
            fine.options(timeout_s=float("nan")).run(1)
        with pytest.raises(errors.InputError, match="tier: expected one of interactive, standard, batch; got 'fast'"):
            fine.options(tier="fast").run(1)


def test_an_async_tool_behind_a_plain_decorator_is_awaited() -> None:
    def logged(function: Callable[[int], Any]) -> Callable[[int], Any]:
        @functools.wraps(function)
        def wrapper(number: int) -> Any:
            return function(number)

        return wrapper

    @fs.tool
    @logged
    async def double(number: int) -> int:
        """Twice the number."""
        await asyncio.sleep(0)
        return 2 * number

    with fs.testing.engine():
        assert only(double).run(4) == 8
