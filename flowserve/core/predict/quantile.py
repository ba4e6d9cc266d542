"""What calls like this one wrote: quantiles of the latest lengths, by tenant and size of the prompt where enough were seen.

A call counts in three cells, from fine to coarse: its node's for prompts of its size by its tenant, its node's for prompts of its
size, and its node's. The finest one with enough calls answers. Sizes are classes of a factor of two.
"""

from flowserve.core.predict.base import Call, Prediction
from flowserve.core.predict.recent import Recent, Table
from flowserve.ids import Tokens

ENOUGH = 8
"""Calls of a cell after which it is believed."""


class Quantile:
    """Windows of lengths, with back-off."""

    __slots__ = ("_cells",)

    def __init__(self) -> None:
        self._cells = Table(Recent)

    def predict(self, call: Call) -> Prediction | None:
        for key in _levels(call):
            cell = self._cells.find(key)
            if cell is not None and len(cell) >= ENOUGH:
                return Prediction(cell.mean(), cell.quantile(0.5), cell.quantile(0.9)).within(call.limit)
        return None

    def observe(self, call: Call, tokens: Tokens) -> None:
        for key in _levels(call):
            self._cells.use(key).add(tokens)


def _levels(call: Call) -> tuple[tuple[object, ...], ...]:
    """Keys of its cells, the finest first."""
    node, size = (call.plan, call.node), call.prompt.bit_length()
    return (*node, size, call.tenant), (*node, size), node
