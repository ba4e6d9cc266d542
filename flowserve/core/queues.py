"""Ready tasks in order of urgency: tenants, for each a heap of its runs, and for each run a heap of its tasks.

Runs apart from tasks because a run's rank changes when its critical path shortens, while the order of tasks inside a
run never does: one push of a (rank, lane) pair moves all its waiting tasks. Tasks that the policy lets stand behind their
run's others, across runs, have a lane of their own (`Policy.behind`). Entries that no longer hold are
dropped when they surface (lazy deletion), or when they outnumber the valid ones (compaction). Tenants apart from runs
because what one is ahead of the others changes with every call: among the first runs of the tenants that wait, the one
goes next whose rank is lowest after what its tenant is ahead was added (`service`). A single tenant costs nothing.

An entry (rank, arrival, behind, lane) is valid while it is the lane's latest, so a rank may move to and fro.
"""

import heapq
from collections.abc import Iterator
from typing import TYPE_CHECKING

from flowserve.ids import Seconds

if TYPE_CHECKING:
    from flowserve.core.service import Tenant
    from flowserve.core.state import Run, Task

SLACK = 32
"""Invalid entries that are not worth a rebuild."""


class Lane:
    """The tasks of one run in one queue that stand equally far behind its rank."""

    __slots__ = ("behind", "entry", "items", "live", "queue", "run")

    def __init__(self, run: "Run", queue: "ReadyQueue", behind: Seconds = 0.0) -> None:
        self.run = run
        self.queue = queue
        self.behind = behind
        """Added to the run's rank."""
        self.items: list[tuple[float, int, Task]] = []
        """Heap of (order, task id, task); holds withdrawn tasks until they surface."""
        self.live = 0
        """Tasks in `items` that still wait."""
        self.entry: Entry | None = None
        """The valid one in the queue's heap; None: there is none."""

    @property
    def rank(self) -> float:
        """Its place among lanes."""
        return self.run.rank + self.behind

    @property
    def listed(self) -> float | None:
        """Rank of its entry."""
        return self.entry[0] if self.entry is not None else None

    def clean(self) -> None:
        """Drop withdrawn tasks from the top."""
        items = self.items
        while items and items[0][2].lane is not self:
            heapq.heappop(items)


Entry = tuple[float, int, Seconds, Lane]
"""(rank, run arrival, behind, lane): lanes of one run in one queue differ in `behind`."""


class Line:
    """The lanes of one tenant's runs in one queue, the most urgent first."""

    __slots__ = ("heap", "lanes")

    def __init__(self) -> None:
        self.heap: list[Entry] = []
        self.lanes = 0
        """Lanes with a valid entry."""

    def head(self) -> Lane | None:
        """The lane whose first task goes next, or None when nothing waits."""
        heap = self.heap
        while heap:
            entry = heap[0]
            lane = entry[3]
            if lane.entry is entry:
                if lane.live:
                    lane.clean()
                    return lane
                self.unlist(lane)
            heapq.heappop(heap)
        return None

    def list(self, lane: Lane) -> None:
        if lane.entry is None:
            self.lanes += 1
        lane.entry = (lane.rank, lane.run.arrival, lane.behind, lane)
        heapq.heappush(self.heap, lane.entry)
        self.compact()

    def unlist(self, lane: Lane) -> None:
        if lane.entry is not None:
            lane.entry = None
            self.lanes -= 1

    def compact(self) -> None:
        if len(self.heap) > 2 * self.lanes + SLACK:
            self.heap = [entry for entry in self.heap if entry[3].entry is entry]
            heapq.heapify(self.heap)

    def valid(self) -> Iterator[Lane]:
        """Lanes that are listed, in no order that means anything."""
        return (entry[3] for entry in self.heap if entry[3].entry is entry)


class ReadyQueue:
    """What waits for one kind of room: one model's engines, the tools, the searches."""

    __slots__ = ("lines", "name", "size")

    def __init__(self, name: str) -> None:
        self.name = name
        self.lines: dict[Tenant, Line] = {}
        """By tenant, in order of first arrival; one that is empty goes when that is noticed."""
        self.size = 0
        """Tasks that wait."""

    def push(self, task: "Task", order: float, behind: Seconds = 0.0) -> None:
        """Let `task` wait; `order` ranks it among the tasks of its lane, lower first, and `behind` its lane behind its run."""
        run = task.run
        lane = run.lanes.get((self.name, behind))
        if lane is None:
            lane = run.lanes[self.name, behind] = Lane(run, self, behind)
        task.lane = lane
        heapq.heappush(lane.items, (order, task.id, task))
        lane.live += 1
        self.size += 1
        if lane.listed != lane.rank:
            self._list(lane)

    def take(self, task: "Task") -> None:
        """`task` no longer waits here, but may again: its entry goes now. Costs the length of its lane."""
        lane = task.lane
        assert lane is not None
        self.withdraw(task)
        lane.items = [item for item in lane.items if item[2] is not task]
        heapq.heapify(lane.items)

    def withdraw(self, task: "Task") -> None:
        """`task` no longer waits, and never will again; its entry goes when it surfaces."""
        lane = task.lane
        assert lane is not None and lane.queue is self
        task.lane = None
        lane.live -= 1
        self.size -= 1
        if len(lane.items) > 2 * lane.live + SLACK:
            lane.items = [item for item in lane.items if item[2].lane is lane]
            heapq.heapify(lane.items)

    def head(self) -> Lane | None:
        """The lane whose first task goes next, or None when nothing waits."""
        if len(self.lines) == 1:
            [line] = self.lines.values()
            return line.head()
        heads: list[tuple[Tenant, Lane]] = []
        for tenant, line in list(self.lines.items()):
            lane = line.head()
            if lane is None:
                del self.lines[tenant]
            else:
                heads.append((tenant, lane))
        if len(heads) < 2:
            return heads[0][1] if heads else None
        least = min(tenant.counter for tenant, _ in heads)
        _, _, chosen = min(
            ((lane.rank + tenant.behind_s(least), lane.run.arrival, lane) for tenant, lane in heads), key=_key
        )
        return chosen

    def near(self, within: float, most: int) -> list[Lane]:
        """Lanes of the tenant that goes next whose rank is at most `within` behind that of the first, in order, that one
        included; at most `most`. There must be one. Looks at few more entries of the heap than it returns."""
        first = self.head()
        assert first is not None, f"queue {self.name!r} is empty"
        heap = self.lines[first.run.share].heap
        found: list[Lane] = []
        edge = [(*heap[0][:3], 0)]
        while edge and len(found) < most:
            place = heapq.heappop(edge)[3]
            lane = heap[place][3]
            if lane.entry is heap[place] and lane.live:
                lane.clean()
                found.append(lane)
            for child in (2 * place + 1, 2 * place + 2):
                if child < len(heap) and heap[child][0] <= first.rank + within:
                    heapq.heappush(edge, (*heap[child][:3], child))
        return found

    def first(self) -> "Task":
        """The task that goes next. There must be one."""
        lane = self.head()
        assert lane is not None, f"queue {self.name!r} is empty"
        return lane.items[0][2]

    def pop(self) -> "Task":
        """Take the first task out. There must be one."""
        lane = self.head()
        assert lane is not None, f"queue {self.name!r} is empty"
        task = heapq.heappop(lane.items)[2]
        task.lane = None
        lane.live -= 1
        self.size -= 1
        return task

    def rerank(self, lane: Lane) -> None:
        """The rank of `lane.run` moved: list the lane anew if it has tasks."""
        if lane.live and lane.listed != lane.rank:
            self._list(lane)

    def drop(self, lane: Lane) -> None:
        """The run has ended; its tasks have been withdrawn."""
        assert lane.live == 0
        lane.items = []
        line = self.lines.get(lane.run.share)
        if line is not None:
            line.unlist(lane)
            line.compact()

    def _list(self, lane: Lane) -> None:
        line = self.lines.get(lane.run.share)
        if line is None:
            line = self.lines[lane.run.share] = Line()
        line.list(lane)

    def waiting(self) -> "list[Task]":
        """Every task that waits, in order of (run arrival, task id). Walks the whole queue."""
        lanes = [lane for line in self.lines.values() for lane in line.valid()]
        found = [task for lane in lanes for _, _, task in lane.items if task.lane is lane]
        return sorted(found, key=lambda task: (task.run.arrival, task.id))


def _key(entry: tuple[float, int, Lane]) -> tuple[float, int]:
    return entry[:2]
