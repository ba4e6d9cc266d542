"""The comparison: interleaved rounds of the same arrivals on every system, paired run by run.

Speedups are baseline over FlowServe, so that more is better. The interval of a speedup of means is a bootstrap over
rounds and runs, which are paired: the same input at the same time on both systems. Outputs differ a little where the same
prompts met other batches, in bfloat16; how much that alone is, asyncio shows, which asks the same servers as LangGraph.
"""

import asyncio
import math
import os
import signal
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import aiohttp

from flowserve.bench import random_model, servers
from flowserve.bench.servers import Server
from flowserve.bench.workflows import (
    coding,
    consistency,
    cpu,
    debate,
    engines,
    mapreduce,
    programs,
    rag,
    searching,
    tree,
    triage,
)
from flowserve.bench.workflows.engines import Setup
from flowserve.bench.workflows.shape import SCALE, Arrival, Workload
from flowserve.bench.workflows.systems import FlowServe, LangGraph, Plain, System, follow
from flowserve.errors import ConfigError
from flowserve.ids import Seconds

SEED = 17
WORKLOADS = {
    "triage": triage.WORKLOAD,
    "mapreduce": mapreduce.ALONE,
    "mixed": mapreduce.MIXED,
    "coding": coding.WORKLOAD,
    "rag": rag.WORKLOAD,
    "programs": programs.WORKLOAD,
    "experts": debate.MAPRED,
    "debate": debate.DEBATE,
    "tree": tree.WORKLOAD,
    "votes": consistency.WORKLOAD,
}
BALANCES = {"run": False, "call": True}
"""What the baselines bind to a server."""
DRAWS = 2000
"""Of the bootstrap."""
SETTLE_S: Seconds = 3.0
"""Before each load: the worker of vLLM's server spins for a second after its last call, on the core of an idle neighbour."""
Say = Callable[[str], None]
Rounds = Sequence[Sequence[Seconds]]
"""Seconds of each run of each round."""
Counted = Callable[[], Awaitable[dict[str, float]]]


def run(
    names: Sequence[str],
    *,
    rounds: int,
    seconds: Seconds,
    load: float,
    size: str,
    model: Path | None,
    replicas: int,
    policy: str,
    shared: bool,
    balance: str,
    say: Say,
) -> dict[str, Any]:
    """Raises ConfigError for a workload or size that there is not, and when a server does not come up."""
    if unknown := [name for name in names if name not in WORKLOADS]:
        raise ConfigError(f"--workload: expected some of {', '.join(WORKLOADS)}; got {', '.join(unknown)}")
    if model is None and size not in random_model.SIZES:
        raise ConfigError(f"--size: expected one of {', '.join(random_model.SIZES)}; got {size}")
    if balance not in BALANCES:
        raise ConfigError(f"--balance: expected one of {', '.join(BALANCES)}; got {balance}")
    chosen = [WORKLOADS[name] for name in names or WORKLOADS]
    with tempfile.TemporaryDirectory(prefix="flowserve-bench-") as folder:
        path = model or random_model.make(size, Path(folder) / "model")
        setup = Setup(path, replicas, servers.on_gpu(), 4096, policy, shared, BALANCES[balance])
        return asyncio.run(_until_told(_run(chosen, setup, Path(folder), rounds, seconds, load, say)))


async def _until_told(work: Coroutine[Any, Any, dict[str, Any]]) -> dict[str, Any]:
    """A SIGTERM ends it as Ctrl-C does: with its servers."""
    task = asyncio.create_task(work)
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    return await task


async def _run(
    chosen: Sequence[Workload], setup: Setup, folder: Path, rounds: int, seconds: Seconds, load: float, say: Say
) -> dict[str, Any]:
    async with AsyncExitStack() as stack:
        corpora = [workload.corpus() for workload in chosen if workload.corpus is not None]
        await stack.enter_async_context(searching.searchable([text for one in corpora for text in one], folder))
        say(f"starting {setup.engines} vLLM server{'s' if setup.engines > 1 else ''} and FlowServe")
        group = await stack.enter_async_context(engines.vllm(setup, folder))
        ours = await stack.enter_async_context(engines.flowserve(setup, group, folder))
        session = await stack.enter_async_context(
            aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0), timeout=aiohttp.ClientTimeout(total=None), trust_env=False
            )
        )
        urls = [server.url for server in group]
        systems: list[System] = [
            FlowServe(ours.url),
            LangGraph(urls, setup.each_call),
            Plain(urls, session, setup.each_call),
        ]
        tokens = partial(engines.counters, group, engines.VLLM_COUNTERS)
        own = tokens if setup.shared else partial(engines.counters, [ours], engines.FLOWSERVE_COUNTERS)
        waiting = partial(engines.counters, [ours], engines.WAITING_COUNTERS)
        counting = {system.name: partial(_counted, [*group, ours], tokens) for system in systems}
        counting[FlowServe.name] = partial(_counted, [*group, ours], own, waiting)
        rows = []
        for workload in chosen:
            await _warm(systems, workload, seconds, load)
            loads: dict[str, list[dict[str, Any]]] = {system.name: [] for system in systems}
            for number in range(rounds):
                arrivals = workload.arrivals(Random(f"{SEED} {workload.name} {number}"), load, seconds)
                turn = number % len(systems)
                for system in systems[turn:] + systems[:turn]:
                    if setup.shared:
                        await engines.forget(group)
                    loads[system.name].append(await _load(system, workload, arrivals, counting[system.name]))
                last = {name: statistics.fmean(of[-1]["seconds"]) for name, of in loads.items()}
                told = ", ".join(f"{name} {mean:.2f} s" for name, mean in last.items())
                say(f"{workload.name}, round {number + 1}: {len(arrivals)} runs, mean {told}")
            rows.append(_row(workload, loads))
            say(_told(rows[-1]))
    means = [row["speedup_mean"] for row in rows]
    return {
        "workloads": rows,
        "geomean_speedup_mean": math.exp(statistics.fmean(map(math.log, means))),
        "scale": SCALE,
        "load": load,
        "policy": setup.policy,
        "shared": setup.shared,
        "balanced": "call" if setup.each_call else "run",
        "engines": setup.engines,
        "gpu": setup.gpu,
        "dtype": engines.arguments(setup)["dtype"],
    }


async def _warm(systems: Sequence[System], workload: Workload, seconds: Seconds, load: float) -> None:
    """Every system and engine has seen the shapes of the workload, and FlowServe how long its nodes take."""
    arrivals = workload.arrivals(Random(f"warm {workload.name}"), load, min(seconds / 2, 8.0))
    for system in systems:
        await follow(system, workload, arrivals)


async def _counted(group: Sequence[Server], *counted: Counted) -> dict[str, float]:
    found = cpu.spent(group)
    for count in counted:
        found |= await count()
    return found


async def _load(system: System, workload: Workload, arrivals: Sequence[Arrival], counted: Counted) -> dict[str, Any]:
    await asyncio.sleep(SETTLE_S)
    before = await counted()
    began = time.perf_counter()
    done = await follow(system, workload, arrivals)
    took = time.perf_counter() - began
    after = await counted()
    return {
        "workflows": [arrival.workflow for arrival in arrivals],
        "seconds": [seconds for seconds, _ in done],
        "results": [result for _, result in done],
        "took_s": took,
        "counted": {name: after[name] - before[name] for name in after},
    }


# --- figures ----------------------------------------------------------------------------------------------


def _row(workload: Workload, loads: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    ours, theirs = loads["flowserve"], loads["langgraph"]
    only = workload.urgent
    row = {
        "name": workload.name,
        "title": workload.title,
        **speedups(_picked(ours, None), _picked(theirs, None)),
        "throughput_ratio": _rate(ours) / _rate(theirs),
        "outputs_equal": _equal(ours, theirs),
        "outputs_equal_asyncio": _equal(loads["asyncio"], theirs),
        "asyncio_speedup_mean": statistics.fmean(joined(_picked(theirs, None)))
        / statistics.fmean(joined(_picked(loads["asyncio"], None))),
        "runs": len(joined(_picked(ours, None))),
        "systems": {name: _summary(of) for name, of in loads.items()},
    }
    if only is not None:
        row["urgent"] = {"workflow": only, **speedups(_picked(ours, only), _picked(theirs, only))}
        others = [name for name in dict.fromkeys(ours[0]["workflows"]) if name != only]
        row["others"] = {name: speedups(_picked(ours, name), _picked(theirs, name)) for name in others}
    return row


def speedups(ours: Rounds, theirs: Rounds) -> dict[str, Any]:
    """Of paired runs."""
    one, other = joined(ours), joined(theirs)
    return {
        "speedup_mean": statistics.fmean(other) / statistics.fmean(one),
        "speedup_p50": quantile(other, 0.5) / quantile(one, 0.5),
        "speedup_p95": quantile(other, 0.95) / quantile(one, 0.95),
        "ci": interval(ours, theirs),
    }


def interval(ours: Rounds, theirs: Rounds, draws: int = DRAWS) -> list[float]:
    """95 % of the speedup of means, by a paired bootstrap: of rounds, whose runs share a queue, then of runs in them."""
    rnd = Random(SEED)
    rounds = [list(zip(one, other, strict=True)) for one, other in zip(ours, theirs, strict=True)]
    found = []
    for _ in range(draws):
        picked = [pair for runs in rnd.choices(rounds, k=len(rounds)) for pair in rnd.choices(runs, k=len(runs))]
        found.append(sum(other for _, other in picked) / sum(one for one, _ in picked))
    return [quantile(found, 0.025), quantile(found, 0.975)]


def joined(rounds: Rounds) -> list[Seconds]:
    return [seconds for runs in rounds for seconds in runs]


def quantile(values: Sequence[float], share: float) -> float:
    """Linear between the two neighbours."""
    ordered = sorted(values)
    at = share * (len(ordered) - 1)
    low = int(at)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (at - low) * (ordered[high] - ordered[low])


def _picked(loads: Sequence[dict[str, Any]], only: str | None) -> list[list[Seconds]]:
    """Seconds of the runs of each round, of one workflow or of all; without rounds that have none."""
    rounds = [
        [s for workflow, s in zip(load["workflows"], load["seconds"], strict=True) if only in (None, workflow)]
        for load in loads
    ]
    return [runs for runs in rounds if runs]


def _rate(loads: Sequence[dict[str, Any]]) -> float:
    """Runs per second while there was something to do."""
    runs, took = sum(len(load["seconds"]) for load in loads), sum(float(load["took_s"]) for load in loads)
    return runs / took


def _equal(ours: Sequence[dict[str, Any]], theirs: Sequence[dict[str, Any]]) -> float:
    """Share of runs with equal results."""
    pairs = [pair for a, b in zip(ours, theirs, strict=True) for pair in zip(a["results"], b["results"], strict=True)]
    return sum(bool(a == b) for a, b in pairs) / len(pairs)


def _summary(loads: Sequence[dict[str, Any]]) -> dict[str, float]:
    values = joined(_picked(loads, None))
    counted = {name: sum(load["counted"][name] for load in loads) for name in loads[0]["counted"]}
    return {
        "mean_s": statistics.fmean(values),
        **{f"p{round(100 * share)}_s": quantile(values, share) for share in (0.5, 0.95, 0.99)},
        "runs_per_s": _rate(loads),
        "output_tokens_per_s": counted["output_tokens"] / sum(load["took_s"] for load in loads),
        "prefix_hit_share": counted["hit_tokens"] / max(1.0, counted["prompt_tokens"]),
        "computed_prompt_tokens": counted["prompt_tokens"] - counted["hit_tokens"],
        "server_cpu_s": counted["server_cpu_s"],
        "client_cpu_s": counted["client_cpu_s"],
        "other_cpu_share": counted["other_cpu_s"] / sum(load["took_s"] for load in loads) / (os.cpu_count() or 1),
        **_waited(counted),
    }


def _waited(counted: Mapping[str, float]) -> dict[str, float]:
    """Of a system that tells: how long a call waited for an engine and how long it was there, on average."""
    calls = counted.get("calls", 0.0)
    return {"queue_s_per_call": counted["queue_s"] / calls, "call_s": counted["call_s"] / calls} if calls else {}


def _told(row: dict[str, Any]) -> str:
    low, high = row["ci"]
    text = (
        f"{row['name']}: mean x{row['speedup_mean']:.2f} ({low:.2f} to {high:.2f}), p95 x{row['speedup_p95']:.2f}, "
        f"throughput x{row['throughput_ratio']:.2f}, equal {row['outputs_equal']:.2f} "
        f"(asyncio {row['outputs_equal_asyncio']:.2f}), asyncio x{row['asyncio_speedup_mean']:.2f}"
    )
    if "urgent" in row:
        text += f"; {row['urgent']['workflow']} mean x{row['urgent']['speedup_mean']:.2f}, p95 x{row['urgent']['speedup_p95']:.2f}"
    return text
