"""Writes a trained model as a folder that transformers' AutoModelForCausalLM and AutoTokenizer load, and reads it back.

Weights are bfloat16; the embedding is stored once, as it is also the output matrix.
"""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedTokenizerFast

from flowserve.demo import tokenizer
from flowserve.demo.model import Model, Shape


def config(shape: Shape, core: PreTrainedTokenizerFast) -> dict[str, Any]:
    """What transformers' LlamaConfig needs."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": shape.vocabulary,
        "hidden_size": shape.hidden,
        "intermediate_size": shape.mlp,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.heads,
        "head_dim": shape.head_dim,
        "hidden_act": "silu",
        "rms_norm_eps": shape.epsilon,
        "rope_theta": shape.theta,
        "rope_parameters": {"rope_type": "default", "rope_theta": shape.theta},
        "max_position_embeddings": tokenizer.MAX_LENGTH,
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": True,
        "dtype": "bfloat16",
        "bos_token_id": core.bos_token_id,
        "eos_token_id": core.eos_token_id,
        "pad_token_id": core.pad_token_id,
    }


def export(model: Model, core: PreTrainedTokenizerFast, folder: Path) -> None:
    """Writes the folder's model and tokenizer; each file is replaced as a whole."""
    partial = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    settings = config(model.shape, core)
    ids = {key: settings[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
    write_json(partial / "config.json", settings)
    write_json(partial / "generation_config.json", {**ids, "do_sample": False, "max_new_tokens": 96})
    tokenizer.save_tokenizer(core, partial)
    weights = {name: weight.to(torch.bfloat16).contiguous() for name, weight in model.state_dict().items()}
    save_file(weights, partial / "model.safetensors", metadata={"format": "pt"})
    folder.mkdir(parents=True, exist_ok=True)
    for file in sorted(partial.iterdir()):
        file.chmod(0o644)
        os.replace(file, folder / file.name)
    partial.rmdir()


def write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n")


def load(folder: Path) -> Model:
    """The exported model in float32."""
    settings = json.loads((folder / "config.json").read_text())
    shape = Shape(
        vocabulary=settings["vocab_size"],
        hidden=settings["hidden_size"],
        layers=settings["num_hidden_layers"],
        heads=settings["num_attention_heads"],
        head_dim=settings["head_dim"],
        mlp=settings["intermediate_size"],
        theta=settings["rope_theta"],
        epsilon=settings["rms_norm_eps"],
    )
    model = Model(shape)
    model.load_state_dict({name: weight.float() for name, weight in load_file(folder / "model.safetensors").items()})
    return model.eval()
