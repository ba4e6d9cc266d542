"""vLLM's block events become news of the right tenant, in order; what cannot be told apart is left out."""

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from flowserve.engines.base import KVNews, KVStored
from flowserve.engines.openai.kv_events import Blocks, KVFeed
from flowserve.engines.salts import Salts

SALTS = Salts(b"x")
MINE = SALTS.of("mine")


def stored(*blocks: Any, parent: Any = None, keys: Any = None, size: int = 2, **more: Any) -> dict[str, Any]:
    fields = {"block_hashes": list(blocks), "parent_block_hash": parent, "block_size": size, "medium": "GPU"}
    ids = list(range(len(blocks) * size))
    return {"type": "BlockStored", "token_ids": ids, "extra_keys": keys, **fields, "lora_name": None, **more}


def removed(*blocks: Any, **more: Any) -> dict[str, Any]:
    return {"type": "BlockRemoved", "block_hashes": list(blocks), "medium": "GPU", **more}


CLEARED = {"type": "AllBlocksCleared"}


def read(*batches: Sequence[dict[str, Any]]) -> list[KVNews]:
    blocks = Blocks(SALTS)
    return [news for batch in batches for news in blocks.read([0.0, list(batch)])]


def chain(*blocks: bytes, parent: bytes | None = None, tenant: str = "") -> KVStored:
    return KVStored(tenant, parent, blocks, tuple(range(2 * len(blocks))), 2)


def test_chains() -> None:
    assert read([stored(b"a", b"b"), stored(b"c", parent=b"b")]) == [
        KVNews(stored=(chain(b"a", b"b"), chain(b"c", parent=b"b")))
    ]


def test_tenants_are_known_by_their_salt_and_their_children_by_their_parent() -> None:
    [news] = read([stored(b"a", keys=[[MINE]]), stored(b"b", parent=b"a"), stored(b"c", keys=[["another's salt"]])])
    assert [one.tenant for one in news.stored] == ["mine", "mine"]
    assert read([stored(b"c", keys=[["another's salt"]]), stored(b"d", parent=b"c")]) == []


@pytest.mark.parametrize(
    "event",
    [
        stored(b"a", lora_name="poet", keys=[["poet"]]),
        stored(b"a", lora_id=1),
        stored(b"a", keys=[[["image", 0]]]),
        stored(b"a", medium="CPU"),
        stored(b"a", group_idx=1),
        stored(b"a", parent=b"unknown"),
        stored(b"a") | {"token_ids": [1]},
        stored(),
        removed(b"a"),
        {"type": "SomethingNew"},
    ],
    ids=str,
)
def test_what_is_left_out(event: dict[str, Any]) -> None:
    assert read([event]) == []


def test_the_order_of_a_batch_is_kept() -> None:
    """News are cleared, then removed, then stored; a batch that says otherwise becomes several."""
    assert read([stored(b"a")], [removed(b"a"), stored(b"b"), removed(b"b"), stored(b"c")]) == [
        KVNews(stored=(chain(b"a"),)),
        KVNews(removed=(b"a",), stored=(chain(b"b"),)),
        KVNews(removed=(b"b",), stored=(chain(b"c"),)),
    ]
    assert read([stored(b"a"), CLEARED, stored(b"b")]) == [KVNews(cleared=True, stored=(chain(b"b"),))]
    assert read([stored(b"a")], [CLEARED], [removed(b"a"), stored(b"b", parent=b"a")])[1:] == [KVNews(cleared=True)]


def test_names_may_be_numbers() -> None:
    [news] = read([stored(-5, 1 << 63)])
    assert [len(block) for block in news.stored[0].blocks] == [16, 16]


async def test_a_gap_forgets_everything() -> None:
    zmq = pytest.importorskip("zmq", reason="needs pyzmq")
    zmq_asyncio = pytest.importorskip("zmq.asyncio")
    msgpack = pytest.importorskip("msgspec.msgpack", reason="needs msgspec")
    publisher = zmq_asyncio.Context.instance().socket(zmq.PUB)
    port = publisher.bind_to_random_port("tcp://127.0.0.1")
    heard: list[KVNews] = []
    task = asyncio.create_task(KVFeed(f"tcp://127.0.0.1:{port}", SALTS).run(heard.append))
    try:

        async def publish(number: int, *events: Any) -> None:
            batch = msgpack.encode([0.0, list(events), None])
            await publisher.send_multipart([b"", number.to_bytes(8, "big"), batch])

        async with asyncio.timeout(10):
            number = 0
            while len(heard) < 2:  # a subscription takes a moment, and what came before it is lost
                number += 1
                await publish(number, stored(number.to_bytes(2, "big")))
                await asyncio.sleep(0.01)
            heard.clear()
            await publish(number + 1, stored(b"a"))
            await publish(number + 5, stored(b"b", parent=b"a"))
            await publish(number + 6, {"type": "BlockStored"})
            await publish(number + 7, stored(b"c"))
            while KVNews(stored=(chain(b"c"),)) not in heard:
                await asyncio.sleep(0.01)
        told = heard[heard.index(KVNews(stored=(chain(b"a"),))) :]
        assert told == [
            KVNews(stored=(chain(b"a"),)),
            KVNews(cleared=True),
            KVNews(cleared=True),
            KVNews(stored=(chain(b"c"),)),
        ]
    finally:
        task.cancel()
        publisher.close(0)
