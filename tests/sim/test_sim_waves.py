"""What beginning samples as they are needed does to a server, simulated: votes of up to sixteen samples at one engine of 32 seats."""

from statistics import mean

import pytest

from flowserve.ids import Seconds
from flowserve.sim.dist import Dist
from flowserve.sim.engine import EngineSpec
from flowserve.sim.plans import PlanBuilder
from flowserve.sim.programs import NodeModel
from flowserve.sim.simulate import simulate
from flowserve.sim.workload import Mix, Workload


def latencies(rate: float, wave: int | None, duration_s: Seconds) -> list[Seconds]:
    """Of runs that come at `rate` a second; three of four samples agree, and the Beta rule stops them."""
    b = PlanBuilder("votes")
    body = b.block()
    b.sample(body, name="vote", limit=16, rule="adaptive_consistency", wave=wave)
    b.llm(name="solve", block=body, max_tokens=2048)
    models = {"solve": NodeModel(output=Dist(400.0, 0.7)), "vote": NodeModel(agree=0.75)}
    mix = Mix("votes", b.build(), nodes=models, rate=rate)
    spec = EngineSpec(max_num_seqs=32)
    return simulate(Workload("votes", (mix,), engines=((spec, ("",), 1),), duration_s=duration_s)).latencies["votes"]


def test_alone_a_run_is_as_fast_as_if_all_its_samples_had_begun_at_once() -> None:
    at_once, as_needed, strictly = (latencies(0.02, wave, 600.0) for wave in (0, None, 1))
    assert as_needed == at_once
    assert mean(strictly) > 2 * mean(at_once), "what waves cost where seats stand empty"


@pytest.mark.parametrize(("rate", "times"), [(0.8, 1.3), (1.4, 1.2)])
def test_under_load_runs_are_faster_by_what_is_not_begun_in_vain(rate: float, times: float) -> None:
    at_once, as_needed = latencies(rate, 0, 200.0), latencies(rate, None, 200.0)
    assert mean(at_once) > times * mean(as_needed)
