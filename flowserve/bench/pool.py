"""FlowServe over vLLM against vLLM itself: what the layer costs for single calls, and what it gains on sessions.

Three parts, each interleaved (baseline, FlowServe, baseline, ...) with the same requests in the same order:

- *added*: a canned engine behind FlowServe, in its process and as a server (`mock_engine`), against that server asked
  directly; FlowServe has one core. Added latency at rising rates, the greatest rate, CPU time per request.
- *single calls*: chat completions at rising concurrency, one vLLM engine behind FlowServe against the same engine behind
  vLLM's own OpenAI server. Prompts share nothing, so that there is nothing to gain.
- *sessions*: talks of several turns, two engines: FlowServe's pool against round robin over two vLLM servers (and
  `vllm-router` with two policies, where it is installed), prefix caching on everywhere.

Ratios are FlowServe / baseline, medians over rounds: throughput above 1 and latencies below 1 are gains.
"""

import asyncio
import json
import os
import random
import shutil
import signal
import statistics
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flowserve.bench import httpload, random_model, servers
from flowserve.bench.httpload import Load, request_bytes
from flowserve.bench.servers import FLOWSERVE, VLLM, Server
from flowserve.errors import ConfigError
from flowserve.ids import Seconds, Tokens

SEED = 11
IN_PROCESS, OVER_HTTP = "in process", "over HTTP"
PARTS = ("added", "single", "sessions")
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Plan:
    """How much is measured."""

    concurrency: tuple[int, ...] = (1, 8, 32, 128)
    requests: tuple[int, ...] = (12, 48, 128, 256)
    """Per concurrency and round."""
    prompt_words: int = 128
    output_tokens: Tokens = 64
    rounds: int = 3
    rates: tuple[int, ...] = (100, 500, 1000, 1500)
    rate_s: Seconds = 5.0
    flood: int = 4000
    """Requests of the load that goes as fast as it can."""
    sessions: int = 16
    turns: int = 6
    system_words: int = 256
    turn_words: int = 192
    session_output: Tokens = 32
    think_s: Seconds = 0.5
    """Mean pause before a turn, exponential: in lockstep, round robin over an even number would be sticky by chance."""
    kv_bytes: int = 256 << 20


QUICK = Plan((1, 8), (4, 16), rounds=1, rates=(200,), rate_s=2.0, flood=500, sessions=4, turns=3)
ROUTER_POLICIES = ("round_robin", "cache_aware")
"""Of vllm-router; the second is its default."""
SETTLE_S: Seconds = 3.0
"""Before each load: the worker of vLLM's server spins for a second after its last call, on the core of both engines."""


def run(model: Path | None, size: str, quick: bool, parts: Sequence[str], say: Say) -> dict[str, Any]:
    """`model`: a folder, or None for random weights of `size`. `parts`: of PARTS.

    Raises ConfigError when vLLM or a server does not come up, and for a part or size that there is not.
    """
    if unknown := [part for part in parts if part not in PARTS]:
        raise ConfigError(f"--part: expected some of {', '.join(PARTS)}; got {', '.join(unknown)}")
    if model is None and size not in random_model.SIZES:
        raise ConfigError(f"--size: expected one of {', '.join(random_model.SIZES)}; got {size}")
    plan = QUICK if quick else Plan()
    with tempfile.TemporaryDirectory(prefix="flowserve-bench-") as folder:
        path = model or random_model.make(size, Path(folder) / "model")
        return asyncio.run(_until_told(_run(plan, path, Path(folder), parts, say)))


async def _until_told(work: Coroutine[Any, Any, dict[str, Any]]) -> dict[str, Any]:
    """A SIGTERM ends it as Ctrl-C does: with its servers."""
    task = asyncio.create_task(work)
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    return await task


async def _run(plan: Plan, model: Path, folder: Path, parts: Sequence[str], say: Say) -> dict[str, Any]:
    results: dict[str, Any] = {"cases": [], "added_ms_p50": None}
    if "added" in parts:
        results["added"] = await _added(plan, folder, say)
        within = [row for row in results["added"] if row["engine"] == IN_PROCESS and row["rate"]]
        results["added_ms_p50"] = within[-1]["added_ms_p50"]
    if "single" in parts:
        results["cases"] += await _single(plan, model, folder, say)
    if "sessions" in parts:
        results["cases"] += await _sessions(plan, model, folder, say)
    return results


# --- the cost of the layer --------------------------------------------------------------------------------


async def _added(plan: Plan, folder: Path, say: Say) -> list[dict[str, Any]]:
    """FlowServe on core 0, first with a canned engine in its own process, then with the canned server as its engine; that
    server, which is also asked directly, and the load on core 1."""
    cores = sorted(os.sched_getaffinity(0))
    own, other = cores[0], cores[-1]
    os.sched_setaffinity(0, {other})
    try:
        async with AsyncExitStack() as stack:
            port = servers.free_port()
            command = [sys.executable, "-m", "flowserve.bench.mock_engine", "--port", str(port)]
            canned = servers.started(command, port, "/health", folder / "mock.log", cores=[other])
            mock = await stack.enter_async_context(canned)
            pool = folder / "mock.toml"
            pool.write_text(f'[[engine]]\nkind = "openai"\nurl = "{mock.url}"\nwindow = 512\n')
            rows = []
            for name, command in {
                IN_PROCESS: [sys.executable, "-c", WITH_CANNED_ENGINE, "serve", "--engine", "mock", "--model", "mock"],
                OVER_HTTP: [*FLOWSERVE, "serve", "--pool", str(pool)],
            }.items():
                port = servers.free_port()
                serving = servers.started(
                    [*command, "--port", str(port)],
                    port,
                    "/ready",
                    folder / "flowserve-mock.log",
                    cores=[own],
                    environment={"HF_HUB_OFFLINE": "1"},  # the canned model has no tokenizer anywhere
                )
                async with serving as flowserve:
                    rows += await _paced_pairs(plan, name, mock, flowserve, say)
            return rows
    finally:
        os.sched_setaffinity(0, cores)


WITH_CANNED_ENGINE = """
from flowserve.assemble.engines import ENGINES
from flowserve.bench.canned import CannedEngine
from flowserve.cli import main

ENGINES["mock"] = lambda *_: CannedEngine()
main()
"""


async def _paced_pairs(plan: Plan, engine: str, mock: Server, flowserve: Server, say: Say) -> list[dict[str, Any]]:
    body = {"model": "mock", "messages": [{"role": "user", "content": "hello there"}], "max_tokens": 16}
    rows: list[dict[str, Any]] = []
    for rate in plan.rates:
        loads: dict[str, Load] = {}
        for name, server in (("direct", mock), ("flowserve", flowserve)):
            data = request_bytes(f"{server.url}/v1/chat/completions", body)
            await httpload.paced(server.url, data, rate, plan.rate_s / 5)  # warm
            before = server.cpu_s()
            loads[name] = await httpload.paced(server.url, data, rate, plan.rate_s)
            cpu_us = 1e6 * (server.cpu_s() - before) / max(1, len(loads[name].answers))
        direct, ours = (_quantiles([a.seconds for a in load.answers]) for load in loads.values())
        row = {"engine": engine, "rate": rate, "reached": loads["flowserve"].rate, "errors": loads["flowserve"].errors}
        row |= {f"added_ms_{key}": 1000 * (ours[key] - direct[key]) for key in ours}
        rows.append(row | {"cpu_us_per_request": cpu_us})
        say(
            f"canned engine {engine}, {rate} requests/s: added {row['added_ms_p50']:.2f} ms p50, {cpu_us:.0f} us of CPU"
        )
    data = request_bytes(f"{flowserve.url}/v1/chat/completions", body)
    load = await httpload.closed([(flowserve.url, data)] * plan.flood, 32)
    say(f"canned engine {engine}, as fast as it goes: {load.rate:.0f} requests/s on one core")
    return [*rows, {"engine": engine, "rate": None, "reached": load.rate, "errors": load.errors}]


# --- single calls -----------------------------------------------------------------------------------------


async def _single(plan: Plan, model: Path, folder: Path, say: Say) -> list[dict[str, Any]]:
    rnd = random.Random(SEED)
    async with AsyncExitStack() as stack:
        say("starting vLLM's own server and FlowServe")
        vllm, flowserve = await _both(stack, plan, model, folder, replicas=1)
        await _warm(plan, model, [*vllm, flowserve])
        cases = []
        for stream in (False, True):
            for concurrency, count in zip(plan.concurrency, plan.requests, strict=True):
                name = "single calls, streamed" if stream else "single calls"
                pairs = []
                for _ in range(plan.rounds):
                    bodies = [_chat(rnd, plan, stream) for _ in range(count)]
                    pair = {}
                    for who, server in (("baseline", vllm[0]), ("flowserve", flowserve)):
                        await asyncio.sleep(SETTLE_S)
                        requests = [_to(server, body, model) for body in bodies]
                        pair[who] = await httpload.closed(requests, concurrency)
                    pairs.append(pair)
                cases.append(_case(name, concurrency, pairs))
                say(_told(cases[-1]))
        return cases


async def _warm(plan: Plan, model: Path, group: Sequence[Server]) -> None:
    """Each has seen every batch size: vLLM on a CPU compiles at the first."""
    rnd = random.Random(0)
    for server in group:
        for concurrency in plan.concurrency:
            bodies = [_chat(rnd, plan, stream=False) | {"max_tokens": 4} for _ in range(concurrency)]
            await httpload.closed([_to(server, body, model) for body in bodies], concurrency)


def _chat(rnd: random.Random, plan: Plan, stream: bool) -> dict[str, Any]:
    words = " ".join(rnd.choices(random_model.WORDS, k=plan.prompt_words))
    body: dict[str, Any] = {"messages": [{"role": "user", "content": words}], "temperature": 0}
    body |= {"max_tokens": plan.output_tokens, "stream": stream}
    if stream:
        body["stream_options"] = {"include_usage": True}
    return body


def _to(server: Server, body: dict[str, Any], model: Path) -> tuple[str, bytes]:
    return server.url, request_bytes(f"{server.url}/v1/chat/completions", {"model": "bench", **body})


@asynccontextmanager
async def _vllm(plan: Plan, model: Path, folder: Path, core: int) -> AsyncIterator[Server]:
    """vLLM's own OpenAI server, its engine bound to `core`."""
    port = servers.free_port()
    arguments = {**_engine_args(plan), "model": str(model), "served_model_name": "bench", "port": port}
    flags = [part for name, value in arguments.items() for part in _flag(name, value)]
    environment = {"VLLM_CPU_OMP_THREADS_BIND": str(core), "VLLM_LOGGING_LEVEL": "ERROR"}
    log = folder / f"vllm-{core}.log"
    command = [*VLLM, *flags, "--disable-uvicorn-access-log"]
    async with servers.started(command, port, "/health", log, environment=environment) as server:
        yield server


def _flag(name: str, value: Any) -> list[str]:
    flag = f"--{name.replace('_', '-')}"
    return [flag] if value is True else [flag, str(value)]


def _engine_args(plan: Plan) -> dict[str, Any]:
    """The same for both."""
    return {
        "enforce_eager": True,
        "max_num_seqs": 128,
        "max_model_len": 4096,
        "enable_prefix_caching": True,
        **servers.precision(plan.kv_bytes),
    }


@asynccontextmanager
async def _flowserve(plan: Plan, model: Path, folder: Path, replicas: int) -> AsyncIterator[Server]:
    port = servers.free_port()
    pool = folder / "pool.toml"
    args = "\n".join(f"{name} = {json.dumps(value)}" for name, value in _engine_args(plan).items())
    cores = json.dumps([str(core) for core in range(replicas)])
    pool.write_text(
        f'[[engine]]\nkind = "vllm"\nmodel = "{model}"\nname = "bench"\nreplicas = {replicas}\ncores = {cores}\n'
        f"[engine.args]\n{args}\n"
    )
    command = [*FLOWSERVE, "serve", "--pool", str(pool), "--port", str(port)]
    async with servers.started(command, port, "/ready", folder / "flowserve.log") as server:
        yield server


async def _both(
    stack: AsyncExitStack, plan: Plan, model: Path, folder: Path, replicas: int
) -> tuple[list[Server], Server]:
    """Baseline servers and FlowServe, started one after the other: side by side they only slow each other."""
    baseline = [await stack.enter_async_context(_vllm(plan, model, folder, core)) for core in range(replicas)]
    return baseline, await stack.enter_async_context(_flowserve(plan, model, folder, replicas))


# --- sessions ---------------------------------------------------------------------------------------------


async def _sessions(plan: Plan, model: Path, folder: Path, say: Say) -> list[dict[str, Any]]:
    async with AsyncExitStack() as stack:
        say("starting two of vLLM's own servers and FlowServe with two engines")
        vllm, flowserve = await _both(stack, plan, model, folder, replicas=2)
        opponents: dict[str, list[Server]] = {"round robin": vllm}
        router = shutil.which("vllm-router")
        if router is not None:
            for policy in ROUTER_POLICIES:
                serving = _router(router, policy, vllm, folder)
                opponents[f"vllm-router {policy}"] = [await stack.enter_async_context(serving)]
        await _warm(plan, model, [*vllm, flowserve])
        cases = []
        for name, baseline in opponents.items():
            pairs = []
            for number in range(plan.rounds):
                pair = {}
                for who, group in (("baseline", baseline), ("flowserve", [flowserve])):
                    await asyncio.sleep(SETTLE_S)
                    talks = _Talks(plan, group, random.Random(f"{name} {number}"))
                    pair[who] = await talks.run()
                pairs.append(pair)
            cases.append(_case(f"sessions against {name}", plan.sessions, pairs))
            say(_told(cases[-1]))
        return cases


@asynccontextmanager
async def _router(program: str, policy: str, behind: Sequence[Server], folder: Path) -> AsyncIterator[Server]:
    port, metrics = servers.free_port(), servers.free_port()
    urls = [server.url for server in behind]
    command = [program, "--worker-urls", *urls, "--host", "127.0.0.1", "--port", str(port), "--policy", policy]
    command += ["--prometheus-port", str(metrics)]
    async with servers.started(command, port, "/health", folder / f"router-{policy}.log") as server:
        yield server


@dataclass(slots=True)
class _Talks:
    """Sessions at once, each a talk of several turns; requests go to `group` in turn."""

    plan: Plan
    group: Sequence[Server]
    rnd: random.Random
    load: Load = field(default_factory=Load)
    sent: int = 0

    async def run(self) -> Load:
        plan = self.plan
        system = " ".join(self.rnd.choices(random_model.WORDS, k=plan.system_words))
        scripts = [
            [
                (
                    self.rnd.expovariate(1 / plan.think_s),
                    " ".join(self.rnd.choices(random_model.WORDS, k=plan.turn_words)),
                )
                for _ in range(plan.turns)
            ]
            for _ in range(plan.sessions)
        ]
        began = asyncio.get_running_loop().time()
        await asyncio.gather(*(self._talk(system, script) for script in scripts))
        self.load.seconds = asyncio.get_running_loop().time() - began
        return self.load

    async def _talk(self, system: str, script: Sequence[tuple[Seconds, str]]) -> None:
        messages = [{"role": "system", "content": system}]
        for pause, text in script:
            await asyncio.sleep(pause)
            messages.append({"role": "user", "content": text})
            server = self.group[self.sent % len(self.group)]
            self.sent += 1
            body = {"model": "bench", "messages": messages, "temperature": 0, "max_tokens": self.plan.session_output}
            answer = await _once(server.url, request_bytes(f"{server.url}/v1/chat/completions", body))
            self.load.add(answer)
            said = answer.json["choices"][0]["message"]["content"] if answer.status == 200 else ""
            messages.append({"role": "assistant", "content": said})


async def _once(url: str, data: bytes) -> httpload.Answer:
    """On a connection of its own: a server hangs up on one that was idle for some seconds."""
    connection = await httpload.connect(url)
    try:
        return await connection.send(data)
    finally:
        connection.close()


# --- figures ----------------------------------------------------------------------------------------------


def _case(name: str, concurrency: int, pairs: Sequence[dict[str, Load]]) -> dict[str, Any]:
    """Medians over rounds of FlowServe / baseline."""
    ratios: dict[str, list[float]] = {"throughput": [], "p50": [], "p95": [], "first_p50": []}
    for pair in pairs:
        ours, theirs = _figures(pair["flowserve"]), _figures(pair["baseline"])
        for key, found in ratios.items():
            if theirs[key]:
                found.append(ours[key] / theirs[key])
    last = {who: _figures(load) for who, load in pairs[-1].items()}
    return {
        "name": name,
        "concurrency": concurrency,
        "throughput_ratio": statistics.median(ratios["throughput"]),
        "p50_ratio": statistics.median(ratios["p50"]),
        "p95_ratio": statistics.median(ratios["p95"]),
        "first_byte_p50_ratio": statistics.median(ratios["first_p50"]),
        "rounds": ratios,
        "last_round": last,
        "errors": {who: sum(pair[who].errors for pair in pairs) for who in ("baseline", "flowserve")},
        "first_error": next((load.first_error for pair in pairs for load in pair.values() if load.first_error), None),
    }


def _figures(load: Load) -> dict[str, float]:
    tokens = sum(_output_tokens(answer) for answer in load.answers)
    return {
        "throughput": tokens / load.seconds,
        **_quantiles([answer.seconds for answer in load.answers]),
        "first_p50": _quantiles([answer.first_s for answer in load.answers])["p50"],
    }


def _output_tokens(answer: httpload.Answer) -> int:
    if not answer.body.startswith(b"data:"):
        return int(answer.json["usage"]["completion_tokens"])
    events = [json.loads(line[6:]) for line in answer.body.split(b"\n") if line.startswith(b"data: {")]
    usage = next((event["usage"] for event in reversed(events) if event.get("usage")), {"completion_tokens": 0})
    return int(usage["completion_tokens"])


def _quantiles(values: Sequence[Seconds]) -> dict[str, Seconds]:
    ordered = sorted(values)
    if not ordered:
        return {"p50": 0.0, "p95": 0.0}
    return {
        name: ordered[min(len(ordered) - 1, int(share * len(ordered)))] for name, share in (("p50", 0.5), ("p95", 0.95))
    }


def _told(case: dict[str, Any]) -> str:
    return (
        f"{case['name']}, concurrency {case['concurrency']}: throughput x{case['throughput_ratio']:.3f}, "
        f"p50 x{case['p50_ratio']:.3f}, p95 x{case['p95_ratio']:.3f}"
    )
