"""Self-consistency in the comparison: FlowServe's seeds are known, and stopping early changes no vote."""

from itertools import product

import flowserve as fs
from flowserve.bench.workflows import consistency
from flowserve.bench.workflows.consistency import SAMPLES, is_decided, majority, seed_of


async def test_samples_are_asked_with_the_seeds_that_the_other_programs_use() -> None:
    with fs.testing.engine(replies="no more") as session:
        await consistency.consistent.options().arun(question="how?", answers=[str(n) for n in range(50)])
    seeds = {call.sampling.seed for call in session.calls}
    assert seeds and seeds <= {seed_of(number) for number in range(SAMPLES)}
    assert all(
        (call.sampling.temperature, call.sampling.stop) == (1.0, tuple(consistency.ENDS)) for call in session.calls
    )


def test_a_decided_vote_is_that_of_all_samples() -> None:
    for finals in product("abc", repeat=SAMPLES):
        seen = next(n for n in range(SAMPLES + 1) if n == SAMPLES or is_decided(finals[:n]))
        assert majority(dict(enumerate(finals[:seen]))) == majority(dict(enumerate(finals)))


def test_ties_go_to_the_earliest_sample() -> None:
    assert majority({5: "b", 1: "a", 2: "b", 3: "a"}) == "a"
