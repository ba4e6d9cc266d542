"""Does a simulation foretell what was measured? The recorded runs once more, on an engine whose costs were fitted before.

Both figures come from the scheduler's log: from submission to the event that ends the run.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from flowserve.core import commands as c
from flowserve.core import events as e
from flowserve.core.log import read
from flowserve.core.state import SchedulerState
from flowserve.core.step import step
from flowserve.errors import ConfigError
from flowserve.ids import RunId, Seconds
from flowserve.sim import costs as costing
from flowserve.sim.dist import Dist
from flowserve.sim.drive import Drive
from flowserve.sim.observed import observe
from flowserve.sim.recorded import read_log
from flowserve.sim.report import Recorder, quantile
from flowserve.sim.services import Services

TELL_S: Seconds = 0.05


@dataclass(frozen=True, slots=True)
class Compared:
    """Figures, and all latencies for a picture."""

    figures: dict[str, Any]
    latencies: dict[str, list[Seconds]]


def compare(lines: Sequence[str], calibration: str) -> Compared:
    """Fit on the runs of session `calibration`, simulate the others, and compare by workflow.

    Raises ConfigError where there is too little to fit or to compare.
    """
    seen = observe(lines, calibration)
    costs, delay = seen.costs()
    measured = latencies(lines, calibration)
    arrivals = [arrival for arrival in read_log(lines, "", 1.0, 0) if arrival.session != calibration]
    if not arrivals:
        raise ConfigError("expected runs besides those of the calibration")
    config, _ = read(lines)
    recorder = Recorder()
    drive = Drive(
        config,
        [(replace(seen.spec, costs=costs), _names(lines))],
        (replace(arrival, mix=arrival.plan.name) for arrival in arrivals),
        services=Services(network=Dist(delay)),
        observer=recorder,
        tell_s=TELL_S,
    )
    drive.run()
    simulated = {name: part.latencies for name, part in recorder.parts.items()}
    rows = {name: _row(values, simulated.get(name, [])) for name, values in sorted(measured.items())}
    rows["all"] = _row(_together(measured), _together(simulated))
    figures = {
        "costs": {name: getattr(costs, name) for name in costs.__slots__},
        "call_delay_s": delay,
        "fitted_steps": len(seen.steps),
        "fit_median_error": costing.error(costs, [*seen.steps, *seen.first], delay),
        "engine_busy_share": drive.fleet.members[next(iter(drive.fleet.members))].model.busy_s
        / (drive.heap.now - arrivals[0].at),
        "workflows": rows,
    }
    return Compared(figures, {"measured": _together(measured), "simulated": _together(simulated)})


def latencies(lines: Sequence[str], leaving_out: str) -> dict[str, list[Seconds]]:
    """By workflow, from submission to completion, of all runs but those of a session."""
    config, events = read(lines)
    state = SchedulerState(config)
    begun: dict[RunId, tuple[str, Seconds]] = {}
    found: dict[str, list[Seconds]] = {}
    for now, event in events:
        if isinstance(event, e.RunSubmitted) and event.session != leaving_out:
            begun[event.run] = (event.plan.name, now)
        for command in step(state, event, now):
            if isinstance(command, c.Complete) and command.run in begun:
                name, since = begun.pop(command.run)
                found.setdefault(name, []).append(now - since)
    return found


def _names(lines: Sequence[str]) -> tuple[str, ...]:
    _, events = read(lines)
    return next(event.models for _, event in events if isinstance(event, e.EngineChanged) and event.up)


def _together(by_name: dict[str, list[Seconds]]) -> list[Seconds]:
    return [value for _, values in sorted(by_name.items()) for value in values]


def _row(measured: Sequence[Seconds], simulated: Sequence[Seconds]) -> dict[str, float]:
    row: dict[str, float] = {"runs": len(measured)}
    for name, share in (("p50", 0.5), ("p95", 0.95)):
        live, model = quantile(sorted(measured), share), quantile(sorted(simulated), share)
        row |= {f"measured_{name}_s": live, f"simulated_{name}_s": model, f"{name}_error": model / live - 1}
    return row
