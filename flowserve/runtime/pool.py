"""The engines of a runtime, as the driver holds them: starting, hearing, probing, restarting, closing.

What is to be done with an engine, and when, is the scheduler's; here it is carried out, and what engines say becomes
events. Decisions: flowserve/core/engines.py.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any

from flowserve.core import events as e
from flowserve.engines.base import Engine, KVNews, Tokenizer
from flowserve.errors import ConfigError, EngineLost, FlowServeError, UnknownName
from flowserve.ids import EngineId, Seconds
from flowserve.runtime.residency import CacheReader, PrefixNumbers

log = logging.getLogger("flowserve.runtime")
PASTED = 0.85
"""Share of a passage that an engine with a store is expected not to compute: CacheBlend's ratio of 0.15; first_k computes less."""

CLOSE_S: Seconds = 30.0
"""An engine that has not closed after so long is given up."""

Post = Callable[[e.Event], None]
Spawn = Callable[[Coroutine[Any, Any, None]], "asyncio.Task[None]"]


@dataclass(frozen=True, slots=True)
class Seat:
    """An engine's place in a pool."""

    engine: Engine
    roles: tuple[str, ...] = ()
    """Names besides its models' that calls may ask for: `small`, `large`."""
    default: bool = True
    """It gets calls that name no model."""


@dataclass(slots=True, eq=False)
class Member:
    """A seat, and how its engine is doing."""

    seat: Seat
    cache: CacheReader
    up: bool = False
    restarting: bool = False
    """Being closed and started: what it says of itself meanwhile is not told."""
    reason: str = "not started"
    """When not up: why."""
    told: e.EngineReported | None = None
    """The latest report that was posted."""
    probe: "asyncio.Task[None] | None" = None
    counts: Counter[str] = field(default_factory=Counter)
    """Times that something happened to it: `restarts`, `probes`, `losses`, ..."""

    @property
    def engine(self) -> Engine:
        return self.seat.engine

    @property
    def names(self) -> tuple[str, ...]:
        """Everything that a call may ask for to come here."""
        own = (*self.engine.capabilities.models, *self.seat.roles)
        return tuple(dict.fromkeys((*own, "") if self.seat.default else own))


class Pool:
    """The members, by id of their engines. `post` takes events, `spawn` runs a coroutine until the runtime closes."""

    def __init__(self, engines: Sequence[Engine | Seat], numbers: PrefixNumbers, post: Post, spawn: Spawn) -> None:
        """Raises ConfigError for two engines of one id."""
        self.members: dict[EngineId, Member] = {}
        self.numbers = numbers
        self._post = post
        self._spawn = spawn
        for given in engines:
            seat = given if isinstance(given, Seat) else Seat(given)
            if seat.engine.id in self.members:
                raise ConfigError(f"expected engines with different ids; got '{seat.engine.id}' twice")
            self.members[seat.engine.id] = Member(seat, CacheReader(numbers))

    # --- what others ask ----------------------------------------------------------------------------------

    def engine(self, id: EngineId) -> Engine:
        return self.members[id].engine

    def models(self) -> tuple[str, ...]:
        """Names that a model call may ask for, without repeats."""
        return tuple(dict.fromkeys(name for member in self.members.values() for name in member.names if name))

    def serving(self, model: str) -> list[Member]:
        """Members that answer to `model`, those that are up first."""
        found = [member for member in self.members.values() if model in member.names]
        return sorted(found, key=lambda member: not member.up)

    def tokenizer(self, model: str) -> Tokenizer | None:
        """Of an engine that serves `model`; None where none has one yet."""
        for member in self.serving(model):
            try:
                return member.engine.tokenizer
            except FlowServeError:
                continue
        return None

    def own_name(self, id: EngineId, model: str) -> str:
        """What the engine itself calls `model`: a role or default is its own model, "" to it."""
        return model if model in self.members[id].engine.capabilities.models else ""

    def known_as(self, model: str) -> str:
        """What the engines of `model`, which may be a role or the default, call it; as it is where none has told."""
        names = [member.engine.capabilities.models for member in self.serving(model)]
        return next((own[0] for own in names if own and model not in own), model)

    def adapter(self, model: str) -> str:
        """The name of a LoRA adapter, which has KV of its own; "" for an engine's own model."""
        return model if any(model in member.engine.capabilities.models[1:] for member in self.members.values()) else ""

    def interchangeable(self, model: str) -> bool:
        """Can any engine of `model` go on with the tokens of another?"""
        engines = [member.engine for member in self.serving(model) if member.up]
        known = {engine.tokenizer.fingerprint for engine in engines if engine.capabilities.tokens}
        return len(known) == 1 and all(engine.capabilities.tokens for engine in engines)

    def ready(self) -> tuple[bool, str]:
        """Is any engine up, and if not, why."""
        down = {id: member.reason or "down" for id, member in self.members.items() if not member.up}
        if down and len(down) == len(self.members):
            return False, "; ".join(f"engine {name}: {reason}" for name, reason in down.items())
        return True, ""

    def check(self, id: str) -> EngineId:
        """`id` as the id of a member. Raises UnknownName."""
        if id not in self.members:
            raise UnknownName("engine", id, list(self.members))
        return EngineId(id)

    # --- life ---------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Start all engines at once. Raises what the first failure raises, after the others have ended."""
        results = await asyncio.gather(*map(self._start, self.members.values()), return_exceptions=True)
        for result in results:
            if isinstance(result, BaseException):
                raise result

    async def _start(self, member: Member) -> None:
        await member.engine.start()
        member.engine.watch(self._heard)
        self.announce(member)

    async def close(self) -> None:
        for member in self.members.values():
            member.engine.watch(None)
        await asyncio.gather(*(member.engine.close() for member in self.members.values()))

    def announce(self, member: Member) -> None:
        """Tell the scheduler how an engine is: up or not, what it serves, how much room it has."""
        if member.restarting:
            return
        engine = member.engine
        status, can = engine.status(), engine.capabilities
        member.up, member.reason, member.told = status.up, status.reason, None
        self._post(
            e.EngineChanged(
                engine.id,
                status.up,
                member.names,
                status.window,
                status.kv_tokens,
                status.batch_tokens,
                can.restart,
                can.priority and can.reprioritise,
                can.preempt,
                PASTED if can.chunk_reuse else 0.0,
            )
        )

    def _heard(self, engine: Engine, news: KVNews | None) -> None:
        """An engine has something to say."""
        member = self.members[engine.id]
        if member.restarting:
            return
        if news is not None:
            stored, removed = member.cache.read(news)
            if stored or removed or news.cleared:
                self._post(e.KVChanged(engine.id, stored, removed, news.cleared))
            return
        status = engine.status()
        if status.up != member.up:
            self.announce(member)
        elif status.up:
            kv_used = round(status.kv_used, 3)
            report = e.EngineReported(
                engine.id, status.running, status.waiting, kv_used, status.steps, status.preemptions
            )
            if report != member.told:
                member.told = report
                self._post(report)

    def loss(self, id: EngineId) -> EngineLost:
        """Why a call of an engine that is down ends."""
        member = self.members[id]
        member.counts["losses"] += 1
        return EngineLost(f"engine '{id}' is down: {member.reason}")

    def lost(self, id: EngineId) -> None:
        """A call was lost there: see whether the engine is."""
        member = self.members[id]
        member.counts["losses"] += 1
        if member.engine.status().up != member.up:
            self.announce(member)

    # --- commands -----------------------------------------------------------------------------------------

    def probe(self, id: EngineId) -> None:
        member = self.members[id]
        member.counts["probes"] += 1
        member.probe = self._spawn(self._probe(member))

    async def _probe(self, member: Member) -> None:
        ok = True
        try:
            await member.engine.probe()
        except FlowServeError as error:
            log.warning("engine %s did not pass its probe: %s", member.engine.id, error)
            ok = False
        self._post(e.Probed(member.engine.id, ok))

    def restart(self, id: EngineId) -> None:
        member = self.members[id]
        if member.probe is not None:
            member.probe.cancel()
        member.counts["restarts"] += 1
        member.restarting, member.up, member.reason = True, False, "starting again"
        self._spawn(self._restart(member))

    async def _restart(self, member: Member) -> None:
        engine = member.engine
        log.warning("engine %s is started again", engine.id)
        reason = ""
        try:
            await asyncio.wait_for(engine.close(), CLOSE_S)
            await engine.start()
            engine.watch(self._heard)
        except TimeoutError:
            reason = f"it has not closed within {CLOSE_S:g} s"
        except FlowServeError as error:
            reason = str(error)
        finally:
            member.restarting = False
        if reason:
            member.reason = reason
            log.error("engine %s did not come up: %s", engine.id, reason)
            self._post(e.EngineChanged(engine.id, False))
        else:
            self.announce(member)

    def shut(self, id: EngineId) -> None:
        self._spawn(self._shut(self.members[id]))

    async def _shut(self, member: Member) -> None:
        await member.engine.close()
        member.reason = "drained"
        self._post(e.EngineChanged(member.engine.id, False))

    def aside(self, coroutine: Coroutine[Any, Any, None]) -> None:
        """Do something for a call that nobody waits for; what goes wrong is the engine's to tell."""
        self._spawn(_quietly(coroutine))


async def _quietly(coroutine: Coroutine[Any, Any, None]) -> None:
    try:
        await coroutine
    except FlowServeError as error:
        log.info("%s", error)
