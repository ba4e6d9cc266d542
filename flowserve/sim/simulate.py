"""One workload under one policy and placement, or under several with the same draws."""

import gc
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from flowserve.core.events import Learned
from flowserve.core.invariants import check
from flowserve.core.placements import PLACEMENTS
from flowserve.core.priority import POLICIES
from flowserve.errors import UnknownName
from flowserve.ids import Seconds
from flowserve.sim.drive import Drive
from flowserve.sim.report import Recorder, summary
from flowserve.sim.workload import Workload

GC_THRESHOLD = (100_000, 20, 100)
"""Runs are full of cycles, which only a collection frees, but not every 700 objects."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """Figures, and every latency for a picture."""

    figures: dict[str, Any]
    latencies: dict[str, list[Seconds]]
    """By mix."""


def simulate(
    workload: Workload,
    policy: str | None = None,
    engines: int | None = None,
    seed: int = 0,
    log_line: Callable[[str], object] | None = None,
    checked: bool = False,
    lessons: Sequence[Learned] = (),
    placement: str | None = None,
) -> Outcome:
    """Run `workload` to its end. `engines` replaces its number of engines; `policy` or `placement` None is the workload's own.

    `log_line` takes the lines of a log for `core/log.py`; `checked` verifies the scheduler's invariants after every step;
    `lessons` are taken before the first run.
    """
    config = workload.config(policy, placement)
    if config.policy not in POLICIES:
        raise UnknownName("policy", config.policy, list(POLICIES))
    if config.placement not in PLACEMENTS:
        raise UnknownName("placement", config.placement, list(PLACEMENTS))
    recorder = Recorder(workload.warmup_s)
    drive = Drive(
        config,
        workload.members(engines),
        workload.arrivals(seed),
        seed=seed,
        services=workload.services,
        chaos=workload.chaos,
        observer=recorder,
        log_line=log_line,
        check=check if checked else None,
        tell_s=workload.tell_s,
    )
    for lesson in lessons:
        drive.post(lesson)
    before = gc.get_threshold()
    gc.set_threshold(*GC_THRESHOLD)
    try:
        drive.run()
    finally:
        gc.set_threshold(*before)
    latencies = {name: part.latencies for name, part in sorted(recorder.parts.items())}
    return Outcome(summary(drive, recorder, seed), latencies)


def compare(
    workload: Workload,
    policies: Sequence[str | None],
    engines: int | None,
    seed: int,
    placements: Sequence[str | None] = (None,),
    lessons: Sequence[Learned] = (),
) -> list[Outcome]:
    """The same arrivals and the same draws under each policy with each placement."""
    return [
        simulate(workload, policy, engines, seed, lessons=lessons, placement=placement)
        for policy in policies
        for placement in placements
    ]
