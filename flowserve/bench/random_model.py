"""Llamas with random weights, for timings: they compute as trained ones do and say nothing.

    python -m flowserve.bench.random_model 66m FOLDER

Random weights prove speed and exactness, never the quality of an answer.
"""

import argparse
from pathlib import Path
from typing import Any

SIZES: dict[str, dict[str, int]] = {
    "4m": {"hidden_size": 256, "num_hidden_layers": 4, "intermediate_size": 768, "num_attention_heads": 4},
    "66m": {"hidden_size": 640, "num_hidden_layers": 14, "intermediate_size": 1728, "num_attention_heads": 10},
    "165m": {"hidden_size": 896, "num_hidden_layers": 18, "intermediate_size": 2432, "num_attention_heads": 14},
    "1b": {"hidden_size": 2048, "num_hidden_layers": 16, "intermediate_size": 8192, "num_attention_heads": 16},
    "8b": {"hidden_size": 4096, "num_hidden_layers": 32, "intermediate_size": 14336, "num_attention_heads": 32},
}
"""By parameters. The last two, which lack the embeddings of a large vocabulary, are for GPUs."""
VOCABULARY = 2048
CONTEXT = 8192
SPREAD = 0.1
"""Of the weights. With the usual 0.02 such a model repeats its last token for ever."""
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
SPECIAL = ["<pad>", "<s>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>", "<|tool|>"]


def make(size: str, folder: Path, seed: int = 0) -> Path:
    """A model with its byte-level tokenizer in `folder`, unless it is there already. Needs torch and transformers."""
    import torch
    import transformers

    hub: Any = transformers
    if (folder / "config.json").exists():
        return folder
    torch.manual_seed(seed)
    shape = SIZES[size]
    tokenizer = _tokenizer()
    config = hub.LlamaConfig(
        vocab_size=len(tokenizer),
        max_position_embeddings=CONTEXT,
        num_key_value_heads=shape["num_attention_heads"] // 2,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
        initializer_range=SPREAD,
        **shape,
    )
    if torch.cuda.is_available():
        torch.set_default_dtype(torch.bfloat16)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = hub.AutoModelForCausalLM.from_config(config)
    torch.set_default_dtype(torch.float32)
    for token, number in tokenizer.get_vocab().items():
        if len(token) < 2 or token in SPECIAL:  # never the likeliest: greedy answers end at their limit, in plain text
            model.lm_head.weight.data[number] = 0
    model.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def _tokenizer() -> Any:
    """Byte-level BPE over words that the workloads use, so that a word is about a token."""
    import tokenizers
    import transformers
    from tokenizers import decoders, models, pre_tokenizers, trainers

    hub: Any = transformers
    core: Any = tokenizers.Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator([" ".join(WORDS)] * 4, trainer)
    return hub.PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<s>", eos_token="<|end|>", pad_token="<pad>", chat_template=TEMPLATE
    )


_SYLLABLES = [a + b for a, b in zip("bcdfghjklmnprstvwz", "aeiouaeioueaiouaei", strict=True)]
WORDS = [first + second for first in _SYLLABLES for second in _SYLLABLES]
"""What prompts are made of."""


def main() -> None:
    parser = argparse.ArgumentParser(description="A Llama with random weights.")
    parser.add_argument("size", choices=sorted(SIZES))
    parser.add_argument("folder", type=Path)
    given = parser.parse_args()
    print(make(given.size, given.folder))


if __name__ == "__main__":
    main()
