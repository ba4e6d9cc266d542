"""What is known of a policy before anything is computed."""

import pytest

from flowserve.cachestore.policies import NAMES, Policy


@pytest.mark.parametrize(
    ("policy", "tokens", "head"),
    [
        (Policy("first_k", k=16), 40, 16),
        (Policy("first_k", k=16), 9, 9),
        (Policy("first_k", k=0), 9, 0),
        (Policy("full"), 40, 40),
        (Policy("none"), 40, 0),
        (Policy("sink0"), 40, 0),
        (Policy("hkvd", k=16), 40, 0),
    ],
)
def test_the_head_of_a_chunk_that_is_always_recomputed(policy: Policy, tokens: int, head: int) -> None:
    assert policy.head(tokens) == head


def test_policies_that_choose_by_what_is_computed_are_not_static() -> None:
    assert {name for name in NAMES if not Policy(name).static} == {"hkvd", "budgeted", "query_attn"}
