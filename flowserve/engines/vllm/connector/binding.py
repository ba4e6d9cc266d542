"""Hands the model to the connector: vLLM's own context gives it attention layers only."""

from typing import Any

from vllm.distributed.kv_transfer import get_kv_transfer_group

from flowserve.errors import ConfigError


class Binding:
    """Mixed into vLLM's worker (`worker_extension_cls`); called once after the start, by collective_rpc."""

    model_runner: Any

    def flowserve_bind(self) -> dict[str, Any]:
        """The fields of a `Geometry`; or {"refused": why}, for models and caches that chunks cannot be pasted into."""
        group: Any = get_kv_transfer_group()
        try:
            return dict(group.working.bind(self.model_runner))
        except ConfigError as error:  # as a value: vLLM tells errors of workers as texts of its own
            return {"refused": str(error)}
