"""Whose KV it is: what tells one model from another in the keys of records and in gates.

The transformers engine has the model itself, vLLM's fuses weights and drops others, so there the files are looked at: both find the
same identity where both compute in the same dtype, so that a gate that one was measured for holds for the other.
"""

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

import torch

from flowserve.cachestore.keys import Identity, fingerprint
from flowserve.engines.base import Tokenizer
from flowserve.errors import ConfigError

SAMPLED: Final = 4096
"""Numbers of each weight that its digest looks at."""
VOLATILE: Final = frozenset({"_name_or_path", "transformers_version", "dtype", "torch_dtype", "architectures"})
"""Fields of a model's configuration that do not change what it computes, or are told apart elsewhere."""
HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"
"""Which files leave out, and what it is then, in models that tie them."""


def identity_of(model: Any, tokenizer: Tokenizer) -> Identity:
    """Of a loaded transformers model: two that have the same one compute interchangeable KV."""
    dtype = str(model.dtype).removeprefix("torch.")
    return Identity(_config(model.config), weights_digest(model), tokenizer.fingerprint, dtype)


def weights_digest(model: Any) -> str:
    """Of evenly spaced numbers of every weight, so that large models are told apart in a moment. Where weights were changed by hand
    between these, it does not see it."""
    return _digest(sorted(model.state_dict().items()), model.dtype)


def identity_of_files(folder: Path, config: Any, dtype: torch.dtype, quantisation: str, fingerprint: str) -> Identity:
    """Of a model in safetensors files, computing in `dtype`. config: transformers'. fingerprint: of the tokenizer.

    Raises ConfigError when there are no such files.
    """
    from safetensors import SafetensorError, safe_open

    names: dict[str, Path] = {}
    try:
        for path in sorted(folder.glob("*.safetensors")):
            with safe_open(path, "pt") as file:
                names |= dict.fromkeys(file.keys(), path)
    except (OSError, SafetensorError) as error:
        raise ConfigError(f"reuse of passages: the weights in '{folder}' cannot be read: {error}") from error
    if not names:
        raise ConfigError(f"reuse of passages: expected weights in *.safetensors files in '{folder}'; found none")
    if HEAD not in names and EMBEDDING in names:
        names[HEAD] = names[EMBEDDING]

    def weights() -> Iterable[tuple[str, torch.Tensor]]:
        for name in sorted(names):
            with safe_open(names[name], "pt") as file:
                own = name if name in file.keys() else EMBEDDING  # noqa: SIM118 no mapping
                yield name, file.get_tensor(own)

    return Identity(
        _config(config), _digest(weights(), dtype), fingerprint, str(dtype).removeprefix("torch."), quantisation
    )


def _config(config: Any) -> str:
    return fingerprint({name: value for name, value in config.to_dict().items() if name not in VOLATILE})


def _digest(weights: Iterable[tuple[str, torch.Tensor]], dtype: torch.dtype) -> str:
    """dtype: in which they are used."""
    digest = hashlib.sha256()
    for name, weight in weights:
        flat = weight.detach().reshape(-1)
        sample = flat[:: max(1, flat.numel() // SAMPLED)].to(dtype).float().cpu().numpy()
        digest.update(f"{name}{tuple(weight.shape)}".encode())
        digest.update(sample.tobytes())
    return digest.hexdigest()
