"""Calls of a host whose prompts hold passages: what is at hand goes along with them, what is not is encoded once they have ended.

A passage is encoded by a call of the lowest priority that asks the worker to leave its KV in memory (connector/), one at a time.
"""

import asyncio
import itertools
import logging
import time
from collections.abc import Callable
from typing import Any

from vllm.inputs.engine import tokens_input

from flowserve.engines.salts import Salts
from flowserve.engines.vllm.connector.metadata import paste_params, save_params
from flowserve.engines.vllm.params import LOWEST, prefill_params
from flowserve.engines.vllm.passages import Missing, Passages, Staged
from flowserve.engines.vllm.runs import Run
from flowserve.engines.vllm.wire import Ask
from flowserve.errors import StoreError
from flowserve.ids import Tokens

log = logging.getLogger("flowserve.engines")

MAKING = 64
"""Passages that may wait to be encoded; others are when they are missed again."""


class Blends:
    """llm: an AsyncLLM. passages: None, nothing is ever pasted. changed: called when `records` has something new."""

    def __init__(self, llm: Any, salts: Salts, passages: Passages | None, changed: Callable[[], None]) -> None:
        self._llm = llm
        self._salts = salts
        self._passages = passages
        self._changed = changed
        self._staging: dict[int, asyncio.Task[Staged | None]] = {}
        """By call."""
        self._missing: dict[int, list[Missing]] = {}
        """By call that missed them."""
        self._told: dict[str, tuple[Tokens, Tokens] | None] = {}
        """Of requests with something pasted, by name: tokens reused exactly, and pasted; None until the scheduler has said."""
        self._making: dict[bytes, asyncio.Task[None]] = {}
        """By key of a passage."""
        self._turn = asyncio.Lock()
        self._numbers = itertools.count()

    def begin(self, ask: Ask) -> None:
        """A call has come: look for what it needs."""
        if self._passages is not None and self._passages.concern(ask):
            self._staging[ask.key] = asyncio.ensure_future(self._stage(self._passages, ask))

    async def params_of(self, run: Run) -> dict[str, Any] | None:
        """`kv_transfer_params` of a choice; None: nothing is at hand for its call."""
        staging = self._staging.get(run.ask.key)
        staged = None if staging is None else await asyncio.shield(staging)
        if staged is None:
            return None
        name = _name(run)
        self._told[name] = None
        return paste_params(staged.paste(name))

    def heard(self, told: dict[str, tuple[Tokens, Tokens]]) -> None:
        """Of the scheduler, before the first token of those requests."""
        self._told |= {name: (counts[0], counts[1]) for name, counts in told.items() if name in self._told}

    def origin(self, run: Run, cached: Tokens) -> tuple[Tokens, Tokens]:
        """Tokens of a prompt reused exactly, and pasted. cached: what vLLM says was there."""
        if _name(run) not in self._told:
            return cached, 0
        return self._told[_name(run)] or (0, cached)  # not said: nothing that is approximate may be called exact

    def end(self, ask: Ask) -> None:
        """All of a call has ended."""
        for index in range(ask.n):
            self._told.pop(f"{ask.key}.{index}", None)
        staging = self._staging.pop(ask.key, None)
        if staging is not None:
            staging.add_done_callback(_close)
        for missing in self._missing.pop(ask.key, ()):
            self._make_soon(missing)

    def cancel(self) -> None:
        """Nothing more is encoded."""
        for task in (*self._making.values(), *self._staging.values()):
            task.cancel()

    def records(self) -> list[tuple[str, str, int]]:
        return [] if self._passages is None else self._passages.records()

    async def close(self) -> None:
        self.cancel()
        if self._passages is not None:
            await asyncio.to_thread(self._passages.close)

    async def _stage(self, passages: Passages, ask: Ask) -> Staged | None:
        try:
            staged, missing = await asyncio.to_thread(passages.find, ask)
        except StoreError as error:
            log.warning("reuse of passages: a call is computed: %s", error)
            return None
        if ask.key in self._staging:
            self._missing[ask.key] = missing
        return staged

    def _make_soon(self, missing: Missing) -> None:
        passages = self._passages
        assert passages is not None, "it missed something"
        key = passages.key(missing)
        if key not in self._making and len(self._making) < MAKING:
            task = self._making[key] = asyncio.ensure_future(self._make(passages, missing))
            task.add_done_callback(lambda _: self._making.pop(key, None))

    async def _make(self, passages: Passages, missing: Missing) -> None:
        try:
            if await asyncio.to_thread(passages.wants, missing):
                async with self._turn:
                    await self._encode(passages, missing)
        except Exception as error:  # noqa: BLE001 whatever vLLM raises, a passage less is in the store
            log.warning("reuse of passages: %d tokens were not encoded: %s", len(missing.segment.ids), error)
        self._changed()

    async def _encode(self, passages: Passages, missing: Missing) -> None:
        memory = passages.memory_for(missing)
        try:
            start, began = len(passages.sink), time.monotonic()
            ids = [*passages.sink, *missing.segment.ids]
            params = prefill_params(save_params(start, len(ids), memory.place))
            prompt = tokens_input(ids, cache_salt=self._salts.of(missing.tenant))
            async for _ in self._llm.generate(prompt, params, f"encode-{next(self._numbers)}", priority=LOWEST):
                pass
            if memory.whole:
                await asyncio.to_thread(passages.keep, missing, memory, time.monotonic() - began)
        finally:
            memory.close()


def _name(run: Run) -> str:
    """The same for all attempts of a run."""
    return f"{run.ask.key}.{run.index}"


def _close(staging: "asyncio.Task[Staged | None]") -> None:
    staged = None if staging.cancelled() or staging.exception() else staging.result()
    if staged is not None:
        staged.memory.close()
