"""What a server's `/metrics` say of its load: the few numbers that a pool needs, out of Prometheus' text.

Names are vLLM's (0.32, vllm/v1/metrics/loggers.py) and SGLang's (docs/references/production_metrics.md).
"""

import math
import re
from dataclasses import dataclass

from flowserve.ids import Tokens


@dataclass(frozen=True, slots=True)
class Names:
    """What a kind of server calls them. Counters may be several that are added up."""

    running: str
    waiting: str
    kv_used: str
    steps: tuple[str, ...]
    preemptions: str
    prefix_asked: str
    prefix_hit: str


VLLM = Names(
    running="vllm:num_requests_running",
    waiting="vllm:num_requests_waiting",
    kv_used="vllm:kv_cache_usage_perc",
    steps=("vllm:iteration_tokens_total_count",),
    preemptions="vllm:num_preemptions_total",
    prefix_asked="vllm:prefix_cache_queries_total",
    prefix_hit="vllm:prefix_cache_hits_total",
)
SGLANG = Names(
    running="sglang:num_running_reqs",
    waiting="sglang:num_queue_reqs",
    kv_used="sglang:token_usage",
    steps=("sglang:generation_tokens_total", "sglang:prompt_tokens_total"),
    preemptions="",
    prefix_asked="sglang:prompt_tokens_total",
    prefix_hit="sglang:cached_tokens_total",
)


@dataclass(frozen=True, slots=True)
class Load:
    """A reading."""

    running: int = 0
    waiting: int = 0
    kv_used: float = 0.0
    """Mean over the engines behind the server."""
    steps: int = 0
    preemptions: int = 0
    prefix_asked: Tokens = 0
    prefix_hit: Tokens = 0
    kv_tokens: Tokens = 0
    """0: not told."""
    born: float = 0.0
    """When the server's process began, in seconds since 1970; 0: not told."""


BORN = "process_start_time_seconds"
_SAMPLE = re.compile(rf"^([a-z_]+:[a-z_]+|{BORN})(?:\{{[^\n]*\}})? (\S+)", re.MULTILINE)
_CACHE = re.compile(r"^vllm:cache_config_info\{([^\n]*)\}", re.MULTILINE)
_LABEL = re.compile(r'(?<!\w)(kv_cache_size_tokens|num_gpu_blocks|block_size)="(\d+)"')


def read_load(text: str, names: Names) -> Load | None:
    """None when `text` has none of the names."""
    found: dict[str, list[float]] = {}
    for name, value in _SAMPLE.findall(text):
        found.setdefault(name, []).append(_number(value))
    if names.running not in found:
        return None

    def total(*wanted: str) -> int:
        return int(sum(sum(found.get(name, ())) for name in wanted))

    used = found.get(names.kv_used) or [0.0]
    return Load(
        running=total(names.running),
        waiting=total(names.waiting),
        kv_used=min(1.0, max(0.0, sum(used) / len(used))),
        steps=total(*names.steps),
        preemptions=total(names.preemptions),
        prefix_asked=total(names.prefix_asked),
        prefix_hit=total(names.prefix_hit),
        kv_tokens=sum(map(_kv_tokens, _CACHE.findall(text))),
        born=max(found.get(BORN, [0.0])),
    )


def _kv_tokens(labels: str) -> Tokens:
    sizes = {name: int(value) for name, value in _LABEL.findall(labels)}
    return sizes.get("kv_cache_size_tokens") or sizes.get("num_gpu_blocks", 0) * sizes.get("block_size", 0)


def _number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        return 0.0
    return value if math.isfinite(value) else 0.0
