"""Memory of bounded size: the latest values of something, and tables whose oldest entries go."""

from bisect import bisect_left, insort
from collections import deque
from collections.abc import Callable, Hashable
from math import ceil
from typing import Generic, TypeVar

from flowserve.core.predict.base import Prediction
from flowserve.ids import Tokens

WINDOW = 64
"""Values that count: what was earlier is forgotten."""
MOST = 4096
"""Keys of one table; the one that was used least recently goes first."""

V = TypeVar("V")


class Recent:
    """The latest values, also in order of size, so that quantiles are exact."""

    __slots__ = ("_latest", "_sorted")

    def __init__(self) -> None:
        self._latest: deque[float] = deque()
        self._sorted: list[float] = []

    def add(self, value: float) -> None:
        if len(self._latest) == WINDOW:
            del self._sorted[bisect_left(self._sorted, self._latest.popleft())]
        self._latest.append(value)
        insort(self._sorted, value)

    def mean(self) -> float:
        return sum(self._sorted) / len(self._sorted)

    def quantile(self, share: float) -> float:
        """The least of these values that the next one exceeds with a chance of at most 1 - share, if it is one of the same
        sort: the rank is counted with the next one in line, as in split conformal prediction. At most the greatest."""
        last = len(self._sorted) - 1
        return self._sorted[min(last, ceil((last + 2) * share) - 1)]

    def __len__(self) -> int:
        return len(self._sorted)

    def __repr__(self) -> str:
        return f"Recent({self._sorted})"


class Spread:
    """How far lengths lie from what was expected: their latest ratios."""

    __slots__ = ("_ratios",)

    def __init__(self) -> None:
        self._ratios = Recent()

    def around(self, expected: float) -> Prediction:
        """`expected` as the mean, with quantiles as they were around earlier ones."""
        if not len(self._ratios):
            return Prediction(expected, expected, expected)
        return Prediction(expected, expected * self._ratios.quantile(0.5), expected * self._ratios.quantile(0.9))

    def add(self, tokens: Tokens, expected: float) -> None:
        self._ratios.add(tokens / max(1.0, expected))


class Table(Generic[V]):
    """Values by key, made when they are first used."""

    __slots__ = ("_make", "_most", "_values")

    def __init__(self, make: Callable[[], V], most: int = MOST) -> None:
        self._make = make
        self._most = most
        self._values: dict[Hashable, V] = {}
        """The one used least recently first."""

    def find(self, key: Hashable) -> V | None:
        """To look; that is no use."""
        return self._values.get(key)

    def use(self, key: Hashable) -> V:
        """To change."""
        value = self._values.pop(key, None)
        if value is None:
            value = self._make()
            if len(self._values) >= self._most:
                del self._values[next(iter(self._values))]
        self._values[key] = value
        return value

    def __len__(self) -> int:
        return len(self._values)
