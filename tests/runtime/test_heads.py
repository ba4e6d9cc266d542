"""Heads of prompts in a runtime: what the engine is asked to compute is how the call's own prompt begins."""

import asyncio
from typing import Any

import pytest

import flowserve as fs
from flowserve.config import PoolConfig, RuntimeConfig
from flowserve.engines.fake import FakeEngine
from flowserve.graphs.workflow import Workflow
from flowserve.runtime.pool import Seat
from flowserve.runtime.runner import Runtime

TEXT = "the quick brown fox jumps over the lazy dog " * 20


def reading_a_tool(gate: asyncio.Event) -> Workflow[..., Any]:
    @fs.tool(effects=False)
    async def look(text: str) -> str:
        await gate.wait()
        return "found"

    @fs.llm
    def judge(text: str, notes: str) -> str:
        fs.prompt("Text:\n{{ text }}\nNotes: {{ notes }} Well?", system="You judge.")

    @fs.workflow
    def flow(text: str) -> str:
        return judge(text, look(text))

    return flow


async def started(engine: FakeEngine, ahead_tokens: int = 64) -> Runtime:
    runtime = Runtime([Seat(engine)], config=RuntimeConfig(pool=PoolConfig(ahead_tokens=ahead_tokens)))
    await runtime.start()
    return runtime


async def until(condition: Any) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.001)


async def test_the_head_is_how_the_prompt_begins() -> None:
    gate, engine = asyncio.Event(), FakeEngine("good", id="a")
    runtime = await started(engine)
    run = await runtime.submit(reading_a_tool(gate).program, {"text": TEXT})
    await until(lambda: engine.prefills)
    gate.set()
    assert await run.result() == "good"
    [head], [call] = engine.prefills, engine.calls
    ids = head.prompt_ids
    assert len(ids) > 64 and call.prompt_ids[: len(ids)] == ids
    assert head.prompt_text.endswith("Notes: ") or head.prompt_text.endswith("Notes:")
    assert head.tenant == call.tenant and head.messages is not None
    [row] = runtime.engines()
    assert row["events"]["heads"] == 1
    await runtime.aclose()


class Slow(FakeEngine):
    """Its prefills take until somebody leaves them."""

    left = 0

    async def prefill(self, call: Any) -> None:
        await super().prefill(call)
        try:
            await asyncio.Event().wait()
        finally:
            self.left += 1


async def test_the_call_does_not_wait_for_its_head() -> None:
    gate, engine = asyncio.Event(), Slow("good", id="a")
    runtime = await started(engine)
    run = await runtime.submit(reading_a_tool(gate).program, {"text": TEXT})
    await until(lambda: engine.prefills)
    gate.set()
    assert await run.result() == "good"
    await until(lambda: engine.left == 1)
    await runtime.aclose()


async def test_a_cancelled_run_leaves_no_head() -> None:
    engine = Slow("good", id="a")
    runtime = await started(engine)
    run = await runtime.submit(reading_a_tool(asyncio.Event()).program, {"text": TEXT})
    await until(lambda: engine.prefills)
    run.cancel()
    await until(lambda: engine.left == 1)
    with pytest.raises(fs.errors.RunCancelled):
        await run.result()
    await runtime.aclose()


async def test_a_head_that_cannot_be_rendered_is_none() -> None:
    gate, engine = asyncio.Event(), FakeEngine("good", id="a")
    gate.set()

    @fs.tool(effects=False)
    async def look() -> str:
        await asyncio.sleep(0.05)
        return "found"

    @fs.llm
    def judge(text: str, notes: str) -> str:
        fs.prompt("{{ text[9] if notes else text }}: {{ text * 30 }}{{ notes }}")

    @fs.workflow
    def flow(text: str) -> str:
        return judge(text, look())

    runtime = await started(engine)
    run = await runtime.submit(flow.program, {"text": TEXT})
    assert await run.result() == "good"
    assert not engine.prefills, "its first span reads what is missing"
    await runtime.aclose()


async def test_off_by_default() -> None:
    gate, engine = asyncio.Event(), FakeEngine("good", id="a")
    runtime = await started(engine, PoolConfig().ahead_tokens)
    run = await runtime.submit(reading_a_tool(gate).program, {"text": TEXT})
    await asyncio.sleep(0.05)
    gate.set()
    assert await run.result() == "good" and not engine.prefills
    await runtime.aclose()
