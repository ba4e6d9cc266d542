"""What a model call weighs at an engine: its seats, the prompt that is still to be computed, the output that is
still to come, and the KV memory that it will need. The engine's sums change here and nowhere else.
"""

from flowserve.core import lengths, passages, service, spending
from flowserve.core.engine_state import LEARNING, SPAN_S, Engine, ModelCall
from flowserve.core.priority import is_throughput_bound, tier
from flowserve.core.state import SchedulerState, Task
from flowserve.ids import Seconds, Tokens

PAGE: Tokens = 16
"""KV memory is given out in pages; this is the usual size (vLLM's block)."""
LEARNABLE_TOKENS = 32
"""A prompt of fewer uncached tokens teaches nothing about the rate of prefill: its step costs what a step costs."""


def prompt_tokens(state: SchedulerState, call: ModelCall) -> Tokens:
    """What an engine has to hold before it can write on."""
    return (call.tokens if call.measured else state.config.pool.unmeasured_tokens) + call.written


def output_tokens(state: SchedulerState, call: ModelCall) -> Tokens:
    """Output that is still expected. At least one token: it is not over yet."""
    return max(1, round(lengths.expected(state, call)) - call.written)


def need_tokens(state: SchedulerState, call: ModelCall) -> Tokens:
    """KV memory that it is expected to need in the end, in whole pages."""
    tokens = prompt_tokens(state, call) + output_tokens(state, call)
    return tokens + -tokens % PAGE


def spare_seats(state: SchedulerState) -> int:
    """Seats at engines that no call waits for, of whatever model."""
    free = sum(max(0, engine.limit - engine.seats) for engine in state.engines.values())
    waiting = sum(queue.size for queue in state.models.values())
    waiting += sum(engine.queue.size for engine in state.engines.values())
    return max(0, free - waiting - state.measuring)


def take(state: SchedulerState, task: Task, engine: Engine, resident: Tokens) -> None:
    """`task` goes to `engine`, which is thought to hold `resident` tokens of its prompt."""
    call = task.call
    assert call is not None
    if not engine.running:
        engine.progress_at = state.now
    call.began_at, call.last_at, call.pushed_out, call.rival = state.now, None, False, None
    call.resident = resident
    call.prefill = max(0, prompt_tokens(state, call) - resident)
    call.decode = output_tokens(state, call)
    engine.running[task] = None
    task.run.calls[task] = None
    call.reserve = need_tokens(state, call)
    _add(engine, call, 1)
    engine.tiers[tier(task.run.level, state.config)] += 1
    engine.throughput_calls += is_throughput_bound(task, state.config)
    engine.resident.add(call.prefix)
    passages.sent(engine, call.passages)
    state.calls += 1
    service.taken(state, task)
    spending.taken(state, task, engine)


def leave(state: SchedulerState, task: Task, engine: Engine) -> None:
    """`task` is no longer at `engine`."""
    call = task.call
    assert call is not None
    del engine.running[task]
    service.left(state, task, state.now - call.began_at)
    spending.left(state, task)
    task.run.calls.pop(task, None)
    _add(engine, call, -1)
    engine.tiers[tier(task.run.level, state.config)] -= 1
    engine.throughput_calls -= is_throughput_bound(task, state.config)
    call.prefill = call.decode = call.reserve = 0


def _add(engine: Engine, call: ModelCall, sign: int) -> None:
    engine.seats += 0 if call.pushed_out else sign * call.choices
    engine.backlog += sign * call.prefill
    engine.ahead += sign * call.decode
    engine.reserved += sign * call.reserve


def push_out(engine: Engine, call: ModelCall, out: bool) -> None:
    """It lost its seat, or has it again."""
    if call.pushed_out != out:
        engine.seats += -call.choices if out else call.choices
        call.pushed_out = out


def progressed(state: SchedulerState, task: Task, engine: Engine, count: Tokens) -> None:
    """`engine` has written `count` more tokens for `task`."""
    call, now = task.call, state.now
    assert call is not None
    spending.progressed(state, task, count)
    computed(engine, now)
    push_out(engine, call, False)
    if call.last_at is None:
        _learn_prefill(engine, call, now)
        engine.backlog -= call.prefill
        call.prefill = 0
        state.stirred = True
    else:
        state.stirred |= _learn_pace(engine, call, count, now)
    call.last_at = now
    call.written += count
    less = min(count, call.decode)
    call.decode -= less
    engine.ahead -= less
    more = max(0, prompt_tokens(state, call) - call.reserve)
    call.reserve += more
    engine.reserved += more


def tried(state: SchedulerState, task: Task, engine: Engine, count: Tokens) -> None:
    """`engine` has written `count` tokens for a trial of `task`: they cost what others cost, and take `task` nowhere."""
    spending.progressed(state, task, count)
    computed(engine, state.now)


def computed(engine: Engine, now: Seconds) -> None:
    """It was seen to compute just now."""
    pause = now - engine.progress_at
    engine.longest_pause = max(pause, 0.99 * engine.longest_pause)
    engine.progress_at = now


def _learn_prefill(engine: Engine, call: ModelCall, now: Seconds) -> None:
    """By sums, and from the first token of another call where that came later than the dispatch: prompts that are there at one
    time are computed one after the other, or several in one step, and all but the first would count the others' time."""
    since, engine.first_at = max(call.began_at, engine.first_at), now
    if call.prefill >= LEARNABLE_TOKENS:
        engine.prefill_seconds = (1 - LEARNING) * engine.prefill_seconds + now - since
        engine.prefill_tokens = (1 - LEARNING) * engine.prefill_tokens + call.prefill


def _learn_pace(engine: Engine, call: ModelCall, count: Tokens, now: Seconds) -> bool:
    """By sums over a span in which calls have waited for as long: news of many tokens can come at one time, so a single
    gap says nothing, and neither do calls that end within one turn of the driver's loop. A span ends between bursts.
    Whether one has ended: then more calls may join, or fewer."""
    assert call.last_at is not None
    waited = (now - call.last_at) * call.choices
    between = 2 * waited * engine.span_tokens >= engine.span_busy
    ended = between and now - engine.span_at >= SPAN_S and engine.span_busy >= SPAN_S
    if ended:
        seconds = engine.span_busy / engine.span_tokens
        engine.pace = _mean(engine.pace, seconds)
        engine.step_time.add(engine.span_busy / (now - engine.span_at), seconds)
        engine.span_at, engine.span_busy, engine.span_tokens = now, 0.0, 0
    engine.span_busy += waited
    engine.span_tokens += count
    return ended


def _mean(before: float, new: float) -> float:
    return new if before == 0.0 else (1 - LEARNING) * before + LEARNING * new
