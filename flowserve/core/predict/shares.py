"""Which share of its limit a call writes: of any call, or of those of its node. Where a schema says how long an answer may be
expected to be, that counts instead of a share of the limit until the node has been seen."""

from flowserve.core.estimates import Figure
from flowserve.core.predict.base import Call, Prediction
from flowserve.core.predict.recent import Spread, Table
from flowserve.ids import Tokens

LEARNING = 0.1
"""Weight of the newest call in the share of all."""
ENOUGH = 4
"""Answers of a node after which their share is believed."""


class Prior:
    """All calls are alike: a running mean of the share, half before the first. It needs a limit.

    Calls with a schema are alike in how their answers compare with what it lets expect: as long before the first.
    """

    __slots__ = ("_spread", "ratio", "share")

    def __init__(self) -> None:
        self.share = 0.5
        self.ratio = 1.0
        """Of what calls with a schema write over what it lets expect."""
        self._spread = Spread()

    def expected(self, call: Call) -> float:
        """Tokens; 0 where nothing is known."""
        if call.answer is None or not call.limit:
            return call.limit * self.share
        return min(max(call.answer.least, call.answer.expected * self.ratio), call.limit)

    def predict(self, call: Call) -> Prediction | None:
        return self._spread.around(self.expected(call)).within(call.limit) if call.limit else None

    def observe(self, call: Call, tokens: Tokens) -> None:
        if not call.limit:
            return
        self._spread.add(tokens, self.expected(call))
        if call.answer is None:
            self.share = (1 - LEARNING) * self.share + LEARNING * min(1.0, tokens / call.limit)
        else:
            self.ratio = (1 - LEARNING) * self.ratio + LEARNING * tokens / max(1, call.answer.expected)


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
