"""Ended runs that are still answered for, oldest first, within two bounds."""

from collections import OrderedDict
from collections.abc import Iterable

from flowserve.ids import RunId
from flowserve.runtime.run import Run


class History:
    """Keeps at most `runs` ended runs with at most `events` events between them (but always the newest run)."""

    def __init__(self, runs: int, events: int) -> None:
        self._max_runs = runs
        self._max_events = events
        self._runs: OrderedDict[RunId, Run] = OrderedDict()
        self._events = 0

    def add(self, run: Run) -> None:
        self._runs[run.id] = run
        self._events += run.log.last_seq
        while len(self._runs) > 1 and (len(self._runs) > self._max_runs or self._events > self._max_events):
            self.drop(next(iter(self._runs)))

    def get(self, run: RunId) -> Run | None:
        return self._runs.get(run)

    def drop(self, run: RunId) -> None:
        dropped = self._runs.pop(run, None)
        if dropped is not None:
            self._events -= dropped.log.last_seq

    def runs(self) -> Iterable[Run]:
        return self._runs.values()
