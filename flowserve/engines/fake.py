"""The scripted engine: replies by node name, delays on an injected clock. For users' tests and for ours.

    engine = FakeEngine(replies={"plan": Plan(steps=["a"]), "answer": ["first", RuntimeError("boom"), "third"]})

What is not scripted is made up deterministically: JSON by the call's schema (engines/fill.py), else a short text.
Everything else is as with a real engine: text comes in token deltas, and `stop`, `max_tokens`, `n`, `logprobs`, abort
and context length are honoured. `engine.calls` holds what came in.
"""

import asyncio
import contextlib
import dataclasses
import itertools
import math
import re
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from flowserve.cachestore.segments import Provenance
from flowserve.clock import Clock
from flowserve.engines.base import (
    BaseEngine,
    Call,
    Capabilities,
    EngineStatus,
    Finish,
    Logprob,
    Origin,
    Output,
    Tokenizer,
)
from flowserve.engines.checks import check_call
from flowserve.engines.detok import TextStream
from flowserve.engines.fill import dumps, fill
from flowserve.engines.manual_time import ManualTime
from flowserve.engines.words import FIRST_WORD, WordTokenizer
from flowserve.errors import EngineError, EngineLost, InputError
from flowserve.ids import EngineId, Seconds, Tokens


@dataclass(frozen=True, slots=True)
class FailAfter:
    """A reply that streams `text` and then raises `error`: an engine that dies in mid-stream."""

    text: str
    error: Exception


@dataclass(frozen=True, slots=True)
class Sure:
    """A reply whose every token has this probability, for calls that ask for logprobs."""

    text: str
    probability: float


Reply = Any
"""str, pydantic model, dataclass, dict or number (dumped to JSON), Exception (raised), FailAfter, Sure, a function of the
Call that returns one of these, or a list or tuple of these: one per call."""
Replies = Mapping[str, Reply] | Sequence[Reply] | Callable[[Call], Reply] | str | None
Delays = Seconds | Mapping[str, Seconds] | Callable[[Call], Seconds]
Sleep = Callable[[Seconds], Awaitable[None]]


class FakeEngine(BaseEngine):
    """See the module.

    replies: by node name (`call.meta["node"]`, then its last path component, then that without a trailing `_2`,
        then "*"), or one function for all calls, or one list for all calls in order of arrival, or one text.
    delays: seconds before the first token, the same for all or by node name or as a function of the call;
        `math.inf` hangs until the call is aborted.
    token_delay_s: seconds between tokens.
    provenance: where it says that the KV of prompts came from, the same for all or as a function of the call; None: it does not.
    chunk_reuse: policies that it says it pastes passages by.
    kv_tokens: what its memory is said to hold, 0 for unknown; `status` counts prompts and output against it.

    `crash`, `stall` and `go_on` are faults for tests of pools; a crashed engine is started again while it is `startable`.
    clock: where delays pass; a ManualTime for tests without real sleeping. None is real time.
    """

    def __init__(
        self,
        replies: Replies = None,
        delays: Delays = 0.0,
        clock: Clock | None = None,
        *,
        token_delay_s: Seconds = 0.0,
        sleep: Sleep | None = None,
        id: str = "fake",
        models: Sequence[str] = ("fake",),
        tokenizer: Tokenizer | None = None,
        max_context: Tokens = 131_072,
        window: int = 64,
        kv_tokens: Tokens = 0,
        provenance: Provenance | Callable[[Call], Provenance] | None = None,
        chunk_reuse: Sequence[str] = (),
    ) -> None:
        self.calls: list[Call] = []
        """Every call that came in, in order."""
        self.prefills: list[Call] = []
        self.aborted: list[str] = []
        """Ids of calls that were aborted or left early."""
        self._replies = replies
        self._delays = delays
        self._token_delay_s = token_delay_s
        self._sleep: Sleep = sleep or (clock.sleep if isinstance(clock, ManualTime) else asyncio.sleep)
        self._id = EngineId(id)
        self._tokenizer = tokenizer or WordTokenizer()
        self._window = window
        self._capabilities = Capabilities(
            models=tuple(models),
            max_context=max_context,
            logprobs=True,
            schema=True,
            regex=True,
            grammar=True,
            thinking_budget=True,
            deterministic_seed=True,
            restart=True,
            chunk_reuse=tuple(chunk_reuse),
        )
        self.startable = True
        """Set to False to see what a start that fails leads to."""
        self.starts = 0
        """Times that it was started."""
        self.reprioritised: list[tuple[str, int]] = []
        self._kv_tokens = kv_tokens
        self._provenance = provenance
        self._turns: Counter[str] = Counter()
        self._running: dict[str, asyncio.Event] = {}
        self._held: dict[str, Tokens] = {}
        self._tokens_out = 0
        self._down = ""
        self._life = 0
        """Counts crashes: a call of an earlier life is lost, also when the engine is up again."""
        self._moving = asyncio.Event()
        """Clear while it stalls."""
        self._moving.set()

    @property
    def id(self) -> EngineId:
        return self._id

    @property
    def capabilities(self) -> Capabilities:
        return self._capabilities

    @property
    def tokenizer(self) -> Tokenizer:
        return self._tokenizer

    async def start(self) -> None:
        """Nothing to load. Raises EngineError while `startable` is False."""
        if not self.startable:
            raise EngineError(f"engine '{self._id}' does not start")
        self.starts += 1
        self._down = ""
        self._moving.set()
        self._tell()

    def crash(self) -> None:
        """Die: whatever runs ends with EngineLost, and nothing works until the next `start`."""
        self._down = "crashed"
        self._life += 1
        for stopped in self._running.values():
            stopped.set()
        self._tell()

    def stall(self) -> None:
        """Stand still: calls and probes are taken and get nothing, until `go_on`."""
        self._moving.clear()

    def go_on(self) -> None:
        """End a stall."""
        self._moving.set()

    async def generate(self, call: Call) -> AsyncIterator[Output]:
        if self._down:
            raise EngineLost(f"engine '{self._id}' is {self._down}")
        self.calls.append(call)
        prompt_tokens = sum(len(segment.ids) for segment in call.segments)
        check_call(call, self._capabilities, prompt_tokens + len(call.resumed))
        if call.id in self._running:
            raise InputError(f"call '{call.id}' is running already; ids are unique")
        reply = self._reply(call)
        stopped = asyncio.Event()
        self._running[call.id] = stopped
        self._held[call.id] = prompt_tokens + len(call.resumed)
        finished, life = False, self._life
        try:
            await self._pause(_by_node(self._delays, call, 0.0), stopped)
            if isinstance(reply, Exception):
                raise reply
            text = reply.text if isinstance(reply, FailAfter | Sure) else as_text(reply)
            sure = reply.probability if isinstance(reply, Sure) else None
            told = self._provenance(call) if callable(self._provenance) else self._provenance
            choices = [_Choice(i, call, self._tokenizer, text, prompt_tokens, sure) for i in range(call.sampling.n)]
            for choice in itertools.cycle(choices):
                if all(c.finished for c in choices):
                    break
                if choice.finished:
                    continue
                if choice.index == 0 and choice.begun:
                    await self._pause(self._token_delay_s, stopped)
                if self._life != life:
                    raise EngineLost(f"engine '{self._id}' crashed")
                output = choice.step(aborted=stopped.is_set(), room=self._capabilities.max_context - prompt_tokens)
                if told is not None and output.prompt_tokens:
                    output = dataclasses.replace(output, cached_tokens=told.exact, provenance=told)
                self._tokens_out += len(output.token_ids)
                self._held[call.id] += len(output.token_ids)
                if isinstance(reply, FailAfter) and choice.exhausted:
                    yield dataclasses.replace(output, finish=None)
                    raise reply.error
                yield output
            finished = not stopped.is_set()
        except Exception:
            finished = True  # failed, not left
            raise
        finally:
            del self._running[call.id], self._held[call.id]
            if not finished:
                self.aborted.append(call.id)

    async def probe(self) -> None:
        await self._moving.wait()
        if self._down:
            raise EngineLost(f"engine '{self._id}' is {self._down}")

    async def reprioritise(self, call_id: str, priority: int) -> None:
        if call_id in self._running:
            self.reprioritised.append((call_id, priority))

    async def prefill(self, call: Call) -> None:
        self.prefills.append(call)

    async def abort(self, call_id: str) -> None:
        if call_id in self._running:
            self._running[call_id].set()

    def status(self) -> EngineStatus:
        return EngineStatus(
            up=not self._down,
            running=len(self._running),
            window=self._window,
            tokens_out_total=self._tokens_out,
            reason=self._down,
            kv_tokens=self._kv_tokens,
            kv_used=min(1.0, sum(self._held.values()) / self._kv_tokens) if self._kv_tokens else 0.0,
            steps=self._tokens_out,
        )

    async def close(self) -> None:
        self._down = self._down or "closed"
        for stopped in self._running.values():
            stopped.set()
        self._tell()

    def __repr__(self) -> str:
        return f"<FakeEngine {self._id} calls={len(self.calls)} running={sorted(self._running)}>"

    def _tell(self) -> None:
        if self._listener is not None:
            self._listener(self, None)

    async def _pause(self, seconds: Seconds, stopped: asyncio.Event) -> None:
        """Sleep, but wake at once when the call is aborted. Always gives others a turn."""
        if seconds <= 0 and self._moving.is_set():
            await asyncio.sleep(0)
            return
        waits: list[asyncio.Future[Any]] = [asyncio.ensure_future(stopped.wait())]
        if not self._moving.is_set():
            waits.append(asyncio.ensure_future(self._moving.wait()))
        elif math.isfinite(seconds):
            waits.append(asyncio.ensure_future(self._sleep(seconds)))
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.gather(*waits, return_exceptions=True)

    def _reply(self, call: Call) -> Reply:
        key = ""
        reply: Reply = self._replies
        if isinstance(reply, Mapping):
            key = next((name for name in _names(call) if name in reply), "")
            reply = reply[key] if key else None
        if isinstance(reply, list | tuple):
            turn = self._turns[key]
            self._turns[key] += 1
            if turn >= len(reply):
                whose = f"for node '{key}' " if key else ""
                raise EngineError(f"the script {whose}has {len(reply)} replies; this is call {turn + 1}")
            reply = reply[turn]
        if callable(reply) and not isinstance(reply, type):
            reply = reply(call)
        if reply is None and (call.regex is not None or call.grammar is not None):
            node = call.meta.get("node", "") or call.id
            raise EngineError(f"'{node}' needs a scripted reply: none can be made up for a regex or a grammar")
        return default_reply(call) if reply is None else reply


def default_reply(call: Call) -> str:
    """JSON by the call's schema, else a short text about the last value in the prompt."""
    turn, after_tool = _last_turn(call.prompt_text)
    if call.schema is not None:
        return dumps(fill(call.schema, turn, prefer_answer=after_tool))
    values = [s.text.strip() for s in call.segments if s.origin is not Origin.TEMPLATE and s.text.strip()]
    about = " ".join((values[-1] if values else turn).split())
    return f"ok: {about[:80]}"


def as_text(reply: Reply) -> str:
    """The text a model would have written."""
    if isinstance(reply, str):
        return reply
    if isinstance(reply, BaseModel):
        return reply.model_dump_json()
    if dataclasses.is_dataclass(reply) and not isinstance(reply, type):
        return dumps(dataclasses.asdict(reply))
    return dumps(reply)


class _Choice:
    """One of the `n` choices while it is written out."""

    def __init__(
        self, index: int, call: Call, tokenizer: Tokenizer, text: str, prompt_tokens: Tokens, sure: float | None
    ) -> None:
        self.index = index
        self.count = 0
        self.finished = False
        self._sampling = call.sampling
        self._tokenizer = tokenizer
        self._ids = tokenizer.encode(text)
        self._stream = TextStream(tokenizer.decode, call.sampling.stop)
        self._stream.push(call.resumed)
        self.count = len(call.resumed)
        self._first = True
        self._prompt_tokens = prompt_tokens
        self._sure = sure

    @property
    def begun(self) -> bool:
        return not self._first

    @property
    def exhausted(self) -> bool:
        return self.count >= len(self._ids)

    def step(self, aborted: bool, room: Tokens) -> Output:
        """The next token, or the end."""
        ids: tuple[int, ...] = ()
        text = ""
        finish: Finish | None = None
        first, self._first = self._first and self.index == 0, False
        if aborted:
            finish = Finish.ABORT
        elif self.exhausted:
            finish = Finish.STOP
        else:
            ids = (self._ids[self.count],)
            self.count += 1
            text = self._stream.push(ids)
            if self._stream.stopped:
                finish = Finish.STOP
            elif self.count >= min(self._sampling.max_tokens, room) and not self.exhausted:
                finish = Finish.LENGTH
            elif self.exhausted:
                finish = Finish.STOP
        if finish is not None:
            text += self._stream.finish()
            self.finished = True
        return Output(
            index=self.index,
            token_ids=ids,
            text=text,
            logprobs=tuple(self._logprob(i) for i in ids) if self._sampling.logprobs is not None else (),
            finish=finish,
            prompt_tokens=self._prompt_tokens if first else 0,
        )

    def _logprob(self, token: int) -> Logprob:
        """Made up, but a distribution: the chosen token leads and the rest halves from one to the next."""
        chosen = 0.5 + token % 50 / 200 if self._sure is None else self._sure
        others = [(FIRST_WORD + (token + j) % 997, (1 - chosen) / 2**j) for j in range(1, self._sampling.logprobs or 0)]
        ranked = [(token, chosen), *others][: self._sampling.logprobs]
        top = tuple((i, self._tokenizer.decode((i,)), math.log(p)) for i, p in ranked)
        return Logprob(token, self._tokenizer.decode((token,)), math.log(chosen), top)


def _names(call: Call) -> list[str]:
    node = call.meta.get("node", "")
    last = node.rpartition("/")[2]
    return [name for name in (node, last, re.sub(r"_\d+$", "", last), call.meta.get("llm", "")) if name] + ["*"]


def _by_node(table: Delays, call: Call, default: Seconds) -> Seconds:
    if callable(table):
        return table(call)
    if isinstance(table, Mapping):
        return next((table[name] for name in _names(call) if name in table), default)
    return table


_TURN = re.compile(r"<\|(user|tool)\|>|^(User|Tool): ", re.MULTILINE)


def _last_turn(prompt: str) -> tuple[str, bool]:
    """(the last user message and all after it, whether a tool's result is the latest message)."""
    marks = list(_TURN.finditer(prompt))
    if not marks:
        return prompt, False
    users = [mark for mark in marks if "user" in mark.group().lower()]
    start = users[-1].end() if users else 0
    return re.sub(r"<\|\w+\|>|<s>", "\n", prompt[start:]), "tool" in marks[-1].group().lower()
