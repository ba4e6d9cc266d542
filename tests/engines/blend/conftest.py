"""Prompts with chunks at hand on tiny random models, and a slow oracle that knows no masks, blocks or layers."""

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="the blend needs torch")

import transformers
from torch import Tensor
from transformers import DynamicCache

from flowserve.cachestore.policies import Policy
from flowserve.engines.batch import SlotBatch, make_batch
from flowserve.engines.blend.blend import Blend
from flowserve.engines.blend.decoder import Decoder
from flowserve.engines.hf_reuse import Pasted, Patch, Rotary, placed

LAYERS = 4
SHAPE: dict[str, Any] = {
    "vocab_size": 300, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": LAYERS, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 512, "initializer_range": 0.2, "head_dim": 16,
}  # fmt: skip
SINK = (1, 1)


def config_of(family: str, **changes: Any) -> Any:
    """`mistral` looks 12 tokens back; `qwen2-mixed` does in its upper layers."""
    shape = {**SHAPE, **changes}
    match family:
        case "llama":
            return transformers.LlamaConfig(**shape)
        case "mistral":
            return transformers.MistralConfig(sliding_window=12, **shape)
        case "qwen2":
            return transformers.Qwen2Config(**shape)
        case "qwen2-mixed":
            return transformers.Qwen2Config(use_sliding_window=True, sliding_window=12, max_window_layers=1, **shape)
        case "qwen3":
            return transformers.Qwen3Config(**shape)
        case _:
            raise ValueError(family)


@dataclass
class Prompt:
    """Parts in order: chunks are at hand unless `missing`; other parts are text."""

    parts: list[tuple[tuple[int, ...], str]]

    @property
    def ids(self) -> tuple[int, ...]:
        return tuple(i for part, _ in self.parts for i in part)

    @property
    def question(self) -> int:
        """Where what stands behind the last chunk begins."""
        at = told = 0
        for part, kind in self.parts:
            at += len(part)
            told = told if kind == "text" else at
        return told

    def chunks(self) -> Iterator[tuple[int, tuple[int, ...]]]:
        at = 0
        for part, kind in self.parts:
            if kind == "chunk" and part:
                yield at, part
            at += len(part)


def text_of(seed: int, length: int) -> tuple[int, ...]:
    source = random.Random(seed)
    return tuple(source.randrange(3, 290) for _ in range(length))


def prompt_of(*lengths: int, head: int = 3, tail: int = 5) -> Prompt:
    """Chunks of these lengths between a head and a tail of text."""
    chunks = [(text_of(100 + i, length), "chunk") for i, length in enumerate(lengths)]
    return Prompt([(text_of(1, head), "text"), *chunks, (text_of(2, tail), "text")])


class Lab:
    """A model with a table of slots, and what there is of its chunks."""

    def __init__(self, family: str = "llama", seed: int = 0, dtype: Any = torch.float32, **changes: Any) -> None:
        torch.manual_seed(seed)
        config = config_of(family, **changes)
        self.model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").to(dtype).eval()
        batch, remark = make_batch(self.model, 1 << 26)
        assert isinstance(batch, SlotBatch), remark
        self.batch = batch
        self.rotary = Rotary(self.model)
        self.decoder = Decoder(self.model, batch)

    def encode(self, chunk: Sequence[int], sink: Sequence[int] = SINK) -> Tensor:
        """(layers' keys and values, kv_heads, tokens, head_dim), keys without position, read behind `sink`."""
        self.batch.hold(1, 128)
        self.batch.prefill(0, (*sink, *chunk), 0)
        (kv,) = self.batch.save(0, len(sink), len(sink) + len(chunk))
        kv[0::2] = self.rotary.unrotate(kv[0::2], len(sink))
        return kv

    def patch(self, policy: Policy, prompt: Prompt, sink: Sequence[int] = SINK) -> Patch:
        found = tuple(Pasted(at, self.encode(chunk, sink)) for at, chunk in prompt.chunks())
        return Patch(policy, found, prompt.question)

    def paste(self, patch: Patch, slot: int, start: int = 0) -> None:
        for chunk in patch.pasted:
            part = placed(chunk, start, self.rotary)
            if part is not None:
                self.batch.load(slot, *part)

    def blend(
        self,
        policy: Policy,
        prompt: Prompt,
        *,
        slot: int = 0,
        start: int = 0,
        budget: int = 10**6,
        sink: Sequence[int] = SINK,
    ) -> tuple[Blend, Tensor, Tensor]:
        """The finished blend, its logits, and the slot: (layers' keys and values, kv_heads, tokens, head_dim). `start`: so many tokens
        are computed first, as if they had been cached exactly."""
        patch = self.patch(policy, prompt, sink)
        ids = prompt.ids
        self.batch.hold(slot + 1, 128)
        if start:
            self.batch.prefill(slot, ids[:start], 0)
        self.paste(patch, slot, start)
        blend = Blend(self.decoder, policy, ids, patch.computed(start, len(ids)), start, patch.pasted, patch.question)
        while blend.logits is None:
            blend.advance(slot, budget)
        (kv,) = self.batch.save(slot, 0, len(ids))
        return blend, blend.logits, kv

    def full(self, ids: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Logits and KV of a full prefill, as `blend` tells them."""
        self.batch.hold(1, 128)
        logits = self.batch.prefill(0, ids, 0)
        (kv,) = self.batch.save(0, 0, len(ids))
        return logits, kv

    def pasted(self, prompt: Prompt) -> Tensor:
        """What lies in the slot before anything is computed; nought elsewhere."""
        patch = self.patch(Policy("none"), prompt)
        self.batch.hold(2, 128)
        for plane in self.batch._table._planes:
            plane[:, 1] = 0
        self.paste(patch, 1)
        (kv,) = self.batch.save(1, 0, len(prompt.ids))
        return kv

    def oracle(self, prompt: Prompt, kept: Sequence[set[int]]) -> tuple[Tensor, Tensor]:
        """Token after token through the whole model on transformers' own cache. In layer l the KV of a token is what was computed if it
        is in kept[l], else what is pasted. So each token sees exactly what stands before it. Logits and KV, as `blend` tells."""
        pasted = self.pasted(prompt)
        cache: Any = DynamicCache()
        out: Any = None
        for position, token in enumerate(prompt.ids):
            out = self.model(
                input_ids=torch.tensor([[token]]),
                position_ids=torch.tensor([[position]]),
                past_key_values=cache,
                use_cache=True,
            )
            for index, layer in enumerate(cache.layers):
                if position not in kept[index]:
                    layer.keys[0, :, -1] = pasted[2 * index, :, position]
                    layer.values[0, :, -1] = pasted[2 * index + 1, :, position]
        rows = [part[0] for layer in cache.layers for part in (layer.keys, layer.values)]
        return out.logits[0, -1], torch.stack(rows)


@pytest.fixture(autouse=True)
def _inference() -> Iterator[None]:
    torch.set_num_threads(1)  # what is computed here is too little for two
    with torch.inference_mode():
        yield


@pytest.fixture(scope="session")
def lab() -> Callable[..., Lab]:
    """Labs by family and changes, each made once."""
    made: dict[Any, Lab] = {}

    def get(family: str = "llama", **changes: Any) -> Lab:
        key = (family, *sorted((name, str(value)) for name, value in changes.items()))
        if key not in made:
            made[key] = Lab(family, **changes)
        return made[key]

    return get


@pytest.fixture(scope="session")
def prompts() -> Any:
    """How prompts are made: (prompt_of, Prompt, text_of)."""
    return prompt_of, Prompt, text_of
