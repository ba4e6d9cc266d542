"""A call on the server's side: tokens come in, outputs go out. Text and stop strings are made here, in the way of the
transformers engine, so that the texts of both are equal."""

import asyncio
from collections import deque
from collections.abc import Iterator, Mapping

from flowserve.cachestore.segments import Provenance
from flowserve.engines.base import Call, Finish, Logprob, Output, Tokenizer
from flowserve.engines.detok import TextStream
from flowserve.engines.vllm.wire import Delta
from flowserve.errors import EngineError
from flowserve.ids import Tokens

FINISHES = {"stop": Finish.STOP, "length": Finish.LENGTH, "repetition": Finish.STOP, "abort": Finish.ABORT}
"""By vLLM's words."""


class Live:
    """A call from its admission to its end.

    copies: 1, or the choices of a greedy call: they are all the same, so vLLM is asked for one, and it is told as each.
    policies: by class, the reuse policy that pastes passages; None: the engine has no store of them.
    """

    def __init__(
        self,
        key: int,
        call: Call,
        prompt_tokens: Tokens,
        tokenizer: Tokenizer,
        copies: int = 1,
        policies: Mapping[str, str] | None = None,
    ) -> None:
        self.key = key
        self._policies = policies
        self.call = call
        self._prompt_tokens = prompt_tokens
        self._copies = copies
        self._choices = [_Choice(call, tokenizer) for _ in range(call.sampling.n // copies)]
        self._announced = False
        self._inbox: deque[Delta | Exception] = deque()
        self._waiter: asyncio.Future[None] | None = None

    @property
    def open(self) -> int:
        """Choices that have not finished."""
        return self._copies * sum(choice.finish is None for choice in self._choices)

    def put(self, item: Delta | Exception) -> None:
        """What came from vLLM, or what ends the call."""
        self._inbox.append(item)
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def abort(self) -> None:
        """The open choices end with what has come so far."""
        for index, choice in enumerate(self._choices):
            if choice.finish is None:
                self.put(Delta(self.key, index, [], "abort"))

    async def next(self) -> Delta:
        """Raises what ends the call."""
        while not self._inbox:
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        item = self._inbox.popleft()
        if isinstance(item, Exception):
            raise item
        return item

    def outputs(self, delta: Delta) -> Iterator[Output]:
        """Of each choice that it concerns."""
        choice = self._choices[delta.index]
        if choice.finish is not None:
            return
        ids, text, logprobs = choice.take(delta)
        for index in range(delta.index, delta.index + self._copies):
            first = index == 0 and not self._announced
            self._announced = self._announced or first
            prompt, cached = (self._prompt_tokens, min(delta.cached, self._prompt_tokens)) if first else (0, 0)
            origin = self._provenance(cached, delta.pasted) if first and self._policies is not None else None
            yield Output(index, ids, text, logprobs, choice.finish, prompt, cached, origin)

    def _provenance(self, cached: Tokens, pasted: Tokens) -> Provenance:
        pasted = min(pasted, self._prompt_tokens - cached)
        policy = (self._policies or {}).get(str(self.call.reuse), "") if pasted else ""
        return Provenance(cached, pasted, self._prompt_tokens - cached - pasted, policy)

    def stopped(self, index: int) -> bool:
        """A stop string ended this choice, and vLLM does not know."""
        return self._choices[index].stopped


def _finish(word: str) -> Finish:
    if word not in FINISHES:
        raise EngineError(f"vLLM ended the call with '{word}'; expected {', '.join(FINISHES)}")
    return FINISHES[word]


class _Choice:
    """The text of one choice while its tokens come in."""

    __slots__ = ("_before", "_eos", "_stream", "_tokenizer", "finish", "stopped")

    def __init__(self, call: Call, tokenizer: Tokenizer) -> None:
        self.finish: Finish | None = None
        self.stopped = False
        self._tokenizer = tokenizer
        self._eos = () if call.sampling.ignore_eos else tokenizer.eos_ids
        self._stream = TextStream(tokenizer.decode, call.sampling.stop)
        self._stream.push(call.resumed)
        self._before = call.resumed[-1:]

    def take(self, delta: Delta) -> tuple[tuple[int, ...], str, tuple[Logprob, ...]]:
        """What is told of a delta. Tokens behind a stop string are not."""
        ids, text = tuple(delta.ids), ""
        finish = _finish(delta.finish) if delta.finish else None
        spoken = ids[:-1] if finish is Finish.STOP and ids[-1:] and ids[-1] in self._eos else ids
        for at, i in enumerate(spoken, 1):
            text += self._stream.push((i,))
            if self._stream.stopped:
                self.stopped = finish is None
                ids, finish = ids[:at], Finish.STOP
                break
        if finish is not None:
            text += self._stream.finish()
            self.finish = Finish.STOP if self._stream.stopped else finish
        logprobs = () if delta.logprobs is None else self._logprobs(ids, delta.logprobs)
        self._before = ids[-1:] or self._before
        return ids, text, logprobs

    def _logprobs(self, ids: tuple[int, ...], told: list[tuple[float, list[tuple[int, float]]]]) -> tuple[Logprob, ...]:
        found = []
        before = self._before
        for i, (chosen, top) in zip(ids, told, strict=False):
            found.append(
                Logprob(i, self._text(before, i), chosen, tuple((j, self._text(before, j), value) for j, value in top))
            )
            before = (i,)
        return tuple(found)

    def _text(self, before: tuple[int, ...], i: int) -> str:
        """As it reads behind the token before: alone, word pieces keep their marks."""
        decode = self._tokenizer.decode
        context = decode(before) if before else ""
        both = decode((*before, i))
        return both[len(context) :] if both.startswith(context) else decode((i,))
