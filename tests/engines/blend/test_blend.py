"""Dynamic policies against a slow oracle: whatever is chosen, the rest is as if token had been read after token."""

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="the blend needs torch")

from hypothesis import given, settings
from hypothesis import strategies as st

from flowserve.cachestore.policies import Policy
from flowserve.engines.blend import blend as blending
from flowserve.engines.blend.scores import deviation
from flowserve.errors import ConfigError

pytestmark = pytest.mark.torch

FAMILIES = ["llama", "mistral", "qwen2", "qwen2-mixed", "qwen3"]
DYNAMIC = ["hkvd", "budgeted", "query_attn"]
LENGTHS = (12, 5, 15)
NEAR = {"atol": 1e-4, "rtol": 1e-4}


def kept_of(policy: Policy, length: int, layers: int, chosen: list[int]) -> list[set[int]]:
    """By layer, the positions of which computed KV stays."""
    everything, some = set(range(length)), set(chosen)
    last_whole = {"hkvd": policy.check_layer, "budgeted": 1, "query_attn": -1}[policy.name]
    return [everything if index <= last_whole else some for index in range(layers)]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", DYNAMIC)
def test_a_ratio_of_1_equals_full_prefill(lab: Callable[..., Any], prompts: Any, family: str, name: str) -> None:
    """T3."""
    prompt = prompts[0](*LENGTHS)
    wanted, wanted_kv = lab(family).full(prompt.ids)
    done, logits, kv = lab(family).blend(Policy(name, ratio=1.0), prompt)
    assert done.chosen == list(range(40))
    torch.testing.assert_close(logits, wanted, **NEAR)
    torch.testing.assert_close(kv, wanted_kv, **NEAR)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("name", "ratio"), [("hkvd", 0.15), ("budgeted", 0.5), ("query_attn", 0.9)])
def test_some_recomputed_equals_the_oracle_for_the_same_set(
    lab: Callable[..., Any], prompts: Any, family: str, name: str, ratio: float
) -> None:
    """T5."""
    policy, prompt = Policy(name, ratio=ratio), prompts[0](*LENGTHS)
    done, logits, kv = lab(family).blend(policy, prompt)
    assert len(done.chosen) == 8 + math.ceil(ratio * 32)
    assert {0, 1, 2, *range(35, 40)} <= set(done.chosen)
    wanted, wanted_kv = lab(family).oracle(prompt, kept_of(policy, 40, 4, done.chosen))
    torch.testing.assert_close(logits, wanted, **NEAR)
    torch.testing.assert_close(kv, wanted_kv, **NEAR)
    full, _ = lab(family).full(prompt.ids)
    assert not torch.allclose(logits, full, atol=1e-2), "else this shows nothing"


SCALED = {
    "llama3": {"rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
               "original_max_position_embeddings": 64},
    "yarn": {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 8.0, "original_max_position_embeddings": 64},
}  # fmt: skip


@pytest.mark.parametrize("scaling", SCALED)
@pytest.mark.parametrize("name", DYNAMIC)
def test_scaled_frequencies_are_the_models_own(lab: Callable[..., Any], prompts: Any, scaling: str, name: str) -> None:
    here, prompt = lab("qwen3", rope_parameters=SCALED[scaling]), prompts[0](*LENGTHS)
    wanted, _ = here.full(prompt.ids)
    _, logits, _ = here.blend(Policy(name, ratio=1.0), prompt)
    torch.testing.assert_close(logits, wanted, **NEAR)
    policy = Policy(name, ratio=0.3)
    done, logits, _ = here.blend(policy, prompt)
    wanted, _ = here.oracle(prompt, kept_of(policy, 40, 4, done.chosen))
    torch.testing.assert_close(logits, wanted, **NEAR)


@pytest.mark.parametrize("name", DYNAMIC)
def test_in_bfloat16_it_is_as_near_as_that_is(lab: Callable[..., Any], prompts: Any, name: str) -> None:
    here, prompt = lab("llama", dtype=torch.bfloat16), prompts[0](*LENGTHS)
    wanted, _ = here.full(prompt.ids)
    _, logits, _ = here.blend(Policy(name, ratio=1.0), prompt)
    assert float((logits - wanted).norm() / wanted.norm()) < 0.03
    _, logits, _ = here.blend(Policy(name, ratio=0.1), prompt)
    assert float((logits - wanted).norm() / wanted.norm()) > 0.1, "else this shows nothing"


def test_a_decoder_that_computes_something_else_is_refused(lab: Callable[..., Any], monkeypatch: Any) -> None:
    here = lab("llama")
    monkeypatch.setattr(blending.Decoder, "_rotated", staticmethod(lambda states, block: states))
    with pytest.raises(ConfigError, match="what the model does; keys and values of layer 0 differ"):
        blending.Decoder(here.model, here.batch)


@pytest.mark.parametrize("check_layer", [1, 2, 3])
def test_gradual_filtering_narrows_layer_by_layer(
    lab: Callable[..., Any], prompts: Any, check_layer: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = Policy("hkvd", ratio=0.6, check_layer=check_layer, gradual=(0.4, 0.2))
    prompt = prompts[0](*LENGTHS)
    entered: list[list[int]] = []
    layer = blending.Walk.layer
    monkeypatch.setattr(
        blending.Walk, "layer", lambda walk, index: (entered.append(walk.positions.tolist()), layer(walk, index))[1]
    )
    done, logits, kv = lab("llama").blend(policy, prompt)
    counts = [40] * check_layer + [8 + math.ceil(share * 32) for share in (0.6, 0.4, 0.2)]
    assert [len(rows) for rows in entered[:-1]] == counts[:3], "of the last layer only the last row is run"
    assert len(done.chosen) == counts[3]
    rows = [*map(set, entered[:3]), set(done.chosen)]
    assert all(after <= before for before, after in pairwise(rows))
    # KV of a layer is computed of those that came out of the one before, and stays.
    kept = [set(range(40)), *rows[:3]]
    wanted, wanted_kv = lab("llama").oracle(prompt, kept)
    torch.testing.assert_close(logits, wanted, **NEAR)
    torch.testing.assert_close(kv, wanted_kv, **NEAR)


@pytest.mark.parametrize("metric", ["v_l2", "k_l2", "kv_l2"])
@pytest.mark.parametrize("check_layer", [1, 3])
def test_hkvd_chooses_what_deviates_most_from_full_prefill(
    lab: Callable[..., Any], prompts: Any, metric: str, check_layer: int
) -> None:
    prompt = prompts[0](*LENGTHS)
    policy = Policy("hkvd", ratio=0.25, check_layer=check_layer, metric=metric)
    done, _, _ = lab("qwen3").blend(policy, prompt)
    _, full = lab("qwen3").full(prompt.ids)
    pasted = lab("qwen3").pasted(prompt)
    at = 2 * check_layer
    difference = (full[at : at + 2] - pasted[at : at + 2]).double().square().sum(dim=(1, 3))
    scores = {"k_l2": difference[0], "v_l2": difference[1], "kv_l2": difference.sum(dim=0)}[metric]
    best = sorted(range(3, 35), key=lambda p: -float(scores[p]))[:8]
    assert sorted(best) == [p for p in done.chosen if 3 <= p < 35]


def test_of_layer_0_nothing_deviates(lab: Callable[..., Any], prompts: Any) -> None:
    """T8; the configuration refuses check layer 0."""
    for family in FAMILIES:
        prompt = prompts[0](*LENGTHS)
        _, full = lab(family).full(prompt.ids)
        pasted = lab(family).pasted(prompt)
        scores = deviation("kv_l2", tuple(full[:2, :, 3:35]), tuple(pasted[:2, :, 3:35]))
        later = deviation("kv_l2", tuple(full[2:4, :, 3:35]), tuple(pasted[2:4, :, 3:35]))
        assert float(scores.max()) < 1e-8
        assert float(later.max()) > 1e-3


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", DYNAMIC)
def test_what_stands_later_changes_nothing_before(
    lab: Callable[..., Any], prompts: Any, family: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """T6: with the choice held fast, KV before the last chunk is the same to the bit whatever the last chunk is."""
    prompt_of, make, text_of = prompts
    prompt = prompt_of(*LENGTHS)
    other = make([*prompt.parts[:3], (text_of(999, 15), "chunk"), prompt.parts[4]])
    always = [i % 7 == 3 for i in range(32)]

    def held(scores: Any, chosen: int) -> Any:
        return torch.tensor(always[: len(scores)])

    monkeypatch.setattr(blending, "highest", held)
    (first, _, one), (second, _, two) = (lab(family).blend(Policy(name, ratio=0.2), each) for each in (prompt, other))
    assert first.chosen == second.chosen
    assert len([p for p in first.chosen if 3 <= p < 20]) >= 2
    assert torch.equal(one[:, :, :20], two[:, :, :20])
    assert not torch.equal(one[:, :, 20:], two[:, :, 20:])


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", DYNAMIC)
def test_all_but_what_is_right_already_recomputed_equals_full_prefill(
    lab: Callable[..., Any], prompts: Any, family: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """T7: finds a wrong mask below a ratio of 1. The first chunk was encoded behind the very text that it stands behind."""
    prompt = prompts[0](*LENGTHS)
    done, logits, kv = _with_right_first_chunk(lab(family), prompt, name, monkeypatch)
    wanted, wanted_kv = lab(family).full(prompt.ids)
    assert done.chosen == [0, 1, 2, *range(15, 40)]
    torch.testing.assert_close(logits, wanted, **NEAR)
    torch.testing.assert_close(kv, wanted_kv, **NEAR)


def _with_right_first_chunk(lab: Any, prompt: Any, name: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    head = prompt.parts[0][0]
    if name == "budgeted":  # asks for each chunk in turn
        lengths = iter(LENGTHS)
        monkeypatch.setattr(
            blending, "highest", lambda scores, _: torch.full((len(scores),), next(lengths) != LENGTHS[0])
        )
    else:
        monkeypatch.setattr(blending, "highest", lambda scores, _: torch.arange(len(scores)) >= LENGTHS[0])
    return lab.blend(Policy(name, ratio=0.625), prompt, sink=head)


@pytest.mark.parametrize("name", DYNAMIC)
def test_a_mask_to_the_bottom_right_would_be_found(
    lab: Callable[..., Any], prompts: Any, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error of published code: the test above must fail with it."""
    prompt = prompts[0](*LENGTHS)

    def bottom_right(decoder: Any, index: int, block: Any) -> Any:
        rows, visible = len(block.positions), block.visible
        return (torch.arange(visible) <= torch.arange(rows)[:, None] + visible - rows)[None, None]

    monkeypatch.setattr(blending.Decoder, "mask", bottom_right)
    _, logits, _ = _with_right_first_chunk(lab("llama"), prompt, name, monkeypatch)
    monkeypatch.undo()
    wanted, _ = lab("llama").full(prompt.ids)
    assert not torch.allclose(logits, wanted, atol=1e-2)


@pytest.mark.parametrize("name", DYNAMIC)
def test_where_work_is_cut_and_which_slot_changes_nothing(lab: Callable[..., Any], prompts: Any, name: str) -> None:
    prompt = prompts[0](*LENGTHS)
    policy = Policy(name, ratio=0.3)
    whole, logits, kv = lab("llama").blend(policy, prompt)
    cut, cut_logits, cut_kv = lab("llama").blend(policy, prompt, slot=2, budget=1)
    assert whole.chosen == cut.chosen
    assert torch.equal(logits, cut_logits) and torch.equal(kv, cut_kv)


@pytest.mark.parametrize("name", DYNAMIC)
@pytest.mark.parametrize("start", [2, 3, 10, 15, 17])
def test_what_is_cached_exactly_is_left_alone(lab: Callable[..., Any], prompts: Any, name: str, start: int) -> None:
    prompt = prompts[0](*LENGTHS)
    policy = Policy(name, ratio=0.4)
    done, logits, _ = lab("llama").blend(policy, prompt, start=start)
    assert done.chosen[0] >= start
    kept = [rows | set(range(start)) for rows in kept_of(policy, 40, 4, done.chosen)]
    wanted, _ = lab("llama").oracle(prompt, kept)
    torch.testing.assert_close(logits, wanted, **NEAR)


def parts(prompts: Any) -> Any:
    _, make, text_of = prompts
    piece = st.tuples(st.sampled_from(["chunk", "missing", "text"]), st.sampled_from([0, 1, 2, 9]), st.integers(0, 2))
    return st.lists(piece, min_size=1, max_size=6).map(
        lambda told: make([(text_of(seed * 31 + length, length), kind) for kind, length, seed in told])
    )


@settings(max_examples=15, deadline=None)
@given(data=st.data(), name=st.sampled_from(DYNAMIC), ratio=st.sampled_from([0.05, 0.5, 1.0]))
def test_any_prompt_equals_the_oracle(lab: Any, prompts: Any, data: Any, name: str, ratio: float) -> None:
    """T11: misses in the middle, all at hand, none, empty chunks, chunks of one token, the same chunk twice, no text behind."""
    prompt = data.draw(parts(prompts).filter(lambda told: len(told.ids) > 0))
    policy = Policy(name, ratio=ratio)
    chunks = {at + i for at, chunk in prompt.chunks() for i in range(len(chunk))}
    length = len(prompt.ids)
    if not chunks - {length - 1}:
        return  # nothing is pasted: the engine makes no blend
    done, logits, kv = lab("qwen3").blend(policy, prompt)
    assert len(done.chosen) == length - len(chunks - {length - 1}) + math.ceil(ratio * len(chunks - {length - 1}))
    wanted, wanted_kv = lab("qwen3").oracle(prompt, kept_of(policy, length, 4, done.chosen))
    torch.testing.assert_close(logits, wanted, **NEAR)
    torch.testing.assert_close(kv, wanted_kv, **NEAR)
