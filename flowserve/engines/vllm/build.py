"""Settings to an AsyncLLM: engine arguments, environment, and the quick way on a CPU.

The quick way. vLLM's own way on a CPU begins three interpreters one after another (front end, EngineCore, worker) and
takes 15 to 25 s. In a replica process, with one core and no parallelism, the worker runs inside EngineCore (executor
"uni") and EngineCore is forked from the replica, so nothing is imported twice: 0.5 s, and prefill and decode are as
fast. It needs a process that has not computed anything yet (libgomp's threads do not survive a fork), so it is not
for inline hosts; and one core, because threads of a forked EngineCore cannot be bound to theirs: with two cores it
was faster on an idle machine, and twenty times slower beside another busy process. Measured with vLLM 0.32 on 2
cores, 2026-11.
"""

import contextlib
import dataclasses
import difflib
import importlib
import json
import math
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from flowserve.engines.vllm import wire
from flowserve.engines.vllm.kv_news import endpoint
from flowserve.engines.vllm.plugin import PARENT
from flowserve.engines.vllm.settings import PARALLEL, parse_cores
from flowserve.errors import ConfigError
from flowserve.ids import Bytes

KV_BYTES: Bytes = 1 << 30
CPU_BLOCK_TOKENS = 32
"""vLLM's own is 128 on a CPU, of which a prefix loses 64 on average. Throughput is the same (66M parameters, batch 1
to 32)."""
LORA_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""What vLLM takes as max_lora_rank."""
CONNECTOR = "flowserve.engines.vllm.connector"
SCHEDULERS = {
    False: "flowserve.engines.vllm.scheduler.FlowServeScheduler",
    True: "flowserve.engines.vllm.scheduler.AsyncFlowServeScheduler",
}
"""By whether vLLM schedules asynchronously."""


@dataclasses.dataclass(frozen=True, slots=True)
class Plan:
    """A checked vLLM configuration, and how its processes shall be begun."""

    config: Any
    """VllmConfig."""
    core: int | None
    """The quick way, on this core; None: vLLM's own way."""


def plan(start: wire.Start, alone: bool) -> Plan:
    """alone: in a replica process, of which everything may be changed.

    Raises ConfigError for arguments that vLLM does not know or does not accept.
    """
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.platforms import current_platform

    known = {field.name for field in dataclasses.fields(AsyncEngineArgs)}
    _check_names(start.args, known)
    on_cpu = current_platform.is_cpu()
    cores = _cores(start.cores) if on_cpu else ()
    workers = math.prod(start.args.get(name, 1) for name in PARALLEL)
    quick = alone and len(cores) == workers == 1 and not start.args.get("distributed_executor_backend")
    os.environ.update({"VLLM_RPC_BASE_PATH": start.folder, PARENT: str(os.getpid())})
    if len(cores) >= workers:
        os.environ["VLLM_CPU_OMP_THREADS_BIND"] = _shared_out(cores, workers)
    if quick:
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    try:
        config = AsyncEngineArgs(**_arguments(start, on_cpu)).create_engine_config()
    except (ValueError, TypeError, OSError, NotImplementedError, AssertionError) as error:
        raise ConfigError(f"vLLM does not accept the settings of model '{start.model}': {error}") from error
    if on_cpu and "kv_cache_memory_bytes" not in start.args:
        config.cache_config.kv_cache_memory_bytes = start.kv_bytes or _kv_bytes(config)
    if start.scheduler and config.scheduler_config.scheduler_cls is None:
        config.scheduler_config.scheduler_cls = SCHEDULERS[bool(config.scheduler_config.async_scheduling)]
    if on_cpu and config.model_config.enforce_eager:
        # vLLM compiles its sampler all the same, at the first call that samples or wants logprobs: seven seconds for
        # microseconds.
        os.environ["TORCH_COMPILE_DISABLE"] = "1"
    quick = quick and config.parallel_config.distributed_executor_backend == "uni"
    return Plan(config, min(cores) if quick else None)


@contextlib.contextmanager
def borrowed_environment(alone: bool) -> Iterator[None]:
    """What vLLM and we set in it while vLLM starts does not stay, unless the process is ours alone."""
    before = dict(os.environ)
    try:
        yield
    finally:
        if not alone:
            os.environ.clear()
            os.environ.update(before)


@contextlib.contextmanager
def quick_fork(planned: Plan, folder: str) -> Iterator[None]:
    """While it is open, EngineCore is forked from this process onto the plan's core. Does nothing for other plans."""
    if planned.core is None:
        yield
        return
    torch = importlib.import_module("torch")
    if os.environ.get("TORCH_COMPILE_DISABLE") == "1":  # torch has read it already
        setattr(importlib.import_module("torch._dynamo.config"), "disable", True)  # noqa: B010 a module
        tempfile.tempdir = folder  # vLLM's executor leaves a file there; compiled code should stay
    before = os.sched_getaffinity(0)
    os.environ["VLLM_WORKER_MULTIPROC_METHOD"] = "fork"
    torch.set_num_threads(1)
    os.sched_setaffinity(0, {planned.core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def _cores(text: str) -> tuple[int, ...]:
    return parse_cores(text) if text else tuple(sorted(os.sched_getaffinity(0)))


def _check_names(args: Mapping[str, Any], known: set[str]) -> None:
    for name in args:
        if name not in known:
            near = difflib.get_close_matches(name, sorted(known), n=3, cutoff=0.5)
            hint = f"; near matches: {', '.join(near)}" if near else ""
            raise ConfigError(f"VLLMSettings.args: expected fields of vLLM's AsyncEngineArgs; got '{name}'{hint}")


def _shared_out(cores: Sequence[int], workers: int) -> str:
    """In vLLM's form: the same number for each worker."""
    share = len(cores) // workers
    lists = (cores[i * share : (i + 1) * share] for i in range(workers))
    return "|".join(",".join(map(str, part)) for part in lists)


def _arguments(start: wire.Start, on_cpu: bool) -> dict[str, Any]:
    """Our defaults under the user's arguments. Prefix caching is on in vLLM wherever the model allows it."""
    arguments: dict[str, Any] = {"model": start.model, "scheduling_policy": "priority", "disable_log_stats": True}
    if on_cpu:
        arguments |= {"enforce_eager": True, "block_size": CPU_BLOCK_TOKENS}
    if start.loras:
        arguments |= {"enable_lora": True, "max_loras": min(len(start.loras), 8), "max_lora_rank": _rank(start.loras)}
    if start.kv_events:
        arguments["kv_events_config"] = {
            "enable_kv_cache_events": True,
            "publisher": "zmq",
            "endpoint": endpoint(start.folder),
        }
    if start.reuse is not None:
        arguments |= _connector()
    arguments |= start.args
    structured = arguments.get("structured_outputs_config") or {}
    if isinstance(structured, dict):
        arguments["structured_outputs_config"] = {"backend": "guidance", **structured}
    return arguments


def _connector() -> dict[str, Any]:
    """vLLM's own extension points, by which chunks of KV get in."""
    from vllm.config import KVTransferConfig

    return {
        "worker_extension_cls": f"{CONNECTOR}.binding.Binding",
        "kv_transfer_config": KVTransferConfig(
            kv_connector="ReuseConnector",
            kv_connector_module_path=f"{CONNECTOR}.connector",
            kv_role="kv_both",
            kv_load_failure_policy="recompute",
        ),
    }


def _rank(loras: Mapping[str, str]) -> int:
    """The smallest that vLLM takes and every adapter fits."""
    highest = 8
    for name, folder in loras.items():
        config = Path(folder) / "adapter_config.json"
        if not config.is_file():
            raise ConfigError(
                f"VLLMSettings.loras: '{name}': expected a folder with adapter_config.json; got '{folder}'"
            )
        highest = max(highest, json.loads(config.read_text()).get("r", 8))
    return next((rank for rank in LORA_RANKS if rank >= highest), LORA_RANKS[-1])


def _kv_bytes(config: Any) -> Bytes:
    """vLLM refuses to start when not even one whole context fits."""
    torch, psutil = importlib.import_module("torch"), importlib.import_module("psutil")
    model = config.model_config
    width = model.get_num_kv_heads(config.parallel_config) * model.get_head_size()
    dtype = config.cache_config.cache_dtype
    size = torch.empty(0, dtype=model.dtype).element_size() if dtype == "auto" else 1
    context = 2 * model.get_num_layers(config.parallel_config) * width * size * (model.max_model_len + CPU_BLOCK_TOKENS)
    return max(KV_BYTES, context) if context <= psutil.virtual_memory().available // 2 else KV_BYTES
