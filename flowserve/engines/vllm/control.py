"""The front end's way to our scheduler inside EngineCore. Without it nothing works and nothing is offered."""

from collections.abc import Sequence
from typing import Any

REORDER, PREEMPT, PIN = "reorder", "preempt", "pin"
"""What our scheduler can do."""
KEEP = "flowserve_keep"
"""Key in SamplingParams.extra_args: what the call's blocks are pinned as when it ends."""
SCARCE = 0.9
"""Share of the KV memory in use above which what is kept for sessions gives way."""
_CALL = "flowserve_call"


class Control:
    """`operations` is empty until `find` has looked, and when the scheduler is not ours."""

    def __init__(self, llm: Any) -> None:
        self._core = llm.engine_core
        self._outputs = llm.output_processor
        self.operations: tuple[str, ...] = ()

    async def find(self) -> None:
        """Ask the scheduler what it can do."""
        if not hasattr(self._core, "call_utility_async") or not hasattr(self._outputs, "external_req_ids"):
            return
        try:
            self.operations = tuple(await self._ask("operations"))
        except Exception:  # noqa: BLE001 vLLM tells every failure in the same way: there is no such method
            self.operations = ()

    async def reorder(self, ids: Sequence[str], priority: int) -> None:
        await self._ask("reorder", self._internal(ids), priority)

    async def preempt(self, ids: Sequence[str]) -> None:
        await self._ask("preempt", self._internal(ids))

    async def unpin(self, keys: Sequence[str]) -> None:
        await self._ask("unpin", list(keys))

    async def pins(self) -> dict[str, int]:
        """Pinned blocks by key."""
        return dict(await self._ask("pins"))

    async def _ask(self, name: str, *args: Any) -> Any:
        return await self._core.call_utility_async(_CALL, name, list(args))

    def _internal(self, ids: Sequence[str]) -> list[str]:
        """vLLM appends random characters to the ids it is given."""
        known = self._outputs.external_req_ids
        return [internal for i in ids for internal in known.get(i, ())]
