"""Talks: requests of vLLM that live over several calls and keep their KV to the token in between (its streaming
input).

A talk reads a chunk of tokens, answers, and stands still with its blocks until the next chunk. The last token of an
answer is never computed, so it is not part of what is held: the next chunk begins with it. What is held can only be
extended; it is not evicted and takes a place in the batch, so sessions.py bounds it.

Only calls that behave in a talk as they do alone may be in one, see `can_talk`: vLLM gives a talk one constraint, one
random generator and one form of logprobs, those of its first chunk, and takes no stop strings there.
"""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from typing import Any

from vllm.engine.protocol import StreamingInput
from vllm.inputs.engine import tokens_input

from flowserve.engines.vllm.runs import Run
from flowserve.engines.vllm.shelf import Held, Owner
from flowserve.engines.vllm.wire import Ask


def can_talk(ask: Ask) -> bool:
    """Greedy, or sampled without a seed; one choice; nothing else that belongs to a whole request."""
    return (
        ask.n == 1
        and ask.constraint is None
        and ask.logprobs is None
        and ask.thinking_budget is None
        and not ask.stops
        and (ask.seed is None or ask.temperature == 0)
    )


class Talk:
    """See the module. `run` is the call at work in it; None: it stands still, and `tokens` is what its KV covers."""

    def __init__(self, id: str, owner: Owner, salt: str, priority: int) -> None:
        self.id = id
        self.owner = owner
        self.priority = priority
        self.run: Run | None = None
        self.tokens: tuple[int, ...] = ()
        self.held: Held | None = None
        """While it is on the shelf."""
        self.claimed = False
        """A call will be its next turn."""
        self.over = False
        """vLLM does not know it any more."""
        self.task: asyncio.Task[None] | None = None
        """Reads its answers; None before its first turn."""
        self._salt = salt
        self._chunks: asyncio.Queue[StreamingInput | None] = asyncio.Queue()
        self._still = asyncio.Event()
        self._still.set()

    def continued_by(self, prompt: Sequence[int]) -> bool:
        """`prompt` is what is held, or will be, and at least one token more."""
        tokens = self.tokens if self.run is None else self.run.prompt
        return len(prompt) > len(tokens) and list(prompt[: len(tokens)]) == list(tokens)

    def turn(self, run: Run, params: Any) -> None:
        """Give it the rest of the run's prompt. vLLM's answer comes out of the talk's generator."""
        assert self.run is None, "one call at a time"
        self.claimed = False
        if self.task is not None:
            run.cached = len(self.tokens)
        self.run, run.talk = run, self
        self._still.clear()
        prompt = tokens_input(list(run.prompt[len(self.tokens) :]), cache_salt=self._salt)
        self._chunks.put_nowait(StreamingInput(prompt, params))

    def rest(self) -> Run:
        """The call at work is over; what is held now is noted."""
        run = self.run
        assert run is not None, "it was at work"
        self.tokens = (*run.prompt, *run.written[:-1])
        self.run = run.talk = None
        self._still.set()
        return run

    async def still(self) -> None:
        """Wait until no call is at work in it."""
        await self._still.wait()

    def end(self) -> None:
        """No more turns: vLLM frees it."""
        self.held = None
        self._chunks.put_nowait(None)

    def gone(self) -> None:
        """vLLM has freed it, or is gone itself."""
        self.over = True
        self.run = None
        self._still.set()

    async def chunks(self) -> AsyncGenerator[Any, None]:
        """For vLLM."""
        while (chunk := await self._chunks.get()) is not None:
            yield chunk
