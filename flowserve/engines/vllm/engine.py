"""vLLM behind the engine contract: the production engine.

This side has no vLLM in it. It checks calls, turns them into messages for a host (host.py), which is a replica
process of its own or an object on this loop, and makes text of the tokens that come back. Settings are in
settings.py; what a started engine can do is told by the host (capabilities.py).
"""

import asyncio
import itertools
import sys
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

from flowserve.engines.base import (
    BaseEngine,
    Call,
    Capabilities,
    EngineStatus,
    KVNews,
    KVStored,
    Origin,
    Output,
    Sampling,
    Segment,
    Tokenizer,
)
from flowserve.engines.checks import check_call
from flowserve.engines.vllm import wire
from flowserve.engines.vllm.asking import ask_of, copies_of
from flowserve.engines.vllm.capabilities import capabilities_of, check_offered, lacking
from flowserve.engines.vllm.link import ChildLink, InlineLink, Link
from flowserve.engines.vllm.live import Live
from flowserve.engines.vllm.package import check_package
from flowserve.engines.vllm.published import tokenizer_of
from flowserve.engines.vllm.settings import VLLMSettings
from flowserve.errors import ConfigError, EngineError, EngineLost, InputError, Overloaded
from flowserve.ids import EngineId, Seconds, Tokens

RETRY_S: Seconds = 1.0
"""When to come back to a full queue; vLLM does not say."""
URGENT = -(1 << 30)
"""Priority of probes."""


class VLLMEngine(BaseEngine):
    """See the module. say: gets progress while it starts; by default it is printed to stderr, unless the settings are
    quiet."""

    def __init__(self, settings: VLLMSettings, say: Callable[[str], None] | None = None) -> None:
        self._settings = settings
        self._say = say or (self._ignore if settings.quiet else self._print)
        self._id = EngineId(settings.id)
        self._names = (settings.own_name, *settings.loras)
        self._capabilities = Capabilities(models=self._names)
        self._tokenizer: Tokenizer | None = None
        self._ready: wire.Ready | None = None
        self._link: Link | None = None
        self._down = "not started"
        self._starting: asyncio.Future[wire.Ready] | None = None
        self._lives: dict[int, Live] = {}
        """Calls of which more is expected from the host, by key."""
        self._by_id: dict[str, Live] = {}
        """Calls that have a reader."""
        self._replies: dict[int, asyncio.Future[None]] = {}
        self._awaiting_step: set[asyncio.Future[None]] = set()
        self._keys = itertools.count(1)
        self._load = wire.Load()
        self._tokens_out: Tokens = 0

    @property
    def id(self) -> EngineId:
        return self._id

    @property
    def capabilities(self) -> Capabilities:
        return self._capabilities

    @property
    def tokenizer(self) -> Tokenizer:
        if self._tokenizer is None:
            raise EngineLost(f"engine '{self._id}' is {self._down}: it has no tokenizer")
        return self._tokenizer

    @property
    def settings(self) -> VLLMSettings:
        return self._settings

    @property
    def pid(self) -> int | None:
        """Of the replica process, when there is one."""
        return None if self._link is None else self._link.pid

    async def start(self) -> None:
        await self.close()
        warning = check_package()
        if warning:
            self._say(warning)
        began = time.monotonic()
        self._load = wire.Load()
        self._starting = asyncio.get_running_loop().create_future()
        self._link = link = self._make_link()
        try:
            await link.open()
            ready = await self._starting
        except BaseException as error:
            self._down = f"not started: {str(error) or type(error).__name__}"
            link.kill()
            await link.close()
            self._link = None
            raise
        finally:
            self._starting = None
        self._ready = ready
        self._tokenizer = tokenizer_of(ready.tokenizer)
        self._capabilities = capabilities_of(ready, self._names)
        self._down = ""
        self._say(f"ready on {ready.device} after {time.monotonic() - began:.1f} s, vLLM {ready.version}")
        self._tell_listener(None)
        if ready.kv_events:
            self._tell_listener(KVNews(cleared=True))

    async def generate(self, call: Call) -> AsyncIterator[Output]:
        live = self._admit(call)
        try:
            while live.open:
                delta = await live.next()
                outputs = list(live.outputs(delta))
                if live.stopped(delta.index):
                    self._send(wire.Drop(live.key, delta.index, keep=True))
                for output in outputs:
                    self._tokens_out += len(output.token_ids)
                    yield output
        finally:
            self._dismiss(live)

    async def prefill(self, call: Call) -> None:
        """Returns when it is computed: as the beginning of a session for calls that can be in one, else in the prefix
        cache."""
        prompt = self._checked(call)
        if self._capabilities.prefix_reuse:
            await self._reply_to(lambda key: wire.Warm(self._ask(key, call, prompt)))

    async def abort(self, call_id: str) -> None:
        live = self._by_id.get(call_id)
        if live is not None and live.open:
            self._lives.pop(live.key, None)
            self._send(wire.Drop(live.key))
            live.abort()

    async def reprioritise(self, call_id: str, priority: int) -> None:
        live = self._by_id.get(call_id)
        if live is not None and self._capabilities.priority:
            self._send(wire.Reorder(live.key, priority))

    async def preempt(self, call_id: str) -> None:
        """Where vLLM's scheduler is not ours, the call is begun anew with what it has written, if that can be
        hidden."""
        live = self._by_id.get(call_id)
        if live is not None:
            self._send(wire.Preempt(live.key))

    async def release(self, session: str) -> None:
        self._send(wire.Release(session))

    async def probe(self) -> None:
        """One token before everything else that waits; or any step of vLLM's, since its batch may be full for long."""
        tasks = [asyncio.ensure_future(self._one_token()), asyncio.ensure_future(self._one_step())]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        for task in done:
            task.result()

    async def sleep(self, level: int = 1) -> None:
        if not self._capabilities.sleep:
            raise lacking("sleep")
        for call_id in list(self._by_id):
            await self.abort(call_id)
        await self._reply_to(lambda key: wire.Sleep(key, level))

    async def wake(self) -> None:
        if not self._capabilities.sleep:
            raise lacking("sleep")
        await self._reply_to(wire.Wake)

    def status(self) -> EngineStatus:
        ready, load = self._ready, self._load
        if self._down or ready is None:
            return EngineStatus(up=False, tokens_out_total=self._tokens_out, reason=self._down)
        # Our own count is right at once; vLLM's split of it comes a moment later, and has probes and the like in it.
        calls = sum(live.open for live in self._lives.values())
        running = min(calls, ready.window, max(calls - load.waiting, load.running))
        return EngineStatus(
            up=True,
            running=running,
            waiting=calls - running,
            window=ready.window,
            kv_used=load.kv_used,
            tokens_out_total=self._tokens_out,
            kv_tokens=ready.kv_tokens,
            batch_tokens=ready.batch_tokens,
            steps=load.steps,
            preemptions=load.preemptions,
            prefix_asked=load.prefix_asked,
            prefix_hit=load.prefix_hit,
            records=tuple(load.records),
        )

    async def close(self) -> None:
        link, self._link = self._link, None
        if link is None:
            return
        for live in list(self._lives.values()):
            live.abort()
        self._lives.clear()
        self._go_down("closed")
        await link.close()

    def __repr__(self) -> str:
        return f"<VLLMEngine {self._id} {self._names[0]} {self._down or 'up'} calls={sorted(self._by_id)}>"

    # --- calls -------------------------------------------------------------------------------------------

    async def _one_token(self) -> None:
        ids = self.tokenizer.eos_ids[:1] or (0,)
        call = Call(f"probe-{next(self._keys)}", (Segment(ids, Origin.TEMPLATE),), Sampling(1), priority=URGENT)
        async for _ in self.generate(call):
            pass

    async def _one_step(self) -> None:
        step = asyncio.get_running_loop().create_future()
        self._awaiting_step.add(step)
        try:
            await step
        finally:
            self._awaiting_step.discard(step)

    def _admit(self, call: Call) -> Live:
        """The call, checked and on its way."""
        prompt = self._checked(call)
        if call.id in self._by_id:
            raise InputError(f"call '{call.id}' is running already; ids are unique")
        key = next(self._keys)
        ask = self._ask(key, call, prompt)
        policies = None if self._ready is None else self._ready.reuse
        live = Live(key, call, len(prompt) - len(call.resumed), self.tokenizer, copies_of(call), policies)
        self._lives[key] = self._by_id[call.id] = live
        self._send(ask)
        return live

    def _ask(self, key: int, call: Call, prompt: tuple[int, ...]) -> wire.Ask:
        pasting = (self._ready.reuse if self._ready is not None else None) or ()
        return ask_of(key, call, prompt, self._capabilities, self._settings.loras, pasting)

    def _dismiss(self, live: Live) -> None:
        """Its reader has what it wants, or has left."""
        del self._by_id[live.call.id]
        if self._lives.pop(live.key, None) is not None and live.open:
            self._send(wire.Drop(live.key))

    def _checked(self, call: Call) -> tuple[int, ...]:
        """The tokens to read."""
        if self._down:
            raise EngineLost(f"engine '{self._id}' is {self._down}")
        prompt = call.prompt_ids + call.resumed
        check_offered(call, self._capabilities)
        check_call(call, self._capabilities, len(prompt))
        return prompt

    async def _reply_to(self, message: Callable[[int], wire.ToHost]) -> None:
        """Send what `message` makes of a key, and wait until it is done."""
        if self._down:
            raise EngineLost(f"engine '{self._id}' is {self._down}")
        key = next(self._keys)
        reply = self._replies[key] = asyncio.get_running_loop().create_future()
        try:
            self._send(message(key))
            await reply
        finally:
            del self._replies[key]
            if reply.cancelled():
                self._send(wire.Drop(key))

    # --- the host ----------------------------------------------------------------------------------------

    def _make_link(self) -> Link:
        if self._settings.mode == "inline":
            return InlineLink(self._settings, self._receive)
        return ChildLink(self._settings, self._receive, self._lost, self._say)

    def _send(self, message: wire.ToHost) -> None:
        if not self._down and self._link is not None:
            self._link.send(message)

    def _receive(self, message: Any) -> None:
        match message:
            case wire.Delta(key=key):
                if (live := self._lives.get(key)) is not None:
                    live.put(message)
            case wire.Fault(key=key):
                if (live := self._lives.pop(key, None)) is not None:
                    live.put(self._error(message.kind, f"call '{live.call.id}': {message.text}"))
            case wire.Load():
                self._load = message
                for step in self._awaiting_step:
                    if not step.done():
                        step.set_result(None)
                if not self._down:
                    self._tell_listener(None)
            case wire.News():
                self._tell_listener(_news(message))
            case wire.Done(key=key):
                if (reply := self._replies.get(key)) is not None and not reply.done():
                    if message.kind is None:
                        reply.set_result(None)
                    else:
                        reply.set_exception(self._error(message.kind, message.text))
            case wire.Lost():
                self._lost(message.text)
            case wire.Say():
                self._say(message.text)
            case wire.Ready():
                if self._starting is not None and not self._starting.done():
                    self._starting.set_result(message)
            case wire.Failed():
                if self._starting is not None and not self._starting.done():
                    self._starting.set_exception(self._start_error(message.kind, message.text))

    def _lost(self, reason: str) -> None:
        """The host is gone, or its vLLM is."""
        link = self._link
        if link is None:
            return
        words = link.last_words()
        reason = f"{reason} ({words})" if words else reason
        link.kill()
        if self._starting is not None:
            if not self._starting.done():
                self._starting.set_exception(EngineError(f"engine '{self._id}' did not start: {reason}"))
        else:
            self._go_down(f"lost: {reason}")

    def _go_down(self, why: str) -> None:
        if self._down:
            return
        self._down = why
        lost = EngineLost(f"engine '{self._id}' is {why}")
        for live in self._lives.values():
            live.put(lost)
        self._lives.clear()
        for reply in self._replies.values():
            if not reply.done():
                reply.set_exception(lost)
        self._tell_listener(None)

    def _start_error(self, kind: wire.FaultKind, text: str) -> Exception:
        if kind is wire.FaultKind.CONFIG:
            return ConfigError(text)
        words = self._link.last_words() if self._link is not None else ""
        return EngineError(f"engine '{self._id}' did not start: {words or text}")

    def _error(self, kind: wire.FaultKind, text: str) -> Exception:
        match kind:
            case wire.FaultKind.INPUT:
                return InputError(text)
            case wire.FaultKind.OVERLOADED:
                return Overloaded(text, RETRY_S)
            case wire.FaultKind.LOST:
                return EngineLost(text)
            case _:
                return EngineError(text)

    def _tell_listener(self, news: KVNews | None) -> None:
        if self._listener is not None:
            self._listener(self, news)

    def _print(self, text: str) -> None:
        print(f"{self._id}: {text}", file=sys.stderr, flush=True)

    def _ignore(self, text: str) -> None:
        """Quiet."""


def _news(message: wire.News) -> KVNews:
    stored = tuple(
        KVStored(one.tenant, one.parent, tuple(one.blocks), tuple(one.token_ids), one.block_tokens)
        for one in message.stored
    )
    return KVNews(message.cleared, tuple(message.removed), stored)
