"""Engines come, change, report, stand still, are drained, and go.

    (new) --up--> UP --no progress--> SUSPECT --Probed ok--> UP
                  UP --faults--> TRIPPED --pause, a trial call ends well--> UP
    any of these --gone, or Probe not answered--> DOWN --Restart, up--> UP
    any --drained--> CLOSED --ResumeRequested--> DOWN --Restart, up--> UP

Calls that an engine had when it went down go back to the queue. A Restart that fails is repeated with doubling pauses.
"""

from flowserve.core import failing, heads, health, hedging, load, moving, placement, tasks
from flowserve.core.commands import Choose, Close, Restart
from flowserve.core.engine_state import Drain, Engine, Health
from flowserve.core.events import (
    Code,
    DrainRequested,
    EngineChanged,
    EngineReported,
    KVChanged,
    Probed,
    ResumeRequested,
)
from flowserve.core.residency import UNKNOWN_ROOM
from flowserve.core.state import Consequence, SchedulerState, Todo


def changed(state: SchedulerState, event: EngineChanged) -> None:
    """Take over what an engine says of itself; calls on one that went down go back to the queue.

    A window that shrank below what runs there takes nothing new until enough has ended. An engine that is down
    stays known, so that calls for its models wait for its return.
    """
    engine = state.engines.get(event.engine)
    if engine is None:
        engine = state.engines[event.engine] = Engine(
            event.engine, len(state.engines) + 1, state.config.pool.breaker_calls
        )
        engine.down_since = state.now
    _note_facts(state, engine, event)
    if event.up:
        _came_up(state, engine)
    else:
        gone(state, engine, Code.ENGINE_LOST)
    _unserved(state)


def _note_facts(state: SchedulerState, engine: Engine, event: EngineChanged) -> None:
    config = state.config.pool
    engine.limit = event.window if event.up and engine.health is not Health.CLOSED else 0
    if event.up or event.models:
        engine.models = event.models
        engine.room_tokens = event.kv_tokens
        engine.backlog_limit = round(config.batches_ahead * event.batch_tokens)
        engine.can_reprioritise, engine.can_preempt = event.reprioritise, event.preempt
        engine.pasted = event.pasted
        if not event.pasted:
            engine.passages.clear()
        engine.resident.capacity = event.kv_tokens // config.prefix_tokens or UNKNOWN_ROOM
    engine.can_restart = event.restart or engine.can_restart


def _came_up(state: SchedulerState, engine: Engine) -> None:
    if engine.health is Health.DOWN:
        health.become(engine, Health.UP)
        engine.restarting = False
        engine.up_since = engine.progress_at = state.now
        engine.pause_until = engine.longest_pause = engine.kv_used = 0.0
        engine.waiting = engine.steps = engine.preemptions = 0
        engine.outcomes.clear()
        engine.resident.clear()
        engine.passages.clear()
        if engine.drain is Drain.REPLACE:
            _drain_over(state, engine)
    _rebuild_serving(state)


def gone(state: SchedulerState, engine: Engine, code: Code) -> None:
    """It is down: what it had is lost, and it is started again if it can be."""
    if engine.up:
        if state.now - engine.up_since >= state.config.pool.settled_s:
            engine.starts = engine.trips = 0
        health.become(engine, Health.DOWN)
        engine.down_since = state.now
    engine.limit = 0
    engine.restarting = False
    _rebuild_serving(state)
    if engine.head is not None:
        heads.drop(state, engine.head)
    _lose_calls(state, engine, code)
    if engine.drain is Drain.CLOSE and engine.health is Health.DOWN:
        _drained(state, engine)
    if engine.health is Health.DOWN and engine.can_restart:
        _start_again(state, engine)


def _lose_calls(state: SchedulerState, engine: Engine, code: Code) -> None:
    for task in list(engine.rivals):
        hedging.drop_rival(task)
        assert isinstance(task.place, Engine)
        state.out.append(Choose(task.run.id, task.id, task.attempt, task.place.id, engine.id))
    for task in list(engine.running):
        if task.place is engine and not task.run.over:
            call = task.call
            if call is not None and call.rival is not None:
                hedging.choose(state, task, call.rival)
            else:
                failing.engine_gone(state, task, code)
    for task in engine.queue.waiting():
        tasks.wait_anywhere(state, task)


def _start_again(state: SchedulerState, engine: Engine) -> None:
    """At once the first time, then after doubling pauses."""
    config = state.config.pool
    if engine.starts:
        pause = min(config.max_pause_s, config.restart_s * 2.0 ** min(engine.starts - 1, 16))
        engine.pause_until = state.now + pause
    else:
        engine.pause_until = 0.0
    engine.starts += 1
    if engine.pause_until:
        health.watch(state, engine)
    else:
        _restart(state, engine)


def _restart(state: SchedulerState, engine: Engine) -> None:
    engine.restarting = True
    state.out.append(Restart(engine.id))


def _rebuild_serving(state: SchedulerState) -> None:
    serving: dict[str, list[Engine]] = {}
    for engine in state.engines.values():
        if engine.up:
            for model in engine.models:
                known = serving.setdefault(model, [])
                if engine not in known:
                    known.append(engine)
    state.serving = serving


def _unserved(state: SchedulerState) -> None:
    for model, queue in state.models.items():
        if queue.size and not placement.is_known(state, model):
            for task in queue.waiting():
                state.agenda.append(Consequence(Todo.UNSERVED, task))


# --- what it says while it is up -------------------------------------------------------------------------


def reported(state: SchedulerState, event: EngineReported) -> None:
    """Load and progress. Calls that wait inside it may be better off elsewhere, and those of a slow one."""
    engine = state.engines.get(event.engine)
    if engine is None or not engine.up:
        state.stale += 1
        return
    if event.steps > engine.steps:
        load.computed(engine, state.now)
    preempted = event.preemptions > engine.preemptions
    engine.waiting, engine.kv_used = event.waiting, event.kv_used
    engine.steps, engine.preemptions = event.steps, event.preemptions
    if event.waiting:
        moving.rebalance(state, engine, preempted)
    elif engine.running and engine.pace:
        moving.relieve(state, engine)


def kv_changed(state: SchedulerState, event: KVChanged) -> None:
    """Its cache says what it holds."""
    engine = state.engines.get(event.engine)
    if engine is None or not engine.up:
        state.stale += 1
        return
    if event.cleared:
        engine.resident.clear()
    engine.resident.remove(event.removed)
    engine.resident.add(event.stored)


def probed(state: SchedulerState, event: Probed) -> None:
    """It has answered, or the attempt to ask it failed."""
    engine = state.engines.get(event.engine)
    if engine is None or engine.health is not Health.SUSPECT:
        state.stale += 1
        return
    if event.ok:
        health.become(engine, Health.UP)
        load.computed(engine, state.now)
        health.watch(state, engine)
    else:
        gone(state, engine, Code.STALLED)


def due(state: SchedulerState, engine: Engine) -> None:
    """Its timer fired: see what has come due, and when to look again."""
    now = state.now
    if engine.pause_until <= now:
        engine.pause_until = 0.0
    if engine.health is Health.DOWN:
        if engine.can_restart and not engine.restarting and not engine.pause_until:
            _restart(state, engine)
    elif engine.health is Health.SUSPECT:
        if now >= engine.probe_until:
            gone(state, engine, Code.STALLED)
    elif engine.up and engine.can_restart:
        if health.stands_still(state, engine):
            health.suspect(state, engine)
        _look_after_calls(state, engine)
    if engine.drain is not Drain.NO and engine.up and now >= engine.drain_until:
        moving.evacuate(state, engine, everything=True)
    health.watch(state, engine)


def _look_after_calls(state: SchedulerState, engine: Engine) -> None:
    """Calls that wait too long for a token are lost there, and the engine has to answer for it; others may be hedged."""
    config = state.config.pool
    for task in list(engine.running):
        call = task.call
        if call is None or task.place is not engine:
            continue  # what became of one before it ended its run
        limit = config.first_token_s if call.last_at is None else config.between_tokens_s
        since = call.began_at if call.last_at is None else call.last_at
        if limit and since + limit <= state.now:
            tasks.stop(state, task)
            failing.lost(state, task, Code.STALLED, engine)
            health.suspect(state, engine)
        elif hedging.due(state, task):
            hedging.hedge(state, task)


# --- operators -------------------------------------------------------------------------------------------


def drain_requested(state: SchedulerState, event: DrainRequested) -> None:
    """No more calls for it. What it has not begun moves now, the rest when its time is up; then it ends."""
    engine = state.engines.get(event.engine)
    if engine is None or engine.health is Health.CLOSED:
        state.stale += 1
        return
    engine.drain = Drain.REPLACE if event.replace else Drain.CLOSE
    engine.drain_until = state.now + state.config.pool.drain_s
    state.draining[engine] = None
    if engine.head is not None:
        heads.drop(state, engine.head)
    for task in engine.queue.waiting():
        tasks.wait_anywhere(state, task)
    if engine.up:
        moving.evacuate(state, engine, everything=state.now >= engine.drain_until)
        if engine.running:
            health.watch(state, engine)


def resume_requested(state: SchedulerState, event: ResumeRequested) -> None:
    """The opposite of a drain: at once while it still runs, by a Restart when it has been closed."""
    engine = state.engines.get(event.engine)
    if engine is None or (engine.drain is Drain.NO and engine.health is not Health.CLOSED):
        state.stale += 1
        return
    _drain_over(state, engine)
    if engine.health is Health.CLOSED:
        health.become(engine, Health.DOWN)
        engine.starts = 0
        engine.pause_until = 0.0
        _restart(state, engine)


def settle_drains(state: SchedulerState) -> None:
    """Engines that are to be emptied and are empty."""
    for engine in list(state.draining):
        if not engine.running and not engine.rivals and not engine.restarting:
            _drained(state, engine)


def _drained(state: SchedulerState, engine: Engine) -> None:
    if engine.drain is Drain.REPLACE:
        if engine.up:
            health.become(engine, Health.DOWN)
            engine.down_since = state.now
            engine.limit = engine.starts = 0
            engine.pause_until = 0.0
            _rebuild_serving(state)
            _restart(state, engine)
        return
    _drain_over(state, engine)
    health.become(engine, Health.CLOSED)
    engine.limit = 0
    _rebuild_serving(state)
    state.out.append(Close(engine.id))


def _drain_over(state: SchedulerState, engine: Engine) -> None:
    engine.drain = Drain.NO
    state.draining.pop(engine, None)
