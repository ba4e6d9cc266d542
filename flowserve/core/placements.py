"""Which of the engines with room a call goes to: a table of small functions. They do not act, count or log.

`placement` says which engines have room and acts on the choice; here stands only the choice. A function is given what is
known of the call (`Asked`), the engines in order of their first appearance, and what earlier choices left behind
(`Memory`). Lower is better everywhere, ties go to the engine that appeared first, and the engine that gave the call up
last is taken only if there is no other.

| placement   | the call goes to                                                                  | after                          |
|-------------|-----------------------------------------------------------------------------------|--------------------------------|
| priced      | the least outstanding work with what it adds, over seats and pace                 | Preble's trade, in tokens      |
| marginal    | the least seconds that it adds to all calls there, its own included               | the default; see `placement`   |
| round_robin | the next engine in turn                                                           |                                |
| least_calls | the fewest calls                                                                  |                                |
| least_work  | the fewest tokens to compute and to write                                         |                                |
| sticky      | where the last call of its session or run went, unless it is loaded twice as much | session affinity of routers    |
| e2          | where most of it is cached, if that is more than half of it; else the cheapest    | Preble (ICLR 2025), E2         |
| sal         | the least of what is scarcest there: queued prompt tokens, or KV memory           | Kossmann et al. (2410.17840)   |
| scls        | the least predicted time, and of calls that wait the longest one goes first       | Cheng et al. (2406.13511)      |
| autellix    | short prompts: the fewest calls; long ones: the engine of their session or run    | Autellix (NSDI 2026), balancer |
| objectives  | as marginal, seconds of throughput-bound calls counting less than those of others | Parrot (OSDI 2024), 5.4        |

All of them fill engines only as far as `placement` says there is room, where the sources send at once and let engines
queue; what has no room waits here, in the order of the scheduler.
"""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import inf
from typing import Any

from flowserve.core.engine_state import Engine
from flowserve.core.estimates import Figure
from flowserve.core.quick import quick
from flowserve.ids import Seconds, Tokens

SLOWEST = 100.0
"""priced: an engine counts as at most so many times slower than the fastest."""
SPILL = 2.0
"""sticky: a call leaves an engine that has so many times the work of the one with least, its own included in both."""
WINDOW_S: Seconds = 180.0
"""e2: how far back an engine's load is summed; Preble's H."""
UNEVEN = 1.5
"""e2: from so many times the load of the lightest engine on, the heaviest passes calls on; Preble's threshold."""
USUAL_BATCH: Tokens = 8192
"""sal: prompt tokens that count as a full queue of an engine that does not say how much it computes in a step."""
GROUP_WEIGHT = 0.25
"""objectives: what a second of a throughput-bound call counts, in seconds of a latency-bound one."""
LONG: Tokens = 2048
"""autellix: longer prompts have locality."""
MOST_PINS = 65_536
"""Sessions and runs whose engine is remembered; the one used least recently goes first."""
MOST_SENT = 4096
"""e2: calls remembered per engine; the oldest goes first."""

Program = tuple[str, str]
"""Whose calls belong together: (tenant, session), or (run, "") where nobody named a session."""


@quick
@dataclass(frozen=True, slots=True)
class Asked:
    """What is known of a call that is being placed, and how to ask about an engine."""

    program: Program
    prompt: Tokens
    """To hold before it can write on; 0: it was not measured."""
    output: Tokens
    """Still expected."""
    prefix: tuple[int, ...]
    avoid: Engine | None
    """Another one is preferred."""
    throughput_bound: bool
    """See `priority`."""
    now: Seconds
    decode_weight: float
    """What a token of output counts, in tokens of prompt."""
    resident: Callable[[Engine], Tokens]
    """Of the prompt, as far as the engine is thought to hold it."""
    pace: Callable[[Engine], Seconds]
    """Between two tokens of a call; 0: not known."""
    prefill_s: Callable[[Engine], Seconds]
    """Per prompt token."""


@dataclass(frozen=True, slots=True)
class Sent:
    """A call that went to an engine."""

    at: Seconds
    prefill_s: Seconds
    """What its prompt was expected to take there, less what was cached."""
    prefix: tuple[int, ...]


class Window:
    """What went to one engine within the last `WINDOW_S`; see e2."""

    __slots__ = ("sent", "uses")

    def __init__(self) -> None:
        self.sent: deque[Sent] = deque()
        """In order of time."""
        self.uses: dict[int, int] = {}
        """Number of a prefix -> calls in `sent` that have it."""

    def add(self, sent: Sent) -> None:
        self.sent.append(sent)
        for number in sent.prefix:
            self.uses[number] = self.uses.get(number, 0) + 1
        while len(self.sent) > MOST_SENT or self.sent[0].at < sent.at - WINDOW_S:
            self._forget(self.sent.popleft())

    def _forget(self, old: Sent) -> None:
        for number in old.prefix:
            self.uses[number] -= 1
            if not self.uses[number]:
                del self.uses[number]

    def since(self, time: Seconds) -> tuple[Seconds, int]:
        """Of the calls that were sent from `time` on: what their prompts took, and how many they are."""
        found = [sent.prefill_s for sent in self.sent if sent.at >= time]
        return sum(found), len(found)


class Memory:
    """What earlier choices left behind. Only `took` and `ended` of the placement in force write it."""

    __slots__ = ("pins", "turn", "windows", "written")

    def __init__(self) -> None:
        self.turn = 0
        """round_robin: `arrival` of the engine that was chosen last."""
        self.pins: dict[Program, Engine] = {}
        """sticky, autellix: the engine of a program's latest call; the program used last stands last."""
        self.windows: dict[Engine, Window] = {}
        """e2."""
        self.written = Figure()
        """e2: tokens of answers."""


@dataclass(frozen=True, slots=True)
class Placement:
    """How an engine is chosen."""

    choose: Callable[[Asked, Sequence[Engine], Memory], Engine]
    """Of engines that have room, at least one."""
    took: Callable[[Asked, Engine, Memory], None] | None = None
    """The call goes to this engine: what is to be remembered. None: nothing."""
    ended: Callable[[Tokens, Memory], None] | None = None
    """A call has been answered with so many tokens, likewise."""
    waits: bool = False
    """A call waits a while for the engine that holds its prompt; see `placement`, *Stickiness*."""
    longest_first: bool = False
    """Of calls that wait and are nearly as urgent, the one with most to compute and to write goes first; see `passing`."""


def _least(asked: Asked, engines: Sequence[Engine], cost: Callable[[Engine], Any]) -> Engine:
    return min(_welcome(asked, engines), key=cost)


def _welcome(asked: Asked, engines: Sequence[Engine]) -> Sequence[Engine]:
    """Without the one that gave the call up, if there is another."""
    return [engine for engine in engines if engine is not asked.avoid] or engines


def work(asked: Asked, prompt: Tokens, output: Tokens) -> float:
    """In tokens of prompt."""
    return prompt + asked.decode_weight * output


def seconds(asked: Asked, engine: Engine, prompt: Tokens, output: float) -> Seconds:
    """What so many tokens take at `engine`, one after the other."""
    prefill_s = asked.prefill_s(engine)
    return prompt * prefill_s + output * (asked.pace(engine) or asked.decode_weight * prefill_s)


# --- choices ------------------------------------------------------------------------------------------


def priced(asked: Asked, engines: Sequence[Engine], memory: Memory) -> Engine:
    """Tokens to prefill that are not resident there (Preble's trade of reuse against load, ICLR 2025) and output to come, weighed
    by `decode_weight`, outstanding and of this call; relative to the engine's seats and its pace, so that large engines get more
    and slow ones less."""
    paces = [asked.pace(engine) for engine in engines]
    fastest = min(filter(None, paces), default=0.0)
    weight = asked.decode_weight
    best, best_cost = engines[0], inf
    for engine, pace in zip(engines, paces, strict=True):
        more = asked.prompt - asked.resident(engine)
        slowness = min(SLOWEST, pace / fastest) if pace else 1.0
        cost = (engine.backlog + more + weight * engine.ahead + weight * asked.output) * slowness / engine.limit
        if engine is not asked.avoid and cost < best_cost:
            best, best_cost = engine, cost
    return best


def marginal(asked: Asked, engines: Sequence[Engine], memory: Memory) -> Engine:
    """What the call takes, and what the others lose by it, in seconds: they stand still while its prompt is computed, and each
    step that they share is longer by one call's share of the engine's line (`StepTime`). Where that line is not known, a
    step counts as the engine's pace, and a full batch as twice as slow. An engine that has shown no rate counts as fast as
    the fastest that has."""
    return _marginal(asked, engines, 1.0)


def _marginal(asked: Asked, engines: Sequence[Engine], weight: float) -> Engine:
    """Where the call adds the least seconds, of which those of throughput-bound calls count `weight`."""
    rates = [engine.prefill_s for engine in engines]
    lines = [engine.step_time.line() for engine in engines]
    paces = [asked.pace(engine) for engine in engines] if None in lines else []
    rate, pace = min(filter(None, rates), default=0.0), min(filter(None, paces), default=0.0)
    prompt, output = asked.prompt, asked.output
    own_weight = weight if asked.throughput_bound else 1.0
    best, least = engines[0], inf
    for number, engine in enumerate(engines):
        if engine is asked.avoid and len(engines) > 1:
            continue
        per_token = rates[number] or rate or asked.prefill_s(engine)
        line, others = lines[number], engine.seats
        if line is not None:
            step, slope = line[0] + line[1] * (others + 1), line[1]
        else:
            step = paces[number] or pace or asked.decode_weight * per_token
            slope = step / engine.limit
        more = (prompt - asked.resident(engine)) * per_token
        own = engine.backlog * per_token + more + output * step
        lost = others * more + slope * min(others * output, engine.ahead)
        if engine.throughput_calls and weight < 1.0:
            lost *= 1.0 - (1.0 - weight) * engine.throughput_calls / len(engine.running)
        added = own_weight * own + lost
        if added < least:
            best, least = engine, added
    return best


def round_robin(asked: Asked, engines: Sequence[Engine], memory: Memory) -> Engine:
    return _least(asked, engines, lambda engine: engine.arrival <= memory.turn)


def least_calls(asked: Asked, engines: Sequence[Engine], memory: Memory) -> Engine:
    return _least(asked, engines, _calls)


def least_work(asked: Asked, engines: Sequence[Engine], memory: Memory) -> Engine:
    return _least(asked, engines, lambda engine: engine.backlog + engine.ahead)


def sticky(asked: Asked, engines: Sequence[Engine], memory: Memory) -> Engine:
    """Spills only where that is worth it: twice the work, with what this call adds, is what stickiness may cost."""

    def outstanding(engine: Engine) -> float:
        return work(asked, engine.backlog + asked.prompt, engine.ahead + asked.output) / engine.limit

    other = _least(asked, engines, outstanding)
    home = _pinned(asked, engines, memory) or other
    return home if outstanding(home) <= SPILL * outstanding(other) else other


def e2(asked: Asked, engines: Sequence[Engine], memory: Memory) -> Engine:
    """Exploit where more of the prompt is cached than not, at the least loaded engine that holds so much; else explore the
    engine with the least sum of its load over `WINDOW_S`, what would be evicted there, and what the call costs there.

    Preble's load is a sum over a window of what calls cost, not of what is outstanding: prompts less what was cached, and
    answers of average length. The heaviest engine passes on what
    it would get to exploit when it has more than `UNEVEN` times the load of the lightest; here the lightest is counted with
    what the call would cost there, else an engine that has done nothing yet would draw every second call of a prefix. Preble
    also replicates prefixes whose queues grow and moves decoding aside; that is not here.
    """

    def load(engine: Engine) -> Seconds:
        window = memory.windows.get(engine)
        if window is None:
            return 0.0
        prefill_s, calls = window.since(max(asked.now - WINDOW_S, engine.up_since))
        return prefill_s + seconds(asked, engine, 0, calls * memory.written.mean)

    def own(engine: Engine) -> Seconds:
        return seconds(asked, engine, asked.prompt - asked.resident(engine), 0)

    loads = {engine: load(engine) for engine in _welcome(asked, engines)}
    held = {engine: asked.resident(engine) for engine in loads}
    most = max(held.values())
    if most <= asked.prompt - most:
        return min(loads, key=lambda engine: loads[engine] + _evicted_s(asked, engine, memory) + own(engine))
    home = min((engine for engine in loads if held[engine] == most), key=loads.__getitem__)
    lightest = min(loads, key=loads.__getitem__)
    heaviest = max(loads.values())
    uneven = loads[home] == heaviest and heaviest > UNEVEN * (loads[lightest] + own(lightest))
    return lightest if uneven else home


def _evicted_s(asked: Asked, engine: Engine, memory: Memory) -> Seconds:
    """Seconds that it would take to compute again what this call pushes out of the cache, each prefix counted by the share
    of the window's calls that used it. What was used least recently goes first."""
    window, known = memory.windows.get(engine), engine.resident
    if window is None or not window.sent or not asked.prefix:
        return 0.0
    per_number = asked.prompt / len(asked.prefix)
    wanted = round((asked.prompt - asked.resident(engine) + memory.written.mean) / per_number)
    over = max(0, len(known) + wanted - known.capacity)
    hits = sum(window.uses.get(number, 0) for number in known.oldest(over))
    return hits / len(window.sent) * per_number * asked.prefill_s(engine)


def sal(asked: Asked, engines: Sequence[Engine], memory: Memory) -> Engine:
    """Load is what keeps a call waiting: prompts that are queued before it, or memory that is not there. Each is taken as a
    share of what the engine has, and the larger of the two counts; that way of joining them is ours."""

    def load(engine: Engine) -> float:
        queued = engine.backlog / (engine.backlog_limit or USUAL_BATCH)
        memory_used = (engine.reserved + asked.prompt + asked.output) / (engine.room_tokens or inf)
        return max(queued, memory_used)

    return _least(asked, engines, load)


def scls(asked: Asked, engines: Sequence[Engine], memory: Memory) -> Engine:
    """Max-min offloading: the longest goes to the instance with the least predicted time. Ours predicts with learned output
    lengths, places single calls where the paper places batches, and does not cut answers into slices."""
    return _least(
        asked, engines, lambda engine: seconds(asked, engine, engine.backlog, engine.ahead) / max(1, engine.limit)
    )


def autellix(asked: Asked, engines: Sequence[Engine], memory: Memory) -> Engine:
    home = _pinned(asked, engines, memory) if asked.prompt > LONG else None
    return home or _least(asked, engines, _calls)


def objectives(asked: Asked, engines: Sequence[Engine], memory: Memory) -> Engine:
    """As `marginal`, but a second of a throughput-bound call counts `GROUP_WEIGHT`: its own, and one that it loses by others. So
    groups leave engines to latency-bound calls where that costs them little, and these keep away from engines that are full of
    groups. Parrot bounds the tokens of engines with latency-bound calls instead, by a constant."""
    return _marginal(asked, engines, GROUP_WEIGHT)


def _pinned(asked: Asked, engines: Sequence[Engine], memory: Memory) -> Engine | None:
    """The engine of the call's program, where it is one of these."""
    home = memory.pins.get(asked.program)
    return home if home in _welcome(asked, engines) else None


def _calls(engine: Engine) -> int:
    return len(engine.running)


# --- what is remembered -------------------------------------------------------------------------------


def _turn(asked: Asked, engine: Engine, memory: Memory) -> None:
    memory.turn = engine.arrival


def _pin(asked: Asked, engine: Engine, memory: Memory) -> None:
    memory.pins.pop(asked.program, None)
    memory.pins[asked.program] = engine
    if len(memory.pins) > MOST_PINS:
        del memory.pins[next(iter(memory.pins))]


def _pin_first(asked: Asked, engine: Engine, memory: Memory) -> None:
    """A program keeps the engine that it was given at first sight."""
    _pin(asked, memory.pins.get(asked.program, engine), memory)


def _sent(asked: Asked, engine: Engine, memory: Memory) -> None:
    prefill_s = seconds(asked, engine, asked.prompt - asked.resident(engine), 0)
    memory.windows.setdefault(engine, Window()).add(Sent(asked.now, prefill_s, asked.prefix))


def _wrote(tokens: Tokens, memory: Memory) -> None:
    memory.written.add(tokens)


PLACEMENTS = {
    "priced": Placement(priced, waits=True),
    "marginal": Placement(marginal, waits=True),
    "round_robin": Placement(round_robin, _turn),
    "least_calls": Placement(least_calls),
    "least_work": Placement(least_work),
    "sticky": Placement(sticky, _pin, waits=True),
    "e2": Placement(e2, _sent, _wrote, waits=True),
    "sal": Placement(sal),
    "scls": Placement(scls, longest_first=True),
    "autellix": Placement(autellix, _pin_first, waits=True),
    "objectives": Placement(objectives, waits=True),
}
"""By the name in `Config.placement`."""
