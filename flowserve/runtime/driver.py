"""The live driver of the core: one queue of events, drained on the event loop.

`post` takes an event; `core.step` decides; `_COMMANDS` says which method carries a command out. What can be
answered without waiting (expressions, joins, votes) is answered in the same drain; everything else
becomes a job whose end is the next event. Nothing here chooses an order, an engine, a retry or a time.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import replace
from typing import Any

from flowserve.clock import Clock
from flowserve.config import RuntimeConfig
from flowserve.core import commands as c
from flowserve.core import events as e
from flowserve.core.commands import Role, Status
from flowserve.core.config import Config
from flowserve.core.log import LogWriter
from flowserve.core.speculation.transaction import Commit, RollBack
from flowserve.core.state import SchedulerState
from flowserve.core.step import step
from flowserve.core.stopping.signals import UNUSABLE
from flowserve.core.story import story
from flowserve.engines.base import Engine, Output
from flowserve.errors import DeadlineHopeless, FlowServeError, InternalError, Overloaded, RunFailed, Unavailable
from flowserve.graphs.plan import Kind
from flowserve.ids import EngineId, FrameId, RunId, Seconds, Tokens
from flowserve.retrieval.protocols import RetrievalService
from flowserve.runtime import dynamic, items, local
from flowserve.runtime.cache import ResultCache
from flowserve.runtime.certified import Certificates
from flowserve.runtime.chains import Chain, lacking
from flowserve.runtime.collected import Collected
from flowserve.runtime.execute import LONG_PROMPT_CHARS, Executor
from flowserve.runtime.failures import code_of, error_for, reason, retry_after
from flowserve.runtime.flights import Flights
from flowserve.runtime.frames import Frame
from flowserve.runtime.heads import Heads
from flowserve.runtime.jobs import Jobs
from flowserve.runtime.limits import exhausted, limited, too_late
from flowserve.runtime.pool import Pool, Seat
from flowserve.runtime.prompts import PromptFormats
from flowserve.runtime.reporting import Reporter
from flowserve.runtime.residency import PrefixNumbers
from flowserve.runtime.run import Run, TaskState, ended_error
from flowserve.runtime.shadows import Shadows
from flowserve.runtime.threads import Threads
from flowserve.runtime.trials import NOTHING, ask, fork_of

NODE, STEP, AGENT_TOOL, RETRYING = Role.NODE, Role.STEP, Role.TOOL, Status.RETRYING
DYNAMIC, LLM, SEARCH = Kind.DYNAMIC, Kind.LLM, Kind.SEARCH
"""Asked of every task; an attribute of an Enum takes as long as five of a module (CPython 3.11)."""

log = logging.getLogger("flowserve.runtime")

DRAIN_BUDGET = 256
"""Events handled before the loop gets a turn: a plan of thousands of pure nodes must not freeze a server."""


class Driver:
    """Turns commands into work and work into events, for the runs it was given."""

    def __init__(
        self,
        engines: Sequence[Engine | Seat],
        retrieval: RetrievalService | None,
        config: RuntimeConfig,
        clock: Clock,
        ended: Callable[[Run], None],
        log_line: Callable[[str], object] | None,
        certificates: Certificates | None = None,
    ) -> None:
        self.pool = Pool(engines, PrefixNumbers(config.pool.prefix_tokens), self.post, self._spawn)
        self.live: dict[RunId, Run] = {}
        self.state = SchedulerState(
            Config(
                policy=config.policy,
                predictor=config.predictor,
                placement=config.placement,
                fairness=config.fairness,
                tenant_weights=config.tenant_weights,
                tenant_limits=config.tenant_limits,
                prices=config.prices,
                drop_hopeless=config.drop_hopeless,
                max_live_runs=config.max_live_runs,
                tool_window=config.tool_window,
                search_window=config.search_window,
                measure=True,
                pool=config.pool,
            )
        )
        self._log = LogWriter(log_line, self.state.config) if log_line is not None else None
        self.reporter = Reporter(clock)
        self._clock = clock
        self._ended = ended
        self._threads = Threads(config.tool_window)
        formats = PromptFormats()
        self.shadows = Shadows(self._spawn, self._threads)
        self._executor = Executor(
            self.pool, retrieval, self._threads, formats, self._delta, certificates, self.shadows, self._speculated
        )
        self._heads = Heads(self.pool, formats, self._threads, self.post, self._spawn)
        self._cache = ResultCache(config.cache_entries)
        self._flights = Flights(self._cache)
        self._queue: deque[e.Event] = deque()
        self._draining = False
        self._timer: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._jobs = Jobs(self._spawn)
        self._warned: set[EngineId] = set()
        """Engines that were said not to be able to answer trials."""
        self._own_loop: asyncio.AbstractEventLoop | None = None

    # --- the queue ------------------------------------------------------------------------------------------

    def post(self, event: e.Event) -> None:
        """Hand an event to the scheduler and carry out what it asks for. Call on the loop only."""
        self._queue.append(event)
        if not self._draining:
            self._drain()

    def _drain(self) -> None:
        self._draining = True
        try:
            for _ in range(DRAIN_BUDGET):
                if not self._queue:
                    break
                event, now = self._queue.popleft(), self._clock.now()
                if self._log is not None:
                    self._log.record(now, event)
                self._handle(event, now)
        finally:
            self._draining = False
        if self._queue:
            self._loop().call_soon(self._resume)

    def _handle(self, event: e.Event, now: Seconds) -> None:
        try:
            commands = step(self.state, event, now)
        except Exception as error:  # noqa: BLE001  # our own mistake must end one run, not all
            self._broken(event, error)
            return
        for command in commands:
            try:
                _COMMANDS[type(command)](self, command)
            except Exception as error:  # noqa: BLE001  # as above; the other commands may be about other runs
                self._broken(command, error)
        if isinstance(event, e.CancelRequested):
            run = self.live.get(event.run)
            if run is not None and run.broken is not None:  # the scheduler had done with it before it broke
                self._finish(run, Status.FAILED, error=run.broken)

    def _broken(self, item: e.Event | c.Command, error: Exception) -> None:
        """Something could not be handled: a defect of ours. Its run fails and tells the story; the others go on."""
        log.error("%r could not be handled", item, exc_info=error)
        run = self.live.get(getattr(item, "run", RunId("")))
        if run is not None and run.broken is None:
            run.broken = error if isinstance(error, InternalError) else self._internal(run, error)
            self._queue.append(e.CancelRequested(run.id, "internal error"))

    def _loop(self) -> asyncio.AbstractEventLoop:
        """The loop that the runtime was first used on; tools report progress to it from their threads."""
        if self._own_loop is None:
            self._own_loop = asyncio.get_running_loop()
        return self._own_loop

    def _resume(self) -> None:
        if self._queue and not self._draining:
            self._drain()

    def _spawn(self, coroutine: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run something until the runtime closes."""
        task = self._loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def close(self) -> None:
        """Stop every job and wait for it. Events that still wait are handled first: cancelled runs end here."""
        while self._queue:
            self._drain()
        if self._timer is not None:
            self._timer.cancel()
        self._jobs.drop()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._threads.close()

    # --- commands: runs and frames ----------------------------------------------------------------------------

    def _open_frame(self, command: c.OpenFrame) -> None:
        run = self.live[command.run]
        plan = run.program.plan
        if command.task is None:
            frame = Frame(plan, command.block, None, None, 0, run.inputs)
        else:
            assert command.parent is not None
            task = run.tasks[command.task]
            params = local.frame_params(task, command.index)
            frame = Frame(plan, command.block, run.frames[command.parent], command.task, command.index, params)
        run.frames[command.frame] = frame

    def _close_frame(self, command: c.CloseFrame) -> None:
        run = self.live.get(command.run)
        if run is not None:
            run.frames.pop(command.frame, None)

    def _reject(self, command: c.Reject) -> None:
        run = self.live.pop(command.run)
        again = f"try again in {command.retry_after_s:.0f} s"
        if command.outage:
            down = "; ".join(f"engine {m.engine.id}: {m.reason}" for m in self.pool.members.values() if not m.up)
            message = f"no engine is up for what '{run.program.plan.name}' calls ({down}); {again}"
            run.accepted.set_exception(Unavailable(message, command.retry_after_s))
        elif command.expected_s is not None:
            run.accepted.set_exception(_hopeless(run.program.plan.name, command))
        elif command.over is not None:
            run.accepted.set_exception(limited(command.over, command.retry_after_s))
        else:
            message = f"{len(self.live)} runs are live, which is the limit; {again}"
            run.accepted.set_exception(Overloaded(message, command.retry_after_s))

    def _complete(self, command: c.Complete) -> None:
        run = self.live[command.run]
        run.spent = command.spent
        if run.broken is not None:
            self._finish(run, Status.FAILED, error=run.broken)
            return
        try:
            value = run.frames[FrameId(0)].result()
            shown = run.program.dump(value)
        except FlowServeError as error:
            self._finish(run, Status.FAILED, error=error)
        else:
            self._finish(run, Status.COMPLETED, value, shown)

    def _fail(self, command: c.Fail) -> None:
        run = self.live[command.run]
        run.spent = command.spent
        if run.broken is not None:
            self._finish(run, Status.FAILED, error=run.broken)
            return
        if command.status is not Status.FAILED:
            self._finish(run, command.status, error=ended_error(command.status, run.id))
            return
        assert command.task is not None and command.code is not None
        task = run.tasks[command.task]
        if command.over is not None:
            self._finish(run, Status.FAILED, error=exhausted(run.id, run.program.plan, task.record.label, command.over))
            return
        text, label = run.reason(task, command.code), task.record.label
        error = RunFailed(f"node {label} failed: {text}", run.id, label)
        error.__cause__ = task.error or error_for(command.code, text)
        if command.expected_s is not None:
            error = too_late(run.id, label, command.expected_s)
        self._finish(run, Status.FAILED, error=error)

    def _finish(
        self, run: Run, status: Status, value: Any = None, shown: Any = None, error: FlowServeError | None = None
    ) -> None:
        run.end(status, self._clock.now(), value, error)
        self.reporter.ended(run, shown)
        del self.live[run.id]
        run.release()
        self._ended(run)

    # --- commands: tasks --------------------------------------------------------------------------------------

    def _measure(self, command: c.Measure) -> None:
        run = self.live[command.run]
        task = run.tasks[command.task]
        if command.parent is not None:
            task.parent = run.tasks[command.parent]
        try:
            task.prompt = self._executor.prompt(run, task, command.last)
            if task.prompt.chars > LONG_PROMPT_CHARS:
                self._spawn(self._measure_aside(run, task))
            else:
                self.post(self._executor.size(run, task, 1))
        except FlowServeError as error:
            self._not_measured(run, task, error)

    async def _measure_aside(self, run: Run, task: TaskState) -> None:
        """A long prompt is tokenised in a thread, so that the loop does not stand still."""
        try:
            self.post(await self._threads.call(self._executor.size, run, task, 1))
        except FlowServeError as error:
            self._not_measured(run, task, error)
        except Exception as error:  # noqa: BLE001  # a tokenizer may fail in any way; its run fails, the loop goes on
            self._not_measured(run, task, self._internal(run, error))

    def _not_measured(self, run: Run, task: TaskState, error: FlowServeError) -> None:
        task.error = error
        self.post(e.TaskFailed(run.id, task.id, 1, code_of(error)))

    def _measure_head(self, command: c.MeasureHead) -> None:
        self._heads.measure(self.live[command.run], command)

    def _compute_head(self, command: c.ComputeHead) -> None:
        self._heads.compute(self.live[command.run], command)

    def _drop_head(self, command: c.DropHead) -> None:
        self._heads.drop(command)

    def _dispatch(self, command: c.Dispatch) -> None:
        run = self.live[command.run]
        task = run.tasks[command.task]
        task.attempt = command.attempt
        task.error = None
        task.record.engine = command.engine
        if command.parent is not None:
            task.parent = run.tasks[command.parent]
        if command.engine is not None:
            if not command.resume:
                task.collected = Collected()
                task.chain = self._chain(run, task, command.engine)
                task.lists = items.lists_of(run.program, task.node, task.frame)
            task.streams, task.held = {command.engine: task.collected}, None
        if command.role is NODE and task.node.kind in local.EVALUATED:
            self._answer(task, command.run, lambda: local.begin(run, task))
        else:
            self._start(run, task, command)

    def _chain(self, run: Run, task: TaskState, engine: EngineId) -> Chain | None:
        """What watches a call that may end early."""
        if task.role is not Role.NODE:
            return None
        exit = run.program.plan.llms[task.node.target].exit
        lacks = lacking(self.pool.engine(engine)) if exit is not None else ""
        if lacks:
            why = f"engine {engine} lacks {lacks}: the call is written to its end"
            self.reporter.exited(run, task, "unavailable", why)
            self._warn_once(engine, why)
        return Chain(exit) if exit is not None else None

    def _warn_once(self, engine: EngineId, why: str) -> None:
        if engine not in self._warned:
            self._warned.add(engine)
            log.warning("early exit: %s", why)

    def _fork(self, command: c.Fork) -> None:
        chain = self.live[command.run].tasks[command.task].chain
        assert chain is not None
        chain.fork_at, chain.confident = command.position, command.confident

    def _exit(self, command: c.Exit) -> None:
        run = self.live[command.run]
        task = run.tasks[command.task]
        chain = task.chain
        assert chain is not None
        if chain.is_open:  # else it came to its own end while the trial did
            assert chain.call is not None
            chain.stop(command.label)
            self.pool.aside(self.pool.engine(command.engine).abort(chain.call.id))
            self.reporter.exited(run, task, "stopped", command.why)

    def _evaluate(self, command: c.Evaluate) -> None:
        run = self.live[command.run]
        task = run.tasks[command.task]
        task.attempt = command.attempt
        if command.frame is None:
            self._answer(task, run.id, lambda: local.whole_list(run, task))
        else:
            ended = run.frames[command.frame]
            self._answer(task, run.id, lambda: local.next_iteration(run, task, ended))

    def _label(self, command: c.Label) -> None:
        run = self.live[command.run]
        task = run.tasks[command.task]
        label = local.label(run, task, run.frames[command.frame])
        self.post(e.SampleLabelled(run.id, command.task, command.frame, label))

    def _join(self, command: c.Join) -> None:
        run = self.live[command.run]
        task = run.tasks[command.task]
        task.attempt = command.attempt
        frames = [run.frames[frame] for frame in command.frames]
        self._answer(task, run.id, lambda: local.join(run, task, frames, command.stopped_by))

    def _answer(self, task: TaskState, run: RunId, work: Callable[[], e.Event]) -> None:
        """Do pure work now; whatever goes wrong in it is the task's failure."""
        try:
            self.post(work())
        except FlowServeError as error:
            task.error = error
            self.post(e.TaskFailed(run, task.id, task.attempt, code_of(error)))

    def _return(self, command: c.Return) -> None:
        run = self.live[command.run]
        task = run.tasks[command.task]
        future, inside = task.calls.pop(command.call, None), run.last_error.pop(task.id, None)
        if future is None or future.done():
            return
        if command.code is not None:
            text = inside or reason(command.code, task.node, None)
            future.set_exception(error_for(command.code, text))
            return
        assert command.frame is not None
        try:
            future.set_result(run.frames[command.frame].result())
        except FlowServeError as error:
            future.set_exception(error)

    def _cancel(self, command: c.Cancel) -> None:
        run = self.live.get(command.run)
        task = run.tasks.get(command.task) if run is not None else None
        if task is not None:
            for job in task.jobs.values():
                job.cancel()
            task.jobs.clear()
            if task.chain is not None:
                task.chain.end()
            if command.engine is not None and not self.pool.members[command.engine].up:
                task.error = self.pool.loss(command.engine)

    def _degrade(self, command: c.Degrade) -> None:
        self.reporter.degraded(self.live[command.run], command)

    # --- commands: engines ------------------------------------------------------------------------------------

    def _hedge(self, command: c.Hedge) -> None:
        run = self.live[command.run]
        task = run.tasks[command.task]
        assert task.record.engine is not None
        first = EngineId(task.record.engine)
        task.streams[command.engine] = Collected()
        task.held = {first: [], command.engine: []}
        self.pool.members[command.engine].counts["hedges"] += 1
        assert task.dispatch is not None
        self._start(run, task, replace(task.dispatch, engine=command.engine))

    def _choose(self, command: c.Choose) -> None:
        run = self.live[command.run]
        task = run.tasks[command.task]
        job = task.jobs.pop(command.other, None)
        if job is not None:
            job.cancel()
        held, task.held = (task.held or {}).get(command.engine, []), None
        task.collected = task.streams[command.engine]
        task.streams = {command.engine: task.collected}
        task.record.engine = command.engine
        for output in held:
            self._show(run, task, output)

    def _reprioritise(self, command: c.Reprioritise) -> None:
        engine = self.pool.engine(command.engine)
        self.pool.aside(engine.reprioritise(_call_id(command), command.priority))

    def _preempt(self, command: c.Preempt) -> None:
        self.pool.members[command.engine].counts["preempted"] += 1
        self.pool.aside(self.pool.engine(command.engine).preempt(_call_id(command)))

    def _probe(self, command: c.Probe) -> None:
        self.pool.probe(command.engine)

    def _restart(self, command: c.Restart) -> None:
        self.pool.restart(command.engine)

    def _shut(self, command: c.Close) -> None:
        self.pool.shut(command.engine)

    # --- commands: observers and time -------------------------------------------------------------------------

    def _mark(self, command: c.Mark) -> None:
        run = self.live[command.run]
        self.reporter.mark(run, command)
        if command.status is RETRYING and command.task is not None:
            run.tasks[command.task].start_over()

    def _wake_at(self, command: c.WakeAt) -> None:
        if self._timer is not None:
            self._timer.cancel()
        delay = max(0.0, command.at - self._clock.now())
        self._timer = self._loop().call_later(delay, self._tick)

    def _tick(self) -> None:
        self._timer = None
        self.post(e.Tick())

    # --- jobs: work that takes time -----------------------------------------------------------------------------

    def _start(self, run: Run, task: TaskState, command: c.Dispatch) -> None:
        task.dispatch = command
        task.jobs[command.engine] = self._jobs.start(self._job(run, task, command))

    async def _job(self, run: Run, task: TaskState, command: c.Dispatch) -> None:
        """Do the work, then say how it ended. A cancelled job says nothing: the scheduler knows."""
        try:
            event = await self._work(run, task, command)
        except asyncio.CancelledError:
            raise
        except Exception as error:  # noqa: BLE001  # a job may fail in any way; its run fails, the loop goes on
            if not isinstance(error, FlowServeError):
                error = self._internal(run, error)
            if task.attempt == command.attempt:
                task.error = error
            code, pause = code_of(error), retry_after(error)
            event = e.TaskFailed(run.id, task.id, command.attempt, code, pause, command.engine)
        if task.attempt == command.attempt:
            task.jobs.pop(command.engine, None)
        self.post(event)
        if isinstance(event, e.TaskFailed) and event.code is e.Code.ENGINE_LOST and command.engine is not None:
            self.pool.lost(command.engine)

    def _internal(self, run: Run, error: Exception) -> InternalError:
        made = InternalError(f"{type(error).__name__}: {error}", story(self.state, run.id))
        made.__cause__ = error
        return made

    async def _work(self, run: Run, task: TaskState, command: c.Dispatch) -> e.Event:
        done = e.TaskFinished(run.id, task.id, command.attempt)
        if task.role is STEP:
            calls, answer = await self._executor.step(run, task, command)
            assert task.parent is not None
            task.parent.value, task.parent.pending = answer, calls
            tools = tuple(task.parent.conversation.index(call.name) for call in calls)
            return self._answered(run, task, command, tools)
        if task.role is AGENT_TOOL:
            await self._executor.agent_tool(run, task, self._progress)
            return done
        if task.node.kind is DYNAMIC:
            value = await dynamic.execute(run, task, command.attempt, self.post, self._progress)
        else:
            value = await (self._cached if task.node.cache else self._leaf)(run, task, command)
        task.frame.values[task.node.id] = value
        return done if command.engine is None else self._answered(run, task, command)

    def _answered(self, run: Run, task: TaskState, command: c.Dispatch, tools: tuple[int, ...] = ()) -> e.TaskFinished:
        """A model call has ended well: what it took, and what its engine holds now."""
        assert command.engine is not None
        taken = (task.record.tokens_in, task.record.tokens_out)
        held = self._executor.held(run, task, command.engine)
        cached = task.record.cached_tokens
        return e.TaskFinished(run.id, task.id, command.attempt, *taken, tools, held, command.engine, cached)

    async def _cached(self, run: Run, task: TaskState, command: c.Dispatch) -> Any:
        """A node with `cache=True` and equal arguments is computed once; same tenant, same workflow version."""
        key = self._cache.key(run, task, command)
        if key is None:
            return await self._leaf(run, task, command)
        return await self._flights.value(key, lambda: self._leaf(run, task, command))

    def _leaf(self, run: Run, task: TaskState, command: c.Dispatch) -> Coroutine[Any, Any, Any]:
        if run.raw is not None:
            return self._executor.raw(run, task, command)
        if task.node.kind is LLM:
            return self._executor.llm(run, task, command)
        if task.node.kind is SEARCH:
            return self._executor.search(run, task, command)
        return self._executor.tool(run, task, self._progress)

    # --- what goes out --------------------------------------------------------------------------------------------

    def _delta(self, run: Run, task: TaskState, command: c.Dispatch, collected: Collected, output: Output) -> None:
        """An engine sent something: tell the scheduler how much, and the run's readers what."""
        collected.add(output)
        engine = command.engine
        if task.attempt != command.attempt or run.done or engine not in task.streams:
            return
        if task.held is not None and engine is not None:
            task.held[engine].append(output)
        else:
            self._show(run, task, output)
        if output.count:
            self.post(e.TokensProduced(run.id, task.id, command.attempt, output.count, engine))
        if task.chain is not None and task.chain.is_open:
            self._watch(run, task, command, task.chain, output)

    def _speculated(self, run: Run, task: TaskState, command: c.Dispatch, did: Commit | RollBack) -> None:
        """A call that looks things up was right or wrong; what it wrote in vain is charged, and is no progress."""
        if task.attempt != command.attempt or run.done:
            return
        if isinstance(did, RollBack) and did.tokens:
            task.record.wasted_tokens += did.tokens
            self.post(e.TokensProduced(run.id, task.id, command.attempt, did.tokens, command.engine, trial=True))
        engine = command.engine  # of a hedged call, only the one that readers see tells
        if engine is not None and task.streams.get(engine) is task.collected:
            self.reporter.speculated(run, task, did)

    def _watch(self, run: Run, task: TaskState, command: c.Dispatch, chain: Chain, output: Output) -> None:
        """A call that may end early has written something: fork it, if this is the place; it may have used up its budget."""
        place = chain.saw(output)
        if chain.cut is not None:
            self.reporter.exited(run, task, "budget", f"{chain.exit.budget} tokens of thought")
        elif place is not None:
            chain.trial = self._spawn(self._try(run, task, command, chain, place))

    async def _try(self, run: Run, task: TaskState, command: c.Dispatch, chain: Chain, place: Tokens) -> None:
        """Have a fork answer; whatever goes wrong in it is an answer that cannot be used."""
        assert command.engine is not None and chain.call is not None
        engine, confident, cost = self.pool.engine(command.engine), chain.confident, 0

        def told(count: Tokens) -> None:
            nonlocal cost
            cost += count
            task.record.trial_tokens += count
            self.post(e.TokensProduced(run.id, task.id, command.attempt, count, command.engine, trial=True))

        chain.num_trials += 1
        try:
            fork = fork_of(chain.call, engine, task.collected.ids[:place], chain.exit, chain.num_trials)
            answered = await ask(fork, engine, chain.exit, told)
            label = chain.label(answered)
        except Exception as error:  # noqa: BLE001  # a trial may fail in any way; its call goes on
            log.warning("early exit: a trial of %s failed: %s", chain.call.id if chain.call else run.id, error)
            answered, label = NOTHING, UNUSABLE
        told_of = (answered.confidence if confident else None, cost, answered.closed, answered.hesitates)
        self.post(e.TrialAnswered(run.id, task.id, command.attempt, place, label, *told_of))

    def _show(self, run: Run, task: TaskState, output: Output) -> None:
        if task.record.first_token_s is None and output.count:
            task.record.first_token_s = self._clock.now() - run.created
        data: dict[str, Any] = {"text": output.text, "result": task.node.id in run.streamed}
        if run.raw is not None:
            data["text"] = run.raw.shown(output)
            data |= {"choice": output.index, "logprobs": output.logprobs}
        if data["text"] or data.get("logprobs"):
            self.reporter.emit(run, "node.delta", node=task.record.label, task=task.id, data=data)
        for written in task.lists if output.text else ():
            if written.push(output.text):
                for map in written.maps:
                    self.post(e.Items(run.id, task.id, task.attempt, map, len(written.items)))

    def _progress(self, run: Run, task: TaskState, value: Any) -> None:
        """`fs.emit` inside a tool or a dynamic node, from any thread."""
        shown = run.program.dump(value)
        self._loop().call_soon_threadsafe(self._show_progress, run, task, shown)

    def _show_progress(self, run: Run, task: TaskState, shown: Any) -> None:
        if not run.done:
            self.reporter.emit(run, "node.progress", node=task.record.label, task=task.id, data={"value": shown})


def _hopeless(name: str, command: c.Reject) -> DeadlineHopeless:
    assert command.expected_s is not None
    alone = command.expected_s - command.wait_s
    message = (
        f"'{name}' cannot end in time: expected to take {command.expected_s:.3g} s, {alone:.3g} s by itself and "
        f"{command.wait_s:.3g} s behind others. Give it a longer `timeout`"
    )
    if command.wait_s:
        message += f", or try again in {command.retry_after_s:.0f} s"
    return DeadlineHopeless(message, command.retry_after_s, command.expected_s)


def _call_id(command: c.Reprioritise | c.Preempt) -> str:
    return f"{command.run}/{command.task}/{command.attempt}"


_COMMANDS: dict[type, Callable[[Driver, Any], None]] = {
    c.OpenFrame: Driver._open_frame,
    c.Measure: Driver._measure,
    c.MeasureHead: Driver._measure_head,
    c.ComputeHead: Driver._compute_head,
    c.DropHead: Driver._drop_head,
    c.Dispatch: Driver._dispatch,
    c.Degrade: Driver._degrade,
    c.Fork: Driver._fork,
    c.Exit: Driver._exit,
    c.Hedge: Driver._hedge,
    c.Choose: Driver._choose,
    c.Reprioritise: Driver._reprioritise,
    c.Preempt: Driver._preempt,
    c.Evaluate: Driver._evaluate,
    c.Label: Driver._label,
    c.Join: Driver._join,
    c.Return: Driver._return,
    c.Cancel: Driver._cancel,
    c.Mark: Driver._mark,
    c.CloseFrame: Driver._close_frame,
    c.Complete: Driver._complete,
    c.Fail: Driver._fail,
    c.Reject: Driver._reject,
    c.Probe: Driver._probe,
    c.Restart: Driver._restart,
    c.Close: Driver._shut,
    c.WakeAt: Driver._wake_at,
}
