"""The connector's half in vLLM's scheduler: which requests begin with pasted chunks, and when spans can be saved."""

from dataclasses import replace
from typing import Any

from flowserve.engines.vllm.connector.hygiene import salted
from flowserve.engines.vllm.connector.metadata import Kept, Load, Paste, Save, Span, Step, paste_of, save_of
from flowserve.errors import FlowServeError


class Scheduling:
    """Knows which records the worker has, from what it tells."""

    def __init__(self, block_tokens: int) -> None:
        self._block_tokens = block_tokens
        self._known: set[str] = set()
        self._pastes: dict[str, Paste] = {}
        """By request, fixed at its arrival: its block hashes are salted with it."""
        self._saves: dict[str, tuple[Span, Any]] = {}
        self._refused: set[str] = set()
        """Requests whose load failed: they are computed, not loaded again."""
        self._loads: list[Load] = []

    def arrived(self, request: Any) -> None:
        """Before any look-up of its prefix."""
        params = request.kv_transfer_params
        try:
            save, paste = save_of(params), paste_of(params)
        except (FlowServeError, KeyError, TypeError, ValueError):
            return  # what cannot be understood is computed
        if save is not None and save.end <= request.num_prompt_tokens:
            self._saves[request.request_id] = (save, request)
        paste = None if paste is None or request.lora_request else self._possible(paste, request.num_prompt_tokens)
        if paste is not None:
            self._pastes[request.request_id] = paste
            request.block_hashes[:] = salted(request.block_hashes, paste, self._block_tokens)

    def matched(self, request: Any, local: int) -> int:
        """Tokens behind the first `local` ones that a load would cover. No side effects: it may be asked again."""
        paste = self._pastes.get(request.request_id)
        if paste is None or request.request_id in self._refused or request.num_tokens > request.num_prompt_tokens:
            return 0
        ahead = [chunk for chunk in paste.chunks if chunk.end > local]
        if not ahead or any(chunk.key not in self._known for chunk in ahead):
            return 0
        return max(0, min(ahead[-1].end, int(request.num_prompt_tokens) - 1) - local)

    def allocated(self, request: Any, blocks: list[int], tokens: int) -> None:
        """tokens: of the load; the request's first computed position lies behind them."""
        if not tokens:
            return
        paste = self._pastes[request.request_id]
        end = min(paste.chunks[-1].end, request.num_prompt_tokens - 1)
        start = end - tokens
        ids = tuple(request.prompt_token_ids[start:end])
        self._loads.append(Load(request.request_id, tuple(blocks), start, end, ids, paste))

    def step(self, scheduled: dict[str, int], blocks_of: Any) -> Step:
        """scheduled: tokens of this step by request. blocks_of: a request's blocks."""
        loads, self._loads = self._loads, []
        saves = []
        for id, (span, request) in list(self._saves.items()):
            if id in scheduled and request.num_computed_tokens + scheduled[id] >= span.end:
                saves.append(Save(span, tuple(blocks_of(id))))
                del self._saves[id]
        return Step(loads, saves)

    def heard(self, kept: Kept) -> None:
        self._known = (self._known | kept.gained) - kept.lost
        self._refused |= kept.failed & self._pastes.keys()

    def gone(self, id: str) -> None:
        self._pastes.pop(id, None)
        self._saves.pop(id, None)
        self._refused.discard(id)

    def _possible(self, paste: Paste, tokens: int) -> Paste | None:
        """With the chunks that are there; the others are gaps, which are computed."""
        chunks = tuple(one for one in paste.chunks if one.key in self._known and one.end <= tokens)
        return replace(paste, chunks=chunks) if chunks else None
