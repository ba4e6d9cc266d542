"""The connector's half in vLLM's scheduler: which requests begin with pasted chunks, when spans can be saved, and what became of
prompts."""

from typing import Any

from flowserve.engines.vllm.connector.hygiene import clean_tokens, salted
from flowserve.engines.vllm.connector.metadata import PARAMS, Load, Paste, Save, Step, Told, Wish, paste_of, wish_of
from flowserve.engines.vllm.connector.selection import count_pasted, count_rows
from flowserve.errors import FlowServeError
from flowserve.ids import Tokens


class Scheduling:
    """Every record that a request names is at hand; a load that fails all the same is computed.

    step_rows: tokens that the blends of one step compute, of those that begin in it together. A blend that is larger goes alone.
    """

    def __init__(self, block_tokens: Tokens, step_rows: Tokens) -> None:
        self._block_tokens = block_tokens
        self._step_rows = step_rows
        self._pastes: dict[str, Paste] = {}
        """By request, fixed at its arrival: its block hashes are salted with it."""
        self._wishes: dict[str, tuple[Wish, Any]] = {}
        self._refused: set[str] = set()
        """Requests whose load failed: they are computed, not loaded again."""
        self._loads: list[Load] = []
        self._rows: dict[str, Tokens] = {}
        """Of the loads of this step, and of those in the background."""
        self.busy = False
        """Other requests were computed in the latest step, so loads that begin now go on in the background."""
        self._local: dict[str, Tokens] = {}
        """Tokens of a request that the prefix cache had, from its look-up to its allocation."""
        self._exact: dict[str, tuple[Tokens, Tokens]] = {}
        """Of these, as of the latest allocation, which were exact and which blended."""
        self._told: dict[str, tuple[Tokens, Tokens]] = {}
        """What is to be told; see Told."""

    def arrived(self, request: Any) -> None:
        """Before any look-up of its prefix."""
        params = request.kv_transfer_params
        try:
            wish, paste = wish_of(params), paste_of(params)
        except (FlowServeError, KeyError, TypeError, ValueError):
            return  # what cannot be understood is computed
        tokens = request.num_prompt_tokens
        if wish is not None and wish.end <= tokens:
            self._wishes[request.request_id] = (wish, request)
        if paste is not None and paste.chunks[-1].end <= tokens and not request.lora_request:
            self._pastes[request.request_id] = paste
            request.block_hashes[:] = salted(request.block_hashes, paste, self._block_tokens)

    def matched(self, request: Any, local: Tokens) -> Tokens | None:
        """Tokens behind the first `local` ones that a load would cover; None: not in this step. May be asked again."""
        paste = self._pastes.get(request.request_id)
        if paste is None:
            return 0
        self._local[request.request_id] = local
        if request.request_id in self._refused or request.num_tokens > request.num_prompt_tokens:
            return 0
        load = self._load(request, paste, [], max(0, self._end(request, paste) - local))
        if load.start >= load.end:
            return 0
        if self._rows and sum(self._rows.values()) + count_rows(load) > self._step_rows:
            return None
        return load.end - load.start

    def allocated(self, request: Any, blocks: list[int], tokens: Tokens) -> None:
        """tokens: of the load; the request's first computed position lies behind them."""
        paste = self._pastes.get(request.request_id)
        if paste is None:
            return
        local = self._local.pop(request.request_id, None)
        if local is None:
            return  # it was loaded in the background, and is only now begun
        exact = min(local, clean_tokens(paste, self._block_tokens))
        pasted = local - exact  # blocks of an earlier prompt of the same recipe
        self._exact[request.request_id] = exact, pasted
        if tokens:
            load = self._load(request, paste, blocks, tokens)
            self._loads.append(load)
            self._rows[load.request] = count_rows(load)
            pasted += count_pasted(load)
        self._tell(paste, exact, pasted)

    def step(self, scheduled: dict[str, int], blocks_of: Any) -> Step:
        """scheduled: tokens of this step by request. blocks_of: a request's blocks."""
        loads, self._loads = self._loads, []
        for load in loads:
            if not load.background:
                del self._rows[load.request]
        saves = []
        for id, (wish, request) in list(self._wishes.items()):
            if id in scheduled and request.num_computed_tokens + scheduled[id] >= wish.end:
                saves.append(Save(wish, tuple(blocks_of(id))))
                del self._wishes[id]
        self.busy = bool(scheduled)
        return Step(loads, saves, idle=not scheduled)

    def finished(self, requests: set[str]) -> None:
        """Their loads in the background have ended."""
        for id in requests:
            self._rows.pop(id, None)

    def failed(self, requests: set[str]) -> None:
        """The worker could not load for these: all behind what the prefix cache had is computed."""
        for id in sorted(requests & self._pastes.keys()):
            self._refused.add(id)
            self._tell(self._pastes[id], *self._exact.get(id, (0, 0)))

    def told(self) -> Told | None:
        """What became of prompts, since the last time."""
        told, self._told = self._told, {}
        return Told({PARAMS: told}) if told else None

    def gone(self, id: str) -> None:
        self._pastes.pop(id, None)
        self._wishes.pop(id, None)
        self._local.pop(id, None)
        self._exact.pop(id, None)
        self._refused.discard(id)

    def _end(self, request: Any, paste: Paste) -> Tokens:
        """Of a load. The last token of a prompt is always computed."""
        return min(paste.chunks[-1].end, int(request.num_prompt_tokens) - 1)

    def _load(self, request: Any, paste: Paste, blocks: list[int], tokens: Tokens) -> Load:
        end = self._end(request, paste)
        ids = tuple(request.prompt_token_ids[end - tokens : end])
        return Load(request.request_id, tuple(blocks), end - tokens, end, ids, paste, self.busy)

    def _tell(self, paste: Paste, exact: Tokens, pasted: Tokens) -> None:
        if paste.name:
            self._told[paste.name] = (exact, pasted)
