"""Workload files: which workflows arrive how often, what their nodes do, on which engines.

    duration_s = 600                     # arrivals end then; what is at work is brought to its end
    [engine]                             # or [[engine]], several sorts; fields of engine.EngineSpec, and
    count = 32
    costs = "h100-8b"                    # a name, a table of coefficients, or a JSON file of measurements
    [scheduler]                          # any field of core Config; [scheduler.pool]: of PoolConfig
    max_live_runs = 4096
    [services]                           # tool, search, network, start, probe: distributions in seconds
    tool = { median = 0.3, sigma = 0.8 }
    [chaos]                              # any field of services.Chaos
    [[mix]]
    workflow = "rag"                     # call, chain, map-reduce, rag, agent, triage, or FILE:WORKFLOW
    rate = 6.0                           # per second, Poisson; `cv`: other gaps; or `clients` and `think_s`
    tier = "interactive"
    [mix.nodes.answer]                   # fields of programs.NodeModel, by name of node
    output = { median = 120, sigma = 0.5 }
    [[mix]]
    trace = "conversation.jsonl.gz"      # each request a workflow of one call
    kind = "mooncake"                    # mooncake, azure; log: recorded by `flowserve serve --record`
    speed = 1.0

JSON of the same form is read too.
"""

import heapq
import json
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from math import inf
from pathlib import Path
from random import Random
from typing import Any

from flowserve.config import PoolConfig
from flowserve.core.config import Config
from flowserve.errors import ConfigError
from flowserve.graphs.plan import Plan
from flowserve.ids import Seconds
from flowserve.sim import costs
from flowserve.sim.chance import mix as mixed
from flowserve.sim.chance import name_key
from flowserve.sim.dist import Dist, parse
from flowserve.sim.drive import Arrival
from flowserve.sim.engine import EngineSpec
from flowserve.sim.plans import SHAPES
from flowserve.sim.programs import Modelled, NodeModel, parse_model
from flowserve.sim.services import Chaos, Services, parse_chaos, parse_services
from flowserve.sim.traces import READERS

Find = Callable[[str], Plan]
"""The plan of a FILE:WORKFLOW."""


@dataclass(frozen=True, slots=True)
class Mix:
    """One part of a workload: runs of one workflow, or of one trace."""

    name: str
    plan: Plan | None = None
    """None: of a trace."""
    nodes: Mapping[str, NodeModel] = field(default_factory=dict)
    rate: float = 0.0
    """Arrivals per second; 0: closed loop."""
    cv: float = 1.0
    """Deviation of the gaps between arrivals over their mean: 0 even, 1 Poisson, more: bursts."""
    clients: int = 0
    """Closed loop: so many clients, each with one run at a time."""
    think: Dist = field(default_factory=lambda: Dist(0.0))
    """Pause of a client between two runs."""
    sessions: int = 0
    """Runs belong in turn to so many sessions; 0: to none."""
    tenant: str = ""
    tier: str = "standard"
    priority: int = 0
    deadline_s: Seconds | None = None
    trace: Path | None = None
    kind: str = ""
    speed: float = 1.0
    """How many times faster than recorded a trace comes."""
    limit: int | None = None
    """Only the first so many requests of a trace."""


@dataclass(frozen=True, slots=True)
class Workload:
    """Everything that a simulation needs but the policy and the seed."""

    name: str
    mixes: tuple[Mix, ...]
    engines: tuple[tuple[EngineSpec, tuple[str, ...], int], ...] = ((EngineSpec(), (), 1),)
    """(what it is, names it answers to or () for all, how many)."""
    duration_s: Seconds = inf
    warmup_s: Seconds = 0.0
    """Runs that were submitted before count for nothing."""
    tell_s: Seconds = 2.0
    """How often engines tell of their progress."""
    scheduler: Mapping[str, Any] = field(default_factory=dict)
    services: Services = field(default_factory=Services)
    chaos: Chaos = field(default_factory=Chaos)

    def members(self, count: int | None = None) -> list[tuple[EngineSpec, tuple[str, ...]]]:
        """Every engine; `count` of them instead, where there is one sort."""
        if count is not None and len(self.engines) > 1:
            raise ConfigError(
                f"{self.name} describes {len(self.engines)} sorts of engines: change its counts, not --engines"
            )
        everything = tuple(dict.fromkeys(("", *(name for mix in self.mixes for name in _models(mix.plan)))))
        return [
            (spec, names or everything)
            for spec, names, own in self.engines
            for _ in range(count if count is not None else own)
        ]

    def arrivals(self, seed: int) -> Iterator[Arrival]:
        """In order of time."""
        sources = [
            _arrivals(mix, mixed(seed, number, name_key(mix.name)), self.duration_s)
            for number, mix in enumerate(self.mixes)
        ]
        return heapq.merge(*sources, key=lambda arrival: arrival.at)

    def config(self, policy: str | None, placement: str | None = None) -> Config:
        """Of the scheduler; None: as the workload has it."""
        given: dict[str, Any] = {"measure": True, "max_live_runs": 100_000, **self.scheduler}
        if policy is not None:
            given["policy"] = policy
        if placement is not None:
            given["placement"] = placement
        try:
            if "pool" in given:
                given["pool"] = PoolConfig(**given["pool"])
            return Config(**given)
        except TypeError as error:
            raise ConfigError(f"{self.name}: [scheduler]: {error}") from error


def _models(plan: Plan | None) -> list[str]:
    """Names that calls of a plan ask for."""
    if plan is None:
        return []
    specs = [*plan.llms, *(agent.llm for agent in plan.agents)]
    return [spec.model for spec in specs if spec.model]


# --- arrivals --------------------------------------------------------------------------------------------------


def _arrivals(mix: Mix, seed: int, until: Seconds) -> Iterator[Arrival]:
    if mix.trace is not None:
        found = READERS[mix.kind](mix.trace, mix.name, mix.speed, seed)
        for number, arrival in enumerate(found):
            if arrival.at > until or (mix.limit is not None and number >= mix.limit):
                return
            yield arrival
        return
    assert mix.plan is not None
    program = Modelled(mix.plan, mix.nodes, seed)
    if mix.clients:
        for client in range(mix.clients):
            yield _turn(mix, program, seed, client, 0, mix.think.draw(mixed(seed, client, 1)), until)
        return
    rnd, now, number = Random(seed), 0.0, 0
    while True:
        now += _gap(rnd, mix)
        if now > until:
            return
        yield _arrival(mix, program, seed, number, now)
        number += 1


def _gap(rnd: Random, mix: Mix) -> Seconds:
    if mix.cv == 0:
        return 1 / mix.rate
    shape = 1 / mix.cv**2
    return rnd.gammavariate(shape, 1 / (mix.rate * shape))


def _arrival(
    mix: Mix,
    program: Modelled,
    seed: int,
    number: int,
    at: Seconds,
    then: Callable[[Seconds], Arrival | None] | None = None,
) -> Arrival:
    session = number % mix.sessions if mix.sessions else None
    return Arrival(
        at,
        program,
        program.plan,
        mixed(seed, number),
        mix.name,
        mix.deadline_s,
        mix.tenant,
        mix.tier,
        mix.priority,
        None if session is None else f"{mix.name}-{session}",
        0 if session is None else mixed(seed, session, 2),
        then,
    )


def _turn(mix: Mix, program: Modelled, seed: int, client: int, turn: int, at: Seconds, until: Seconds) -> Arrival:
    """A client's next run, which brings the one after it."""

    def then(now: Seconds) -> Arrival | None:
        again = now + mix.think.draw(mixed(seed, client, turn + 2))
        return _turn(mix, program, seed, client, turn + 1, again, until) if again <= until else None

    return _arrival(mix, program, seed, client + turn * mix.clients, at, then)


# --- files -----------------------------------------------------------------------------------------------------


def load(path: Path, find: Find) -> Workload:
    """Read a workload file. Raises ConfigError, naming the key."""
    try:
        text = path.read_text(encoding="utf-8")
        value = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: expected a workload as TOML or JSON: {error}") from error
    if not isinstance(value, dict):
        raise ConfigError(f"{path}: expected a table; got {value!r}")
    return parse_workload(value, path.stem, path.parent, find)


def of_trace(path: Path, kind: str) -> Workload:
    """A trace alone, on one engine as it is by default."""
    return Workload(path.name, (_trace_mix({"trace": str(path), "kind": kind}, "trace", Path()),))


KEYS = ("name", "duration_s", "warmup_s", "tell_s", "engine", "scheduler", "services", "chaos", "mix")


def parse_workload(value: Mapping[str, Any], name: str, folder: Path, find: Find) -> Workload:
    """A workload file that has been read; `folder` is where it stands."""
    _known(value, KEYS, name)
    mixes = value.get("mix", ())
    if not isinstance(mixes, Sequence) or not mixes:
        raise ConfigError(f"{name}: expected at least one [[mix]]")
    engines = value.get("engine", {})
    numbers = {key: float(value[key]) for key in ("duration_s", "warmup_s", "tell_s") if key in value}
    found = Workload(
        name=str(value.get("name", name)),
        mixes=tuple(_mix(item, f"mix {number + 1}", folder, find) for number, item in enumerate(mixes)),
        engines=tuple(_engine(item, folder) for item in ([engines] if isinstance(engines, Mapping) else engines)),
        scheduler=value.get("scheduler", {}),
        services=parse_services(value.get("services", {})),
        chaos=parse_chaos(value.get("chaos", {})),
        **numbers,
    )
    if found.duration_s == inf and any(mix.trace is None for mix in found.mixes):
        raise ConfigError(f"{name}: expected duration_s, seconds for which workflows arrive")
    return found


def _engine(value: Mapping[str, Any], folder: Path) -> tuple[EngineSpec, tuple[str, ...], int]:
    _known(value, [*(item.name for item in fields(EngineSpec)), "count", "models"], "engine")
    given = dict(value)
    count, names = given.pop("count", 1), tuple(given.pop("models", ()))
    if not isinstance(count, int) or count < 1:
        raise ConfigError(f"engine.count: expected a number of at least 1; got {count!r}")
    if "costs" in given:
        given["costs"] = costs.parse(given["costs"], folder)
    return EngineSpec(**given), names, count


MIX_KEYS = (
    "name",
    "workflow",
    "rate",
    "cv",
    "clients",
    "think_s",
    "sessions",
    "tenant",
    "tier",
    "priority",
    "deadline_s",
    "nodes",
)


def _mix(value: Mapping[str, Any], where: str, folder: Path, find: Find) -> Mix:
    if "trace" in value:
        return _trace_mix(value, where, folder)
    _known(value, MIX_KEYS, where)
    target = value.get("workflow")
    if not isinstance(target, str):
        raise ConfigError(f"{where}.workflow: expected one of {', '.join(SHAPES)}, or FILE:WORKFLOW; got {target!r}")
    plan = SHAPES[target]() if target in SHAPES else find(_beside(folder, target))
    nodes = {name: parse_model(item, f"{where}.nodes.{name}") for name, item in value.get("nodes", {}).items()}
    Modelled(plan, nodes)  # names of nodes that the workflow has not are found here
    given = {
        key: value[key] for key in MIX_KEYS if key in value and key not in ("workflow", "nodes", "think_s", "name")
    }
    found = Mix(
        str(value.get("name", plan.name)),
        plan,
        nodes,
        think=parse(value.get("think_s", 0), f"{where}.think_s"),
        **given,
    )
    if (found.rate > 0) == (found.clients > 0):
        raise ConfigError(f"{where}: expected rate (arrivals per second) or clients (closed loop), one of them above 0")
    return found


def _trace_mix(value: Mapping[str, Any], where: str, folder: Path) -> Mix:
    _known(value, ("name", "trace", "kind", "speed", "limit"), where)
    kind = value.get("kind")
    if kind not in READERS:
        raise ConfigError(f"{where}.kind: expected one of {', '.join(READERS)}; got {kind!r}")
    path = folder / value["trace"]
    if not path.is_file():
        raise ConfigError(f"{where}.trace: there is no file {path}")
    speed, limit = float(value.get("speed", 1.0)), value.get("limit")
    if speed <= 0:
        raise ConfigError(f"{where}.speed: expected a number above 0; got {speed!r}")
    return Mix(str(value.get("name", path.name)), trace=path, kind=kind, speed=speed, limit=limit)


def _beside(folder: Path, target: str) -> str:
    """A relative FILE:WORKFLOW is looked for beside the workload first."""
    file, colon, name = target.partition(":")
    return f"{folder / file}{colon}{name}" if (folder / file).is_file() else target


def _known(value: Mapping[str, Any], names: Sequence[str], where: str) -> None:
    if unknown := [name for name in value if name not in names]:
        raise ConfigError(f"{where}: expected some of {', '.join(names)}; got {', '.join(unknown)}")
