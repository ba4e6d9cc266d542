"""Any server that speaks OpenAI's HTTP interface: vLLM, SGLang, Dynamo, FlowServe itself, others.

A server that takes and tells token ids is as good as an engine in this process: the prompt goes there as ids, text and
stop strings are made here. Others are asked in words, and `capabilities.tokens` is False. Which one it is, is tried at
the start.

vLLM has a route for tokens alone, `/inference/v1/generate`. It costs the server 40 instead of 47 microseconds of CPU
per token (vLLM 0.32, a tiny model, two cores), but is closed unless the server was started with `--enable-scale-out`.
`/v1/completions` does the same on every server, so it alone is used.

Read next: discovery.py and meeting.py for the start, then dialects.py, bodies.py and reading.py for calls.
"""

import asyncio
import secrets
import sys
from collections.abc import AsyncIterator, Coroutine
from dataclasses import replace
from functools import partial
from typing import Any

from flowserve.engines.base import (
    BaseEngine,
    Call,
    Capabilities,
    EngineStatus,
    KVNews,
    Origin,
    Output,
    Sampling,
    Segment,
    Tokenizer,
)
from flowserve.engines.chat import Piece, PromptMessage
from flowserve.engines.checks import check_call
from flowserve.engines.openai import failures
from flowserve.engines.openai.bodies import COMPLETIONS, text_request, token_body
from flowserve.engines.openai.client import Client, Stream
from flowserve.engines.openai.dialects import Hints
from flowserve.engines.openai.discovery import Server
from flowserve.engines.openai.kv_events import KVFeed
from flowserve.engines.openai.meeting import Met, meet
from flowserve.engines.openai.pulse import Pulse
from flowserve.engines.openai.reading import Reader
from flowserve.engines.openai.settings import OpenAISettings
from flowserve.engines.openai.text_reading import TextReader
from flowserve.engines.openai.token_reading import TokenReader
from flowserve.engines.openai.work import Interrupted, Work
from flowserve.engines.salts import Salts
from flowserve.errors import EngineError, EngineLost, InputError, RequestError, Unsupported
from flowserve.ids import EngineId, Seconds

MEET_S: Seconds = 1.0
"""For the questions to a server, beyond the time that it has to load."""
WINDOW = 64
"""Choices at once for servers that do not say how many they compute."""
IDLE_S: Seconds = 10.0
"""Between two looks at a server that has nothing of ours."""
REPORT_S: Seconds = 0.1
"""The listener hears of progress at most this often."""
URGENT, LATER = -(1 << 62), 1 << 62
"""Priorities of a probe and of a prefill ahead of time."""


class OpenAIEngine(BaseEngine):
    """See the module. `call.meta["expected_tokens"]` tells Dynamo how long the answer will probably be."""

    def __init__(self, settings: OpenAISettings) -> None:
        self._settings = settings
        self._id = EngineId(settings.id)
        self._where = f"engine '{settings.id}' at {settings.base}"
        self._salts = Salts(settings.secret)
        self._feed = KVFeed(settings.kv_events, self._salts) if settings.kv_events else None
        self._capabilities = Capabilities(models=(settings.model,) if settings.model else (), restart=True)
        self._tokenizer: Tokenizer | None = None
        self._server: Server | None = None
        self._client: Client | None = None
        self._pulse: Pulse | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._work: dict[str, Work] = {}
        self._stirred = asyncio.Event()
        """Something to look at the server for."""
        self._down = "not started"
        self._tokens_out = 0
        self._probes = 0
        self._reported = 0.0
        self._life = ""
        """Begins the names of requests: unique among all that speak to the server."""

    @property
    def id(self) -> EngineId:
        return self._id

    @property
    def capabilities(self) -> Capabilities:
        return self._capabilities

    @property
    def tokenizer(self) -> Tokenizer:
        """The server's, or one that only estimates where it is asked in words."""
        if self._tokenizer is None:
            raise EngineLost(f"engine '{self._id}' is {self._down}: it has no tokenizer")
        return self._tokenizer

    async def start(self) -> None:
        """Connect, wait while the server loads, and find out what it is. Started again, it is asked again: its model or
        tokenizer may be another by then."""
        if self._client is not None:
            await self.close()
        settings, loop = self._settings, asyncio.get_running_loop()
        client = Client(settings.base, self._where, settings.connect_s, settings.api_key)
        until = loop.time() + settings.start_timeout_s
        try:
            async with asyncio.timeout_at(until + MEET_S):
                met = await meet(client, settings, self._say)
        except BaseException as error:
            await client.close()
            late = isinstance(error, TimeoutError)
            why = f"no answer to a call of one token in {settings.start_timeout_s:g} s" if late else str(error)
            self._down = f"not started: {why}"
            if late:
                raise EngineError(f"{self._where}: {why}") from error
            raise
        how = f", asked in words: {met.in_words}; set `tokenizer`" if met.in_words else ""
        self._say(f"{self._where}: {met.server.model}, {met.server.dialect.name} {met.server.version}".rstrip() + how)
        self._adopt(client, met)

    def _adopt(self, client: Client, met: Met) -> None:
        client.known = met.server.models
        self._client, self._server, self._tokenizer = client, met.server, met.tokenizer
        self._capabilities = met.capabilities
        self._pulse = Pulse(client, met.server)
        self._life = secrets.token_hex(4)
        self._down = ""
        if self._settings.poll_s:
            self._begin(self._follow())
        if self._feed is not None:
            self._begin(self._feed.run(self._tell_news))
        self._tell(urgent=True)

    async def generate(self, call: Call) -> AsyncIterator[Output]:
        client, reader = self._admitted(call)
        work = self._work[call.id] = Work(call, reader)
        self._stirred.set()
        try:
            while not reader.over:
                try:
                    async with await work.waiting_for(partial(self._send, client, work)) as stream:
                        while not reader.over:
                            payloads = await work.waiting_for(stream.read)
                            if payloads is None:
                                raise reader.cut()
                            for output in reader.read(payloads):
                                self._count(output)
                                yield output
                        if reader.complete:
                            await stream.drain()
                except Interrupted:
                    if work.aborted:
                        for output in reader.abort():
                            yield output
        except EngineLost as error:
            self._suspect(error)
            raise
        finally:
            del self._work[call.id]
            self._tell()

    async def prefill(self, call: Call) -> None:
        """One token behind everything else: the prompt's whole blocks stay in the server's prefix cache."""
        if not self._capabilities.prefix_reuse:
            return
        alone = replace(call, schema=None, regex=None, grammar=None, resumed=())
        warm = replace(alone, sampling=Sampling(max_tokens=1), priority=LATER, stream=False)
        async for _ in self.generate(warm):
            pass

    async def abort(self, call_id: str) -> None:
        """Hangs up, which servers take for an abort."""
        work = self._work.get(call_id)
        if work is not None:
            work.abort()

    async def reprioritise(self, call_id: str, priority: int) -> None:
        """Sends the call anew, with what it has written as part of the prompt. Left alone where that could change
        the answer: seeded sampling, several choices, a constraint."""
        work = self._work.get(call_id)
        if work is None or work.priority == priority or not self._capabilities.reprioritise:
            return
        sampling = work.call.sampling
        drawn = sampling.temperature > 0 and sampling.seed is not None
        if not (drawn or sampling.n > 1 or work.call.constrained or work.reader.written_out):
            work.move(priority)

    async def probe(self) -> None:
        self._probes += 1
        text = "Hello"
        segment = Segment(tuple(self.tokenizer.encode(text)), Origin.TEMPLATE, text)
        turn = PromptMessage("user", (Piece(text, Origin.TEMPLATE),))
        call = Call(f"probe-{self._probes}", (segment,), Sampling(max_tokens=1), priority=URGENT, messages=(turn,))
        try:
            async for _ in self.generate(call):
                pass
        except RequestError as error:
            raise EngineError(f"the probe was refused: {error}") from error

    async def sleep(self, level: int = 1) -> None:
        raise Unsupported(
            "this engine lacks the capability 'sleep': a vLLM server has it only with VLLM_SERVER_DEV_MODE=1, which "
            "lets anybody who reaches it run code; stop the server and start it again"
        )

    def status(self) -> EngineStatus:
        pulse, server = self._pulse, self._server
        if pulse is None or server is None:
            return EngineStatus(up=False, reason=self._down)
        running, waiting = self._own()
        others = (0, 0) if self._down else pulse.others
        return EngineStatus(
            up=not self._down,
            running=running + others[0],
            waiting=waiting + others[1],
            window=self._settings.window or server.window or WINDOW,
            kv_used=pulse.load.kv_used,
            tokens_out_total=self._tokens_out,
            reason=self._down,
            kv_tokens=pulse.load.kv_tokens,
            batch_tokens=server.step_tokens,
            steps=self._tokens_out + pulse.steps,
            preemptions=pulse.load.preemptions,
            prefix_asked=pulse.load.prefix_asked,
            prefix_hit=pulse.load.prefix_hit,
        )

    async def close(self) -> None:
        client, self._client = self._client, None
        if client is None:
            return
        self._down = self._down or "closed"
        for work in self._work.values():
            work.abort()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await client.close()
        self._tell(urgent=True)

    def __repr__(self) -> str:
        kind = self._server.dialect.name if self._server else "unknown"
        return f"<OpenAIEngine {self._id} {self._settings.base} {kind} {self._down or 'up'} calls={sorted(self._work)}>"

    # --- calls ---------------------------------------------------------------------------------------------

    def _admitted(self, call: Call) -> tuple[Client, Reader]:
        """What the call needs, when it may be sent. Raises RequestError and EngineError."""
        if self._down or self._client is None or self._tokenizer is None:
            raise EngineLost(f"engine '{self._id}' is {self._down}")
        capabilities = self._capabilities
        if not capabilities.tokens:  # the prompt's length is an estimate: only the server knows whether it fits
            capabilities = replace(capabilities, max_context=0)
        check_call(call, capabilities, len(call.prompt_ids) + len(call.resumed))
        if call.id in self._work:
            raise InputError(f"call '{call.id}' is running already; ids are unique")
        if capabilities.tokens:
            return self._client, TokenReader(call, self._where, self._tokenizer)
        return self._client, TextReader(call, self._where)

    async def _send(self, client: Client, work: Work) -> Stream:
        server = self._server
        assert server is not None, "a call was admitted"
        call, reader = work.call, work.reader
        work.requests += 1
        model = call.model or server.model
        if isinstance(reader, TokenReader):
            written = reader.go_on() if work.requests > 1 else ()
            used = len(call.prompt_ids) + len(call.resumed) + len(written)
            room = max(0, self._capabilities.max_context - used)
            path, body = COMPLETIONS, token_body(call, server.dialect, model, reader.asked, written, room)
        else:
            path, body = text_request(call, server.dialect, model, reader.asked)
        extra = server.dialect.hint(self._hints(work))
        return await client.stream(path, {**body, **extra.body}, extra.headers, call)

    def _hints(self, work: Work) -> Hints:
        call = work.call
        expected = call.meta.get("expected_tokens", "")
        return Hints(
            request=f"{self._life}-{call.id}-{work.requests}",
            priority=work.priority if self._capabilities.priority else 0,
            session=None if call.session is None else self._salts.session(call.tenant, call.session),
            salt=self._salts.of(call.tenant) if call.tenant else None,
            expected_tokens=int(expected) if expected.isascii() and expected.isdigit() else None,
        )

    def _count(self, output: Output) -> None:
        self._tokens_out += output.count
        self._tell()

    def _own(self) -> tuple[int, int]:
        """Our choices that run, and that wait."""
        readers = [work.reader for work in self._work.values()]
        return sum(reader.running for reader in readers), sum(reader.waiting for reader in readers)

    # --- the server ----------------------------------------------------------------------------------------

    async def _follow(self) -> None:
        """Look at the server now and then, more often while it works for us."""
        pulse = self._pulse
        assert pulse is not None, "the engine was started"
        while not self._down:
            self._stirred.clear()
            try:
                await pulse.look(*self._own())
            except EngineError as error:
                self._lost(error)
                return
            self._tell()
            await asyncio.sleep(self._settings.poll_s if pulse.cheap else IDLE_S)
            if not (self._work or pulse.weak):
                await _set_within(self._stirred, IDLE_S)

    def _suspect(self, error: EngineLost) -> None:
        """A call has lost its connection."""
        if isinstance(error, failures.Unreachable):
            self._lost(error)
        self._stirred.set()

    def _lost(self, error: Exception) -> None:
        if not self._down:
            self._down = f"lost: {error}"
            self._tell(urgent=True)

    def _begin(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        error = None if task.cancelled() else task.exception()
        if isinstance(error, Exception):
            self._lost(error)

    def _tell(self, urgent: bool = False) -> None:
        now = asyncio.get_running_loop().time()
        if self._listener is not None and (urgent or now - self._reported >= REPORT_S):
            self._reported = now
            self._listener(self, None)

    def _tell_news(self, news: KVNews) -> None:
        if self._listener is not None:
            self._listener(self, news)

    def _say(self, text: str) -> None:
        if not self._settings.quiet:
            print(text, file=sys.stderr, flush=True)


async def _set_within(event: asyncio.Event, seconds: Seconds) -> None:
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        pass
