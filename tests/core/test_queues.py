"""The ready queue against a list that is sorted anew each time."""

from random import Random
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from flowserve.core.queues import SLACK, Lane, ReadyQueue
from flowserve.core.service import Tenant


class Run:
    """As much of a run as a queue sees."""

    def __init__(self, arrival: int, rank: float, share: Tenant | None = None) -> None:
        self.arrival = arrival
        self.rank = rank
        self.share = share if share is not None else Tenant(1.0, 1.0, 100.0)
        self.lanes: dict[tuple[str, float], Lane] = {}


class Task:
    """As much of a task as a queue sees."""

    def __init__(self, run: Run, id: int, order: float, behind: float = 0.0) -> None:
        self.run = run
        self.id = id
        self.order = order
        self.behind = behind
        self.lane: Lane | None = None

    @property
    def rank(self) -> float:
        return self.run.rank + self.behind

    def key(self) -> tuple[float, int, float, float, int]:
        return (self.rank, self.run.arrival, self.behind, self.order, self.id)


def first_of(waiting: list[Any]) -> Any:
    """The first task of each tenant, and of these the one whose rank is lowest with what its tenant is ahead."""
    heads: dict[int, Any] = {}
    for task in sorted(waiting, key=Task.key):
        heads.setdefault(id(task.run.share), task)
    least = min(task.run.share.counter for task in heads.values())
    return min(heads.values(), key=lambda task: (task.rank + task.run.share.behind_s(least), task.run.arrival))


def near_first(waiting: list[Any], within: float) -> list[Any]:
    """The first task of each lane of the first one's tenant whose rank is near."""
    first, heads = first_of(waiting), dict[tuple[int, float], Any]()
    for task in sorted(waiting, key=Task.key):
        if task.run.share is first.run.share and task.rank <= first.rank + within:
            heads.setdefault((task.run.arrival, task.behind), task)
    return list(heads.values())


@settings(max_examples=150, deadline=None)
@given(seed=st.integers(0, 2**32), size=st.integers(1, 400), tenants=st.integers(1, 4))
def test_tasks_leave_in_the_order_of_the_sorted_list(seed: int, size: int, tenants: int) -> None:
    rnd = Random(seed)
    shares = [Tenant(1.0, 2.0, 5.0) for _ in range(tenants)]
    queue = ReadyQueue("q")
    runs: list[Any] = []
    waiting: list[Any] = []
    number = 0
    for _ in range(size):
        dice = rnd.random()
        if dice < 0.1 or not runs:
            number += 1
            runs.append(Run(number, float(rnd.randint(0, 5)), rnd.choice(shares)))
        elif dice < 0.55:
            number += 1
            task: Any = Task(rnd.choice(runs), number, float(rnd.randint(0, 3)), rnd.choice([0.0, 0.0, 2.0]))
            queue.push(task, task.order, task.behind)
            waiting.append(task)
        elif dice < 0.75:
            if waiting:
                first = first_of(waiting)
                assert queue.pop() is first and first.lane is None
                first.run.share.counter += rnd.choice([0.0, 0.5, 3.0])
                waiting.remove(first)
        elif dice < 0.85:
            if waiting:
                queue.withdraw(waiting.pop(rnd.randrange(len(waiting))))
        elif dice < 0.95:
            run = rnd.choice(runs)
            run.rank -= rnd.choice([0.0, 1.0, 2.5])
            for lane in run.lanes.values():
                queue.rerank(lane)
        else:
            run = runs.pop(rnd.randrange(len(runs)))
            for task in [task for task in waiting if task.run is run]:
                queue.withdraw(task)
                waiting.remove(task)
            for lane in run.lanes.values():
                queue.drop(lane)
        assert queue.size == len(waiting)
        assert queue.waiting() == sorted(waiting, key=lambda task: (task.run.arrival, task.id))
        assert all(len(line.heap) <= 2 * line.lanes + SLACK for line in queue.lines.values())
        if waiting:
            within, most = rnd.choice([0.0, 1.0, 9.0]), rnd.choice([1, 3, 99])
            assert [lane.items[0][2] for lane in queue.near(within, most)] == near_first(waiting, within)[:most]
    for _ in range(len(waiting)):
        first = first_of(waiting)
        assert queue.pop() is first
        waiting.remove(first)
    assert queue.head() is None and not any(line.heap for line in queue.lines.values())


def test_withdrawn_tasks_do_not_pile_up_in_a_lane() -> None:
    queue, run = ReadyQueue("q"), Run(1, 0.0)
    keep: Any = Task(run, 0, -1.0)
    queue.push(keep, keep.order)
    for number in range(1, 5000):
        task: Any = Task(run, number, 0.0)
        queue.push(task, task.order)
        queue.withdraw(task)
    [lane] = run.lanes.values()
    assert len(lane.items) < 100
    assert queue.pop() is keep and queue.head() is None


def test_a_run_whose_rank_falls_often_does_not_pile_up_in_the_heap() -> None:
    queue, run = ReadyQueue("q"), Run(1, 0.0)
    task: Any = Task(run, 1, 0.0)
    queue.push(task, 0.0)
    for _ in range(5000):
        run.rank -= 1.0
        queue.rerank(run.lanes["q", 0.0])
    [line] = queue.lines.values()
    assert len(line.heap) <= 2 + SLACK
    assert queue.pop() is task
