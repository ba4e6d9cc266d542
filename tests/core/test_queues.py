"""The two-level ready queue against a list that is sorted anew each time."""

from random import Random
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from flowserve.core.queues import SLACK, Lane, ReadyQueue


class Run:
    """As much of a run as a queue sees."""

    def __init__(self, arrival: int, rank: float) -> None:
        self.arrival = arrival
        self.rank = rank
        self.lanes: dict[str, Lane] = {}


class Task:
    """As much of a task as a queue sees."""

    def __init__(self, run: Run, id: int, order: float) -> None:
        self.run = run
        self.id = id
        self.order = order
        self.lane: Lane | None = None

    def key(self) -> tuple[float, int, float, int]:
        return (self.run.rank, self.run.arrival, self.order, self.id)


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 2**32), size=st.integers(1, 400))
def test_tasks_leave_in_the_order_of_the_sorted_list(seed: int, size: int) -> None:
    rnd = Random(seed)
    queue = ReadyQueue("q")
    runs: list[Any] = []
    waiting: list[Any] = []
    number = 0
    for _ in range(size):
        dice = rnd.random()
        if dice < 0.1 or not runs:
            number += 1
            runs.append(Run(number, float(rnd.randint(0, 5))))
        elif dice < 0.55:
            number += 1
            task: Any = Task(rnd.choice(runs), number, float(rnd.randint(0, 3)))
            queue.push(task, task.order)
            waiting.append(task)
        elif dice < 0.75:
            if waiting:
                first = min(waiting, key=Task.key)
                assert queue.pop() is first and first.lane is None
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
        assert queue.size == len(waiting) and len(queue.waiting()) == len(waiting)
        assert len(queue.heap) <= 2 * queue.lanes + SLACK
    for _ in range(len(waiting)):
        first = min(waiting, key=Task.key)
        assert queue.pop() is first
        waiting.remove(first)
    assert queue.head() is None and not queue.heap


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
        queue.rerank(run.lanes["q"])
    assert len(queue.heap) <= 2 + SLACK
    assert queue.pop() is task
