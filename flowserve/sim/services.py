"""How long tools, searches and the network take, and what goes wrong by itself: engines that die or stand still, calls
and tools that fail, clients that leave. All by seed."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from flowserve.errors import ConfigError
from flowserve.ids import Seconds
from flowserve.sim.dist import Dist, parse


@dataclass(frozen=True, slots=True)
class Services:
    """Durations in seconds, for nodes that name none of their own."""

    tool: Dist = field(default_factory=lambda: Dist(0.2, 0.5))
    search: Dist = field(default_factory=lambda: Dist(0.03, 0.3))
    network: Dist = field(default_factory=lambda: Dist(0.0))
    """From the scheduler to an engine."""
    start: Dist = field(default_factory=lambda: Dist(30.0))
    """Of an engine that is started anew."""
    probe: Dist = field(default_factory=lambda: Dist(0.1))


@dataclass(frozen=True, slots=True)
class Chaos:
    """What goes wrong. Everything is 0 by default: nothing does."""

    call_failure: float = 0.0
    """Share of executions of model calls that fail after having written a part."""
    tool_failure: float = 0.0
    """Share of tool calls and searches that fail."""
    overloaded: float = 0.0
    """Share of model calls that an engine turns away."""
    join_failure: float = 0.0
    """Share of evaluations and joins that fail."""
    other_list: float = 0.0
    """Share of lists taken item by item while they were written which are others in the end."""
    cancelled: float = 0.0
    """Share of runs whose client leaves."""
    patience_s: Seconds = 10.0
    """After so long at most."""
    engine_life_s: Seconds = 0.0
    """Mean time until an engine dies; 0: never."""
    engine_freeze_s: Seconds = 0.0
    """Mean time until an engine stands still; 0: never."""
    frozen_s: Seconds = 30.0
    """For how long, on average."""
    start_failure: float = 0.0
    """Share of starts of engines that fail."""
    probe_failure: float = 0.0
    """Share of probes of engines that compute which fail."""
    drain_s: Seconds = 0.0
    """Mean time until an operator drains an engine, and until it is wanted back; 0: never."""


def parse_services(value: Mapping[str, Any]) -> Services:
    """From the `[services]` table of a workload file."""
    _known(value, Services, "services")
    return Services(**{name: parse(item, f"services.{name}") for name, item in value.items()})


def parse_chaos(value: Mapping[str, Any]) -> Chaos:
    """From the `[chaos]` table of a workload file."""
    _known(value, Chaos, "chaos")
    for name, item in value.items():
        if isinstance(item, bool) or not isinstance(item, int | float) or item < 0:
            raise ConfigError(f"chaos.{name}: expected a number of at least 0; got {item!r}")
    return Chaos(**value)


def _known(value: Mapping[str, Any], cls: type, where: str) -> None:
    names = [item.name for item in fields(cls)]
    if unknown := [name for name in value if name not in names]:
        raise ConfigError(f"{where}: expected some of {', '.join(names)}; got {', '.join(unknown)}")
