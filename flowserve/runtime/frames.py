"""Where the values of a run live: one `Frame` per instance of a plan block.

The scheduler speaks of frames by number and never sees a value. A frame knows its enclosing frame, so an
expression of an inner block reads what its surroundings have computed.
"""

from typing import Any

from flowserve.graphs import evaluate
from flowserve.graphs.plan import Node, Plan, Source
from flowserve.ids import BlockId, NodeId, TaskId


class Frame:
    """Parameters and node results of one block instance; the `Lookup` of expressions evaluated in it."""

    __slots__ = ("block", "index", "params", "parent", "plan", "task", "values", "written")

    def __init__(
        self,
        plan: Plan,
        block: BlockId,
        parent: "Frame | None",
        task: TaskId | None,
        index: int,
        params: tuple[Any, ...],
    ) -> None:
        self.plan = plan
        self.block = block
        self.parent = parent
        self.task = task
        """The task whose node expanded into this frame; None for the run's own body."""
        self.index = index
        self.params = params
        self.values: dict[NodeId, Any] = {}
        self.written: dict[NodeId, list[tuple[Any, ...]]] = {}
        """By map: parameters for its frames, of a list that is still being written."""

    def of_block(self, block: BlockId) -> "Frame":
        """This frame or the enclosing one that instantiates `block`."""
        frame: Frame | None = self
        while frame is not None:
            if frame.block == block:
                return frame
            frame = frame.parent
        raise AssertionError(f"block {block} does not enclose block {self.block}")

    def output(self, node: NodeId) -> Any:
        """Result of `node`, of this block or an enclosing one."""
        return self.of_block(self.plan.nodes[node].block).values[node]

    def param(self, block: BlockId, index: int) -> Any:
        return self.of_block(block).params[index]

    def value(self, source: Source) -> Any:
        """Evaluate an expression here."""
        return evaluate.evaluate(source, self.plan.consts, self)

    def arguments(self, node: Node) -> dict[str, Any]:
        """The evaluated arguments of `node`, by name."""
        return evaluate.arguments(self.plan, node, self)

    def result(self) -> Any:
        return self.value(self.plan.blocks[self.block].result)

    def path(self) -> tuple[int, ...]:
        """Indices of the enclosing items, samples and iterations, outermost first."""
        outer = self.parent.path() if self.parent else ()
        return (*outer, self.index) if self.task is not None else outer
