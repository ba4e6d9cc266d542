"""One choice of a call while vLLM works on it."""

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from flowserve.engines.vllm.wire import Ask

if TYPE_CHECKING:
    from flowserve.engines.vllm.talks import Talk


class Run:
    """Made when its call comes, gone when it has ended."""

    __slots__ = (
        "again",
        "ask",
        "attempt",
        "begun",
        "cached",
        "index",
        "kept",
        "priority",
        "prompt",
        "talk",
        "task",
        "transfer",
        "warm",
        "written",
    )

    def __init__(self, ask: Ask, index: int = 0, warm: bool = False) -> None:
        self.ask = ask
        self.index = index
        self.warm = warm
        """Only its prompt matters; its output goes nowhere."""
        self.prompt = ask.prompt
        self.priority = ask.priority
        self.written: list[int] = []
        self.attempt = 0
        self.again = False
        """It was aborted to be begun anew with what it has written."""
        self.kept = False
        """It was stopped from outside, but ended well: its blocks are kept as those of other ends."""
        self.cached: int | None = None
        """Prompt tokens that were there, where vLLM does not say so."""
        self.begun: Callable[[], None] | None = None
        """Called once, when it has its own hold of the blocks it begins with, or has ended."""
        self.transfer: dict[str, Any] | None = None
        """`kv_transfer_params`: what is pasted into its prompt."""
        self.talk: Talk | None = None
        self.task: asyncio.Task[None] | None = None

    @property
    def id(self) -> str:
        """What vLLM is told: unique among the requests of its host."""
        return f"{self.ask.key}.{self.index}.{self.attempt}"

    @property
    def resumable(self) -> bool:
        """It can be begun anew without anybody's noticing."""
        return not self.written or self.ask.constraint is None

    def has_begun(self) -> None:
        if self.begun is not None:
            self.begun()
            self.begun = None
