"""Hands the model to the connector: vLLM's own context gives it attention layers only."""

from typing import Any

from vllm.distributed.kv_transfer import get_kv_transfer_group


class Binding:
    """Mixed into vLLM's worker (`worker_extension_cls`); called once after the start, by collective_rpc."""

    model_runner: Any

    def flowserve_bind(self) -> None:
        """Raises ConfigError for models and caches that chunks cannot be pasted into."""
        group: Any = get_kv_transfer_group()
        group.working.bind(self.model_runner)
