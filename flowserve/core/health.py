"""Whether an engine does its part: stalls, breakers, pauses. Judged by what happens to its calls, never by its word alone.

Calls that fail by a client's fault are no evidence of anything, and calls that an engine has no room for are evidence
of load, not of a fault. A breaker that would leave a model without any engine does not trip.
"""

from flowserve.core import placement
from flowserve.core.commands import Probe
from flowserve.core.engine_state import Drain, Engine, Health
from flowserve.core.events import Code
from flowserve.core.state import SchedulerState
from flowserve.ids import Seconds

FAULTS = (Code.ENGINE, Code.ENGINE_LOST, Code.STALLED)
"""Failures that are the engine's doing."""
PAUSES = 4.0
"""An engine has stalled when it stands still for so many times its longest pause, and for `stall_s` at least."""

FOLLOWS: dict[Health, tuple[Health, ...]] = {
    Health.UP: (Health.SUSPECT, Health.TRIPPED, Health.DOWN, Health.CLOSED),
    Health.SUSPECT: (Health.UP, Health.DOWN, Health.CLOSED),
    Health.TRIPPED: (Health.UP, Health.SUSPECT, Health.DOWN, Health.CLOSED),
    Health.DOWN: (Health.UP, Health.CLOSED),
    Health.CLOSED: (Health.DOWN,),
}
"""What may follow what."""


def become(engine: Engine, health: Health) -> None:
    """Change an engine's health; the table decides whether that is possible."""
    assert health in FOLLOWS[engine.health], f"{engine!r} cannot become {health.name}"
    engine.health = health


def judge(state: SchedulerState, engine: Engine, code: Code | None, retry_after_s: Seconds | None = None) -> None:
    """A call at `engine` has ended, well (`code` None) or not."""
    if code is None and engine.health is Health.UP:
        engine.outcomes.append(True)
        return
    if code is Code.OVERLOADED:
        pause(state, engine, retry_after_s if retry_after_s is not None else state.config.min_reject_s)
        return
    if code is not None and code not in FAULTS:
        return
    config = state.config.pool
    engine.outcomes.append(code is None)
    if engine.health is Health.TRIPPED:
        if code is None:
            become(engine, Health.UP)
            engine.outcomes.clear()
            engine.trips = 0
        else:
            _trip(state, engine)
    elif engine.health is Health.UP and code is not None:
        faults = engine.outcomes.count(False)
        enough = len(engine.outcomes) >= max(1, config.breaker_calls // 4)
        if enough and faults >= config.breaker_share * len(engine.outcomes) and _has_deputy(state, engine):
            become(engine, Health.TRIPPED)
            _trip(state, engine)


def _trip(state: SchedulerState, engine: Engine) -> None:
    config = state.config.pool
    pause(state, engine, min(config.max_pause_s, config.breaker_s * 2.0 ** min(engine.trips, 16)))
    engine.trips += 1


def _has_deputy(state: SchedulerState, engine: Engine) -> bool:
    """Can others serve everything that it serves?"""
    return all(
        any(other is not engine and placement.takes_calls(other) for other in state.serving.get(model, ()))
        for model in engine.models
    )


def pause(state: SchedulerState, engine: Engine, seconds: Seconds) -> None:
    """No new calls for a while."""
    engine.pause_until = max(engine.pause_until, state.now + seconds)
    watch(state, engine)


def suspect(state: SchedulerState, engine: Engine) -> None:
    """It seems to stand still: nothing new goes there until it has shown that it computes."""
    if engine.can_restart and engine.health in (Health.UP, Health.TRIPPED):
        become(engine, Health.SUSPECT)
        engine.probe_until = state.now + state.config.pool.probe_s
        state.out.append(Probe(engine.id))
        watch(state, engine)


def patience_s(state: SchedulerState, engine: Engine) -> Seconds:
    """How long it may stand still before it is probed."""
    return max(state.config.pool.stall_s, PAUSES * engine.longest_pause)


def stands_still(state: SchedulerState, engine: Engine) -> bool:
    return bool(engine.running) and engine.progress_at + patience_s(state, engine) <= state.now


def due_s(state: SchedulerState, engine: Engine) -> Seconds | None:
    """When it has to be looked at next; None: whenever something happens to it."""
    times: list[Seconds] = []
    if engine.pause_until and not engine.restarting:
        times.append(engine.pause_until)
    if engine.drain is not Drain.NO and engine.up and state.now < engine.drain_until:
        times.append(engine.drain_until)
    if engine.health is Health.SUSPECT:
        times.append(engine.probe_until)
    elif engine.can_restart and engine.up and engine.running:
        times.append(engine.progress_at + patience_s(state, engine))
        times.extend(_call_times(state, engine))
    return min(times, default=None)


def _call_times(state: SchedulerState, engine: Engine) -> list[Seconds]:
    """When each of its calls has waited too long for its next token, or long enough to be hedged."""
    config = state.config.pool
    times: list[Seconds] = []
    for task in engine.running:
        call = task.call
        assert call is not None
        limit = config.first_token_s if call.last_at is None else config.between_tokens_s
        if limit:
            times.append((call.began_at if call.last_at is None else call.last_at) + limit)
        if config.hedge_after_s and call.last_at is None and call.began_at + config.hedge_after_s > state.now:
            times.append(call.began_at + config.hedge_after_s)
    return times


def watch(state: SchedulerState, engine: Engine, at: Seconds | None = None) -> None:
    """Make sure that it is looked at by `at`, or when it is due. A timer that fires early is only set anew."""
    due = due_s(state, engine) if at is None else at
    if due is not None and (engine.timer is None or due < engine.timer[0]):
        if engine.timer is not None:
            state.timers.cancel(engine)
        state.timers.start(due, engine)
