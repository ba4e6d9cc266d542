"""A model's files to something that computes: weights, tokenizer, batch and grammars.

Everything here may take long and runs in the engine's thread.
"""

from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from flowserve.engines.batch import Batch, make_batch
from flowserve.engines.grammar import Grammars
from flowserve.engines.hf_tokenizer import HFTokenizer
from flowserve.errors import ConfigError, Unsupported
from flowserve.ids import Bytes, Tokens

SMALL_MODEL = 50_000_000
"""Parameters below which one thread is faster than several: their barriers cost more than they save. Measured with
2.8M parameters on two busy cores: 26 requests a second with one thread, 5 with two."""
DEFAULT_CONTEXT: Tokens = 2048
"""For models that do not say."""


@dataclass(frozen=True, slots=True)
class Source:
    """Where a model is and how it shall be loaded; see HFEngine."""

    path: str
    device: str = "auto"
    dtype: str = "auto"
    threads: int | None = None
    revision: str | None = None
    trust_remote_code: bool = False


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model that is ready."""

    batch: Batch
    remark: str
    """What an operator should know of the batch; may be empty."""
    tokenizer: HFTokenizer
    vocabulary: int
    """Token ids are below this."""
    max_context: Tokens
    parameters: int
    device: str
    """cpu, cuda, ..."""
    grammars: Grammars | None
    no_grammars: str
    """Why `grammars` is None."""
    model: Any
    """The transformers model itself."""


def load_model(source: Source, kv_bytes: Bytes) -> Loaded:
    """Raises ConfigError for files, devices and settings that do not work. Call it in inference mode."""
    device = _device(source.device)
    dtype = _dtype(source.dtype, device)
    hub = {"revision": source.revision, "trust_remote_code": source.trust_remote_code}
    try:
        published = AutoTokenizer.from_pretrained(source.path, **hub)
        model: Any = AutoModelForCausalLM.from_pretrained(source.path, dtype=dtype, **hub)
    except (OSError, ValueError, ImportError, KeyError) as error:
        raise ConfigError(
            f"model '{source.path}': expected a folder or hub name of a transformers causal LM; {error}"
        ) from error
    model.to(device).eval()
    parameters = sum(parameter.numel() for parameter in model.parameters())
    threads = source.threads or (1 if parameters < SMALL_MODEL else None)
    if device.type == "cpu" and threads is not None:
        torch.set_num_threads(threads)
    vocabulary = model.get_input_embeddings().num_embeddings
    width = getattr(model.get_output_embeddings(), "out_features", vocabulary)
    tokenizer = HFTokenizer(published, _ids(model.generation_config.eos_token_id))
    batch, remark = make_batch(model, kv_bytes)
    grammars, no_grammars = None, ""
    try:
        grammars = Grammars(tokenizer.json, width, tokenizer.eos_ids)
    except Unsupported as error:
        no_grammars = str(error)
    config = model.config.get_text_config()
    limit = getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None)
    return Loaded(
        batch,
        remark,
        tokenizer,
        vocabulary,
        limit or DEFAULT_CONTEXT,
        parameters,
        device.type,
        grammars,
        no_grammars,
        model,
    )


def _device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        return torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"device: expected the name of a torch device; got '{name}'") from error


def _dtype(name: str, device: torch.device) -> Any:
    if name == "auto":
        return torch.float32 if device.type == "cpu" else "auto"
    dtype = getattr(torch, name, None)
    if not isinstance(dtype, torch.dtype):
        raise ConfigError(f"dtype: expected the name of a torch dtype such as 'bfloat16'; got '{name}'")
    return dtype


def _ids(value: int | list[int] | None) -> list[int]:
    return [] if value is None else [value] if isinstance(value, int) else list(value)
