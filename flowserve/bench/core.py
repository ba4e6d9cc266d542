"""`flowserve bench core`: what one event costs the scheduler, and what one live node weighs.

The scheduler is driven alone, without engines. A model driver answers a random one of the executions that are at
work and submits a new run whenever fewer nodes than wanted are live; what it feeds is recorded. A fresh scheduler
is then fed the same events, and only that is measured: processor time, young garbage collections included. A full
collection falls into so few batches that the median does not show it; what one costs with so many live nodes is
given besides.

The workflow searches, maps a model call and a tool over eight items, and writes an answer. Every node has a time
limit, every run a deadline, and one answer in fifty is a failure that is retried. Eight engines give room for 256
calls, so that at 10 nodes nothing waits, and at 100,000 nearly all do. Token events are left out: they are many
and nothing is decided by them.
"""

import gc
import random
import statistics
import time
import tracemalloc
from typing import Any

from flowserve.core import commands as c
from flowserve.core import events as e
from flowserve.core.commands import Command, Status
from flowserve.core.config import Config
from flowserve.core.events import Code, Event
from flowserve.core.state import SchedulerState
from flowserve.core.step import step
from flowserve.graphs.plan import Block, Const, Kind, LLMSpec, Node, Plan, Retry, SearchSpec, Template, ToolSpec
from flowserve.ids import BlockId, EngineId, NodeId, RunId, Seconds, TaskId

WIDTH = 8
"""Items of the map."""
FAILURES = 0.02
"""Share of answers that are failures."""
LIVE_NODES = (10, 1_000, 10_000, 100_000)
SEED = 0
CONFIG = Config(max_live_runs=10**9, tool_window=64, search_window=64, retry_reserve=10**6)

_OVER = (Status.COMPLETED, Status.FAILED, Status.CANCELLED)


def plan() -> Plan:
    """search -> map(llm -> tool) -> llm, with time limits and retries."""
    retry = Retry(attempts=3, backoff_s=0.01)

    def node(id: int, kind: Kind, block: int, deps: tuple[int, ...], cost_s: float, **fields: Any) -> Node:
        ids = tuple(NodeId(dep) for dep in deps)
        return Node(
            NodeId(id), f"n{id}", kind, BlockId(block), (), ids, 0, retry=retry, timeout_s=60.0, cost_s=cost_s, **fields
        )

    nodes = (
        node(0, Kind.SEARCH, 0, (), 0.1),
        node(1, Kind.MAP, 0, (0,), 3.0, bodies=(BlockId(1),), limit=WIDTH),
        node(2, Kind.LLM, 0, (1,), 2.0),
        node(3, Kind.LLM, 1, (), 2.0),
        node(4, Kind.TOOL, 1, (3,), 1.0),
    )
    body, inner = (NodeId(0), NodeId(1), NodeId(2)), (NodeId(3), NodeId(4))
    return Plan(
        name="bench",
        digest="bench",
        nodes=nodes,
        blocks=(
            Block(BlockId(0), "body", (), body, Const(0), None, dependents=((body[1],), (body[2],), ())),
            Block(BlockId(1), "item", ("item",), inner, Const(0), NodeId(1), dependents=((inner[1],), ())),
        ),
        input={},
        output={},
        llms=(LLMSpec("llm", Template(()), {}, None),),
        tools=(ToolSpec("tool", "", {}, {}),),
        searches=(SearchSpec("index"),),
        tails=(5.1, 5.0, 2.0, 3.0, 1.0),
        by_tail=body,
    )


class Load:
    """A model driver that keeps about `live_nodes` nodes live, and records what it feeds."""

    def __init__(self, live_nodes: int, seed: int) -> None:
        self.rnd = random.Random(seed)
        self.plan = plan()
        self.wanted = live_nodes
        self.state = SchedulerState(CONFIG)
        self.log: list[tuple[Seconds, Event]] = []
        self.live = 0
        self.submitted = 0
        self.now = 0.0
        self.wake_at = float("inf")
        self.owed: list[tuple[RunId, TaskId, int]] = []
        """Executions that want an answer, in no order; taken at random."""
        self.number: dict[tuple[RunId, TaskId], None] = {}
        """Those that are to be answered by Evaluated."""
        self.over: dict[tuple[RunId, TaskId, int], None] = {}
        """Executions that were cancelled while an answer was owed."""
        for number in range(8):
            self.feed(e.EngineChanged(EngineId(f"engine-{number}"), True, ("",), 32))
        while self.live < live_nodes:  # answers in between, so that runs stand at all their stages
            self.submit()
            for _ in range(min(4, len(self.owed))):
                self.answer()
        for _ in range(live_nodes // 10 + 1_000):
            self.turn()
        while self.live > 1.1 * live_nodes:  # maps that opened at the same time
            self.turn()

    def feed(self, event: Event) -> None:
        self.log.append((self.now, event))
        for command in step(self.state, event, self.now):
            self.carry_out(command)

    def carry_out(self, command: Command) -> None:
        if isinstance(command, c.Mark):
            if command.task is not None:
                self.live += (command.status is Status.READY and command.attempt == 1) - (command.status in _OVER)
        elif isinstance(command, c.Dispatch | c.Join):
            self.owed.append((command.run, command.task, command.attempt))
            if isinstance(command, c.Dispatch) and self.plan.nodes[command.node].kind is Kind.MAP:
                self.number[command.run, command.task] = None
        elif isinstance(command, c.Cancel):
            self.over[command.run, command.task, command.attempt] = None
        elif isinstance(command, c.WakeAt):
            self.wake_at = command.at

    def turn(self) -> None:
        """The next event of the mix."""
        self.now += 0.0001
        if self.now >= self.wake_at:
            self.wake_at = float("inf")
            self.feed(e.Tick())
        elif self.live < self.wanted or not self.owed:
            self.submit()
        else:
            self.answer()

    def submit(self) -> None:
        self.submitted += 1
        self.feed(e.RunSubmitted(RunId(f"run-{self.submitted}"), self.plan, deadline_s=3600.0))

    def answer(self) -> None:
        """Answer one of the executions at work."""
        place = self.rnd.randrange(len(self.owed))
        self.owed[place], self.owed[-1] = self.owed[-1], self.owed[place]
        run, task, attempt = self.owed.pop()
        if (run, task, attempt) in self.over:  # nobody waits for this one any more
            del self.over[run, task, attempt]
        elif (run, task) in self.number:
            del self.number[run, task]
            self.feed(e.Evaluated(run, task, attempt, WIDTH))
        elif self.rnd.random() < FAILURES:
            self.feed(e.TaskFailed(run, task, attempt, Code.ENGINE))
        else:
            self.feed(e.TaskFinished(run, task, attempt, 100, 20))


def us_per_event(live_nodes: int, events: int, repeats: int, seed: int) -> float:
    """Median over `repeats` of the mean microseconds of `events` events each."""
    load = Load(live_nodes, seed)
    before = len(load.log)
    while len(load.log) < before + events * repeats:
        load.turn()
    log = load.log
    del load
    gc.collect()
    gc.freeze()  # the recorded events are no part of what is measured
    try:
        state = SchedulerState(CONFIG)
        _replay(state, log[:before])
        starts = range(before, before + events * repeats, events)
        return statistics.median(1e6 * _replay(state, log[at : at + events]) / events for at in starts)
    finally:
        gc.unfreeze()


def _replay(state: SchedulerState, log: list[tuple[Seconds, Event]]) -> Seconds:
    """Processor time of these steps."""
    start = time.thread_time()
    for now, event in log:
        step(state, event, now)
    return time.thread_time() - start


def full_gc_ms(live_nodes: int, seed: int) -> float:
    """Milliseconds of processor time that one full garbage collection takes for a state of this size."""
    load = Load(live_nodes, seed)
    state = load.state
    del load
    gc.collect()
    with_state = _collect_s()
    del state
    gc.collect()
    return 1e3 * max(0.0, with_state - _collect_s())


def _collect_s() -> Seconds:
    start = time.thread_time()
    gc.collect()
    return time.thread_time() - start


def bytes_per_node(live_nodes: int, seed: int) -> float:
    """Memory of a state that has been at work for a while, per live node. The plan is counted once, by all."""
    gc.collect()
    tracemalloc.start()
    try:
        load = Load(live_nodes, seed)
        state, live = load.state, load.live
        del load
        gc.collect()
        before = tracemalloc.get_traced_memory()[0]
        del state
        gc.collect()
        return (before - tracemalloc.get_traced_memory()[0]) / live
    finally:
        tracemalloc.stop()


def run(quick: bool = False, seed: int = SEED) -> dict[str, dict[str, float]]:
    """`{"us_per_event": {"10": ...}, "bytes_per_node": {...}, "full_gc_ms": {...}}`, keys are numbers of live nodes.

    `quick` leaves out the two largest numbers and measures less often.
    """
    sizes, repeats = (LIVE_NODES[:2], 5) if quick else (LIVE_NODES, 15)
    return {
        "us_per_event": {str(size): round(us_per_event(size, 2_000, repeats, seed), 2) for size in sizes},
        "bytes_per_node": {str(size): round(bytes_per_node(size, seed)) for size in sizes},
        "full_gc_ms": {str(size): round(full_gc_ms(size, seed), 1) for size in sizes},
    }
