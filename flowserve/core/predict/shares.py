"""Which share of its limit a call writes: of any call, or of those of its node."""

from flowserve.core.estimates import Figure
from flowserve.core.predict.base import Call, Prediction
from flowserve.core.predict.recent import Spread, Table
from flowserve.ids import Tokens

LEARNING = 0.1
"""Weight of the newest call in the share of all."""
ENOUGH = 4
"""Answers of a node after which their share is believed."""


class Prior:
    """All calls are alike: a running mean of the share, half before the first. It needs a limit."""

    __slots__ = ("_spread", "share")

    def __init__(self) -> None:
        self.share = 0.5
        self._spread = Spread()

    def predict(self, call: Call) -> Prediction | None:
        return self._spread.around(call.limit * self.share).within(call.limit) if call.limit else None

    def observe(self, call: Call, tokens: Tokens) -> None:
        if call.limit:
            self._spread.add(tokens, call.limit * self.share)
            self.share = (1 - LEARNING) * self.share + LEARNING * min(1.0, tokens / call.limit)


class NodeShare:
    """Of one node."""

    __slots__ = ("share", "spread")

    def __init__(self) -> None:
        self.share = Figure()
        self.spread = Spread()


class Mean:
    """Calls of a node are alike: the running mean of their share. It needs a limit."""

    __slots__ = ("_nodes",)

    def __init__(self) -> None:
        self._nodes = Table(NodeShare)

    def predict(self, call: Call) -> Prediction | None:
        node = self._nodes.find((call.plan, call.node))
        if node is None or node.share.seen < ENOUGH or not call.limit:
            return None
        return node.spread.around(call.limit * node.share.mean).within(call.limit)

    def observe(self, call: Call, tokens: Tokens) -> None:
        if call.limit:
            node = self._nodes.use((call.plan, call.node))
            if node.share.seen:
                node.spread.add(tokens, call.limit * node.share.mean)
            node.share.add(min(1.0, tokens / call.limit))
