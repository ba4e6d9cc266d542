"""What an engine tells of its prefix cache, and how vLLM's events become that."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from flowserve.engines.base import Call, Engine, KVNews, Origin, Segment
from flowserve.engines.salts import Salts
from flowserve.engines.vllm import VLLMEngine
from flowserve.engines.vllm.wire import News, Stored

pytestmark = pytest.mark.vllm
BLOCK = 32


def prompt(seed: int, count: int) -> tuple[Segment, ...]:
    return (Segment(tuple(10 + (seed * 7919 + i * (seed + 31)) % 300 for i in range(count)), Origin.VALUE),)


@pytest.mark.asyncio(loop_scope="module")
async def test_the_listener_hears_what_enters_and_leaves_the_prefix_cache(
    start: Callable[..., Awaitable[VLLMEngine]], calls_for: Callable[[Engine], Callable[..., Call]]
) -> None:
    engine = await start(kv_events=True, kv_bytes=33 * BLOCK * 1536)
    call = calls_for(engine)
    assert engine.capabilities.kv_events
    heard: list[KVNews] = []
    engine.watch(lambda told, news: heard.append(news) if news is not None else None)

    async def until(condition: Callable[[], object]) -> None:
        async with asyncio.timeout(10):
            while not condition():
                await engine.probe()
                await asyncio.sleep(0.01)

    async def run(segments: tuple[Segment, ...], tenant: str) -> None:
        async for _ in engine.generate(call(segments=segments, tenant=tenant, max_tokens=2)):
            pass

    def stored(tenant: str) -> list[Any]:
        return [one for news in heard for one in news.stored if one.tenant == tenant]

    first = prompt(1, 3 * BLOCK + 5)
    await run(first, "a")
    await until(lambda: stored("a"))
    (chain,) = stored("a")
    assert chain.parent is None and len(chain.blocks) == 3 and chain.block_tokens == BLOCK
    assert chain.token_ids == first[0].ids[: 3 * BLOCK]

    await run((*first, *prompt(2, 2 * BLOCK)), "a")
    await until(lambda: len(stored("a")) == 2)
    more = stored("a")[1]
    assert more.parent == chain.blocks[-1] and len(more.blocks) == 2

    await run(first, "b")
    await until(lambda: stored("b"))
    assert not set(stored("b")[0].blocks) & set(chain.blocks)

    for seed in range(10, 20):
        await run(prompt(seed, 400), "a")
    await until(lambda: set(chain.blocks) <= {block for news in heard for block in news.removed})


def test_events_of_others_are_not_told() -> None:
    kv_events = pytest.importorskip("vllm.distributed.kv_events", reason="vLLM's events")
    from flowserve.engines.vllm.kv_news import Translator

    salts = Salts(b"secret")

    def store(blocks: list[int], parent: int | None, keys: list[Any] | None, **more: Any) -> Any:
        fields = {"lora_id": None, "medium": "GPU", "lora_name": None, **more}
        ids = list(range(2 * len(blocks)))
        return kv_events.BlockStored(blocks, parent, ids, 2, extra_keys=keys, **fields)

    def name(number: int) -> bytes:
        return number.to_bytes(8, "big")

    salt = salts.of("t")
    translator = Translator(salts)
    told = translator.news(
        [
            store([1, 2], None, [(salt,), None]),
            store([3], 2, [None]),
            store([4], None, [("somebody's salt",)]),
            store([5], 4, [None]),
            store([6], None, [("adapter", salt)], lora_name="adapter"),
            store([7], None, [(salt,)], medium="CPU"),
            store([8], None, [(salt,)], group_idx=1),
            kv_events.BlockRemoved([2, 4, 9], "GPU"),
            kv_events.BlockRemoved([2], "GPU"),
        ]
    )
    assert told == [
        News(False, [], [Stored("t", None, [name(1), name(2)], [0, 1, 2, 3], 2)]),
        News(False, [], [Stored("t", name(2), [name(3)], [0, 1], 2)]),
        News(False, [name(2)], []),
    ]
    assert translator.news([], lost=True) == [News(True, [], [])]
    assert translator.news([store([10], 3, [None])]) == [], "what was known is forgotten with it"
    assert translator.news([kv_events.AllBlocksCleared()]) == [News(True, [], [])]
