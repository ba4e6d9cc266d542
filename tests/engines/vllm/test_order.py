"""Priorities inside vLLM: of what waits, after submission, and of what runs; with our scheduler and with vLLM's own."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

import pytest
import pytest_asyncio

from flowserve.engines.base import Call, Output
from flowserve.engines.vllm import VLLMEngine

pytestmark = [pytest.mark.vllm, pytest.mark.asyncio(loop_scope="module")]
MakeCall = Callable[..., Call]
LONG: dict[str, Any] = {"max_tokens": 200, "ignore_eos": True}
SHORT: dict[str, Any] = {"max_tokens": 4, "ignore_eos": True}


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=[True, False], ids=["ours", "vllm's"])
async def engine(request: pytest.FixtureRequest, start: Callable[..., Awaitable[VLLMEngine]]) -> VLLMEngine:
    """Two at a time, in our scheduler and in vLLM's."""
    return await start(scheduler=request.param, args={"max_num_seqs": 2})


@pytest.fixture
def call(engine: VLLMEngine, calls_for: Callable[[VLLMEngine], MakeCall]) -> MakeCall:
    return calls_for(engine)


async def collect(engine: VLLMEngine, call: Call) -> list[Output]:
    return [output async for output in engine.generate(call)]


def ids(outputs: Iterable[Output]) -> tuple[int, ...]:
    return tuple(i for output in outputs for i in output.token_ids)


class Queue:
    """Calls that wait behind two long ones, and the order in which they begin."""

    def __init__(self, engine: VLLMEngine, call: MakeCall) -> None:
        self.begun: list[str] = []
        self._engine = engine
        self._call = call
        self._tasks: list[asyncio.Task[None]] = []

    async def fill(self) -> None:
        """Two calls run."""
        for i in range(2):
            await self.add(f"long-{i}", priority=-100, **LONG)
        while len(self.begun) < 2:
            await asyncio.sleep(0)
        self.begun.clear()

    async def add(self, id: str, priority: int, **settings: Any) -> None:
        call = self._call(f"the prompt of {id}", id=id, priority=priority, **settings)
        self._tasks.append(asyncio.create_task(self._read(call)))
        await asyncio.sleep(0)

    async def drain(self) -> list[str]:
        async with asyncio.timeout(30):
            await asyncio.gather(*self._tasks)
        return self.begun

    async def _read(self, call: Call) -> None:
        async for output in self._engine.generate(call):
            if output.prompt_tokens:
                self.begun.append(call.id)


async def test_an_urgent_call_overtakes_those_that_wait(engine: VLLMEngine, call: MakeCall) -> None:
    queue = Queue(engine, call)
    await queue.fill()
    for i in range(4):
        await queue.add(f"plain-{i}", priority=0, **SHORT)
    await queue.add("urgent", priority=-5, **SHORT)
    assert (await queue.drain())[0] == "urgent"


async def test_a_waiting_call_can_be_made_urgent_and_unimportant(engine: VLLMEngine, call: MakeCall) -> None:
    assert engine.capabilities.reprioritise == engine.capabilities.preempt == engine._settings.scheduler
    queue = Queue(engine, call)
    await queue.fill()
    for i in range(4):
        await queue.add(f"plain-{i}", priority=0, **SHORT)
    await engine.reprioritise("plain-3", -5)
    await engine.reprioritise("plain-0", 5)
    order = await queue.drain()
    assert order[0] == "plain-3" and order[-1] == "plain-0"


async def test_a_priority_that_comes_with_its_call_counts(engine: VLLMEngine, call: MakeCall) -> None:
    queue = Queue(engine, call)
    await queue.fill()
    await queue.add("first", priority=0, **SHORT)
    await queue.add("second", priority=1, **SHORT)
    await engine.reprioritise("second", -1)
    await queue.add("third", priority=0, **SHORT)
    assert (await queue.drain())[0] == "second"


@pytest.mark.parametrize("settings", [{}, {"logprobs": 1}], ids=["", "logprobs"])
async def test_a_preempted_call_gives_way_and_goes_on_with_the_same_output(
    engine: VLLMEngine, call: MakeCall, settings: dict[str, Any]
) -> None:
    whole = await collect(engine, call("a call that is pushed out", **LONG, **settings))
    pushed = call("a call that is pushed out", **LONG, **settings)
    queue = Queue(engine, call)
    outputs: list[Output] = []
    async for output in engine.generate(pushed):
        outputs.append(output)
        if len(outputs) == 3:
            for i in range(3):
                await queue.add(f"urgent-{i}", priority=-5, **SHORT)
            await engine.preempt(pushed.id)
        if len(outputs) == 20:
            await engine.preempt(pushed.id)
    await queue.drain()
    assert ids(outputs) == ids(whole)
    assert "".join(o.text for o in outputs) == "".join(o.text for o in whole)
    assert [o.finish for o in outputs if o.finish] == [whole[-1].finish]
    assert sum(bool(o.prompt_tokens) for o in outputs) == 1
    if settings:
        ours = [entry.logprob for output in outputs for entry in output.logprobs]
        assert ours == pytest.approx([entry.logprob for output in whole for entry in output.logprobs], abs=1e-3)
    if engine.capabilities.preempt:
        assert engine.status().preemptions > 0


async def test_preempting_what_waits_or_nobody_knows_does_nothing(engine: VLLMEngine, call: MakeCall) -> None:
    queue = Queue(engine, call)
    await queue.fill()
    await queue.add("waiting", priority=0, **SHORT)
    await engine.preempt("waiting")
    await engine.preempt("nobody")
    assert await queue.drain() == ["waiting"]


async def test_a_probe_is_answered_though_the_batch_is_full(engine: VLLMEngine, call: MakeCall) -> None:
    queue = Queue(engine, call)
    await queue.fill()
    async with asyncio.timeout(5):
        await engine.probe()
    assert engine.status().running == 2, "it did not wait for their end"
    await queue.drain()
