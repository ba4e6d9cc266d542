"""What a vLLM engine is told: checked when built, and plain enough to be sent to its replica process."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from flowserve.cachestore.segments import Quality
from flowserve.cachestore.settings import ReuseSettings
from flowserve.errors import ConfigError
from flowserve.ids import Bytes, Seconds

RUNS = ("none", "sink0", "first_k", "hkvd", "full")
"""Reuse policies that run in vLLM."""
PARALLEL = ("tensor_parallel_size", "pipeline_parallel_size", "data_parallel_size")
"""Arguments of vLLM whose product is the number of workers."""
OWN_ARGS = ("kv_transfer_config", "worker_extension_cls")
"""Arguments of vLLM that reuse of passages needs."""
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
    reuse: ReuseSettings | None = field(default=None, repr=False)
    """A store for the KV of passages, which then may be pasted where a gate allows it. None: prefixes are reused only."""
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
        if self.reuse is not None:
            self._check_reuse(self.reuse)

    def _check_reuse(self, reuse: ReuseSettings) -> None:
        """What is known before vLLM has started."""
        for quality in (Quality.BALANCED, Quality.FAST):
            policy = reuse.policy(quality)
            if policy is not None and policy.name not in RUNS:
                raise ConfigError(
                    f"VLLMSettings.reuse: {quality}: expected a policy of {', '.join(RUNS)}; got '{policy.name}'"
                )
        if self.kv_events:
            raise ConfigError(
                "VLLMSettings.reuse: expected kv_events off beside it; got both. vLLM's events name blocks with pasted tokens by "
                "their token ids, as if they were exact"
            )
        taken = {*OWN_ARGS, *PARALLEL, "speculative_config"} & {name for name, value in self.args.items() if value != 1}
        if taken:
            raise ConfigError(
                f"VLLMSettings.reuse: expected args without {', '.join(sorted(taken))}; got them. Passages are pasted on one worker, "
                "by a connector of our own, without drafts: leave out these, or reuse"
            )

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


def packed(reuse: ReuseSettings) -> dict[str, Any]:
    """As it can be sent to another process."""
    values = {item.name: getattr(reuse, item.name) for item in fields(reuse)}
    return {name: str(value) if isinstance(value, Path) else value for name, value in values.items()}


def unpacked(values: Mapping[str, Any]) -> ReuseSettings:
    """What `packed` was made of."""
    paths = {name: Path(values[name]) for name in ("disk", "gates") if values[name] is not None}
    return ReuseSettings(**{**values, **paths})
