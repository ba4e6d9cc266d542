"""vLLM's KV cache events, as news about the prefixes of tenants.

vLLM names the salt only with a chain's first block; later ones are known by the block before them. What belongs to
nobody that we know, to an adapter, or to another tier than the device is not told of. Events are numbered; after a
gap everything is told to be gone, because an index that believes in blocks that are not there does harm, the opposite
only costs.
"""

from collections.abc import Callable
from typing import Any

import msgspec
import zmq
import zmq.asyncio
from vllm.distributed.kv_events import AllBlocksCleared, BlockRemoved, BlockStored, KVEventBatch

from flowserve.engines.salts import Salts
from flowserve.engines.vllm.wire import News, Stored

DEVICE = (None, "GPU")
"""vLLM's names for the device's own memory, on every platform."""


def endpoint(folder: str) -> str:
    """Where vLLM shall publish, in a private folder."""
    return f"ipc://{folder}/kv-events"


class KVReader:
    """Subscribes to vLLM's events and tells of them. `tell` gets News."""

    def __init__(self, folder: str, salts: Salts, tell: Callable[[News], None]) -> None:
        self._endpoint = endpoint(folder)
        self._translator = Translator(salts)
        self._tell = tell

    async def read(self) -> None:
        """Until cancelled. What it has told is taken back if it fails."""
        try:
            await self._read()
        except Exception:
            self._tell(News(cleared=True, removed=[], stored=[]))
            raise

    async def _read(self) -> None:
        decoder = msgspec.msgpack.Decoder(KVEventBatch)
        expected = 0
        with zmq.asyncio.Context() as context, context.socket(zmq.SUB) as socket:
            socket.connect(self._endpoint)
            socket.subscribe(b"")
            while True:
                _, number, payload = await socket.recv_multipart()
                came = int.from_bytes(number, "big")
                for news in self._translator.news(decoder.decode(payload).events, lost=came != expected):
                    self._tell(news)
                expected = came + 1


class Translator:
    """Remembers whose every block is."""

    def __init__(self, salts: Salts) -> None:
        self._salts = salts
        self._owners: dict[bytes, str] = {}

    def news(self, events: list[Any], lost: bool = False) -> list[News]:
        """In order. lost: events before these are missing."""
        told = [self._clear()] if lost else []
        for event in events:
            if isinstance(event, AllBlocksCleared):
                told.append(self._clear())
            elif isinstance(event, BlockRemoved):
                removed = [
                    block for block in map(_name, event.block_hashes) if self._owners.pop(block, None) is not None
                ]
                if removed and event.medium in DEVICE and not event.group_idx:
                    told.append(News(cleared=False, removed=removed, stored=[]))
            elif isinstance(event, BlockStored) and (stored := self._stored(event)) is not None:
                told.append(News(cleared=False, removed=[], stored=[stored]))
        return told

    def _clear(self) -> News:
        self._owners.clear()
        return News(cleared=True, removed=[], stored=[])

    def _stored(self, event: BlockStored) -> Stored | None:
        blocks = [_name(block) for block in event.block_hashes]
        whole = len(event.token_ids) == len(blocks) * event.block_size
        if event.lora_name or event.medium not in DEVICE or event.group_idx or not whole:
            return None
        parent = None if event.parent_block_hash is None else _name(event.parent_block_hash)
        tenant = self._owners.get(parent) if parent is not None else self._of_keys(event.extra_keys)
        if tenant is None:
            return None
        self._owners.update(dict.fromkeys(blocks, tenant))
        return Stored(tenant, parent, blocks, event.token_ids, event.block_size)

    def _of_keys(self, keys: list[Any] | None) -> str | None:
        first = (keys or [None])[0] or ()
        return next((owner for key in first if (owner := self._salts.tenant(key)) is not None), None)


def _name(block: int | bytes) -> bytes:
    return block if isinstance(block, bytes) else (block % (1 << 64)).to_bytes(8, "big")
