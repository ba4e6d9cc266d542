"""The connector's half in a vLLM worker."""

from collections.abc import Iterator
from typing import Any

import torch

from flowserve.engines.vllm.connector.blend import Blend
from flowserve.engines.vllm.connector.metadata import Failed, Load, Save, Step
from flowserve.engines.vllm.kv_memory import Opened, Place
from flowserve.ids import Tokens


class Working:
    """Does nothing until it is bound to a model runner, but fail loads, which vLLM then recomputes."""

    def __init__(self, block_tokens: Tokens) -> None:
        self._block_tokens = block_tokens
        self._blend: Blend | None = None
        self._failed: set[str] = set()
        self._bad_blocks: set[int] = set()
        self._background: dict[str, Iterator[None]] = {}
        """By request: the layers that are still to come."""
        self._finished: set[str] = set()
        """Requests whose load in the background has ended, well or not."""

    def bind(self, runner: Any) -> dict[str, Any]:
        """The fields of a `Geometry`: what KV looks like in memory that is handed over. Raises ConfigError."""
        blend = self._blend = Blend(runner)
        page = blend.pages[0]
        dtype = str(page.dtype).removeprefix("torch.")
        return {"layers": len(blend.pages), "kv_heads": page.heads, "head_dim": page.dim, "dtype": dtype}

    def load(self, step: Step) -> None:
        for load in step.loads:
            layers = self._layers(load)
            if layers is None:
                self._fail(load)
            elif load.background:
                self._background[load.request] = layers
            else:
                _finish(layers)
        self._go_on(step.idle)

    def save(self, step: Step) -> None:
        if self._blend is not None:
            for save in step.saves:
                self._save(self._blend, save)

    def bad_blocks(self) -> set[int]:
        """Since the last time."""
        blocks, self._bad_blocks = self._bad_blocks, set()
        return blocks

    def finished(self) -> set[str]:
        """Since the last time."""
        finished, self._finished = self._finished, set()
        return finished

    def failed(self) -> Failed | None:
        """Since the last time."""
        failed, self._failed = self._failed, set()
        return Failed(failed) if failed else None

    def _layers(self, load: Load) -> Iterator[None] | None:
        """None: it cannot be loaded."""
        blend = self._blend
        memory = None if blend is None else _opened(load.paste.place, blend, load.paste.tokens)
        if blend is None or memory is None or not memory.whole:
            return None
        return blend.layers(load, memory.kv)

    def _fail(self, load: Load) -> None:
        self._failed.add(load.request)
        first = load.start // self._block_tokens
        self._bad_blocks.update(load.blocks[first : -(-load.end // self._block_tokens)])
        if load.background:
            self._finished.add(load.request)

    def _go_on(self, idle: bool) -> None:
        """A layer of each that is in the background; all of them when nobody waits. Also of requests that were aborted: their
        blocks are theirs until they are told of."""
        for request, layers in list(self._background.items()):
            done = object()
            if idle:
                _finish(layers)
            if idle or next(layers, done) is done:
                del self._background[request]
                self._finished.add(request)

    def _save(self, blend: Blend, save: Save) -> None:
        wish = save.wish
        memory = _opened(wish.place, blend, wish.end - wish.start)
        if memory is None:
            return  # nobody waits for it any more
        for kv, page, rotation in zip(memory.kv, blend.pages, blend.rotations, strict=True):
            keys, values = page.read(save.blocks, wish.start, wish.end)
            positions = torch.arange(wish.start, wish.end, device=keys.device)
            kv[0].copy_(rotation.undone(keys, positions))
            kv[1].copy_(values)
        memory.seal()


def _finish(layers: Iterator[None]) -> None:
    for _ in layers:
        pass


def _opened(place: Place, blend: Blend, tokens: Tokens) -> Opened | None:
    page = blend.pages[0]
    try:
        return Opened(place, (len(blend.pages), 2, tokens, page.heads, page.dim), page.dtype)
    except OSError:
        return None
