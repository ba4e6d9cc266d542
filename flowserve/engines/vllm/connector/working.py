"""The connector's half in a vLLM worker."""

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

    def bind(self, runner: Any) -> dict[str, Any]:
        """The fields of a `Geometry`: what KV looks like in memory that is handed over. Raises ConfigError."""
        blend = self._blend = Blend(runner)
        page = blend.pages[0]
        dtype = str(page.dtype).removeprefix("torch.")
        return {"layers": len(blend.pages), "kv_heads": page.heads, "head_dim": page.dim, "dtype": dtype}

    def load(self, step: Step) -> None:
        for load in step.loads:
            if not self._loaded(load):
                self._failed.add(load.request)
                first = load.start // self._block_tokens
                self._bad_blocks.update(load.blocks[first : -(-load.end // self._block_tokens)])

    def save(self, step: Step) -> None:
        if self._blend is not None:
            for save in step.saves:
                self._save(self._blend, save)

    def bad_blocks(self) -> set[int]:
        """Since the last time."""
        blocks, self._bad_blocks = self._bad_blocks, set()
        return blocks

    def failed(self) -> Failed | None:
        """Since the last time."""
        failed, self._failed = self._failed, set()
        return Failed(failed) if failed else None

    def _loaded(self, load: Load) -> bool:
        blend = self._blend
        memory = None if blend is None else _opened(load.paste.place, blend, load.paste.tokens)
        if blend is None or memory is None or not memory.whole:
            return False
        blend.run(load, memory.kv)
        return True

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


def _opened(place: Place, blend: Blend, tokens: Tokens) -> Opened | None:
    page = blend.pages[0]
    try:
        return Opened(place, (len(blend.pages), 2, tokens, page.heads, page.dim), page.dtype)
    except OSError:
        return None
