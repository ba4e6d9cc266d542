"""Against vLLM's own OpenAI server. The contract suite runs there too (../test_contract.py)."""

import asyncio
import urllib.request
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from flowserve.engines.base import Call, Engine, Finish, KVNews, KVStored, Output
from flowserve.engines.openai.engine import OpenAIEngine
from flowserve.engines.openai.settings import OpenAISettings
from flowserve.errors import ContextTooLong, InputError, Unsupported

MakeCall = Callable[..., Call]
pytestmark = [pytest.mark.torch, pytest.mark.slow]
BLOCK = 128
"""Tokens of a block on a CPU."""


@pytest.fixture
async def engine(vllm_server: Any) -> AsyncIterator[OpenAIEngine]:
    engine = OpenAIEngine(OpenAISettings(vllm_server.url, priority=True, quiet=True, poll_s=0.05))
    await engine.start()
    yield engine
    await engine.close()


async def collect(engine: Engine, call: Call) -> list[Output]:
    return [output async for output in engine.generate(call)]


def ids(outputs: list[Output], index: int = 0) -> list[int]:
    return [i for output in outputs if output.index == index for i in output.token_ids]


def running(server: Any) -> float:
    """What the server itself says."""
    with urllib.request.urlopen(f"{server.url}/metrics", timeout=10) as page:
        lines = page.read().decode().splitlines()
    wanted = ("vllm:num_requests_running{", "vllm:num_requests_waiting{")
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(wanted))


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.02)


def test_what_it_is(engine: OpenAIEngine) -> None:
    capabilities, status = engine.capabilities, engine.status()
    assert " vllm up" in repr(engine)
    assert capabilities.models == ("tiny",) and capabilities.max_context == 512
    assert capabilities.tokens and capabilities.logprobs and capabilities.grammar and capabilities.reprioritise
    assert not capabilities.thinking_budget
    assert status.kv_tokens > 10_000 and status.kv_tokens % BLOCK == 0


async def test_greedy_is_the_same_as_in_process(
    engine: OpenAIEngine, call: MakeCall, calls_for: Any, tiny_folder: Callable[[str], Path]
) -> None:
    from flowserve.engines.hf import HFEngine

    hf = HFEngine(tiny_folder("llama-vllm"), quiet=True)
    await hf.start()
    try:
        for text in ("Who leads Krekol?", '{"name": ', "漢字 and é"):
            ours = await collect(engine, call(text, max_tokens=32))
            theirs = await collect(hf, calls_for(hf)(text, max_tokens=32))
            assert ids(ours) == ids(theirs)
            assert "".join(o.text for o in ours) == "".join(o.text for o in theirs)
    finally:
        await hf.close()


async def test_cancelled_calls_leave_nothing_running(engine: OpenAIEngine, call: MakeCall, vllm_server: Any) -> None:
    async def leave(i: int) -> None:
        wanted = call(f"number {i}", max_tokens=400, ignore_eos=True)
        task = asyncio.create_task(collect(engine, wanted))
        await asyncio.sleep(0.001 * (i % 60))
        if i % 2:
            task.cancel()
        else:
            await engine.abort(wanted.id)
        await asyncio.wait((task,))

    for _ in range(5):
        await asyncio.gather(*(leave(i) for i in range(40)))
    assert not engine._work
    await until(lambda: running(vllm_server) == 0)
    await until(lambda: engine.status().running == engine.status().waiting == 0)
    assert ids(await collect(engine, call(max_tokens=4, ignore_eos=True)))


async def test_the_pulse_beats_with_the_server(engine: OpenAIEngine, call: MakeCall) -> None:
    before = engine.status()
    await collect(engine, call(max_tokens=100, ignore_eos=True))
    engine._stirred.set()
    await until(lambda: engine.status().steps - before.steps >= 150)
    assert engine.status().prefix_asked >= before.prefix_asked


async def test_tenants_do_not_share_what_is_cached(engine: OpenAIEngine, call: MakeCall) -> None:
    text = "word " * 100

    async def cached(**fields: Any) -> int:
        return sum(output.cached_tokens for output in await collect(engine, call(text, **fields)))

    assert len(call(text).prompt_ids) > BLOCK
    assert await cached(tenant="a") == 0
    assert await cached(tenant="a") >= BLOCK
    assert await cached(tenant="b") == 0
    assert await cached() == 0


async def test_a_prefill_ahead_is_found_by_the_call(engine: OpenAIEngine, call: MakeCall) -> None:
    text = "ahead " * 100
    await engine.prefill(call(text, tenant="p"))
    outputs = await collect(engine, call(text + "and more", tenant="p"))
    assert sum(output.cached_tokens for output in outputs) >= BLOCK


async def test_choices_draw_from_seeds_of_their_own(engine: OpenAIEngine, call: MakeCall) -> None:
    settings: dict[str, Any] = {"temperature": 1.0, "max_tokens": 12, "ignore_eos": True}
    both = await collect(engine, call(**settings, seed=11, n=2))
    for index in range(2):
        alone = await collect(engine, call(**settings, seed=11 + index))
        assert ids(both, index) == ids(alone)


async def test_the_answer_is_told_in_larger_pieces_where_nobody_reads(engine: OpenAIEngine, call: MakeCall) -> None:
    settings: dict[str, Any] = {"max_tokens": 64, "ignore_eos": True}
    watched = await collect(engine, call(**settings))
    unwatched = await collect(engine, call(**settings, stream=False))
    assert ids(watched) == ids(unwatched)
    assert len(unwatched) <= 64 / 16 + 2 < len(watched)


async def test_wrong_calls_are_the_clients(engine: OpenAIEngine, call: MakeCall) -> None:
    with pytest.raises(InputError, match="[Gg]rammar|schema"):
        await collect(engine, call(schema={"type": "nonsense"}))
    with pytest.raises(InputError, match="vocabulary"):
        await collect(engine, Call("c", (call().segments[0].__class__((99_999,), call().segments[0].origin, "x"),)))
    with pytest.raises(Unsupported, match="thinking_budget"):
        await collect(engine, call(thinking_budget=5))
    engine._capabilities = engine.capabilities.__class__(models=("tiny",))  # as if it had not told its context
    with pytest.raises(ContextTooLong):
        await collect(engine, call("word " * 600))
    assert engine.status().up


async def test_news_of_the_prefix_cache(vllm_server: Any, calls_for: Any) -> None:
    pytest.importorskip("zmq", reason="needs pyzmq")
    engine = OpenAIEngine(OpenAISettings(vllm_server.url, quiet=True, kv_events=vllm_server.events))
    assert not engine.capabilities.kv_events
    heard: list[KVNews] = []
    engine.watch(lambda told, news: heard.append(news) if news is not None else None)
    await engine.start()
    try:
        assert engine.capabilities.kv_events
        await until(lambda: heard == [KVNews(cleared=True)])  # what it held before is not known
        call = calls_for(engine)
        prompts: list[tuple[int, ...]] = []
        stored: list[KVStored] = []
        async with asyncio.timeout(20):
            while not stored:  # a subscription takes a moment
                wanted = call(f"news {len(prompts)} " * 40, tenant="t")
                prompts.append(wanted.prompt_ids)
                await collect(engine, wanted)
                stored = [one for news in heard for one in news.stored if one.tenant == "t"]
        assert stored[0].parent is None and stored[0].block_tokens == BLOCK
        assert stored[0].token_ids in [prompt[: len(stored[0].token_ids)] for prompt in prompts]
    finally:
        await engine.close()


async def test_an_urgent_call_overtakes_those_that_wait(vllm_server: Any, engine: OpenAIEngine, call: MakeCall) -> None:
    """Twice as many calls as the server computes at once (32): it orders what waits there."""
    ended: list[str] = []

    async def run(name: str, priority: int, tokens: int) -> None:
        outputs = await collect(engine, call(name, id=name, priority=priority, max_tokens=tokens, ignore_eos=True))
        ended.extend([name] if outputs[-1].finish is Finish.LENGTH else [])

    async with asyncio.timeout(120), asyncio.TaskGroup() as group:
        for i in range(64):
            group.create_task(run(f"first-{i}", 5, 250 + 3 * i))
        for i in range(8):
            group.create_task(run(f"later-{i}", 9, 4))
        group.create_task(run("moved", 9, 4))
        await until(lambda: running(vllm_server) >= 64)
        group.create_task(run("urgent", 1, 4))
        await engine.reprioritise("moved", 1)
        await until(lambda: {"moved", "urgent"} <= set(ended))
        assert len(ended) < 40
        assert not [name for name in ended if name.startswith("later")]
        for name in ("first-", "later-"):
            for i in range(64):
                await engine.abort(f"{name}{i}")
