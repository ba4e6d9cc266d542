"""vLLM's schedulers with what they lack: another priority for a waiting call, preemption of a running one, and pinned
KV.

Runs inside EngineCore. Named to vLLM as `scheduler_cls`; nothing here is imported unless our own configuration asks
for it. The class is declared private by vLLM, so every operation is offered only when the names it relies on are
there, and each is called between two steps: `flowserve_call` of EngineCore (a method that is added here) is what the
front end reaches by call_utility_async. See control.py for the other end.

A pin is a reference to the full blocks of a call that has ended, so that its session's next call finds them. It is
soft: it gives way as soon as memory is scarce. Unpinned blocks stay in the prefix cache until they are overwritten.
"""

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.request import RequestStatus

from flowserve.engines.vllm.control import KEEP, PIN, PREEMPT, REORDER, SCARCE

if TYPE_CHECKING:
    from vllm.v1.core.sched.scheduler import Scheduler as _Scheduler
else:
    _Scheduler = object

_NEEDED = {
    REORDER: ("requests", "running", "waiting", "kv_holding_waiting"),
    PREEMPT: ("requests", "running", "_preempt_request", "prev_step_scheduled_req_ids"),
    PIN: ("kv_cache_manager", "_free_request", "get_request_counts", "deferred_waiting", "max_num_scheduled_tokens"),
}
"""By operation: what vLLM's scheduler must have for it."""


class Extension(_Scheduler):  # type: ignore[misc]
    """Mixed into a scheduler class, before it."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._pins: dict[str, list[Any]] = {}
        """By key: blocks, in the order in which they were pinned."""
        self._operations = [name for name, needed in _NEEDED.items() if all(hasattr(self, part) for part in needed)]
        if PIN in self._operations and not _can_pin(self.kv_cache_manager):
            self._operations.remove(PIN)
        _install_call()

    # --- called by vLLM ----------------------------------------------------------------------------------

    def schedule(self, *args: Any, **kwargs: Any) -> Any:
        if self._pins and self._pool.get_usage() > SCARCE:
            self._unpin_until(SCARCE)
        output = super().schedule(*args, **kwargs)
        if self._pins and self._starved(output):
            self._unpin_until(0.0)
        return output

    def _free_request(self, request: Any, *args: Any, **kwargs: Any) -> Any:
        extra = getattr(request.sampling_params, "extra_args", None) or {}
        if KEEP in extra and PIN in self._operations:
            self._pin(extra[KEEP], request)
        return super()._free_request(request, *args, **kwargs)

    def reset_prefix_cache(self, *args: Any, **kwargs: Any) -> Any:
        """It fails while a block is referred to."""
        self._unpin_until(0.0)
        return super().reset_prefix_cache(*args, **kwargs)

    # --- called by the front end, between two steps ------------------------------------------------------

    def flowserve_operations(self) -> list[str]:
        """What works here."""
        return self._operations

    def flowserve_reorder(self, ids: Sequence[str], priority: int) -> None:
        """Calls that are not waiting just get the number: it counts when memory is scarce."""
        for request in self._known(ids):
            queues = (self.waiting, self.kv_holding_waiting)
            queue = next((queue for queue in queues if any(one is request for one in queue)), None)
            if queue is not None:  # a heap: the order may only change outside
                queue.remove_request(request)
            request.priority = priority
            if queue is not None:
                queue.add_request(request)

    def flowserve_preempt(self, ids: Sequence[str]) -> None:
        """Running calls go back to the queue, without their KV. With asynchronous scheduling, what they have in
        flight is still told: vLLM marks it as stale and keeps them waiting until then."""
        for request in self._known(ids):
            if request.status == RequestStatus.RUNNING and request in self.running:
                self.running.remove(request)
                self._preempt_request(request, time.monotonic())
                self.prev_step_scheduled_req_ids.discard(request.request_id)

    def flowserve_unpin(self, keys: Sequence[str]) -> None:
        for key in keys:
            self._unpin(key)

    def flowserve_pins(self) -> dict[str, int]:
        """Blocks by key."""
        return {key: len(blocks) for key, blocks in self._pins.items()}

    # -----------------------------------------------------------------------------------------------------

    @property
    def _pool(self) -> Any:
        return self.kv_cache_manager.block_pool

    def _known(self, ids: Sequence[str]) -> list[Any]:
        found = [self.requests.get(i) for i in ids]
        return [request for request in found if request is not None and not request.is_finished()]

    def _pin(self, key: str, request: Any) -> None:
        groups = self.kv_cache_manager.get_blocks(request.request_id).blocks
        blocks = [block for group in groups for block in group if block.block_hash is not None and not block.is_null]
        self._unpin(key)
        self._pool.touch(blocks)
        self._pins[key] = blocks

    def _unpin(self, key: str) -> None:
        self._pool.free_blocks(reversed(self._pins.pop(key, [])))

    def _unpin_until(self, used: float) -> None:
        """Oldest first, until at most this share is in use."""
        for key in list(self._pins):
            if self._pool.get_usage() <= used:
                break
            self._unpin(key)

    def _starved(self, output: Any) -> bool:
        """Calls were left waiting though neither the batch nor the step is full: they lack memory."""
        running, waiting = self.get_request_counts()
        return bool(
            waiting > len(self.deferred_waiting)
            and running < self.max_num_active_reqs
            and output.total_num_scheduled_tokens < self.max_num_scheduled_tokens
        )


class FlowServeScheduler(Extension, Scheduler):  # type: ignore[misc]
    """For synchronous scheduling."""


class AsyncFlowServeScheduler(Extension, AsyncScheduler):  # type: ignore[misc]
    """For asynchronous scheduling."""


def _can_pin(manager: Any) -> bool:
    pool = getattr(manager, "block_pool", None)
    return hasattr(manager, "get_blocks") and all(hasattr(pool, name) for name in ("touch", "free_blocks", "get_usage"))


def _install_call() -> None:
    """One method more for EngineCore, by which the front end reaches its scheduler."""
    from vllm.v1.engine.core import EngineCore

    def flowserve_call(self: Any, name: str, args: Any) -> Any:
        return getattr(self.scheduler, f"flowserve_{name}")(*args)

    setattr(EngineCore, "flowserve_call", flowserve_call)  # noqa: B010 vLLM does not know it
