"""vLLM's connector interface over our two halves: scheduling.py in the scheduler, working.py in the worker.

Named to vLLM by `kv_connector_module_path`; the model is handed over by binding.py. Requests say what they want in
`kv_transfer_params` (metadata.py). A load comes before a step's forward pass while nothing else runs; else it is spread over
steps, a layer in each, and its request waits for it.
"""

from typing import Any

from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorBase_V1, KVConnectorRole
from vllm.v1.metrics.cache_hit_source import CacheHitSource

from flowserve.engines.vllm.connector.metadata import Failed, Told
from flowserve.engines.vllm.connector.scheduling import Scheduling
from flowserve.engines.vllm.connector.working import Working


class ReuseConnector(KVConnectorBase_V1):  # type: ignore[misc]
    """See the module. One object per role; of the other role's half there is none."""

    _cache_hit_source = CacheHitSource.HOST

    def __init__(self, vllm_config: Any, role: Any, kv_cache_config: Any) -> None:
        super().__init__(vllm_config, role, kv_cache_config)
        block_tokens = vllm_config.cache_config.block_size
        if role == KVConnectorRole.SCHEDULER:
            self.scheduling = Scheduling(block_tokens, vllm_config.scheduler_config.max_num_batched_tokens)
        else:
            self.working = Working(block_tokens)

    @property
    def requires_kv_delivery(self) -> bool:
        """Records that are gone are misses."""
        return False

    # --- in the scheduler --------------------------------------------------------------------------------

    def on_new_request(self, request: Any) -> None:
        self.scheduling.arrived(request)

    def get_num_new_matched_tokens(self, request: Any, num_computed_tokens: int) -> tuple[int | None, bool]:
        tokens = self.scheduling.matched(request, num_computed_tokens)
        return tokens, bool(tokens) and self.scheduling.busy

    def update_state_after_alloc(self, request: Any, blocks: Any, num_external_tokens: int) -> None:
        self.scheduling.allocated(request, blocks.get_block_ids()[0], num_external_tokens)

    def build_connector_meta(self, scheduler_output: Any) -> Any:
        return self.scheduling.step(scheduler_output.num_scheduled_tokens, self._blocks_of)

    def update_connector_output(self, connector_output: Any) -> None:
        self.scheduling.finished(connector_output.finished_recving or set())
        failed = connector_output.kv_connector_worker_meta
        if isinstance(failed, Failed):
            self.scheduling.failed(failed.requests)

    def get_kv_connector_stats(self) -> Told | None:
        """Of the scheduler's half: vLLM's only way to the front end before a request has ended."""
        return self.scheduling.told() if hasattr(self, "scheduling") else None

    @classmethod
    def build_kv_connector_stats(cls, data: dict[str, Any] | None = None) -> Told:
        return Told(data or {})

    def request_finished(self, request: Any, block_ids: list[int]) -> tuple[bool, None]:
        self.scheduling.gone(request.request_id)
        return False, None

    def _blocks_of(self, id: str) -> list[int]:
        manager: Any = self._kv_cache_manager
        return list(manager.get_block_ids(id)[0])

    # --- in the worker -----------------------------------------------------------------------------------

    def start_load_kv(self, forward_context: Any, **kwargs: Any) -> None:
        step: Any = self._get_connector_metadata()
        self.working.load(step)

    def wait_for_layer_load(self, layer_name: str) -> None:
        """All that this step needs is loaded before its first layer."""

    def save_kv_layer(self, layer_name: str, kv_layer: Any, attn_metadata: Any, **kwargs: Any) -> None:
        """Spans are saved at the end of the step that completes them."""

    def wait_for_save(self) -> None:
        step: Any = self._get_connector_metadata()
        self.working.save(step)

    def get_finished(self, finished_req_ids: set[str]) -> tuple[None, set[str]]:
        return None, self.working.finished()

    def get_block_ids_with_load_errors(self) -> set[int]:
        return self.working.bad_blocks()

    def build_connector_worker_meta(self) -> Failed | None:
        return self.working.failed()
