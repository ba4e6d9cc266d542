"""Static policies, computed by one forward at scattered positions, against the same slow oracle."""

from collections.abc import Callable
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="the transformers engine needs torch")

from flowserve.cachestore.policies import Policy

pytestmark = pytest.mark.torch

FAMILIES = ["llama", "mistral", "qwen2", "qwen2-mixed", "qwen3"]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("policy", [Policy("none"), Policy("first_k", k=4)], ids=lambda policy: str(policy.name))
def test_a_static_policy_equals_the_oracle(lab: Callable[..., Any], prompts: Any, family: str, policy: Policy) -> None:
    """T4 and T5. One chunk is missing, one stands twice, one is shorter than k, one is empty."""
    _, make, text_of = prompts
    twice = (text_of(7, 11), "chunk")
    parts = [(text_of(1, 3), "text"), twice, (text_of(8, 6), "missing"), (text_of(9, 2), "chunk"), ((), "chunk"), twice]
    prompt = make([*parts, (text_of(2, 4), "text")])
    here, ids = lab(family), prompt.ids
    patch = here.patch(policy, prompt)
    computed = patch.computed(0, len(ids))
    assert len(computed) == 3 + 6 + 4 + (2 * 4 + 2 if policy.name == "first_k" else 0)
    here.batch.hold(1, 128)
    here.paste(patch, 0)
    logits = here.batch.prefill_at(0, [ids[i] for i in computed], computed)
    (kv,) = here.batch.save(0, 0, len(ids))
    wanted, wanted_kv = here.oracle(prompt, [set(computed)] * 4)
    torch.testing.assert_close(logits, wanted, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(kv, wanted_kv, atol=1e-4, rtol=1e-4)
