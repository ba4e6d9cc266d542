"""Keys taken to other positions: one rotation, in float32, with the model's own frequencies."""

import pytest

torch = pytest.importorskip("torch", reason="the transformers engine needs torch")

from typing import Any

import transformers
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from flowserve.engines.hf_reuse import Rotary
from flowserve.errors import ConfigError

pytestmark = pytest.mark.torch

SHAPE: dict[str, Any] = {
    "vocab_size": 64, "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 16384,
}  # fmt: skip
PLAIN = {"rope_type": "default", "rope_theta": 10000.0}
LINEAR = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}  # fmt: skip
YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 4096}
"""Multiplies cosines and sines by 1.14, which must not be applied twice."""


def model_of(rope: dict[str, Any], dtype: Any = torch.float32, **changes: Any) -> Any:
    config = transformers.LlamaConfig(rope_parameters=rope, **{**SHAPE, **changes})
    return transformers.AutoModelForCausalLM.from_config(config, dtype=dtype)


def direct(model: Any, keys: Any, start: int) -> Any:
    """As the model's own attention rotates them."""
    positions = torch.arange(start, start + keys.shape[-2])[None]
    cos, sin = model.base_model.rotary_emb(keys, position_ids=positions)
    return apply_rotary_pos_emb(keys[None], keys[None], cos, sin)[0][0]


def error(ours: Any, theirs: Any) -> float:
    """Relative, in the norm of a token's key; the worst."""
    return float(((ours.double() - theirs.double()).norm(dim=-1) / theirs.double().norm(dim=-1)).max())


@pytest.mark.parametrize("rope", [PLAIN, LINEAR, LLAMA3, YARN], ids=lambda rope: str(rope["rope_type"]))
@pytest.mark.parametrize(
    ("dtype", "bound"), [(torch.float32, 2e-6), (torch.bfloat16, 1e-2)], ids=["float32", "bfloat16"]
)
def test_moved_keys_are_those_computed_at_the_new_place(rope: dict[str, Any], dtype: Any, bound: float) -> None:
    """T1: encoded at 4, taken to nowhere, put at 8000; against the model's own rotation at 8000 of the same keys, and against the
    exact one. In bfloat16 the model's own is off by about 4e-3 already: it rounds cosines, sines and both products."""
    model = model_of(rope, dtype)
    rotary = Rotary(model)
    torch.manual_seed(0)
    keys = torch.randn(2, 48, 16).to(dtype)
    encoded = direct(model, keys, 4)
    moved = rotary.rotate(rotary.unrotate(encoded, 4), 8000)
    assert error(moved, direct(model, keys, 8000)) < bound
    exact = Rotary(model_of(rope)).rotate(keys.float(), 8000)
    assert error(moved, exact) < bound
    assert error(rotary.rotate(keys, 8000), exact) < (1e-6 if dtype == torch.float32 else 4e-3)


def test_a_model_in_bfloat16_keeps_its_frequencies_in_float32() -> None:
    """Rounded to bfloat16 they are 16 % off at position 8000."""
    wide, narrow = (Rotary(model_of(LLAMA3, dtype)) for dtype in (torch.float32, torch.bfloat16))
    keys = torch.randn(2, 4, 16)
    assert error(narrow.rotate(keys, 8000), wide.rotate(keys, 8000)) < 1e-6


@pytest.mark.parametrize(
    ("rope", "told"),
    [
        ({"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}, "rope_type 'dynamic'.*change with the length"),
        (
            {"rope_type": "longrope", "rope_theta": 10000.0, "factor": 2.0, "long_factor": [1.0] * 8,
             "short_factor": [1.0] * 8, "original_max_position_embeddings": 4096},
            "rope_type 'longrope'",
        ),
    ],
    ids=["dynamic", "longrope"],
)  # fmt: skip
def test_frequencies_that_change_with_the_length_are_refused(rope: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        Rotary(model_of(rope))
