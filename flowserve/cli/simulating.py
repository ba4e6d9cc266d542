"""`flowserve simulate`: a workload through the scheduler on engines that are models; or the soak."""

import json
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from flowserve.cli.targets import find_workflow, lessons_of, say
from flowserve.core.placements import PLACEMENTS
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
    placements: Sequence[str],
    seed: int,
    out: Path | None,
    picture: Path | None,
    record: Path | None,
) -> None:
    """Simulate once per policy or placement; a table to stdout, the figures to `out`."""
    if file is None:
        raise ConfigError("expected a workload file, or --check N")
    several = max(len(policies), len(placements)) > 1
    if record is not None and several:
        raise ConfigError("--record: expected one policy and placement, not --compare or --compare-placements")
    if len(policies) > 1 and len(placements) > 1:
        raise ConfigError("expected --compare or --compare-placements; got both: choose one policy with --policy")
    if unknown := [name for name in policies if name not in POLICIES]:
        raise UnknownName("policy", unknown[0], list(POLICIES))
    if predictor is not None and predictor not in PREDICTORS:
        raise UnknownName("predictor", predictor, list(PREDICTORS))
    if unknown := [name for name in placements if name not in PLACEMENTS]:
        raise UnknownName("placement", unknown[0], list(PLACEMENTS))
    load = workload.of_trace(file, trace) if trace is not None else workload.load(file, _plan)
    if predictor is not None:
        load = replace(load, scheduler={**load.scheduler, "predictor": predictor})
    lessons = lessons_of(learn)
    if several:
        outcomes = compare(load, policies or [None], engines, seed, placements or [None], lessons)
    else:
        with record.open("w", encoding="utf-8") if record is not None else nullcontext() as log:
            write = log.write if log is not None else None
            policy, placement = next(iter(policies), None), next(iter(placements), None)
            outcomes = [simulate(load, policy, engines, seed, write, lessons=lessons, placement=placement)]
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
    """Curves by policy or placement where there are several, else by mix."""
    if len(outcomes) == 1:
        return outcomes[0].latencies
    names = report.heads([outcome.figures for outcome in outcomes])
    return {
        name: [value for values in outcome.latencies.values() for value in values]
        for name, outcome in zip(names, outcomes, strict=True)
    }


def placements(one: str | None, several: str | None) -> list[str]:
    """Of --placement and --compare-placements; none: the workload's own."""
    if several == "all":
        return list(PLACEMENTS)
    return several.split(",") if several is not None else [one] if one is not None else []


def check(runs: int, seed: int, jobs: int) -> int:
    """1 if a case broke; its seed is told."""
    try:
        soak.soak(runs, seed, jobs, say)
    except soak.Broken as error:
        say(str(error))
        return 1
    return 0
