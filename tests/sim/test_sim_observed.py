"""From a log of an engine back to what its steps cost, and whether a simulation foretells a recorded workload."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from flowserve.errors import ConfigError
from flowserve.sim import fidelity
from flowserve.sim.costs import StepCosts
from flowserve.sim.drive import Arrival, Drive
from flowserve.sim.observed import observe
from flowserve.sim.workload import Workload, parse_workload

TRUE = StepCosts(0.008, 3e-4, 4e-4, 2e-6)
VALUE: dict[str, Any] = {
    "duration_s": 60,
    "engine": {"max_num_seqs": 16, "max_num_batched_tokens": 4096, "kv_tokens": 20_000},
    "services": {"tool": 0.1, "search": 0.05, "network": 0.002},
    "mix": [
        {"workflow": "rag", "rate": 0.4, "nodes": {"answer": {"output": {"median": 40, "sigma": 0.4}}}},
        {"workflow": "chain", "rate": 0.2},
        {"workflow": "map-reduce", "rate": 0.1},
    ],
}


def workload() -> Workload:
    found = parse_workload(VALUE, "test", Path(), lambda target: pytest.fail(target))
    [(spec, names, count)] = found.engines
    return replace(found, engines=((replace(spec, costs=TRUE), names, count),))


def recorded(engines: int = 1, calibrating_s: float = 30) -> list[str]:
    """The log of a simulated minute, its first runs of session `calibration`."""
    load, lines = workload(), list[str]()

    def sessions(arrival: Arrival) -> Arrival:
        return replace(arrival, session="calibration" if arrival.at < calibrating_s else None)

    drive = Drive(
        load.config(None),
        load.members(engines),
        map(sessions, load.arrivals(1)),
        services=load.services,
        log_line=lines.append,
        tell_s=0.3,
    )
    drive.run()
    return lines


def test_the_costs_of_an_engine_are_found_in_its_log() -> None:
    costs, delay_s = observe(recorded()).costs()
    assert costs.prefill_s == pytest.approx(TRUE.prefill_s, rel=0.15)
    assert costs.seconds(0, 4, 2000) == pytest.approx(TRUE.seconds(0, 4, 2000), rel=0.05)
    assert delay_s == pytest.approx(0.002, abs=0.004)


def test_a_simulation_with_these_costs_foretells_the_rest() -> None:
    found = fidelity.compare(recorded(), "calibration")
    row = found.figures["workflows"]["all"]
    assert row["runs"] > 10
    assert abs(row["p50_error"]) < 0.06 and abs(row["p95_error"]) < 0.06
    assert len(found.latencies["measured"]) == len(found.latencies["simulated"]) == row["runs"]


def test_a_log_of_several_engines_or_none_is_refused() -> None:
    with pytest.raises(ConfigError, match="one engine; it has engine-0 and engine-1"):
        observe(recorded(engines=2))
    with pytest.raises(ConfigError, match="none"):
        observe(recorded()[:1])


def test_a_log_without_anything_to_foretell_is_refused() -> None:
    with pytest.raises(ConfigError, match="besides"):
        fidelity.compare(recorded(calibrating_s=1e9), "calibration")
