"""Many simulated runs of random plans in which everything goes wrong, with the scheduler's invariants checked after every step.

A *case* is a small world made by its seed: two or three engines with little memory, random plans, a policy, settings of the pool,
and a share of everything that can fail. Run alone: `python -m flowserve.sim.soak --runs 1000000`; one case again, after a
break: `--seed SEED --runs 1`.
"""

import argparse
import multiprocessing
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from random import Random
from typing import Self

from flowserve.config import PoolConfig, Price, TenantLimits
from flowserve.core import commands as c
from flowserve.core import events as e
from flowserve.core.config import Config
from flowserve.core.engine_state import Engine
from flowserve.core.events import Code
from flowserve.core.invariants import check
from flowserve.core.placements import PLACEMENTS
from flowserve.core.predict.table import PREDICTORS
from flowserve.core.priority import POLICIES
from flowserve.core.state import Window
from flowserve.errors import InternalError
from flowserve.graphs.encode import digest
from flowserve.graphs.plan import Budget, ExitSpec, Plan
from flowserve.ids import EngineId, FrameId, NodeId, RunId, Seconds, TaskId
from flowserve.sim.chance import mix
from flowserve.sim.costs import StepCosts
from flowserve.sim.dist import Dist
from flowserve.sim.drive import Arrival, Drive, Execution, RunView
from flowserve.sim.engine import EngineSpec
from flowserve.sim.plans import random_plan
from flowserve.sim.programs import Modelled, NodeModel
from flowserve.sim.services import Chaos, Services

RUNS = 40
"""Of a case."""
COSTS = StepCosts(0.004, 2e-5, 1e-4, 1e-7)
PLANS: dict[int, tuple[Plan, ...]] = {}
"""Plans by number of their set: making one takes longer than running it."""
NUM_SETS = 400


LIMITS = (
    ("t", TenantLimits(live_runs=2, queued_runs=3, tokens_per_hour=6_000.0)),
    ("*", TenantLimits(runs_per_minute=240.0, run_burst=8.0, tokens_per_minute=30_000.0, token_burst=2_000.0)),
)
SPENDING = (("t", TenantLimits(tokens_per_day=9_000.0, money_per_hour=0.01)),)
"""Where there are prices."""
PRICES = (("", Price(1.0, 4.0, cached=0.1)), ("large", Price(10.0, 40.0)))
BUDGETS = (Budget(tokens=800), Budget(seconds=0.6), Budget(money=0.002))


class Broken(InternalError):
    """A case that broke; the message names its seed."""


@dataclass(slots=True)
class Tally:
    """What became of the runs of a case."""

    ends: Counter[str]
    submitted: int = 0

    def dispatched(self, execution: Execution, waited_s: Seconds, now: Seconds) -> None:
        self.ends["dispatches"] += 1

    def answered(self, execution: Execution, last: bool, now: Seconds) -> None:
        pass

    def ended(self, view: RunView, command: c.Complete | c.Fail | c.Reject, now: Seconds) -> None:
        match command:
            case c.Complete():
                self.ends["completed"] += 1
            case c.Fail():
                self.ends[str(command.status)] += 1
            case c.Reject():
                self.ends["rejected"] += 1


def run_case(seed: int, runs: int = RUNS) -> Counter[str]:
    """One world; what became of its runs, and how many events there were. Raises Broken."""
    try:
        return _run_case(seed, runs)
    except Exception as error:
        raise Broken(f"case {seed} broke: {type(error).__name__}: {error}") from error


def _run_case(seed: int, runs: int) -> Counter[str]:
    rnd = Random(seed)
    tally = Tally(Counter())
    drive = Drive(
        _config(rnd),
        _engines(rnd),
        _arrivals(rnd, seed, runs),
        seed=seed,
        services=Services(Dist(0.2, 0.8), Dist(0.05, 0.5), Dist(rnd.choice([0.0, 0.01])), Dist(0.5, 0.5), Dist(0.05)),
        chaos=_chaos(rnd),
        observer=tally,
        check=check,
        tell_s=rnd.choice([0.05, 0.3]),
        kv_events=rnd.random() < 0.5,
        rule_args=rnd.choice([(), (("apart", 3.0),)]),
    )
    for number in range(runs // 8):
        drive.heap.at(rnd.random() * 0.2 * runs, drive.post, _noise(rnd, number))
    drive.run()
    _assert_nothing_left(drive)
    ended = sum(tally.ends[name] for name in ("completed", "failed", "cancelled", "timed_out", "rejected"))
    assert ended == drive.num_runs == runs, f"{ended} of {runs} runs ended"
    tally.ends["runs"], tally.ends["events"] = runs, drive.num_events
    return tally.ends


def _config(rnd: Random) -> Config:
    pool = PoolConfig(
        hedge_after_s=rnd.choice([0.0, 0.05]),
        hedge_share=1.0,
        stall_s=rnd.choice([0.5, 5.0]),
        probe_s=0.4,
        first_token_s=rnd.choice([0.0, 1.0]),
        between_tokens_s=1.0,
        drain_s=0.5,
        outage_s=rnd.choice([2.0, 1e9]),
        breaker_calls=rnd.choice([4, 20]),
        breaker_s=0.5,
        restart_s=0.2,
        max_pause_s=2.0,
        sticky_tokens=rnd.choice([64, 256]),
        group_tokens=rnd.choice([0, 64]),
        near_s=rnd.choice([0.0, 0.05, 5.0]),
    )
    prices = PRICES[: rnd.randint(0, 2)]
    return Config(
        policy=rnd.choice(sorted(POLICIES)),
        predictor=rnd.choice(sorted(PREDICTORS)),
        placement=rnd.choice(sorted(PLACEMENTS)),
        tool_window=rnd.choice([1, 3]),
        search_window=1,
        max_live_runs=rnd.choice([3, 12, 12]),
        measure=rnd.random() < 0.8,
        pool=pool,
        run_retries=rnd.choice([3, 99]),
        hopeless=rnd.choice([0.0, 0.5, 2.0]),
        fairness=rnd.choice([0.0, 1.0]),
        tenant_limits=rnd.choice([(), (), LIMITS, LIMITS[:1], SPENDING if prices else ()]),
        prices=prices,
        drop_hopeless=rnd.random() < 0.5,
        story_length=rnd.choice([1] * 9 + [32]),  # `check` tells the story of every run, and that is most of its time
    )


def _engines(rnd: Random) -> list[tuple[EngineSpec, tuple[str, ...]]]:
    spec = EngineSpec(
        COSTS,
        max_num_seqs=rnd.choice([1, 2, 4]),
        max_num_batched_tokens=rnd.choice([64, 512]),
        kv_tokens=rnd.choice([768, 1536, 8192]),
        priority=rnd.random() < 0.6,
    )
    others = [replace(spec, kv_tokens=2048) for _ in range(rnd.randint(1, 2))]
    return [(spec, ("", "large")), *((other, ("",)) for other in others)]


def _chaos(rnd: Random) -> Chaos:
    often = rnd.choice([0.0, 1.0, 1.0, 3.0])
    return Chaos(
        call_failure=0.05 * often,
        tool_failure=0.05 * often,
        overloaded=0.03 * often,
        join_failure=0.01 * often,
        other_list=0.2 * often,
        cancelled=0.08 * often,
        patience_s=0.6,
        engine_life_s=rnd.choice([0.0, 1.5]) * often,
        engine_freeze_s=rnd.choice([0.0, 1.5]) * often,
        frozen_s=rnd.choice([0.3, 2.0]),
        start_failure=0.2,
        probe_failure=0.2,
        drain_s=rnd.choice([0.0, 5.0]) * often,
    )


def _plans(number: int) -> tuple[Plan, ...]:
    plans = PLANS.get(number)
    if plans is None:
        rnd = Random(number)
        plans = PLANS[number] = tuple(_with_exits(rnd, random_plan(rnd, ("large",), 3)) for _ in range(3))
    return plans


def _with_exits(rnd: Random, plan: Plan) -> Plan:
    """About half of its model calls may end early."""
    llms = tuple(replace(llm, exit=rnd.choice([None, ExitSpec("number")])) for llm in plan.llms)
    changed = replace(plan, llms=llms)
    return replace(changed, digest=digest(changed))


MODELS = tuple(
    NodeModel(
        shared=64,
        prompt=Dist(120.0, 0.9, least=1.0, most=600.0),
        output=Dist(12.0, 0.9, least=1.0),
        on_loss=loss,
        width=Dist(2.0, 0.6),
        sure=0.3,
    )
    for loss in e.Loss
)


def _arrivals(rnd: Random, seed: int, runs: int) -> Iterator[Arrival]:
    programs = [
        Modelled(plan, {node.name: rnd.choice(MODELS) for node in plan.nodes}, seed)
        for plan in _plans(rnd.randrange(NUM_SETS))
    ]
    mean, now = rnd.choice([0.08, 0.4]), 0.0
    for number in range(runs):
        now += rnd.expovariate(1 / mean)
        program = rnd.choice(programs)
        session = rnd.choice([None, None, "a", "b"])
        yield Arrival(
            now,
            program,
            program.plan,
            mix(seed, number),
            deadline_s=rnd.choice([None, None, 0.5, 2.0, 10.0]),
            budget=rnd.choice([None] * 9 + [*BUDGETS]),
            tenant=rnd.choice(["", "t"]),
            tier=rnd.choice(["interactive", "standard", "batch"]),
            priority=rnd.randint(-6, 6),
            session=session,
            talk=0 if session is None else mix(seed, ord(session)),
            degrade=rnd.random() < 0.8,
        )


def _noise(rnd: Random, number: int) -> e.Event:
    """Something stale or foreign."""
    run = RunId(rnd.choice(["unknown", f"run-{number + 1}"]))
    task = TaskId(rnd.randint(0, 12))
    events: list[e.Event] = [
        e.TaskFinished(run, task, 99),
        e.TaskFailed(run, task, 99, Code.ENGINE),
        e.Evaluated(run, task, 0, 1),
        e.Items(run, task, 99, NodeId(0), 1),
        e.Called(run, task, 99, 0, 0),
        e.TokensProduced(run, task, 99, 1),
        e.TrialAnswered(run, task, 99, 64, 0, 1.0, 3),
        e.SampleLabelled(run, task, FrameId(999), 0),
        e.EngineReported(EngineId("unknown"), 0, 0, 0.0, 0),
        e.ResumeRequested(EngineId("engine-0")),
        e.Probed(EngineId("engine-1"), False),
        e.Tick(),
    ]
    return rnd.choice(events)


def _assert_nothing_left(drive: Drive) -> None:
    state = drive.state
    assert not state.runs and not drive.runs and not state.shapes, f"{state!r} keeps runs"
    places: list[Engine | Window] = [*state.engines.values(), state.tools, state.searches]
    for place in places:
        assert not place.running, f"{place!r} keeps work"
    own = [engine.queue for engine in state.engines.values()]
    for queue in [*state.models.values(), *own, state.tools.queue, state.searches.queue]:
        assert queue.size == 0, f"queue {queue.name!r} keeps work"
    for member in drive.fleet.members.values():
        assert not member.calls, f"{member.id} keeps {list(member.calls)}"


def soak(runs: int, seed: int = 0, jobs: int = 1, say: Callable[[str], None] | None = None) -> Counter[str]:
    """At least `runs` runs, in cases from `seed` on. Raises Broken at the first break."""
    cases = -(-runs // RUNS)
    total: Counter[str] = Counter()
    began = told = time.monotonic()
    with multiprocessing.Pool(jobs) if jobs > 1 else _Here() as pool:
        for counts in pool.imap_unordered(run_case, range(seed, seed + cases), chunksize=4):
            total.update(counts)
            now = time.monotonic()
            if say is not None and (now - told > 10 or total["runs"] >= cases * RUNS):
                told = now
                say(_progress(total, now - began))
    return total


class _Here:
    """A pool of this process alone."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def imap_unordered(
        self, work: Callable[[int], Counter[str]], items: range, chunksize: int
    ) -> Iterator[Counter[str]]:
        return map(work, items)


def _progress(total: Counter[str], seconds: Seconds) -> str:
    ends = ", ".join(
        f"{name} {total[name]:,}" for name in ("completed", "failed", "cancelled", "timed_out", "rejected")
    )
    return (
        f"{total['runs']:,} runs, {total['events']:,} events, every step checked, no break ({ends}); "
        f"{total['runs'] / max(seconds, 1e-9):,.0f} runs/s"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=1)
    given = parser.parse_args()
    try:
        soak(given.runs, given.seed, given.jobs, lambda text: print(text, flush=True))
    except Broken as error:
        print(error, file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
