"""A host of vLLM: owns an AsyncLLM in the process it lives in, and does what messages ask of it.

    VLLMEngine  --wire.ToHost-->  Host  -->  AsyncLLM  -->  EngineCore (a process of its own), workers
                <--wire.ToServer--

A replica process has one at the end of a socket, an inline engine has one on its own loop. It knows token ids, no text.
"""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import msgspec
from vllm.lora.request import LoRARequest
from vllm.v1.engine.async_llm import AsyncLLM

from flowserve.engines.salts import Salts
from flowserve.engines.vllm import wire
from flowserve.engines.vllm.blends import Blends
from flowserve.engines.vllm.build import Plan, borrowed_environment, plan, quick_fork
from flowserve.engines.vllm.calls import Calls, told_error
from flowserve.engines.vllm.control import PIN, REORDER, Control
from flowserve.engines.vllm.facts import ready
from flowserve.engines.vllm.guidance import Compiler
from flowserve.engines.vllm.kv_news import KVReader
from flowserve.engines.vllm.meter import Meter
from flowserve.engines.vllm.passages import Passages, open_passages
from flowserve.engines.vllm.published import tokenizer_of
from flowserve.engines.vllm.sessions import Sessions
from flowserve.engines.vllm.settings import unpacked
from flowserve.engines.vllm.shelf import Shelf
from flowserve.engines.vllm.wire import FaultKind
from flowserve.errors import ConfigError


class Host:
    """See the module. `tell` gets every message to the server process; it is called on the loop that `start` runs on.

    alone: the process is ours, so its environment and threads may be changed.
    """

    def __init__(self, start: wire.Start, tell: Callable[[wire.ToServer], None], alone: bool) -> None:
        self._settings = start
        self._tell = tell
        self._alone = alone
        self._llm: Any = None
        self._control: Control | None = None
        self._calls: Calls | None = None
        self._blends: Blends | None = None
        self._sessions: Sessions | None = None
        self._stopping = False

    async def start(self) -> bool:
        """Ends with Ready and True, or with Failed. The loop stands still while vLLM starts."""
        try:
            with borrowed_environment(self._alone):
                await self._say("configuring")
                planned = plan(self._settings, self._alone)
                await self._say("loading weights")
                self._llm = self._begin(planned)
            self._tell(await self._look_around())
        except ConfigError as error:
            self._tell(wire.Failed(FaultKind.CONFIG, str(error)))
        except Exception as error:  # noqa: BLE001 whatever vLLM raises, it has not started
            self._tell(wire.Failed(FaultKind.ENGINE, f"{type(error).__name__}: {error}"))
        else:
            self._llm.output_handler.add_done_callback(self._died)
            return True
        return False

    def take(self, message: wire.ToHost) -> None:
        """Do what it asks, after a start that went well; answers come through `tell`."""
        calls, sessions = self._calls, self._sessions
        assert calls is not None and sessions is not None, "started"
        match message:
            case wire.Ask():
                calls.ask(message)
            case wire.Drop():
                calls.drop(message)
            case wire.Warm():
                calls.warm(message.ask)
            case wire.Reorder():
                calls.reorder(message.key, message.priority)
            case wire.Preempt():
                calls.preempt(message.key)
            case wire.Release():
                sessions.release(message.session)
            case wire.Sleep():
                calls.do(self._answer(message.key, self._sleep(message.level)))
            case wire.Wake():
                calls.do(self._answer(message.key, self._llm.wake_up()))

    async def stop(self, seconds: float) -> None:
        """seconds: what vLLM's processes get to end by themselves. Idempotent; also after a start that failed."""
        self._stopping = True
        if self._calls is not None:
            self._calls.cancel()
        llm, self._llm = self._llm, None
        if llm is not None:
            await asyncio.to_thread(llm.shutdown, seconds)
        blends, self._blends = self._blends, None
        if blends is not None:
            await blends.close()

    def _begin(self, planned: Plan) -> Any:
        self._meter = Meter(self._tell, self._pressed)
        args = self._settings.args
        with quick_fork(planned, self._settings.folder):
            return AsyncLLM.from_vllm_config(
                planned.config,
                stat_loggers=[self._meter.logger],
                disable_log_stats=args.get("disable_log_stats", True),
                enable_log_requests=args.get("enable_log_requests", False),
            )

    async def _look_around(self) -> wire.Ready:
        control = Control(self._llm)
        await control.find()
        facts = await ready(self._llm, self._settings, control.operations)
        share = self._settings.session_share
        salts = Salts(self._settings.secret)
        sessions = Sessions(
            Shelf(int(share * facts.kv_tokens), int(share * facts.window)),
            salts,
            talks=facts.sessions,
            reorders=REORDER in control.operations and facts.priority,
            unpin=self._unpin if PIN in control.operations else None,
        )
        loras = {name: LoRARequest(name, i, path) for i, (name, path) in enumerate(self._settings.loras.items(), 1)}
        self._control, self._sessions = control, sessions
        guided = facts.constraints and self._llm.vllm_config.structured_outputs_config.backend == "guidance"
        compiler = await asyncio.to_thread(Compiler, self._llm) if guided else None
        passages = await self._open_passages(facts)
        blends = self._blends = Blends(self._llm, salts, passages, self._meter.tell)
        self._meter.reused, self._meter.records = blends.heard, blends.records
        self._calls = Calls(self._llm, control, sessions, salts, loras, compiler, blends, self._tell)
        if facts.kv_events:
            self._calls.do(KVReader(self._settings.folder, salts, self._tell).read())
        return facts if passages is None else msgspec.structs.replace(facts, reuse=passages.names)

    async def _open_passages(self, facts: wire.Ready) -> Passages | None:
        """The store of passages; None: there is to be none. Raises ConfigError for models that nothing can be pasted into."""
        if self._settings.reuse is None:
            return None
        [layout] = await self._llm.collective_rpc("flowserve_bind")
        settings = unpacked(self._settings.reuse)
        tokenizer, model = tokenizer_of(facts.tokenizer), self._llm.vllm_config.model_config
        passages, remark = await asyncio.to_thread(open_passages, settings, model, tokenizer, layout)
        if remark:
            await self._say(remark)
        return passages

    async def _say(self, text: str) -> None:
        self._tell(wire.Say(text))
        for _ in range(2):  # so that it is sent before the loop stands still
            await asyncio.sleep(0)

    async def _sleep(self, level: int) -> None:
        """vLLM cannot while a block is held."""
        assert self._calls is not None and self._sessions is not None, "started"
        self._calls.drop_all()
        self._sessions.clear()
        await self._llm.sleep(level)

    async def _answer(self, key: int, work: Coroutine[Any, Any, Any]) -> None:
        try:
            await work
        except Exception as error:  # noqa: BLE001 told to who asked
            self._tell(wire.Done(key, *told_error(error)))
        else:
            self._tell(wire.Done(key))

    def _unpin(self, key: str) -> None:
        assert self._calls is not None and self._control is not None, "started"
        self._calls.do(self._control.unpin([key]))

    def _pressed(self) -> None:
        if self._sessions is not None:
            self._sessions.pressed()

    def _died(self, handler: "asyncio.Task[None]") -> None:
        """vLLM's task that hears from EngineCore ends when that is gone, whether a call runs or not."""
        if not self._stopping:
            self._tell(wire.Lost("vLLM's EngineCore process ended"))
