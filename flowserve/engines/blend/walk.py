"""Some positions of one prompt on their way up through the layers: what is computed of them is in the slot, what is not is pasted there.

Rows go in blocks of ascending positions. A row sees places up to its own, which in each layer hold what was pasted or what an earlier
block has computed; so any set of positions gives what one forward over all of them would, and the masks stay small.
"""

from collections.abc import Iterator, Sequence
from typing import Final

import torch

from flowserve.engines.blend.decoder import Block, Decoder
from flowserve.ids import Tokens

ROWS: Final[Tokens] = 256
"""Of a block: the mask of one takes so many bytes per place."""


class Walk:
    """`slot` may be changed between two layers' blocks: calls that end make the table close its gaps."""

    def __init__(self, decoder: Decoder, slot: int, ids: Sequence[int], positions: Sequence[Tokens]) -> None:
        """ids: of the whole prompt. positions: ascending; at least one."""
        self._decoder = decoder
        self.slot = slot
        self.hidden = decoder.embed([ids[i] for i in positions])
        """(rows, width): what the next layer takes."""
        self._settle(torch.tensor(positions, device=self.hidden.device))

    def __len__(self) -> int:
        """Rows."""
        return len(self.positions)

    def narrow(self, keep: torch.Tensor) -> None:
        """Only these rows go on. keep: booleans, (rows,)."""
        self.hidden = self.hidden[keep]
        self._settle(self.positions[keep])

    def layer(self, index: int) -> Iterator[int]:
        """Take all rows through one layer. Yields the rows of each block when it is done."""
        for part, block in self.blocks():
            self.hidden[part] = self._decoder.run(index, self.slot, self.hidden[part], block)
            yield len(block.positions)

    def blocks(self) -> Iterator[tuple[slice, Block]]:
        at = 0
        for block in self._blocks:
            yield slice(at, at + len(block.positions)), block
            at += len(block.positions)

    def store(self, index: int) -> tuple[tuple[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]:
        """Put these rows' own KV of a layer into the slot without running it. Returns it and what was there before, each as keys and
        values, (kv_heads, rows, head_dim)."""
        table = self._decoder.table
        before = table.read(index, self.slot, self.positions)
        parts = [self._decoder.keys_values(index, self.hidden[part], block) for part, block in self.blocks()]
        keys, values = (torch.cat(states, dim=1) for states in zip(*parts, strict=True))
        table.write(index, self.slot, self.positions, keys, values)
        return (keys, values), before

    def logits(self) -> torch.Tensor:
        """Of the last row, behind the last layer: (vocabulary,)."""
        return self._decoder.logits(self.hidden[-1:])[0]

    def _settle(self, positions: torch.Tensor) -> None:
        self.positions = positions
        """(rows,), ascending."""
        parts = (positions[at : at + ROWS] for at in range(0, len(positions), ROWS))
        self._blocks = [self._decoder.block(part, self.hidden) for part in parts]
