"""`flowserve simulate`: a workload through the scheduler on engines that are models; or the soak."""

import json
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from flowserve.cli.targets import find_workflow, lessons_of, say
from flowserve.core.predict.table import PREDICTORS
from flowserve.core.priority import POLICIES
from flowserve.errors import ConfigError, UnknownName
from flowserve.graphs.plan import Plan
from flowserve.sim import plot, report, soak, workload
from flowserve.sim.simulate import Outcome, compare, simulate


def run(
    file: Path | None,
    trace: str | None,
    engines: int | None,
    policies: Sequence[str],
    predictor: str | None,
    learn: Path | None,
    seed: int,
    out: Path | None,
    picture: Path | None,
    record: Path | None,
) -> None:
    """Simulate once per policy; a table to stdout, the figures to `out`."""
    if file is None:
        raise ConfigError("expected a workload file, or --check N")
    if record is not None and len(policies) > 1:
        raise ConfigError("--record: expected one policy, not --compare")
    if unknown := [name for name in policies if name not in POLICIES]:
        raise UnknownName("policy", unknown[0], list(POLICIES))
    if predictor is not None and predictor not in PREDICTORS:
        raise UnknownName("predictor", predictor, list(PREDICTORS))
    load = workload.of_trace(file, trace) if trace is not None else workload.load(file, _plan)
    if predictor is not None:
        load = replace(load, scheduler={**load.scheduler, "predictor": predictor})
    lessons = lessons_of(learn)
    if len(policies) > 1:
        outcomes = compare(load, policies, engines, seed, lessons)
    else:
        with record.open("w", encoding="utf-8") if record is not None else nullcontext() as log:
            write = log.write if log is not None else None
            outcomes = [simulate(load, policies[0] if policies else None, engines, seed, write, lessons=lessons)]
    print(report.text(report.table([outcome.figures for outcome in outcomes])))
    if out is not None:
        figures = [outcome.figures for outcome in outcomes]
        shown: Any = figures[0] if len(figures) == 1 else figures
        out.write_text(json.dumps({"workload": load.name, "results": shown}, indent=2) + "\n", encoding="utf-8")
    if picture is not None:
        picture.write_text(plot.curves(f"Simulated: {load.name}", _samples(outcomes)), encoding="utf-8")


def _plan(target: str) -> Plan:
    return find_workflow(target).program.rewritten.plan


def _samples(outcomes: Sequence[Outcome]) -> dict[str, list[float]]:
    """Curves by policy where there are several, else by mix."""
    if len(outcomes) == 1:
        return outcomes[0].latencies
    return {
        outcome.figures["policy"]: [value for values in outcome.latencies.values() for value in values]
        for outcome in outcomes
    }


def check(runs: int, seed: int, jobs: int) -> int:
    """1 if a case broke; its seed is told."""
    try:
        soak.soak(runs, seed, jobs, say)
    except soak.Broken as error:
        say(str(error))
        return 1
    return 0
