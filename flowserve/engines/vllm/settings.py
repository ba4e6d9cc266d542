"""What a vLLM engine is told: checked when built, and plain enough to be sent to its replica process."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from flowserve.errors import ConfigError
from flowserve.ids import Bytes, Seconds

RUNS = ("none", "sink0", "first_k", "hkvd", "full")
"""Reuse policies that run in vLLM."""
_RANGE = re.compile(r"(\d+)(?:-(\d+))?")


@dataclass(frozen=True, slots=True)
class VLLMSettings:
    """One replica. Everything of vLLM itself goes through `args`."""

    model: str
    """Folder or hub name."""
    name: str = ""
    """What it is called in `capabilities.models`; "": the last part of `model`."""
    id: str = "vllm"
    """Its name in the pool."""
    mode: Literal["child", "inline"] = "child"
    """child: in a process of its own, so that it takes nobody along when it dies. inline: AsyncLLM on the caller's
    loop, which stands still while it starts."""
    cores: str = ""
    """On a CPU, the cores that compute: "0", "0-3" or "0,2". "": all that this process may use. Two engines must not
    share one."""
    kv_bytes: Bytes | None = None
    """On a CPU, memory for KV. None: 1 GiB, or one whole context if that is more and half of the free memory holds
    it."""
    args: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """Fields of vLLM's AsyncEngineArgs, over our defaults: tensor_parallel_size, quantization, speculative_config,
    dtype, ..."""
    loras: Mapping[str, str] = field(default_factory=dict[str, str])
    """LoRA adapters: the model name that calls ask for, and the folder."""
    scheduler: bool = True
    """Extend vLLM's scheduler, to re-order, preempt and pin. False: vLLM's own, as it is."""
    kv_events: bool = False
    """Tell the listener which blocks the prefix cache holds."""
    session_share: float = 0.25
    """Most of the KV memory, and of the batch's places, that is held for sessions between their calls."""
    secret: bytes = field(default=b"", repr=False)
    """Cache salts of tenants are made from it; engines with one secret can share a remote KV tier. b"": a random
    one."""
    environment: Mapping[str, str] = field(default_factory=dict[str, str])
    """Environment variables of the replica on top of this process's own, such as CUDA_VISIBLE_DEVICES."""
    log: str = ""
    """A file that gets what vLLM says. "": it is only looked into when something fails."""
    stop_s: Seconds = 10.0
    """How long `close` waits for vLLM to end by itself."""
    quiet: bool = False
    """Say nothing on stderr while starting."""

    def __post_init__(self) -> None:
        if self.mode not in ("child", "inline"):
            raise ConfigError(f"VLLMSettings.mode: expected 'child' or 'inline'; got {self.mode!r}")
        if not 0 <= self.session_share < 1:
            raise ConfigError(
                f"VLLMSettings.session_share: expected a share of at least 0, below 1; got {self.session_share}"
            )
        if self.kv_bytes is not None and self.kv_bytes < 1:
            raise ConfigError(f"VLLMSettings.kv_bytes: expected at least 1; got {self.kv_bytes}")
        if not self.stop_s > 0:
            raise ConfigError(f"VLLMSettings.stop_s: expected a number above 0; got {self.stop_s}")
        if self.cores:
            parse_cores(self.cores)

    @property
    def own_name(self) -> str:
        return self.name or Path(self.model).name


def parse_cores(text: str) -> tuple[int, ...]:
    """The core numbers of "0", "0-3" or "0,2-3", in rising order. Raises ConfigError."""
    parts = [_RANGE.fullmatch(part) for part in text.split(",")]
    found = {core for part in parts if part for core in range(int(part[1]), int(part[2] or part[1]) + 1)}
    if not found or not all(parts):
        raise ConfigError(f"VLLMSettings.cores: expected core numbers such as '0', '0-3' or '0,2'; got '{text}'")
    return tuple(sorted(found))
