"""The engines of a simulation: what the scheduler is told of them, and what it has done with them.

A call is forked where it runs: the fork takes a seat, steps and memory there like a call, and finds what the call has written in the
prefix cache. Its answer is what a program says of it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import inf
from typing import TYPE_CHECKING

from flowserve.core import events as e
from flowserve.ids import EngineId, Seconds, Tokens
from flowserve.sim.chance import exponential, mix, uniform
from flowserve.sim.engine import LAST, MARK, EngineModel, EngineSpec, Request
from flowserve.sim.heap import Heap
from flowserve.sim.programs import Asked
from flowserve.sim.services import Chaos, Services

if TYPE_CHECKING:
    from flowserve.sim.drive import Execution

LIFE, FREEZE, FROZEN, START, STARTS, PROBE, PROBES, DRAIN = range(8)
"""What a draw is for."""


@dataclass(frozen=True, slots=True)
class Branch:
    """Whose a forked request is."""

    execution: "Execution"
    asked: Asked


class Member:
    """One engine, and what happens to it."""

    def __init__(self, id: EngineId, number: int, spec: EngineSpec, models: tuple[str, ...]) -> None:
        self.id = id
        self.number = number
        self.model = EngineModel(spec)
        self.names = models
        self.up = False
        self.closed = False
        self.calls: dict[Execution, None] = {}
        """Executions that are there."""
        self.told: e.EngineReported | None = None
        self.starts = 0
        """Lives so far; what was scheduled for an earlier one is void."""
        self.draws = 0
        self.span = 0
        """Number of the span whose end is scheduled."""
        self.telling = False
        """News of its progress are scheduled."""


class Fleet:
    """All engines. `post` takes events; `answered` is told when a call has written its first or last token, `tried` when a
    fork of it has."""

    def __init__(
        self,
        members: list[Member],
        heap: Heap,
        services: Services,
        chaos: Chaos,
        seed: int,
        tell_s: Seconds,
        kv_events: bool,
        post: Callable[[e.Event], None],
        answered: Callable[["Execution", bool], None],
        tried: Callable[["Execution", Asked], None],
    ) -> None:
        self.members = {member.id: member for member in members}
        self.heap, self.services, self.chaos = heap, services, chaos
        self.seed, self.tell_s, self.kv_events = seed, tell_s, kv_events
        self._post, self._answered, self._tried = post, answered, tried
        self._changed: dict[Member, None] = {}

    def start(self) -> None:
        for member in self.members.values():
            self._come_up(member)

    # --- calls -------------------------------------------------------------------------------------------------

    def add(self, execution: "Execution") -> None:
        """A call arrives at its engine."""
        member = execution.member
        assert member is not None and execution.request is not None
        if execution.over or not member.up:
            return
        member.calls[execution] = None
        member.model.add(execution.request, self.heap.now)
        self._changed[member] = None
        if not member.telling:
            member.telling = True
            self.heap.after(self.tell_s, self._tell, (member, member.starts))

    def remove(self, execution: "Execution") -> None:
        """It is of no interest any more."""
        member = execution.member
        if member is not None and execution in member.calls:
            assert execution.request is not None
            del member.calls[execution]
            member.model.abort(execution.request, self.heap.now)
            self._drop_forks(execution, member)
            self._changed[member] = None

    def reprioritise(self, execution: "Execution", priority: int) -> None:
        member = execution.member
        if member is not None and execution in member.calls:
            assert execution.request is not None
            member.model.reprioritise(execution.request, priority, self.heap.now)
            self._changed[member] = None

    def preempt(self, execution: "Execution") -> None:
        member = execution.member
        if member is not None and execution in member.calls:
            assert execution.request is not None
            member.model.preempt(execution.request, self.heap.now)
            self._changed[member] = None

    def settle(self) -> None:
        """Engines to which something happened go on."""
        if self._changed:
            changed, self._changed = self._changed, {}
            for member in changed:
                member.model.plan(self.heap.now)
                if member.model.next_at < inf:
                    member.span += 1
                    self.heap.at(member.model.next_at, self._span_over, (member, member.span))

    def _span_over(self, subject: tuple[Member, int]) -> None:
        member, span = subject
        if span != member.span:
            return
        for request, what in member.model.finish():
            owner: Execution | Branch = request.owner
            if isinstance(owner, Branch):
                if what is LAST:
                    self._judged(owner, request)
            elif what is MARK:
                self._fork(owner, member)
            else:
                if what is LAST:
                    del member.calls[owner]
                    self._drop_forks(owner, member)
                self._answered(owner, what is LAST)
        self._changed[member] = None

    # --- forks -------------------------------------------------------------------------------------------------

    def mark(self, execution: "Execution", written: Tokens) -> None:
        """Fork it when its request has written so much: `execution.asked`. What was marked before is not forked."""
        assert execution.member is not None and execution.request is not None
        execution.member.model.mark(execution.request, written, self.heap.now)
        self._changed[execution.member] = None

    def _fork(self, execution: "Execution", member: Member) -> None:
        """What it has written is in the prefix cache by now. Its fork does not wait behind other calls."""
        asked, size, request = execution.asked, execution.size, execution.request
        assert asked is not None and size is not None and request is not None
        known = size.prompt + asked.trial.position
        chain = size.chain[: known // member.model.spec.prefix_tokens]
        forked = Request(Branch(execution, asked), known + asked.prompt, asked.trial.cost, chain, request.priority)
        if member.model.fits(forked):
            execution.forks[forked] = None
            member.model.add(forked, self.heap.now)

    def _judged(self, branch: Branch, request: Request) -> None:
        """A fork has its answer."""
        execution = branch.execution
        if request in execution.forks:
            del execution.forks[request]
            self._tried(execution, branch.asked)

    def _drop_forks(self, execution: "Execution", member: Member) -> None:
        for request in execution.forks:
            member.model.abort(request, self.heap.now)
        execution.forks.clear()

    # --- what engines say --------------------------------------------------------------------------------------

    def _tell(self, subject: tuple[Member, int]) -> None:
        """What has been written since, load and memory."""
        member, life = subject
        if life != member.starts or not member.up:
            return
        for execution in member.calls:
            self.tell_tokens(execution)
        model = member.model
        report = e.EngineReported(
            member.id,
            model.num_seats,
            len(model.waiting),
            round(model.cache.used_share, 3),
            model.steps,
            model.preemptions,
        )
        if report != member.told:
            member.told = report
            self._post(report)
        stored, removed = model.cache.news()
        if self.kv_events and (stored or removed):
            self._post(e.KVChanged(member.id, stored, removed))
        member.telling = model.has_work
        if member.telling:
            self.heap.after(self.tell_s, self._tell, subject)

    def tell_tokens(self, execution: "Execution", written: int | None = None) -> None:
        """Tokens that nobody has been told of."""
        member, request = execution.member, execution.request
        assert member is not None and request is not None
        count = (member.model.written(request, self.heap.now) if written is None else written) - execution.told
        if count > 0:
            execution.told += count
            self._post(e.TokensProduced(execution.run, execution.task, execution.attempt, count, member.id))

    # --- life --------------------------------------------------------------------------------------------------

    def restart(self, id: EngineId) -> None:
        member = self.members[id]
        self._clear(member)
        member.closed = False
        self.heap.after(self.services.start.draw(self._draw(member, START)), self._started, (member, member.starts))

    def _started(self, subject: tuple[Member, int]) -> None:
        member, life = subject
        if life != member.starts:
            return
        if uniform(self._draw(member, STARTS)) < self.chaos.start_failure:
            self._post(e.EngineChanged(member.id, False))
        else:
            self._come_up(member)

    def _come_up(self, member: Member) -> None:
        member.starts += 1
        member.up, member.told, member.telling = True, None, False
        spec = member.model.spec
        self._post(
            e.EngineChanged(
                member.id,
                True,
                member.names,
                spec.max_num_seqs,
                spec.kv_tokens,
                spec.max_num_batched_tokens,
                restart=True,
                reprioritise=spec.priority,
                preempt=True,
            )
        )
        life = (member, member.starts)
        for mean, what, action in (
            (self.chaos.engine_life_s, LIFE, self._die),
            (self.chaos.engine_freeze_s, FREEZE, self._freeze),
            (self.chaos.drain_s, DRAIN, self._drain),
        ):
            if mean:
                self.heap.after(exponential(self._draw(member, what), mean), action, life)

    def _die(self, subject: tuple[Member, int]) -> None:
        member, life = subject
        if life == member.starts and member.up:
            self._clear(member)
            self._post(e.EngineChanged(member.id, False))

    def _freeze(self, subject: tuple[Member, int]) -> None:
        member, life = subject
        if life == member.starts and member.up:
            length = exponential(self._draw(member, FROZEN), self.chaos.frozen_s)
            member.model.freeze(self.heap.now + length, self.heap.now)
            self._changed[member] = None
            again = length + exponential(self._draw(member, FREEZE), self.chaos.engine_freeze_s)
            self.heap.after(again, self._freeze, subject)

    def _drain(self, subject: tuple[Member, int]) -> None:
        member, life = subject
        if life == member.starts and member.up:
            self._post(e.DrainRequested(member.id, uniform(self._draw(member, DRAIN)) < 0.5))
            self.heap.after(exponential(self._draw(member, DRAIN), self.chaos.drain_s), self._resume, member)

    def _resume(self, member: Member) -> None:
        self._post(e.ResumeRequested(member.id))

    def probe(self, id: EngineId) -> None:
        member = self.members[id]
        self.heap.after(self.services.probe.draw(self._draw(member, PROBE)), self._probed, (member, member.starts))

    def _probed(self, subject: tuple[Member, int]) -> None:
        """A frozen engine answers when it has thawed."""
        member, life = subject
        if life != member.starts or not member.up:
            return
        thaws = member.model.frozen_until
        if thaws > self.heap.now:
            self.heap.at(thaws, self._probed, subject)
        else:
            failed = uniform(self._draw(member, PROBES)) < self.chaos.probe_failure
            self._post(e.Probed(member.id, not failed))

    def close(self, id: EngineId) -> None:
        member = self.members[id]
        self._clear(member)
        member.closed = True
        self._post(e.EngineChanged(id, False))

    def _clear(self, member: Member) -> None:
        member.up = False
        member.starts += 1
        member.span += 1
        for execution in member.calls:
            execution.over = True
            execution.forks.clear()
        member.calls.clear()
        member.model.reset()

    def _draw(self, member: Member, what: int) -> int:
        member.draws += 1
        return mix(self.seed, member.number, what, member.draws)
