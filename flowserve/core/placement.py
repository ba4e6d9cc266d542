"""Which engine a model call goes to. Proposals only; `dispatching` acts on them.

What has room is decided here, for every placement; which of these engines it is, by the function of `Config.placement`
(`placements`). *Choice* below is that of the default, `marginal`.

*Room.* An engine gets another call while it has a free seat, while the prompts that wait inside it are fewer than
`batches_ahead` of its steps, and while the KV that its calls are expected to need fits its memory. So its batch stays full,
and the order of everything else stays with the scheduler. An engine without calls always has room: a call that is too
large for it is refused there, not starved here. Where an engine serves urgent calls, those of less urgent tiers have room only
while they do not slow its steps down too far.

*Choice.* Of the engines with room, the one where this call adds the least seconds to all: its own, behind the prompts that are
there, with what of its prompt is not resident (Preble's trade of reuse against load, ICLR 2025, with the engine's own cache
events where it sends them), and those that the calls there lose, which stand still while its prompt is computed and share
longer steps with it. An idle engine's pace is forgotten after a while, else one that was slow once would never be asked
again. Ties go to the engine that appeared first.

*Stickiness.* When the engine that holds at least `sticky_tokens` of the prompt has no room and another has, the call waits
for as long as computing those tokens elsewhere would take, then it goes elsewhere: whatever comes, it loses at most
twice what the better choice would have cost (the ski-rental bound).
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

from flowserve.config import PoolConfig
from flowserve.core import load, passages
from flowserve.core.commands import Role
from flowserve.core.engine_state import Drain, Engine, Health, ModelCall
from flowserve.core.events import SessionEnded
from flowserve.core.placements import Asked, Program
from flowserve.core.priority import is_throughput_bound, tier
from flowserve.ids import Seconds, Tokens

if TYPE_CHECKING:
    from flowserve.core.state import SchedulerState, Task

FORGOTTEN_S: Seconds = 30.0
"""An idle engine's pace counts for so long."""
MEMORY_FULL = 0.9
"""Share of KV memory in use from which calls that wait inside an engine wait for memory."""
UP, STAYS = Health.UP, Drain.NO
"""Asked of every engine for every call, and an attribute of an Enum takes as long as five of a module (CPython 3.11)."""


def place(state: "SchedulerState", engines: Sequence[Engine], task: "Task") -> Engine | None:
    """The best of `engines` that has room for `task` now; one that gave it up only if no other has. None: none."""
    found = _with_room(state, engines, task)
    if len(found) < 2:
        return found[0] if found else None
    return state.placement.choose(asked(state, task), found, state.placed)


def _with_room(state: "SchedulerState", engines: Sequence[Engine], task: "Task") -> list[Engine]:
    call, pool = task.call, state.config.pool
    assert call is not None
    choices, need = call.choices, load.need_tokens(state, call)
    anywhere = not pool.tier_slowdown or not tier(task.run.level, state.config)
    found = []
    for engine in engines:
        full = engine.seats and engine.seats + choices > engine.limit  # asked first: the usual reason
        if (
            not full
            and takes_calls(engine)
            and _fits(pool, engine, choices, need, engine.seats, engine.backlog, engine.reserved)
            and (anywhere or may_join(state, engine, task))
        ):
            found.append(engine)
    return found


def asked(state: "SchedulerState", task: "Task") -> Asked:
    """What a placement is told of `task`."""
    call = task.call
    assert call is not None
    return Asked(
        program_of(task),
        load.prompt_tokens(state, call) if call.measured else 0,
        load.output_tokens(state, call),
        call.prefix,
        call.avoid,
        is_throughput_bound(task, state.config),
        state.now,
        state.config.pool.decode_weight,
        _held(state, task),
        partial(pace, state),
        partial(prefill_s, state),
    )


def took(state: "SchedulerState", task: "Task", engine: Engine) -> None:
    """`task` is about to go to `engine`: what the placement wants to remember of it."""
    remember = state.placement.took
    if remember is not None:
        remember(asked(state, task), engine, state.placed)


def pace(state: "SchedulerState", engine: Engine) -> Seconds:
    """Per token; 0: not known."""
    return engine.pace if engine.running or state.now - engine.progress_at < FORGOTTEN_S else 0.0


def may_reuse(task: "Task") -> bool:
    """Can an engine be known to hold something of its prompt?"""
    call = task.call
    return call is not None and (
        bool(call.prefix or call.passages) or task.run.session is not None or task.role is Role.STEP
    )


def takes_calls(engine: Engine) -> bool:
    """May it get calls at all? A tripped one gets a single call to show that it works again."""
    if engine.drain is not STAYS or engine.pause_until:
        return False
    return engine.health is UP or (engine.health is Health.TRIPPED and not engine.running)


def may_join(state: "SchedulerState", engine: Engine, task: "Task") -> bool:
    """Calls of less urgent tiers join a batch with more urgent ones only while its steps stay within `tier_slowdown` times what
    they take for one call; one always may, so that nobody stands still. See *Room* above."""
    slowdown = state.config.pool.tier_slowdown
    own = tier(task.run.level, state.config)
    urgent = sum(engine.tiers[:own])
    if not urgent or not slowdown or not engine.tiers[own]:
        return True
    return engine.tiers[own] < max(1.0, engine.step_time.beside(urgent, slowdown))


def has_room(state: "SchedulerState", engine: Engine, call: ModelCall, without: ModelCall | None = None) -> bool:
    """See *Room* above. `without`: if that call were not there."""
    seats, backlog, reserved = engine.seats, engine.backlog, engine.reserved
    if without is not None:
        seats, backlog, reserved = seats - without.choices, backlog - without.prefill, reserved - without.reserve
    return _fits(state.config.pool, engine, call.choices, load.need_tokens(state, call), seats, backlog, reserved)


def _fits(
    pool: PoolConfig, engine: Engine, choices: int, need: Tokens, seats: int, backlog: Tokens, reserved: Tokens
) -> bool:
    """Is there room for `choices` that will need so much KV, beside what takes these seats and tokens?"""
    if not seats:
        return engine.limit > 0
    if seats + choices > engine.limit:
        return False
    if engine.backlog_limit and backlog >= engine.backlog_limit:
        return False
    if engine.waiting and not backlog and engine.kv_used >= MEMORY_FULL:
        return False
    return not engine.room_tokens or reserved + need <= pool.kv_fill * engine.room_tokens


def resident(state: "SchedulerState", engine: Engine, task: "Task") -> Tokens:
    """Tokens of the prompt that `engine` is thought to hold. At least one token of a prompt is always computed."""
    return _held(state, task)(engine)


def _held(state: "SchedulerState", task: "Task") -> Callable[[Engine], Tokens]:
    """`resident` of one task, for many engines."""
    call = task.call
    if call is None or not may_reuse(task):
        return _nothing
    most = max(0, load.prompt_tokens(state, call) - 1)
    exact = _exactly_held(state, task, call, most)
    if not call.passages:
        return exact
    asked = call.passages
    return lambda engine: min(most, (there := exact(engine)) + passages.spared(engine, asked, there))


def _exactly_held(state: "SchedulerState", task: "Task", call: ModelCall, most: Tokens) -> Callable[[Engine], Tokens]:
    """As a prefix, or by its session."""
    if call.prefix:
        prefix, size = call.prefix, state.config.pool.prefix_tokens
        return lambda engine: there if (there := engine.resident.longest(prefix) * size) < most else most
    key = session_of(task)
    home, tokens = state.homes.get(key, (None, 0)) if key is not None else (None, 0)
    return lambda engine: min(tokens, most) if engine is home else 0


def _nothing(engine: Engine) -> Tokens:
    return 0


def session_of(task: "Task") -> tuple[str, str] | None:
    """Whose calls grow one prompt: the client's session, or an agent and its steps."""
    if task.run.session is not None:
        return task.run.tenant, task.run.session
    if task.role is Role.STEP:
        assert task.parent is not None
        return task.run.id, str(task.parent.id)
    return None


def program_of(task: "Task") -> Program:
    """Whose calls belong together: the client's session, or else the run."""
    run = task.run
    return (run.id, "") if run.session is None else (run.tenant, run.session)


def session_ended(state: "SchedulerState", event: SessionEnded) -> None:
    """Nothing follows that session any more: where its prompt was computed need not be remembered. Later calls begin anew."""
    key = (event.tenant, event.session)
    state.homes.pop(key, None)
    state.placed.pins.pop(key, None)


def home(state: "SchedulerState", engines: Sequence[Engine], task: "Task") -> Engine | None:
    """The engine worth waiting for, where it is not the one that has room: see *Stickiness*."""
    call, pool = task.call, state.config.pool
    assert call is not None
    if not state.placement.waits or call.waited or not may_reuse(task):
        return None
    choices, need = call.choices, load.need_tokens(state, call)
    full = [
        engine
        for engine in engines
        if not _fits(pool, engine, choices, need, engine.seats, engine.backlog, engine.reserved)
    ]
    if not full:
        return None
    held = _held(state, task)
    best: Engine | None = None
    most = pool.sticky_tokens - 1
    for engine in engines:
        if engine.health is UP and engine.drain is STAYS and engine is not call.avoid:
            there = held(engine)
            if there > most:
                best, most = engine, there
    return best if best in full and not best.pause_until else None


def patience_s(state: "SchedulerState", engine: Engine, task: "Task") -> Seconds:
    """How long `task` waits for `engine`: as long as another would compute what is resident there."""
    return resident(state, engine, task) * prefill_s(state, engine)


def prefill_s(state: "SchedulerState", engine: Engine) -> Seconds:
    """Per prompt token."""
    return engine.prefill_s or 1.0 / state.config.pool.prefill_rate


def is_known(state: "SchedulerState", model: str) -> bool:
    """Has any engine, up or down, ever answered to `model`? Without any engine at all everything may still come."""
    return not state.engines or any(model in engine.models for engine in state.engines.values())
