"""vLLM's own servers for the baselines, and FlowServe with as many engines of its own, alike in every argument.

On a CPU an engine per core; on a GPU all on the one device, each with its share of memory. What is not measured rests. With
`shared`, FlowServe stands in front of the baselines' servers instead: these order by priority where they are given
one, nobody but FlowServe gives one, and without it that is first come, first served.
"""

import json
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flowserve.bench import httpload, servers
from flowserve.bench.servers import FLOWSERVE, VLLM, Server
from flowserve.bench.workflows import lean, searching
from flowserve.bench.workflows.systems import MODEL


@dataclass(frozen=True, slots=True)
class Setup:
    """What the servers are."""

    model: Path
    engines: int
    gpu: bool
    max_model_len: int
    policy: str
    shared: bool = False
    """FlowServe asks the servers of the others; else it has engines of its own, which rest while others are measured."""
    each_call: bool = False
    """The baselines balance calls; else they bind each run to a server."""


def arguments(setup: Setup) -> dict[str, Any]:
    """The same for all engines."""
    given: dict[str, Any] = {
        "max_num_seqs": 128,
        "max_model_len": setup.max_model_len,
        "enable_prefix_caching": True,
    }
    if setup.gpu:
        share = round(0.84 / (setup.engines * (1 if setup.shared else 2)), 3)
        return given | {"dtype": "bfloat16", "max_num_seqs": 256, "gpu_memory_utilization": share}
    return given | servers.precision(512 << 20) | {"enforce_eager": True, "block_size": 32}


def _flag(name: str, value: Any) -> list[str]:
    flag = f"--{name.replace('_', '-')}"
    return [flag] if value is True else [flag, str(value)]


@asynccontextmanager
async def vllm(setup: Setup, folder: Path) -> AsyncIterator[list[Server]]:
    """Started one after the other: side by side they only slow each other."""
    async with AsyncExitStack() as stack:
        found = []
        for number in range(setup.engines):
            port = servers.free_port()
            environment = {"VLLM_LOGGING_LEVEL": "ERROR", "VLLM_SERVER_DEV_MODE": "1"}
            if not setup.gpu:
                environment |= lean.ENVIRONMENT
            own = {"model": setup.model, "served_model_name": MODEL, "port": port}
            own |= {"scheduling_policy": "priority"} if setup.shared else {}
            flags = [part for name, value in {**arguments(setup), **own}.items() for part in _flag(name, value)]
            command = [*VLLM, *flags, "--disable-uvicorn-access-log"]
            log = folder / f"vllm-{number}.log"
            serving = servers.started(command, port, "/health", log, environment=environment, timeout_s=300)
            found.append(await stack.enter_async_context(serving))
            if not setup.gpu:
                lean.pin(found[-1], number)
        yield found


@asynccontextmanager
async def flowserve(setup: Setup, behind: Sequence[Server], folder: Path) -> AsyncIterator[Server]:
    """Its indexes are in `folder`; see `searching`."""
    port = servers.free_port()
    pool = folder / "pool.toml"
    pool.write_text(_shared(setup, behind) if setup.shared else _own(setup))
    served = Path(__file__).with_name("served.py")
    command = [*FLOWSERVE, "serve", str(served), "--pool", str(pool), "--port", str(port), "--policy", setup.policy]
    command += ["--indexes", str(folder / searching.INDEXES), "--embedder", searching.EMBEDDER]
    async with servers.started(command, port, "/ready", folder / "flowserve.log") as server:
        yield server


def _shared(setup: Setup, behind: Sequence[Server]) -> str:
    urls = ", ".join(f'"{server.url}"' for server in behind)
    return (
        f'[[engine]]\nkind = "openai"\nurl = [{urls}]\nmodel = "{MODEL}"\ntokenizer = "{setup.model}"\n'
        "priority = true\nwindow = 128\n"
    )


def _own(setup: Setup) -> str:
    args = "\n".join(f"{name} = {json.dumps(value)}" for name, value in arguments(setup).items())
    cores = "" if setup.gpu else f"cores = {json.dumps([str(core) for core in range(setup.engines)])}\n"
    return (
        f'[[engine]]\nkind = "vllm"\nmodel = "{setup.model}"\nname = "{MODEL}"\nreplicas = {setup.engines}\n{cores}'
        f"[engine.args]\n{args}\n"
    )


async def forget(group: Sequence[Server]) -> None:
    """Empty the prefix caches: what one system computed is not there for the next."""
    for server in group:
        connection = await httpload.connect(server.url)
        await connection.send(httpload.request_bytes(f"{server.url}/reset_prefix_cache", None))
        connection.close()


VLLM_COUNTERS = {
    "vllm:prompt_tokens_total": "prompt_tokens",
    "vllm:prefix_cache_hits_total": "hit_tokens",
    "vllm:generation_tokens_total": "output_tokens",
    "vllm:num_preemptions_total": "preemptions",
}
FLOWSERVE_COUNTERS = {
    'flowserve_tokens_total direction="in"': "prompt_tokens",
    'flowserve_tokens_total direction="cached"': "hit_tokens",
    'flowserve_tokens_total direction="out"': "output_tokens",
}
WAITING_COUNTERS = {
    'flowserve_node_queue_seconds_sum kind="llm"': "queue_s",
    'flowserve_node_queue_seconds_count kind="llm"': "calls",
    'flowserve_node_seconds_sum kind="llm"': "call_s",
}
"""Of FlowServe: how long model calls waited for an engine, how many they were, and how long engines had them."""


async def counters(group: Sequence[Server], names: Mapping[str, str]) -> dict[str, float]:
    """Sums over servers since they started, from /metrics. `names`: metric, with a label where one is meant -> ours."""
    found = dict.fromkeys(names.values(), 0.0)
    for server in group:
        connection = await httpload.connect(server.url)
        answer = await connection.send(httpload.request_bytes(f"{server.url}/metrics", None, "GET"))
        connection.close()
        for line in answer.body.decode().splitlines():
            sample, _, value = line.rpartition(" ")
            for wanted, name in names.items():
                metric, _, label = wanted.partition(" ")
                if sample.partition("{")[0] == metric and label in sample:
                    found[name] += float(value)
    return found
