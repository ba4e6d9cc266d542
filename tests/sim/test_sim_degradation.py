"""What declared degradations do to a server that is asked for more than it can do: simulated, the same runs with and without."""

from collections.abc import Iterator
from random import Random

import pytest

from flowserve.core import commands as c
from flowserve.core.config import Config
from flowserve.graphs.plan import Degradation, Plan
from flowserve.sim.chance import mix
from flowserve.sim.dist import Dist
from flowserve.sim.drive import Arrival, Drive
from flowserve.sim.engine import EngineSpec
from flowserve.sim.plans import PlanBuilder
from flowserve.sim.programs import Modelled, NodeModel

RUNS = 200
CALL = NodeModel(output=Dist(100.0, 0.3), stop=0.0)


def essay() -> Plan:
    """A draft, four samples, and a critic that may be left out."""
    b = PlanBuilder("essay")
    draft, samples, rounds = b.llm(name="draft"), b.block(), b.block()
    vote = b.sample(samples, draft, name="vote", limit=4, degrade=Degradation(2, 0.2))
    b.llm(name="guess", block=samples)
    b.loop(rounds, vote, name="critic.optional", limit=1, degrade=Degradation(0, 0.5))
    b.llm(name="critic", block=rounds)
    return b.build()


def served(rate: float, degrade: bool) -> tuple[int, int]:
    """Of runs that come at `rate` a second and have twelve seconds each: how many were on time, and how many degraded."""
    plan, rnd = essay(), Random(1)
    program = Modelled(plan, {name: CALL for name in ("draft", "guess", "critic")})

    def arrivals() -> Iterator[Arrival]:
        at = 0.0
        for number in range(RUNS):
            at += rnd.expovariate(rate)
            yield Arrival(at, program, plan, mix(3, number), deadline_s=12.0, degrade=degrade)

    drive = Drive(Config(), [(EngineSpec(max_num_seqs=8), ("",))], arrivals())
    drive.commands = []
    drive.run()
    on_time = sum(isinstance(command, c.Complete) for command in drive.commands)
    return on_time, len(dict.fromkeys(command.run for command in drive.commands if isinstance(command, c.Degrade)))


@pytest.mark.parametrize(("rate", "times"), [(2.0, 1.4), (3.0, 4.0)])
def test_under_more_load_than_fits_many_more_runs_are_on_time(rate: float, times: float) -> None:
    without, with_ = served(rate, degrade=False), served(rate, degrade=True)
    assert without[1] == 0
    assert with_[0] > times * without[0], f"{with_} against {without}"


def test_where_there_is_time_nothing_is_degraded() -> None:
    assert served(0.3, degrade=True) == (RUNS, 0)
