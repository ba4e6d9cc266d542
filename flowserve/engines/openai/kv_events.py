"""vLLM's block events over ZeroMQ as KVNews: which blocks its prefix cache holds, told per tenant.

vLLM 0.32 (vllm/distributed/kv_events.py) sends (topic, sequence number, msgpack). A block's tenant is known by its
cache salt, which only the first block of a chain carries; those behind it are known by their parent. What cannot be
told apart (LoRA, images, salts of others, blocks whose parent came before we listened) is left out: it may be there,
but nobody is sent for it.
"""

import importlib
from collections.abc import Callable, Mapping
from typing import Any

from flowserve.engines.base import KVNews, KVStored
from flowserve.engines.salts import Salts
from flowserve.errors import ConfigError

CLEARED = KVNews(cleared=True)
GPU = "GPU"


class KVFeed:
    """A subscription to an endpoint where vLLM listens: of `tcp://*:5557` in its `--kv-events-config`, or an ipc
    path. Raises ConfigError when a package is missing."""

    def __init__(self, endpoint: str, salts: Salts) -> None:
        self._endpoint = endpoint
        self._blocks = Blocks(salts)
        try:
            self._zmq: Any = importlib.import_module("zmq")
            self._zmq_asyncio: Any = importlib.import_module("zmq.asyncio")
            self._decode: Callable[[bytes], Any] = importlib.import_module("msgspec.msgpack").decode
        except ImportError as error:
            raise ConfigError(f"kv_events needs the packages pyzmq and msgspec: {error}") from error

    async def run(self, tell: Callable[[KVNews], None]) -> None:
        """Until cancelled. A server that goes and comes back is subscribed to again by itself."""
        tell(self._blocks.forget())
        socket = self._zmq_asyncio.Context.instance().socket(self._zmq.SUB)
        try:
            socket.setsockopt(self._zmq.SUBSCRIBE, b"")
            socket.setsockopt(self._zmq.LINGER, 0)
            socket.connect(self._endpoint)
            last: int | None = None
            while True:
                parts = await socket.recv_multipart()
                if len(parts) != 3:
                    continue
                number = int.from_bytes(parts[1], "big")
                if last is not None and number != last + 1:
                    tell(self._blocks.forget())
                last = number
                try:
                    told = self._blocks.read(self._decode(parts[2]))
                except Exception:  # noqa: BLE001 another version's words: what the cache holds is not known any more
                    told = [self._blocks.forget()]
                for news in told:
                    tell(news)
        finally:
            socket.close()


class Blocks:
    """Events to news; remembers whose each block is."""

    def __init__(self, salts: Salts) -> None:
        self._salts = salts
        self._tenants: dict[bytes, str] = {}

    def forget(self) -> KVNews:
        """Events were lost, or the server began anew: nothing is known any more."""
        self._tenants.clear()
        return CLEARED

    def read(self, batch: Any) -> list[KVNews]:
        """A decoded batch: [time, events, ...]. Several where the order of its events needs it."""
        told: list[KVNews] = []
        for event in batch[1]:
            news = self._news(event)
            if news is None:
                continue
            if news.cleared:
                told = [news]
            elif told and not (news.removed and told[-1].stored):
                last = told[-1]
                told[-1] = KVNews(last.cleared, last.removed + news.removed, last.stored + news.stored)
            else:
                told.append(news)
        return told

    def _news(self, event: Mapping[str, Any]) -> KVNews | None:
        kind = event["type"]
        if kind == "AllBlocksCleared":
            return self.forget()
        if event.get("medium") not in (None, GPU) or event.get("group_idx"):
            return None  # another tier, or another group of layers: the first group has every block
        if kind == "BlockRemoved":
            gone = tuple(name for block in event["block_hashes"] if (name := _name(block)) in self._tenants)
            for name in gone:
                del self._tenants[name]
            return KVNews(removed=gone) if gone else None
        stored = self._stored(event) if kind == "BlockStored" else None
        return None if stored is None else KVNews(stored=(stored,))

    def _stored(self, event: Mapping[str, Any]) -> KVStored | None:
        blocks = tuple(_name(block) for block in event["block_hashes"])
        parent = event.get("parent_block_hash")
        tenant = self._tenant(event, None if parent is None else _name(parent))
        size, ids = event["block_size"], event["token_ids"]
        if tenant is None or not blocks or len(ids) != len(blocks) * size:
            return None
        self._tenants.update(dict.fromkeys(blocks, tenant))
        return KVStored(tenant, None if parent is None else _name(parent), blocks, tuple(ids), size)

    def _tenant(self, event: Mapping[str, Any], parent: bytes | None) -> str | None:
        """None: not to be told."""
        keys = {str(key) for block in event.get("extra_keys") or () for key in block or ()}
        if event.get("lora_name") or event.get("lora_id") or len(keys) > 1:
            return None
        if parent is not None and not keys:
            return self._tenants.get(parent)
        return self._salts.tenant(keys.pop()) if keys else ""


def _name(block: bytes | int) -> bytes:
    return block if isinstance(block, bytes) else block.to_bytes(16, "big", signed=True)
