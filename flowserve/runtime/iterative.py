"""A generation that looks up a passage every few tokens, with one engine and one index: carries `core.speculation` out.

Every `every` tokens a query is made of the last `window` tokens of prompt and answer; the passage found first is put into the
prompt, in place of the one before; the engine writes on (RaLMSpec's workload, arXiv 2401.14021, section 5; there the passage
stands at the very front, here where the caller says). Outputs are those of committed steps only: nothing that was guessed and
not verified leaves this file. The index is asked while the engine writes, by tasks of their own.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable, Coroutine, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from time import perf_counter
from typing import Any

from flowserve.core.speculation.stride import Stride
from flowserve.core.speculation.transaction import (
    NOTHING,
    Command,
    Commit,
    End,
    Event,
    Found,
    Look,
    Looked,
    Mode,
    RollBack,
    Row,
    Speculation,
    Verify,
    Write,
    Written,
    begin,
    step,
)
from flowserve.engines.base import Call, Engine, Finish, Origin, Output, Segment
from flowserve.engines.detok import TextStream
from flowserve.errors import EngineLost, InputError, RequestError, RetrievalError
from flowserve.ids import Seconds, Tokens
from flowserve.retrieval.lookup import LocalCache, Lookup

GAP = "\n\n"
"""Between the passage and what follows it."""


@dataclass(frozen=True, slots=True)
class Iteration:
    """How a generation looks things up."""

    every: Tokens = 4
    window: Tokens = 32
    """Tokens of the query: the last ones of prompt and answer, without passages and special tokens."""
    passage_tokens: Tokens = 256
    """A longer passage is cut."""
    prefetch: int = 20
    """Hits of each verification that go into the cache; only the first is written behind."""
    mode: Mode = Mode.SPECULATIVE
    timeout_s: Seconds | None = None
    """Of one search. None: no limit here."""

    def __post_init__(self) -> None:
        for name in ("every", "window", "passage_tokens", "prefetch"):
            if getattr(self, name) < 1:
                raise InputError(f"retrieval while writing: {name}: expected at least 1, got {getattr(self, name)}")


@dataclass(frozen=True, slots=True)
class Part:
    """One written step."""

    ids: tuple[int, ...]
    finish: Finish | None
    """None: the generation goes on."""
    prompt_tokens: Tokens = 0
    cached_tokens: Tokens = 0
    error: RequestError | None = None
    """The engine refused it. That counts only if its passage is verified."""


@dataclass(slots=True)
class Generation:
    """One call, until it is written. `outputs` may be asked for once.

    call: greedy, of one choice and free form. Its segments up to `place` stand before the passage, the others behind it.
    `told` hears of every commit and roll-back, before its outputs.
    """

    call: Call
    place: int
    engine: Engine
    lookup: Lookup
    how: Iteration
    stride: Stride
    cache: LocalCache = field(default_factory=LocalCache)
    told: Callable[[Commit | RollBack], None] = lambda _: None
    speculation: Speculation = field(init=False)
    num_wasted: Tokens = 0
    """Tokens that were written and rolled back, those of half-written steps included."""
    _prompt: tuple[int, ...] = field(init=False)
    _text: TextStream = field(init=False)
    _parts: list[Part] = field(default_factory=list)
    _queries: list[Any] = field(default_factory=list)
    """By step; None: there was nothing to ask with."""
    _segments: dict[Row, tuple[Segment, ...]] = field(default_factory=dict)
    _tasks: dict[type, asyncio.Task[Event]] = field(default_factory=dict)
    _num_calls: int = 0
    _num_partial: Tokens = 0
    """Tokens so far of the step that is being written."""

    def __post_init__(self) -> None:
        check(self.call)
        self.speculation = Speculation(self.how.mode, self.stride)
        self._prompt = self.call.prompt_ids
        self._text = TextStream(self.engine.tokenizer.decode, self.call.sampling.stop)
        self._text.push(self.call.resumed)

    async def outputs(self) -> AsyncGenerator[Output, None]:
        """What is committed, as it is. Raises as `Engine.generate` does, and RetrievalError."""
        commands, shown = begin(self.speculation), 0
        try:
            while True:
                for command in commands:
                    match command:
                        case Commit(upto):
                            self.told(command)
                            for part in self._parts[shown:upto]:
                                yield self._output(part, first=shown == 0)
                                shown += 1
                        case RollBack():
                            await self._roll_back(command)
                        case End():
                            return
                        case _:
                            self._start(command)
                commands = step(self.speculation, await self._event())
        finally:
            await self._stop(*self._tasks)

    # --- carrying commands out -----------------------------------------------------------------------------------

    def _start(self, command: Command) -> None:
        work: Coroutine[Any, Any, Event]
        match command:
            case Look():
                work = self._look(command)
            case Write():
                work = self._write(command)
            case Verify(first, num):
                work = self._verify(self._queries[first : first + num])
            case _:
                raise AssertionError(command)
        self._tasks[type(command)] = asyncio.create_task(work)

    async def _event(self) -> Event:
        """What ends first; of several, what the index says."""
        await asyncio.wait(self._tasks.values(), return_when=asyncio.FIRST_COMPLETED)
        kind = next(kind for kind in (Verify, Look, Write) if kind in self._tasks and self._tasks[kind].done())
        return self._tasks.pop(kind).result()

    async def _roll_back(self, command: RollBack) -> None:
        await self._stop(Look, Write)
        lost = sum(len(part.ids) for part in self._parts[command.step :]) + self._num_partial
        self._num_partial = 0
        self.num_wasted += lost
        del self._parts[command.step :], self._queries[command.step + 1 :]
        self.told(replace(command, tokens=lost))

    async def _stop(self, *kinds: type) -> None:
        """Cancel what is at work and wait for it; leaving `generate` early aborts the call at the engine."""
        tasks = [self._tasks.pop(kind) for kind in kinds if kind in self._tasks]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # --- work ----------------------------------------------------------------------------------------------------

    async def _look(self, command: Look) -> Looked:
        began = perf_counter()
        text = self.engine.tokenizer.decode((*self._prompt, *self._ids())[-self.how.window :])
        query = await self.lookup.read(text) if text.strip() else None
        self._queries.append(query)
        guess = None
        if command.guess:
            guess = NOTHING if query is None else self.cache.guess(self.lookup, query)
        return Looked(command.life, guess, perf_counter() - began)

    async def _verify(self, queries: Sequence[Any]) -> Found:
        began = perf_counter()
        asked = [query for query in queries if query is not None]
        k = 1 if self.how.mode is Mode.SEQUENTIAL else self.how.prefetch
        try:
            async with asyncio.timeout(self.how.timeout_s):
                found = iter(await self.lookup.search(asked, k) if asked else [])
        except TimeoutError:
            raise RetrievalError(
                f"call '{self.call.id}': a search for {len(asked)} queries did not answer within {self.how.timeout_s:g} s"
            ) from None
        rows = [next(found) if query is not None else () for query in queries]
        for hits in rows:
            self.cache.add(hits)
        return Found(tuple(hits[0] if hits else NOTHING for hits in rows), perf_counter() - began)

    async def _write(self, command: Write) -> Written:
        began = perf_counter()
        try:
            part = await self._ask(self._next_call(command.row))
        except RequestError as error:  # it may be the guessed passage that is too long
            part = Part((), Finish.LENGTH, error=error)
        self._parts.append(part)
        self._num_partial = 0
        return Written(command.life, len(part.ids), part.finish is not None, perf_counter() - began)

    async def _ask(self, call: Call) -> Part:
        """Have the engine write one step."""
        ids: list[int] = []
        prompt_tokens = cached_tokens = self._num_partial = 0
        finish: Finish | None = None
        async with aclosing(self.engine.generate(call)) as outputs:  # type: ignore[type-var]
            async for output in outputs:
                ids += output.token_ids
                self._num_partial = len(ids)
                prompt_tokens = max(prompt_tokens, output.prompt_tokens)
                cached_tokens = max(cached_tokens, output.cached_tokens)
                finish = output.finish
        if finish is None or finish is Finish.ABORT:
            raise EngineLost(f"engine {self.engine.id} ended call {call.id} without finishing it")
        whole = len(call.resumed) + len(ids) == call.sampling.max_tokens < self.call.sampling.max_tokens
        return Part(tuple(ids), None if finish is Finish.LENGTH and whole else finish, prompt_tokens, cached_tokens)

    # --- what is written, and what is asked ----------------------------------------------------------------------------

    def _ids(self) -> tuple[int, ...]:
        return (*self.call.resumed, *(i for part in self._parts for i in part.ids))

    def _next_call(self, row: Row) -> Call:
        """The engine goes on with what is written, behind passage `row`."""
        written = self._ids()
        most = min(len(written) + self.how.every, self.call.sampling.max_tokens)
        self._num_calls += 1
        return replace(
            self.call,
            id=f"{self.call.id}/{self._num_calls}",
            segments=(*self.call.segments[: self.place], *self._passage(row), *self.call.segments[self.place :]),
            sampling=replace(self.call.sampling, max_tokens=most),
            resumed=written,
            messages=None,
            stream=False,
        )

    def _passage(self, row: Row) -> tuple[Segment, ...]:
        if row == NOTHING:
            return ()
        if row not in self._segments:
            passage, tokenizer = self.lookup.passage(row), self.engine.tokenizer
            ids = tuple(tokenizer.encode(passage.text)[: self.how.passage_tokens])
            self._segments[row] = (
                Segment(ids, Origin.CHUNK, tokenizer.decode(ids), document=passage.document),
                Segment(tuple(tokenizer.encode(GAP)), Origin.TEMPLATE, GAP),
            )
        return self._segments[row]

    def _output(self, part: Part, first: bool) -> Output:
        if part.error is not None:
            raise part.error
        text = self._text.push(part.ids)
        if part.finish is not None:
            text += self._text.finish()
        told = (part.prompt_tokens, part.cached_tokens) if first else (0, 0)
        return Output(0, part.ids, text, (), part.finish, *told)


def check(call: Call) -> None:
    """Raise InputError for a call whose steps cannot be written one by one: a roll-back cannot undo a drawn number."""
    sampling = call.sampling
    if sampling.temperature > 0 or sampling.n > 1 or sampling.logprobs is not None or call.constrained:
        raise InputError(
            f"call '{call.id}': looking things up while writing takes one greedy answer of free form, without logprobs "
            f"(temperature 0, n 1); got temperature {sampling.temperature:g}, n {sampling.n}"
            f"{', logprobs' if sampling.logprobs is not None else ''}{', a form' if call.constrained else ''}"
        )
