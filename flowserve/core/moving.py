"""Model calls change their place by the scheduler's own will: to drain an engine, to even out load, to let the urgent in.

A call moves by abort and replay: it ends where it is, and is dispatched again with what it has written as part of its prompt
(the aim of Llumnix, OSDI 2024, without touching the engine; prefix caches make the replay cheap). A call that has written
nothing loses nothing. One that cannot go on elsewhere (`Loss`) begins anew, so only a drain whose time is up moves it.
Each call moves at most `max_moves` times.
"""

from collections.abc import Iterator
from math import inf

from flowserve.core import failing, lengths, load, placement, tasks
from flowserve.core.commands import Preempt
from flowserve.core.engine_state import Drain, Engine, ModelCall
from flowserve.core.events import Code, Loss
from flowserve.core.priority import tier
from flowserve.core.state import SchedulerState, Task
from flowserve.ids import Seconds

FULL = 0.95
"""Share of KV memory in use from which an engine that pushes calls out gives one away."""
SLOW = 3.0
"""A slow engine gives a call away that another would end in a third of the time,"""
GAIN_S: Seconds = 1.0
"""and by so much sooner."""


def move(state: SchedulerState, task: Task) -> None:
    """Stop the call where it is and let it wait for another place."""
    call, place = task.call, task.place
    assert call is not None and isinstance(place, Engine)
    call.moves += 1
    call.avoid = place
    tasks.stop(state, task)
    failing.again(state, task, Code.MOVED, 0.0)
    lengths.moved(state, task)


def loses_nothing(call: ModelCall) -> bool:
    """What it has written is kept when it moves."""
    return call.last_at is None or call.on_loss is Loss.CONTINUE


def may_move(state: SchedulerState, call: ModelCall) -> bool:
    return call.moves < state.config.pool.max_moves and call.rival is None and loses_nothing(call)


def evacuate(state: SchedulerState, engine: Engine, everything: bool) -> None:
    """Move what is at a drained engine: what it has not begun, or `everything` that does not fail by it."""
    if not _others(state, engine):
        return
    for task in list(engine.running):
        call = task.call
        if call is None or task.place is not engine:
            continue
        kept = call.written and call.on_loss is Loss.FAIL
        if call.last_at is None or (everything and not kept):
            move(state, task)


def _others(state: SchedulerState, engine: Engine) -> bool:
    """Is there another engine for what this one serves?"""
    return any(
        other is not engine and other.up and other.drain is Drain.NO
        for model in engine.models
        for other in state.serving.get(model, ())
    )


def rebalance(state: SchedulerState, engine: Engine, preempted: bool) -> None:
    """`engine` says that calls wait inside it: give one to an engine that would begin it at once.

    The latest call that it has not begun; where it pushes calls out for want of memory, else, the smallest that it has.
    """
    waiting = [task for task in engine.running if task.call is not None and task.call.last_at is None]
    for task in reversed(waiting):
        if _better_place(state, engine, task):
            move(state, task)
            return
    if preempted and engine.kv_used >= FULL:
        begun = [task for task in engine.running if task not in waiting]
        for task in sorted(begun, key=_size):
            if _better_place(state, engine, task):
                move(state, task)
                return


def _size(task: Task) -> tuple[int, int]:
    assert task.call is not None
    return task.call.tokens + task.call.written, task.id


def _better_place(state: SchedulerState, engine: Engine, task: Task) -> bool:
    """Would another engine begin `task` at once, and does nobody wait for that place?"""
    return any(True for _ in _better_places(state, engine, task))


def _better_places(state: SchedulerState, engine: Engine, task: Task) -> Iterator[Engine]:
    call = task.call
    assert call is not None
    if not may_move(state, call):
        return
    model = task.run.shape.models[task.node.id]
    queue = state.models.get(model)
    if queue is not None and queue.size:
        return
    for other in state.serving.get(model, ()):
        if (
            other is not engine
            and placement.takes_calls(other)
            and not other.waiting
            and not other.backlog
            and other.seats < other.limit
            and placement.has_room(state, other, call)
        ):
            yield other


def relieve(state: SchedulerState, engine: Engine) -> None:
    """`engine` computes: where it is slow, give the call with most to come to one that would have it done long before."""
    paces = [placement.pace(state, other) for other in state.engines.values() if other.up and other is not engine]
    if engine.pace <= SLOW * min(filter(None, paces), default=inf):
        return
    sooner = [task for task in engine.running if task.call is not None and _ends_sooner(state, engine, task)]
    if sooner:
        move(state, max(sooner, key=_to_come))


def _to_come(task: Task) -> tuple[int, int]:
    assert task.call is not None
    return task.call.decode, task.id


def _ends_sooner(state: SchedulerState, engine: Engine, task: Task) -> bool:
    """Much sooner, elsewhere, though its prompt and what it has written are computed once more."""
    call = task.call
    assert call is not None
    here = call.decode * engine.pace
    if here <= GAIN_S:
        return False
    for other in _better_places(state, engine, task):
        pace = placement.pace(state, other)
        there = load.prompt_tokens(state, call) * placement.prefill_s(state, other) + call.decode * pace
        if pace and here > SLOW * there and here - there > GAIN_S:
            return True
    return False


def make_room(state: SchedulerState, task: Task) -> Engine | None:
    """Push a call of a less urgent tier out for `task`, which found no room; where the policy says so, a longer one of its own
    tier. The engine that has some now, or None.

    It is the least urgent call of the engine that has most of them. It goes back into the queue where it loses nothing by
    that, else, where the engine can, out of its batch until there is room again.
    """
    serving = state.serving.get(task.run.shape.models[task.node.id], ())
    open_engines = [engine for engine in serving if engine.seats and placement.takes_calls(engine)]
    engine = max(open_engines, key=lambda engine: _num_behind(state, engine, task), default=None)
    if engine is None or not _num_behind(state, engine, task):
        return None
    yielding = [other for other in engine.running if _yields(state, other, task, engine)]
    if not yielding:
        return None
    victim = max(yielding, key=lambda other: (state.policy.rank_of(other, state.config), other.run.arrival, other.id))
    loser = victim.call
    assert loser is not None
    if may_move(state, loser):
        move(state, victim)
    else:
        load.push_out(engine, loser, True)
        loser.moves += 1
        state.out.append(Preempt(victim.run.id, victim.id, victim.attempt, engine.id))
    return engine


def _num_behind(state: SchedulerState, engine: Engine, task: Task) -> int:
    """Calls of `engine` that are less urgent than `task`, whether they can make way or not."""
    behind = sum(engine.tiers[tier(task.run.level, state.config) + 1 :])
    if state.policy.preempts:
        behind += sum(_is_longer(state, other, task) for other in engine.running)
    return behind


def _is_longer(state: SchedulerState, other: Task, task: Task) -> bool:
    """Has `other`, of the same tier and a less urgent run, more to write than `task`, and is it far from its end? What is
    nearly done goes on: it would have to be read once more to save little (TRAIL, arXiv 2410.01035)."""
    call, loser = task.call, other.call
    if call is None or loser is None or call.predicted is None or loser.predicted is None:
        return False
    if tier(other.run.level, state.config) != tier(task.run.level, state.config) or other.run.rank <= task.run.rank:
        return False
    far = loser.written < state.policy.preempts * loser.predicted.mean
    return far and load.output_tokens(state, loser) > load.output_tokens(state, call)


def _yields(state: SchedulerState, other: Task, task: Task, engine: Engine) -> bool:
    """Is `other` less urgent than `task`, can it make way, and is there room for `task` then?"""
    call, loser = task.call, other.call
    assert call is not None and loser is not None
    behind = tier(other.run.level, state.config) > tier(task.run.level, state.config)
    if loser.pushed_out or loser.rival is not None:
        return False
    if not behind and not (state.policy.preempts and _is_longer(state, other, task)):
        return False
    can = may_move(state, loser) or (engine.can_preempt and loser.moves < state.config.pool.max_moves)
    return can and placement.has_room(state, engine, call, without=loser)
