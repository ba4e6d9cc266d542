"""What a node costs when it does nothing: chains and fan-outs of no-op nodes in FlowServe, LangGraph and plain asyncio.

Whole runs are timed, from the call to the result: FlowServe's through its runtime (submission, scheduler, driver, events),
LangGraph's by `ainvoke`, with and without its in-memory checkpointer, asyncio's by awaiting coroutines. The no-op is the
same asynchronous function everywhere, and every system must return the same value. Rounds are interleaved.
"""

import asyncio
import gc
import statistics
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from operator import add
from typing import Annotated, Any, TypedDict

import flowserve as fs
from flowserve.engines.fake import FakeEngine
from flowserve.errors import ConfigError
from flowserve.graphs.workflow import Workflow
from flowserve.runtime.runner import Runtime

SEED = 0
SYSTEMS = ("flowserve", "langgraph", "langgraph_checkpointed", "asyncio")
Run = Callable[[int], Awaitable[int]]
"""Input -> result of one run."""


@dataclass(frozen=True, slots=True)
class Shape:
    """How many no-ops, and how they hang together."""

    name: str
    nodes: int
    chain: bool


@dataclass(frozen=True, slots=True)
class Plan:
    """How much is measured."""

    shapes: tuple[Shape, ...] = (
        Shape("chain of 10", 10, True),
        Shape("chain of 100", 100, True),
        Shape("fan-out of 10", 10, False),
        Shape("fan-out of 100", 100, False),
        Shape("fan-out of 1000", 1000, False),
    )
    rounds: int = 15
    nodes_per_round: int = 1000
    """Runs of small shapes are repeated until about so many nodes were done."""


QUICK = Plan((Shape("chain of 3", 3, True), Shape("fan-out of 3", 3, False)), rounds=2, nodes_per_round=6)


def run(quick: bool) -> dict[str, Any]:
    """Raises ConfigError without langgraph."""
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        return runner.run(_run(QUICK if quick else Plan()))


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """uvloop's, on which a FlowServe server runs; here for all four."""
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop


async def _run(plan: Plan) -> dict[str, Any]:
    cases = []
    async with AsyncExitStack() as stack:
        runtime = Runtime([FakeEngine()])
        await runtime.start()
        stack.push_async_callback(runtime.aclose)
        gc.collect()
        gc.freeze()  # as the server does when it has started; for all four
        stack.callback(gc.unfreeze)
        for shape in plan.shapes:
            cases.append(await _case(plan, shape, _systems(runtime, shape)))
    medians = {name: statistics.median(case["us_per_node"][name] for case in cases) for name in SYSTEMS}
    return {"us_per_node": medians, "times_langgraph": _times(medians), "cases": cases}


def _times(us: dict[str, float]) -> dict[str, float]:
    """How many times less FlowServe costs."""
    return {name: us[name] / us["flowserve"] for name in ("langgraph", "langgraph_checkpointed")}


async def _case(plan: Plan, shape: Shape, systems: dict[str, Run]) -> dict[str, Any]:
    runs = max(1, plan.nodes_per_round // shape.nodes)
    seconds: dict[str, list[float]] = {name: [] for name in systems}
    for number in range(plan.rounds + 1):
        for name, one in systems.items():
            began = time.perf_counter()
            results = [await one(turn) for turn in range(runs)]
            took = (time.perf_counter() - began) / runs
            if results != [_expected(shape, turn) for turn in range(runs)]:
                raise AssertionError(f"{name}, {shape.name}: {results[:3]}")
            if number:  # the first round warms up
                seconds[name].append(took)
    return {
        "shape": shape.name,
        "nodes": shape.nodes,
        "us_per_node": {name: 1e6 * statistics.median(of) / shape.nodes for name, of in seconds.items()},
        "quartiles_us_per_node": {
            name: [1e6 * at / shape.nodes for at in statistics.quantiles(of, n=4)] for name, of in seconds.items()
        },
        "ms_per_run": {name: 1e3 * statistics.median(of) for name, of in seconds.items()},
    }


def _expected(shape: Shape, given: int) -> int:
    return given + shape.nodes if shape.chain else sum(given + 1 for _ in range(shape.nodes))


def _systems(runtime: Runtime, shape: Shape) -> dict[str, Run]:
    return {
        "flowserve": _flowserve(runtime, shape),
        "langgraph": _langgraph(shape, checkpointed=False),
        "langgraph_checkpointed": _langgraph(shape, checkpointed=True),
        "asyncio": _asyncio(shape),
    }


# --- FlowServe ------------------------------------------------------------------------------------------


@fs.tool
async def step(number: int) -> int:
    """Nothing."""
    return number + 1


@fs.tool
async def total(numbers: list[int]) -> int:
    """The sum: how a fan-out ends everywhere."""
    return sum(numbers)


def _declared(shape: Shape) -> Workflow[..., Any]:
    if shape.chain:

        def chain(number: int) -> int:
            for _ in range(shape.nodes):
                number = step(number)
            return number

        return fs.workflow(name=f"chain-{shape.nodes}")(chain)

    def fan_out(number: int) -> int:
        return total([step(number) for _ in range(shape.nodes)])

    return fs.workflow(name=f"fan-out-{shape.nodes}")(fan_out)


def _flowserve(runtime: Runtime, shape: Shape) -> Run:
    program = _declared(shape).program

    async def one(given: int) -> int:
        started = await runtime.submit(program, {"number": given})
        result: int = await started.result()
        return result

    return one


# --- LangGraph ------------------------------------------------------------------------------------------


class _Chain(TypedDict):
    number: int


class _Fan(TypedDict):
    number: int
    numbers: Annotated[list[int], add]
    total: int


async def _plus_one(number: int) -> int:
    return number + 1


def _langgraph(shape: Shape, checkpointed: bool) -> Run:
    try:
        from langgraph.checkpoint.memory import InMemorySaver
        from langgraph.graph import END, START, StateGraph
    except ImportError as error:
        raise ConfigError("the comparison needs langgraph: pip install 'flowserve[bench]'") from error

    async def link(state: _Chain) -> dict[str, Any]:
        return {"number": await _plus_one(state["number"])}

    async def branch(state: _Fan) -> dict[str, Any]:
        return {"numbers": [await _plus_one(state["number"])]}

    def join(state: _Fan) -> dict[str, Any]:
        return {"total": sum(state["numbers"])}

    graph: Any = StateGraph(_Chain if shape.chain else _Fan)
    names = [f"n{number}" for number in range(shape.nodes)]
    for name in names:
        graph.add_node(name, link if shape.chain else branch)
    if shape.chain:
        for before, after in zip([START, *names], [*names, END], strict=True):
            graph.add_edge(before, after)
    else:
        graph.add_node("join", join)
        for name in names:
            graph.add_edge(START, name)
        graph.add_edge(names, "join")
        graph.add_edge("join", END)
    compiled = graph.compile(checkpointer=InMemorySaver() if checkpointed else None)
    made = 0

    async def one(given: int) -> int:
        nonlocal made
        made += 1
        config = {"recursion_limit": shape.nodes + 5, "configurable": {"thread_id": str(made)}}
        state = await compiled.ainvoke({"number": given} if shape.chain else {"number": given, "numbers": []}, config)
        result: int = state["number" if shape.chain else "total"]
        return result

    return one


# --- asyncio --------------------------------------------------------------------------------------------


def _asyncio(shape: Shape) -> Run:
    async def chain(given: int) -> int:
        for _ in range(shape.nodes):
            given = await _plus_one(given)
        return given

    async def fan_out(given: int) -> int:
        found: Sequence[int] = await asyncio.gather(*(_plus_one(given) for _ in range(shape.nodes)))
        return sum(found)

    return chain if shape.chain else fan_out
