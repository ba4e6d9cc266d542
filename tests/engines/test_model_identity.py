"""Models are the same to gates and keys, whether they were loaded or only their files were looked at."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="models are made of tensors")

from transformers import AutoConfig, AutoModelForCausalLM

from flowserve.cachestore.keys import Identity
from flowserve.engines.model_identity import identity_of, identity_of_files
from flowserve.errors import ConfigError

pytestmark = pytest.mark.torch


def of_model(folder: Path, dtype: Any) -> Identity:
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    tokenizer: Any = SimpleNamespace(fingerprint="words")
    return identity_of(model, tokenizer)


def of_files(folder: Path, dtype: Any, quantisation: str = "") -> Identity:
    return identity_of_files(folder, AutoConfig.from_pretrained(folder), dtype, quantisation, "words")


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_files_tell_the_same_as_the_model_that_is_loaded_from_them(
    tiny_folder: Callable[[str], Path], family: str, dtype: Any
) -> None:
    assert of_files(tiny_folder(family), dtype) == of_model(tiny_folder(family), dtype)


def test_tied_weights_are_in_the_files_once(tiny_folder: Callable[[str], Path], tmp_path: Path) -> None:
    model: Any = AutoModelForCausalLM.from_pretrained(tiny_folder("qwen2"), tie_word_embeddings=True)
    model.config.tie_word_embeddings = True
    model.tie_weights()
    model.save_pretrained(tmp_path)
    assert of_files(tmp_path, torch.float32) == of_model(tmp_path, torch.float32)
    assert of_files(tmp_path, torch.float32).weights != of_files(tiny_folder("qwen2"), torch.float32).weights


def test_another_dtype_or_quantisation_is_another_model(tiny_folder: Callable[[str], Path]) -> None:
    folder = tiny_folder("llama")
    known = {of_files(folder, torch.float32), of_files(folder, torch.bfloat16), of_files(folder, torch.float32, "fp8")}
    assert len(known) == 3


def test_models_without_weights_in_safetensors_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"expected weights in \*.safetensors files"):
        identity_of_files(tmp_path, None, torch.float32, "", "words")
    (tmp_path / "model.safetensors").write_bytes(b"nothing of the kind")
    with pytest.raises(ConfigError, match="cannot be read"):
        identity_of_files(tmp_path, None, torch.float32, "", "words")
