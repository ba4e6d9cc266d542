"""The calls that vLLM works on: begun, told of, re-ordered, begun anew and stopped.

Every choice of a call is a request of its own to vLLM (a Run), so that each can be stopped by itself; the prefix
cache makes that cheap. A run goes alone, or is a turn of a talk (sessions.py).
"""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable, Coroutine, Mapping
from typing import Any

from vllm.exceptions import GracefulHTTPError, VLLMClientError
from vllm.inputs.engine import tokens_input
from vllm.v1.engine.exceptions import EngineDeadError

from flowserve.engines.salts import Salts
from flowserve.engines.vllm.blends import Blends
from flowserve.engines.vllm.control import PREEMPT, REORDER, Control
from flowserve.engines.vllm.guidance import Compiler
from flowserve.engines.vllm.params import LOWEST, PIECE_TOKENS, prefill_params, sampling_params, told_logprobs
from flowserve.engines.vllm.runs import Run
from flowserve.engines.vllm.sessions import Sessions
from flowserve.engines.vllm.talks import Talk
from flowserve.engines.vllm.wire import Ask, Delta, Done, Drop, Fault, FaultKind, ToServer
from flowserve.errors import EngineError, EngineLost, InputError


class Calls:
    """llm: an AsyncLLM. loras: vLLM's LoRARequest by adapter name. compiler: checks constraints; None: vLLM's own
    check is enough. tell: gets Delta, Fault and Done."""

    def __init__(
        self,
        llm: Any,
        control: Control,
        sessions: Sessions,
        salts: Salts,
        loras: Mapping[str, Any],
        compiler: Compiler | None,
        blends: Blends,
        tell: Callable[[ToServer], None],
    ) -> None:
        self._llm = llm
        self._control = control
        self._sessions = sessions
        self._salts = salts
        self._loras = loras
        self._compiler = compiler
        self._blends = blends
        self._tell = tell
        self._runs: dict[int, list[Run]] = {}
        """By call."""
        self._tasks: set[asyncio.Task[None]] = set()

    # --- what messages ask for ---------------------------------------------------------------------------

    def ask(self, ask: Ask) -> None:
        runs = self._runs[ask.key] = [Run(ask, index) for index in range(ask.n)]
        runs[0].begun = self._sessions.take_pins(ask)
        self._blends.begin(ask)
        for run in runs:
            run.task = self.do(self._work(run))

    def warm(self, ask: Ask) -> None:
        """Compute the prompt ahead. All but its last token, so that a call with the same prompt can go on from it
        too."""
        run = Run(ask, warm=True)
        self._runs[ask.key] = [run]
        if self._sessions.reorders:
            run.priority = LOWEST
        run.task = self.do(self._work(run))

    def drop(self, drop: Drop) -> None:
        for run in list(self._runs.get(drop.key, ())):
            if drop.index in (None, run.index):
                self._stop(run, keep=drop.keep)

    def drop_all(self) -> None:
        for key in list(self._runs):
            self.drop(Drop(key))

    def reorder(self, key: int, priority: int) -> None:
        for run in self._runs.get(key, ()):
            run.priority = priority
            self.do(self._reorder(run))

    def preempt(self, key: int) -> None:
        for run in self._runs.get(key, ()):
            self.do(self._preempt(run))

    def do(self, work: Coroutine[Any, Any, None]) -> "asyncio.Task[None]":
        """Beside everything else, until `cancel`."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def cancel(self) -> None:
        for task in list(self._tasks):
            task.cancel()

    # --- a run -------------------------------------------------------------------------------------------

    async def _work(self, run: Run) -> None:
        """Until it has ended, or has become a turn of a talk."""
        try:
            if run.ask.constraint is not None and self._compiler is not None:
                await self._compiler.check(run.ask.constraint)
            run.transfer = await self._blends.params_of(run)
            if await self._join(run):
                return
            while await self._attempt(run):
                run.attempt += 1
                run.again = False
        except Exception as error:  # noqa: BLE001 everything that can go wrong is told to who asked
            self._fail(run, error)
        else:
            self._end(run)

    async def _join(self, run: Run) -> bool:
        """Be a turn of a talk, if one is for it."""
        whole = run.prompt
        if run.warm and len(whole) > 1:
            run.prompt = whole[:-1]
        talk = self._sessions.talk_for(run)
        if talk is not None:
            try:
                await self._hurry(talk, run)
                await talk.still()
                await self._hurry(talk, run)
            except asyncio.CancelledError:
                self._sessions.unclaimed(talk)
                raise
        if talk is None or talk.over:
            run.prompt = whole
            run.priority = LOWEST if run.warm else run.priority
            return False
        talk.turn(run, prefill_params() if run.warm else sampling_params(run.ask, run.index))
        if talk.task is None:
            talk.task = self.do(self._read(talk))
        return True

    async def _hurry(self, talk: Talk, run: Run) -> None:
        """A talk has the priority of whose turn it is."""
        if talk.priority != run.priority:
            talk.priority = run.priority
            await self._quietly(self._control.reorder([talk.id], run.priority))

    async def _attempt(self, run: Run) -> bool:
        """Alone. True: it shall go on where it stopped, as another request."""
        ask, pin = run.ask, self._sessions.pin_of(run)
        pieces = PIECE_TOKENS if ask.whole and not ask.stops else None
        written = len(run.written)
        params = prefill_params() if run.warm else sampling_params(ask, run.index, written, pin, pieces, run.transfer)
        prompt = tokens_input([*run.prompt, *run.written], cache_salt=self._salts.of(ask.tenant))
        ended = False
        try:
            async with self._outputs(prompt, params, run.id, ask.lora, run.priority, ask.session) as outputs:
                async for output in outputs:
                    ended = self._hear(run, output)
        finally:
            if pin and (ended or run.kept):
                self._sessions.pinned(run, pin)
            elif pin:
                self._sessions.unpinned(pin)
        return run.again and not ended

    async def _read(self, talk: Talk) -> None:
        """All turns of a talk."""
        owner = talk.owner
        try:
            # Every turn brings its own parameters, so these say nothing.
            async with self._outputs(
                talk.chunks(), prefill_params(), talk.id, owner.lora, talk.priority, owner.session
            ) as outputs:
                async for output in outputs:
                    if talk.run is not None and self._hear(talk.run, output):
                        run = talk.rest()
                        self._sessions.turn_over(talk, run)
                        self._end(run)
            if talk.run is not None:
                raise EngineLost("vLLM ended the session's request by itself")
        except Exception as error:  # noqa: BLE001 told to whose turn it is
            if talk.run is not None:
                self._fail(talk.run, error)
        finally:
            self._sessions.gone(talk)

    def _outputs(
        self, prompt: Any, params: Any, id: str, lora: str, priority: int, session: str
    ) -> "contextlib.aclosing[AsyncGenerator[Any, None]]":
        """A request to vLLM; leaving it stops it."""
        adapter = self._loras.get(lora)
        return contextlib.aclosing(
            self._llm.generate(prompt, params, id, lora_request=adapter, priority=priority, session_id=session or None)
        )

    def _hear(self, run: Run, output: Any) -> bool:
        """Pass on what vLLM says of a run; True: it ended.

        Raises EngineLost for an end that nobody asked for, and EngineError.
        """
        run.has_begun()
        completion = output.outputs[0]
        finish = completion.finish_reason or ""
        if finish == "error":
            raise EngineError("vLLM ended the call with an error; its log tells more")
        if finish == "abort":
            if not run.again:
                raise EngineLost("vLLM aborted the call by itself")
            finish = ""
        ids = list(completion.token_ids)
        run.written += ids
        if not run.warm and (ids or finish):
            count = run.ask.logprobs
            logprobs = None if count is None else told_logprobs(completion.logprobs, count)
            there = (output.num_cached_tokens or 0) if run.cached is None else run.cached
            cached, pasted = self._blends.origin(run, there)
            self._tell(Delta(run.ask.key, run.index, ids, finish, cached, logprobs, pasted))
        return bool(finish)

    # --- its end -----------------------------------------------------------------------------------------

    def _end(self, run: Run) -> None:
        run.has_begun()
        if run.warm:
            self._tell(Done(run.ask.key))
        runs = self._runs.get(run.ask.key, [])
        if run in runs:
            runs.remove(run)
        if not runs and self._runs.pop(run.ask.key, None) is not None:
            self._blends.end(run.ask)

    def _fail(self, run: Run, error: Exception) -> None:
        """The whole call ends with it."""
        kind, text = told_error(error)
        if run.warm:
            run.warm = False
            self._tell(Done(run.ask.key, kind, text))
        else:
            self._tell(Fault(run.ask.key, kind, text))
        self._end(run)
        self.drop(Drop(run.ask.key))

    def _stop(self, run: Run, keep: bool) -> None:
        """From outside, without a word. keep: what its session keeps of an end is kept of this one."""
        run.kept = keep
        task = run.talk.task if run.talk is not None else run.task
        if run.talk is not None:
            run.talk.run = None
        if task is not None and task is not asyncio.current_task():
            task.cancel()
        run.warm = False
        self._end(run)

    # --- order -------------------------------------------------------------------------------------------

    async def _reorder(self, run: Run) -> None:
        if run.talk is not None and self._sessions.reorders:
            await self._hurry(run.talk, run)
        elif REORDER in self._control.operations:
            await self._quietly(self._control.reorder([run.id], run.priority))
        elif run.talk is None and run.resumable:
            await self._begin_anew(run)

    async def _preempt(self, run: Run) -> None:
        if PREEMPT in self._control.operations:
            await self._quietly(self._control.preempt([run.id if run.talk is None else run.talk.id]))
        elif run.talk is None and run.resumable:
            await self._begin_anew(run)

    async def _begin_anew(self, run: Run) -> None:
        """Stands in for what vLLM's own scheduler cannot do; whoever reads along does not notice."""
        run.again = True
        await self._quietly(self._llm.abort(run.id))

    @staticmethod
    async def _quietly(hint: Coroutine[Any, Any, Any]) -> None:
        """A hint that fails changes nothing; an engine that is gone is told of elsewhere."""
        with contextlib.suppress(Exception):
            await hint


def told_error(error: Exception) -> tuple[FaultKind, str]:
    """Whose doing it is, and what is said of it."""
    match error:
        case EngineDeadError() | EngineLost():
            return FaultKind.LOST, str(error)
        case VLLMClientError() | InputError():
            return FaultKind.INPUT, str(error)
        case GracefulHTTPError():  # the limits of its queue
            return FaultKind.OVERLOADED, str(error)
        case EngineError():
            return FaultKind.ENGINE, str(error)
        case _:
            return FaultKind.ENGINE, f"{type(error).__name__}: {error}"
