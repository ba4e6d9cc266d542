"""A call that is slow to begin is sent to a second engine; the first to answer keeps it (Dean and Barroso, The Tail at
Scale, CACM 2013). Off unless `hedge_after_s` is set; for interactive calls with short prompts, and a small share of all.
"""

from flowserve.core import heads, load, placement
from flowserve.core.commands import Choose, Hedge
from flowserve.core.engine_state import Engine
from flowserve.core.state import Phase, SchedulerState, Task


def due(state: SchedulerState, task: Task) -> bool:
    """Has it waited long enough, and may it be hedged?"""
    config, call = state.config.pool, task.call
    assert call is not None
    return (
        config.hedge_after_s > 0
        and call.last_at is None
        and call.rival is None
        and call.began_at + config.hedge_after_s <= state.now
        and task.run.level <= 2 * state.config.priority_levels
        and call.measured
        and call.tokens <= config.hedge_tokens
        and call.choices == 1
        and call.rule is None
        and not call.written
        and state.hedges < max(1.0, config.hedge_share * state.calls)
    )


def hedge(state: SchedulerState, task: Task) -> None:
    """Send `task` to another engine too, if one has room and nobody waits for it."""
    call, place = task.call, task.place
    assert call is not None and isinstance(place, Engine)
    model = task.run.shape.models[task.node.id]
    if state.queue_of(model).size:
        return
    others = [engine for engine in state.serving.get(model, ()) if engine is not place]
    rival = placement.place(state, others, task)
    if rival is not None:
        heads.call_at(state, task, rival)
        call.rival = rival
        rival.rivals[task] = None
        rival.seats += call.choices
        state.hedges += 1
        state.out.append(Hedge(task.run.id, task.id, task.attempt, rival.id))


def drop_rival(task: Task) -> Engine | None:
    """Forget the second engine of a call; None: it has none."""
    call = task.call
    if call is None or call.rival is None:
        return None
    rival, call.rival = call.rival, None
    del rival.rivals[task]
    rival.seats -= call.choices
    return rival


def choose(state: SchedulerState, task: Task, winner: Engine) -> None:
    """`winner` is one of the two engines that have `task`: it goes on there alone."""
    place = task.place
    assert isinstance(place, Engine) and task.phase is Phase.RUNNING
    rival = drop_rival(task)
    assert rival is not None and winner in (place, rival)
    loser = rival if winner is place else place
    if winner is not place:
        began_at, resident = task.call.began_at if task.call is not None else state.now, 0
        load.leave(state, task, place)
        task.place = winner
        load.take(state, task, winner, resident)
        state.calls -= 1  # it is the same call
        if task.call is not None:
            task.call.began_at = began_at
    state.out.append(Choose(task.run.id, task.id, task.attempt, winner.id, loser.id))
    state.stirred = True
