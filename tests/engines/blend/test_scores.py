"""What the scores are made of, against the model's own attention."""

from collections.abc import Callable
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="the blend needs torch")

import transformers

from flowserve.cachestore.policies import Policy
from flowserve.engines.blend.blend import Blend
from flowserve.engines.blend.scores import Look, attention
from flowserve.engines.blend.walk import Walk

pytestmark = pytest.mark.torch

FAMILIES = ["llama", "mistral", "qwen2", "qwen2-mixed", "qwen3"]
LENGTHS = (12, 5, 15)


def own_attention(lab: Any, ids: Any) -> Any:
    """(layers, heads, rows, places), as transformers' written-out attention has it."""
    eager = transformers.AutoModelForCausalLM.from_config(lab.model.config, attn_implementation="eager")
    eager.load_state_dict(lab.model.state_dict())
    told = eager.eval()(torch.tensor([ids]), output_attentions=True).attentions
    lab.model.config._attn_implementation = "sdpa"  # both have the same configuration
    return torch.cat(told)


@pytest.mark.parametrize("family", FAMILIES)
def test_attention_is_the_models_own(lab: Callable[..., Any], prompts: Any, family: str) -> None:
    ids = prompts[0](*LENGTHS).ids
    here = lab(family)
    wanted = own_attention(here, ids).mean(dim=1)
    here.batch.hold(1, 128)
    walk = Walk(here.decoder, 0, ids, range(len(ids)))
    for index in range(4):
        [(_, block)] = walk.blocks()
        queries = here.decoder.queries(index, walk.hidden, block)
        list(walk.layer(index))
        keys, _ = here.decoder.table.read(index, 0, slice(0, len(ids)))
        found = attention(queries, keys, here.decoder.mask(index, block))
        torch.testing.assert_close(found, wanted[index], atol=1e-5, rtol=1e-4)


def test_the_impact_of_a_chunks_context(lab: Callable[..., Any], prompts: Any) -> None:
    ids = prompts[0](*LENGTHS).ids
    here = lab("llama")
    weights = own_attention(here, ids)[1].mean(dim=0)
    here.batch.hold(1, 128)
    walk = Walk(here.decoder, 0, ids, range(len(ids)))
    list(walk.layer(0))
    walk.store(1)
    for start, end in [(0, 3), (1, 4), (3, 15), (20, 35)]:
        look = Look(here.decoder, 1, start)
        assert sum(look.of(walk, torch.arange(start, end))) == end - start
        outer = torch.stack([sum((weights[row, place] for place in range(1, start)), torch.tensor(0.0)) for row in range(start, end)])  # fmt: skip
        torch.testing.assert_close(look.outer, outer, atol=1e-5, rtol=1e-4)
        inner = [float(weights[row, place]) for row in range(start, end) for place in range(start, row + 1)]
        a = float(outer.sum()) / max(1, (end - start) * (start - 1))
        ratio = torch.tensor(a / (sum(inner) / len(inner)))
        assert look.impact == pytest.approx(float(2 * torch.sigmoid(ratio) - 1), abs=1e-5)
        assert (look.impact == 0.0) == (start <= 1)


def test_the_question_chooses_what_it_looks_at_most(lab: Callable[..., Any], prompts: Any) -> None:
    """Against transformers' own attention over the same pasted cache, one token of the question after the other."""
    here, prompt = lab("qwen3"), prompts[0](*LENGTHS)
    policy = Policy("query_attn", ratio=0.25)
    done, _, _ = here.blend(policy, prompt)
    fixed = {0, 1, 2, *range(35, 40)}
    _, kv = here.oracle(prompt, [fixed] * 4)
    looked = torch.zeros(40)
    hidden = here.model.base_model.embed_tokens(torch.tensor(prompt.ids))
    for index, layer in enumerate(here.model.base_model.layers):
        cos, sin = here.model.base_model.rotary_emb(hidden, position_ids=torch.arange(40)[None])
        attention_ = layer.self_attn
        normed = layer.input_layernorm(hidden)
        queries = attention_.q_norm(attention_.q_proj(normed).view(40, 4, 16)).transpose(0, 1)
        turned = torch.cat((-queries[..., 8:], queries[..., :8]), dim=-1)
        queries = queries * cos[0] + turned * sin[0]
        keys, values = (part.repeat_interleave(2, dim=0) for part in kv[2 * index : 2 * index + 2])
        logits = (queries @ keys.transpose(1, 2)) / 4.0
        weights = logits.masked_fill(~torch.ones(40, 40).tril().bool(), -torch.inf).softmax(dim=-1)
        looked += weights[:, 35:].mean(dim=0).sum(dim=0)
        mixed = attention_.o_proj((weights @ values).transpose(0, 1).reshape(40, -1))
        hidden = hidden + mixed
        hidden = hidden + layer.mlp(layer.post_attention_layernorm(hidden))
    best = sorted(range(3, 35), key=lambda p: -float(looked[p]))[:8]
    assert [p for p in done.chosen if 3 <= p < 35] == sorted(best)


def test_work_is_told_as_it_is_done(lab: Callable[..., Any], prompts: Any) -> None:
    """Steps of one token's budget do many small parts, which add up to the work of the whole."""
    here, prompt = lab("llama"), prompts[0](*LENGTHS)
    told: dict[int, list[int]] = {}
    for budget in (3, 10**6):
        policy = Policy("hkvd", ratio=0.25)
        patch = here.patch(policy, prompt)
        here.batch.hold(1, 128)
        here.paste(patch, 0)
        blend = Blend(here.decoder, policy, prompt.ids, patch.computed(0, 40), 0, patch.pasted, patch.question)
        told[budget] = []
        while blend.logits is None:
            told[budget].append(blend.advance(0, budget))
    [whole] = told[10**6]
    assert len(told[3]) >= 4
    assert abs(sum(told[3]) - whole) <= 1
    assert 15 <= whole <= 40, "less than the prompt, more than what is recomputed of it"
