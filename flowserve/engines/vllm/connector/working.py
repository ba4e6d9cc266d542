"""The connector's half in a vLLM worker."""

from typing import Any

import torch

from flowserve.engines.vllm.connector.blend import Blend
from flowserve.engines.vllm.connector.metadata import Kept, Load, Save, Step
from flowserve.engines.vllm.connector.records import Records
from flowserve.ids import Bytes


class Working:
    """Does nothing until it is bound to a model runner, but fail loads, which vLLM then recomputes."""

    def __init__(self, capacity: Bytes, block_tokens: int) -> None:
        self._records = Records(capacity)
        self._block_tokens = block_tokens
        self._blend: Blend | None = None
        self._failed: set[str] = set()
        self._bad_blocks: set[int] = set()

    def bind(self, runner: Any) -> None:
        self._blend = Blend(runner)

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

    def kept(self) -> Kept | None:
        """Since the last time; None: nothing changed."""
        records = self._records
        if not (records.gained or records.lost or self._failed):
            return None
        kept = Kept(records.gained, records.lost, self._failed)
        records.told()
        self._failed = set()
        return kept

    def _loaded(self, load: Load) -> bool:
        found = [self._records.get(chunk.key, chunk.end - chunk.start) for chunk in load.paste.chunks]
        records = [record for record in found if record is not None]
        if self._blend is None or len(records) < len(found):
            return False
        self._blend.run(load, records)
        return True

    def _save(self, blend: Blend, save: Save) -> None:
        span = save.span
        layers = []
        for page, rotation in zip(blend.pages, blend.rotations, strict=True):
            keys, values = page.read(save.blocks, span.start, span.end)
            positions = torch.arange(span.start, span.end, device=keys.device)
            layers.append((rotation.undone(keys, positions).cpu(), values.cpu()))
        self._records.put(span.key, layers)
