"""vLLM's own servers on a CPU, laid out as FlowServe lays out its engines: the model computes inside EngineCore, on one core.

As vLLM starts them, a worker process stands beside EngineCore and both turn while they wait: four processes for two engines on
two cores. FlowServe's engines gain by their layout then, which is no matter of scheduling: with it, triage in LangGraph took
3.0 s instead of 3.5 to 4.1 (single rounds on a busy machine). On a GPU vLLM has this layout by itself.
"""

import os
from pathlib import Path

from flowserve.bench.servers import Server
from flowserve.errors import ConfigError

ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # no worker process; EngineCore stays one of its own behind the server
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "OMP_NUM_THREADS": "1",
}
ENGINE_CORE = "VLLM::EngineCor"
"""As Linux cuts the name."""


def pin(server: Server, core: int) -> None:
    """Bind EngineCore of `server` to one core, with all its threads. The server itself may run anywhere."""
    bound = 0
    for task in Path("/proc").glob("[0-9]*/task/[0-9]*"):
        try:
            stat = (task / "stat").read_text()
            rest = stat.rpartition(")")[2].split()
            if int(rest[2]) == server.pid and (task.parents[1] / "comm").read_text().startswith(ENGINE_CORE):
                os.sched_setaffinity(int(task.name), {core})
                bound += 1
        except (OSError, ValueError):
            continue  # it has ended
    if not bound:
        raise ConfigError(f"expected a process {ENGINE_CORE} behind the vLLM server at {server.url}; found none")
