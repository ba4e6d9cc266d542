"""Saturated real vLLM: an urgent run overtakes those that wait, in our window and inside vLLM."""

import asyncio
import dataclasses
import importlib.util
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

import flowserve as fs
from flowserve.config import PoolConfig, RuntimeConfig
from flowserve.engines.base import EngineStatus
from flowserve.runtime.records import SubmitOptions
from flowserve.runtime.run import Run
from flowserve.runtime.runner import Runtime

if TYPE_CHECKING:
    from flowserve.engines.vllm import VLLMEngine

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="needs vLLM"),
    pytest.mark.asyncio(loop_scope="module"),
]

Make = Callable[..., "VLLMEngine"]
Say = Callable[[str], None]

SEATS = 4
CROWD = 24
"""Runs that come first: four take the seats, the others wait."""


@fs.llm(max_tokens=100)
def say(text: str) -> str:
    fs.prompt("{{ text }}")


@fs.workflow()
def flow(text: str) -> str:
    return say(text)


def make(make_engine: Make, roomy: bool) -> "VLLMEngine":
    """An engine of four seats; a roomy one says that it has a hundred, so that calls wait inside vLLM."""
    if not roomy:
        return make_engine(0, args={"max_num_seqs": SEATS})
    from flowserve.engines.vllm import VLLMEngine

    class Roomy(VLLMEngine):
        def status(self) -> EngineStatus:
            return dataclasses.replace(super().status(), window=100)

    return make_engine(0, Roomy, args={"max_num_seqs": SEATS})


@pytest.mark.parametrize("where", ["our window", "vLLM"])
@pytest.mark.parametrize("urgency", ["tier", "priority", "none"])
async def test_an_urgent_run_under_saturation(make_engine: Make, journal: Say, where: str, urgency: str) -> None:
    engine = make(make_engine, roomy=where == "vLLM")
    urgent = {"tier": {"tier": "interactive"}, "priority": {"priority": 10}, "none": {}}[urgency]
    runtime = Runtime([engine], config=RuntimeConfig(pool=PoolConfig(batches_ahead=1000.0)))
    await runtime.start()
    try:
        ended: list[int] = []

        async def wait(number: int, run: Run) -> None:
            await run.result()
            ended.append(number)

        async def submit(number: int, **options: Any) -> "tuple[Run, asyncio.Task[None]]":
            given = SubmitOptions(**{"tier": "standard", **options})
            run = await runtime.submit(flow.program, {"text": f"number {number}"}, given)
            return run, asyncio.create_task(wait(number, run))

        crowd = [await submit(number) for number in range(CROWD)]
        async with asyncio.timeout(20):
            while engine.status().tokens_out_total < 40:
                await asyncio.sleep(0.002)
        inside = engine.status().running + engine.status().waiting
        last, waiter = await submit(CROWD, **urgent)
        await asyncio.gather(waiter, *(task for _, task in crowd))
        took = {run.id: run.snapshot().nodes[0].ended_s or 0.0 for run in (last, *(run for run, _ in crowd))}
    finally:
        await runtime.aclose()
    overtaken = CROWD - ended.index(CROWD)
    crowd_s = sorted(took[run.id] for run, _ in crowd)
    journal(
        f"{SEATS} seats, {CROWD} runs before it, {inside} of them inside vLLM: it ended before {overtaken} of them, "
        f"after {took[last.id]:.2f} s (theirs: median {crowd_s[len(crowd_s) // 2]:.2f} s, last {crowd_s[-1]:.2f} s)"
    )
    assert inside == (CROWD if where == "vLLM" else SEATS)
    if urgency == "none":
        assert overtaken <= SEATS, "in order"
    else:
        assert overtaken >= CROWD - 2 * SEATS - 1
