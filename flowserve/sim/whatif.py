"""What one change would have given a recorded run: the log once more, with models of its engines and one thing different.

Engines get costs fitted to the log (`observed.py`), nodes the answers that they gave then (`recorded.py`). A change is compared with
the simulation of what was, not with what was measured, so that what the models do not know cancels out; how far the first
is from the measurement is told beside it.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from statistics import median
from typing import Any

from flowserve.core import commands as c
from flowserve.core import events as e
from flowserve.core.config import Config
from flowserve.core.log import read
from flowserve.errors import ConfigError
from flowserve.graphs.plan import Node
from flowserve.ids import EngineId, RunId, Seconds
from flowserve.sim.dist import Dist
from flowserve.sim.drive import Arrival, Drive, Execution, RunView
from flowserve.sim.engine import EngineSpec
from flowserve.sim.observed import Observed, observe_each
from flowserve.sim.programs import Program
from flowserve.sim.recorded import recorded_runs
from flowserve.sim.services import Services

TELL_S: Seconds = 0.05
Engines = list[tuple[EngineSpec, tuple[str, ...]]]


@dataclass(frozen=True, slots=True)
class World:
    """Everything that a simulation of a log depends on."""

    config: Config
    engines: Engines
    arrivals: tuple[Arrival, ...]
    network_s: Seconds
    """From the scheduler to an engine and back."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """One change."""

    change: str
    seconds: Seconds
    """Latency of the run, simulated."""
    speedup: float
    """What it would have taken without the change, simulated, over `seconds`."""


@dataclass(slots=True)
class _Latency:
    """An observer that waits for one run."""

    run: RunId
    found: list[Seconds] = field(default_factory=list)

    def dispatched(self, execution: Execution, waited_s: Seconds, now: Seconds) -> None: ...

    def answered(self, execution: Execution, last: bool, now: Seconds) -> None: ...

    def ended(self, view: RunView, command: c.Complete | c.Fail | c.Reject, now: Seconds) -> None:
        if view.arrival.mix == self.run and isinstance(command, c.Complete):
            self.found.append(now - view.arrival.at)


class _Instant:
    """A program whose tools and searches take no time."""

    def __init__(self, program: Program) -> None:
        self._program = program

    def __getattr__(self, name: str) -> Any:
        return getattr(self._program, name)

    def seconds(self, node: Node, key: int, index: int) -> Seconds:
        return 0.0


def _one_more(world: World, run: RunId) -> World:
    return replace(world, engines=[*world.engines, world.engines[0]])


def _faster(world: World, run: RunId) -> World:
    return _with_costs(world, step_s=0.5, prefill_s=0.5, decode_s=0.5, kv_s=0.5)


def _cached(world: World, run: RunId) -> World:
    return _with_costs(world, prefill_s=0.0)


def _with_costs(world: World, **factors: float) -> World:
    engines: Engines = []
    for spec, names in world.engines:
        changed = {name: getattr(spec.costs, name) * factor for name, factor in factors.items()}
        engines.append((replace(spec, costs=replace(spec.costs, **changed)), names))
    return replace(world, engines=engines)


def _instant(world: World, run: RunId) -> World:
    mine = tuple(
        replace(arrival, program=_Instant(arrival.program)) if arrival.mix == run else arrival
        for arrival in world.arrivals
    )
    return replace(world, arrivals=mine)


def _alone(world: World, run: RunId) -> World:
    return replace(world, arrivals=tuple(arrival for arrival in world.arrivals if arrival.mix == run))


def _in_order_of_arrival(world: World, run: RunId) -> World:
    return replace(world, config=replace(world.config, policy="fcfs"))


CHANGES: dict[str, Callable[[World, RunId], World]] = {
    "no other runs": _alone,
    "one more engine": _one_more,
    "engines twice as fast": _faster,
    "all prompts in cache": _cached,
    "its tools and searches take no time": _instant,
    "first come, first served": _in_order_of_arrival,
}


def what_if(lines: Sequence[str], run: RunId, until: Seconds) -> Iterator[Outcome]:
    """What was, simulated ("as recorded"), then each change. `until`: runs submitted later by the log's clock stay away.

    Raises ConfigError where the log has too little to fit the engines to, or where the run does not end.
    """
    world = _world(lines, until)
    base = _latency(world, run)
    yield Outcome("as recorded", base, 1.0)
    for name, change in CHANGES.items():
        seconds = _latency(change(world, run), run)
        yield Outcome(name, seconds, base / seconds if seconds > 0 else 1.0)


def _world(lines: Sequence[str], until: Seconds) -> World:
    config, events = read(lines)
    names: dict[EngineId, tuple[str, ...]] = {}
    submitted: dict[RunId, Seconds] = {}
    for now, event in events:
        if isinstance(event, e.EngineChanged) and event.up:
            names[event.engine] = event.models
        elif isinstance(event, e.RunSubmitted):
            submitted[event.run] = now
    seen = observe_each(lines)
    fitted = {engine: costs for engine, observed in seen.items() if (costs := _fit(observed)) is not None}
    if not fitted:
        raise ConfigError("no engine of the log had enough calls to fit its costs to (4 pieces of news of tokens)")
    typical = next(iter(fitted.values()))
    engines: Engines = []
    for engine, observed in seen.items():
        engines.append((replace(observed.spec, costs=fitted.get(engine, typical)[0]), names[engine]))
    arrivals = tuple(arrival for id, arrival in recorded_runs(lines) if submitted[id] <= until)
    return World(config, engines, arrivals, median(delay for _, delay in fitted.values()))


def _fit(observed: Observed) -> Any:
    try:
        return observed.costs()
    except ConfigError:
        return None


def _latency(world: World, run: RunId) -> Seconds:
    seen = _Latency(run)
    services = Services(network=Dist(world.network_s))
    drive = Drive(world.config, world.engines, iter(world.arrivals), services=services, observer=seen, tell_s=TELL_S)
    drive.run()
    if not seen.found:
        raise ConfigError(f"run {run} does not end in the simulation")
    return seen.found[0]
