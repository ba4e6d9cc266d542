"""What a door remembers beside a run, for as long as the runtime remembers the run."""

from typing import Generic, TypeVar

from flowserve.ids import RunId
from flowserve.runtime.runner import Runtime
from flowserve.server.strict_json import SAFE_INTEGER

T = TypeVar("T")
SWEEP = 256
"""Entries before it is looked which of their runs are forgotten; later twice as many as were left."""


class Beside(Generic[T]):
    """Run -> what is kept of it. Adding takes amortised constant time."""

    def __init__(self, runtime: Runtime, sweep: int = SWEEP) -> None:
        self._runtime = runtime
        self._kept: dict[RunId, T] = {}
        self._least = self._sweep_at = sweep

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, run: RunId) -> T | None:
        return self._kept.get(run)

    def keep(self, run: RunId, value: T) -> None:
        self._kept[run] = value
        if len(self._kept) >= self._sweep_at:
            remembered = {each.id for each in self._runtime.runs(limit=SAFE_INTEGER)}
            self._kept = {id: kept for id, kept in self._kept.items() if id in remembered}
            self._sweep_at = max(self._least, 2 * len(self._kept))

    def drop(self, run: RunId) -> None:
        self._kept.pop(run, None)
