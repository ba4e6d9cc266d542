"""What a recorded log teaches of the steps of live engines.

An engine tells of a call's tokens now and then: by this time it had written so many. A call that writes takes part in every step,
so between two such news lie exactly as many steps as tokens. What else was computed in them is known from the news of the
others: prompts whose first token fell between, and tokens in proportion to time.
"""

from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass, field
from statistics import median

from flowserve.core import events as e
from flowserve.core.commands import Dispatch
from flowserve.core.log import read
from flowserve.core.state import SchedulerState
from flowserve.core.step import step
from flowserve.errors import ConfigError
from flowserve.ids import EngineId, RunId, Seconds, TaskId, Tokens
from flowserve.sim.costs import Sample, StepCosts, fit_trimmed
from flowserve.sim.engine import EngineSpec

TOGETHER_S: Seconds = 0.003
"""News no further apart are of one step: its requests are told of one after the other."""
Key = tuple[RunId, TaskId, int]


@dataclass(slots=True, eq=False)
class Call:
    """A model call as the log tells of it."""

    prompt: Tokens
    fresh: Tokens
    """Of the prompt, what no call of its engine had in common with it: as far as the log tells, what was computed."""
    prefix: tuple[int, ...]
    since: Seconds
    """When it was ready; where it did not wait for the scheduler, when it was sent."""
    counts: bool
    """It is one of those that are to be learned from."""
    pause: Seconds
    """How long before that the run's latest event was."""
    alone: bool
    """Nothing else was there when it came."""
    engine: EngineId | None = None
    """Where it was sent."""
    times: list[Seconds] = field(default_factory=list)
    written: list[Tokens] = field(default_factory=list)
    """By each of these times."""

    def tokens_by(self, time_s: Seconds) -> float:
        """Tokens written by then, in proportion between two news."""
        place = bisect_right(self.times, time_s)
        if place == 0:
            return 0.0
        if place == len(self.times):
            return float(self.written[-1])
        share = (time_s - self.times[place - 1]) / (self.times[place] - self.times[place - 1])
        return self.written[place - 1] + share * (self.written[place] - self.written[place - 1])


@dataclass(slots=True)
class Observed:
    """The engine, and samples of its steps."""

    spec: EngineSpec
    steps: list[Sample] = field(default_factory=list)
    first: list[Sample] = field(default_factory=list)
    """Calls that found the engine idle, until their first token: what lies between scheduler and engine is in it too."""
    pauses: list[Seconds] = field(default_factory=list)
    """From what made a call ready until it was measured: rendering and tokenising its prompt."""

    def costs(self) -> tuple[StepCosts, Seconds]:
        """What a step costs, and what a call takes besides. Raises ConfigError for too little."""
        costs, call_s = fit_trimmed([*self.steps, *self.first])
        return costs, call_s + (median(self.pauses) if self.pauses else 0.0)


def observe(lines: Iterable[str], session: str | None = None) -> Observed:
    """Read a log of one engine; with `session`, only news of such runs' calls become samples.

    Raises ConfigError for a log without an engine or with several.
    """
    seen = observe_each(lines, session)
    if len(seen) != 1:
        raise ConfigError(f"expected a log of one engine; it has {' and '.join(seen) or 'none'}")
    return next(iter(seen.values()))


def observe_each(lines: Iterable[str], session: str | None = None) -> dict[EngineId, Observed]:
    """Every engine of a log, in order of appearance."""
    specs, calls = _calls(lines, session)
    return {
        engine: _observed(spec, [call for call in calls if call.engine == engine]) for engine, spec in specs.items()
    }


def _observed(spec: EngineSpec, calls: list[Call]) -> Observed:
    found = Observed(spec)
    for call in calls:
        if call.counts and call.times:
            found.steps += _samples(call, [other for other in calls if other.times and _overlap(call, other)])
            found.pauses.append(call.pause)
            if call.alone:
                found.first.append(Sample(call.times[0] - call.since, 1, call.fresh, calls=1))
    return found


def _calls(lines: Iterable[str], session: str | None) -> tuple[dict[EngineId, EngineSpec], list[Call]]:
    config, events = read(lines)
    state = SchedulerState(config)
    seen: dict[EngineId | None, dict[int, None]] = {}
    specs: dict[EngineId, EngineSpec] = {}
    wanted: dict[RunId, None] = {}
    live: dict[Key, Call] = {}
    latest_of: dict[RunId, Seconds] = {}
    calls: list[Call] = []
    step_at = latest = 0.0
    for now, event in events:
        match event:
            case e.EngineChanged(up=True):
                specs[event.engine] = _spec(event)
            case e.RunSubmitted() if session is None or event.session == session:
                wanted[event.run] = None
            case e.Measured():
                pause = now - latest_of.get(event.run, now)
                call = Call(event.tokens, event.tokens, event.prefix, now, event.run in wanted, pause, not live)
                live[event.run, event.task, event.attempt] = call
                calls.append(call)
                for other in live.values():
                    other.alone = other.alone and (other is call or now - other.since > 0.5 or bool(other.times))
            case e.TokensProduced():
                step_at, latest = now if now - latest > TOGETHER_S else step_at, now
                writing = live.get((event.run, event.task, event.attempt))
                if writing is not None and not event.trial:
                    if not writing.times:
                        seen.setdefault(writing.engine, {}).update(dict.fromkeys(writing.prefix))
                    writing.times.append(step_at)
                    writing.written.append(event.count + (writing.written[-1] if writing.written else 0))
            case e.TaskFinished() | e.TaskFailed():
                live.pop((event.run, event.task, event.attempt), None)
            case _:
                pass
        run = getattr(event, "run", None)
        if run is not None:
            latest_of[run] = now
        for command in step(state, event, now):
            if not isinstance(command, Dispatch):
                continue
            if (sent := live.get((command.run, command.task, command.attempt))) is not None:
                there = seen.get(command.engine, {})
                held = next((i for i, number in enumerate(sent.prefix) if number not in there), len(sent.prefix))
                sent.engine, sent.fresh = command.engine, max(1, sent.prompt - held * config.pool.prefix_tokens)
    return specs, calls


def _overlap(call: Call, other: Call) -> bool:
    return other.times[0] <= call.times[-1] and other.times[-1] >= call.times[0]


def _samples(call: Call, others: list[Call]) -> list[Sample]:
    """One between each two news of `call`; `others` holds it too."""
    found = []
    for i in range(1, len(call.times)):
        begin, end = call.times[i - 1], call.times[i]
        prefill, decodes, read_tokens = 0, 0.0, 0.0
        for other in others:
            before, after = other.tokens_by(begin), other.tokens_by(end)
            if not before and after:
                prefill += other.fresh
                before = 1.0
            decodes += after - before
            read_tokens += (after - before) * (other.prompt + (before + after) / 2)
        if end > begin:
            steps = call.written[i] - call.written[i - 1]
            weight = steps / max(steps, decodes)
            found.append(Sample(end - begin, steps, prefill, round(decodes), round(read_tokens), weight=weight))
    return found


def _spec(event: e.EngineChanged) -> EngineSpec:
    """The engine as it described itself."""
    return EngineSpec(
        max_num_seqs=event.window,
        max_num_batched_tokens=event.batch_tokens or 8192,
        kv_tokens=event.kv_tokens or 1 << 20,
        priority=event.reprioritise,
    )
