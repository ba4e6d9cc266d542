"""Pasting and selective recompute on the worker, through the model's own layers.

Each run of selected positions goes to attention as a request of its own, with all keys up to its last position: the paged kernel's
causal mask, aligned to the bottom right, is then exactly the right one. Selected rows write their own KV.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from vllm.forward_context import set_forward_context
from vllm.v1.attention.backend import CommonAttentionMetadata

from flowserve.engines.vllm.connector.layout import PagedLayer
from flowserve.engines.vllm.connector.metadata import Load
from flowserve.engines.vllm.connector.rotation import Rotation
from flowserve.engines.vllm.connector.selection import deviating, fixed, runs
from flowserve.errors import ConfigError
from flowserve.ids import Tokens

Tensor = torch.Tensor
MODELS = ("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM")
"""Whose inner model embeds without scaling, and whose layers take (positions, hidden, residual)."""


class _Captured(Exception):
    """No error: it ends a layer before its attention."""


class Blend:
    """runner: vLLM's model runner. Raises ConfigError for what it cannot do."""

    def __init__(self, runner: Any) -> None:
        model = runner.get_model()
        if type(model).__name__ not in MODELS:
            raise ConfigError(f"reuse on vLLM: expected a model of {', '.join(MODELS)}; got {type(model).__name__}")
        groups = [group for groups in runner.attn_groups for group in groups]
        if len(groups) != 1 or runner.parallel_config.world_size > 1:
            raise ConfigError("reuse on vLLM: expected one kind of attention on one worker")
        self._config, self._device = runner.vllm_config, runner.device
        self._inner = model.model
        self._layers = list(self._inner.layers)
        self._attention = [layer.self_attn.attn for layer in self._layers]
        if any(getattr(attention, "sliding_window", None) for attention in self._attention):
            raise ConfigError("reuse on vLLM: expected layers that see all of a prompt; got a sliding window")
        self.rotations = [Rotation(layer.self_attn.rotary_emb) for layer in self._layers]
        self._most: Tokens = runner.scheduler_config.max_num_batched_tokens
        dtype = runner.model_config.dtype
        self.pages = [PagedLayer(attention.layer_name, attention, dtype) for attention in self._attention]
        (group,) = groups
        # Of our own: vLLM's keeps buffers of the step that is being computed.
        self._builder = group.backend.get_builder_cls()(
            group.kv_cache_spec, group.layer_names, self._config, self._device
        )

    @torch.inference_mode()
    def layers(self, load: Load, recorded: Tensor) -> Iterator[None]:
        """A layer at a time. recorded: KV of the load's chunks, one behind the other: (layers, 2, tokens, kv_heads, head_dim), keys
        un-rotated. At the end KV of [start, end) is in the cache, in every layer."""
        positions = torch.arange(load.start, load.end, device=self._device)
        source, target = (index.to(self._device) for index in _covered(load))
        selected = fixed(load).to(self._device)
        check = load.paste.policy.check_layer if load.paste.policy.name == "hkvd" else None
        chosen = torch.ones_like(selected) if check is not None else selected
        hidden = self._inner.embed_input_ids(torch.tensor(load.ids, device=self._device)[chosen])
        residual: Tensor | None = None
        for index in range(len(self._layers)):
            if check is None or index >= check:
                keys, values = recorded[index].to(self._device)[:, source]
                keys = self.rotations[index].done(keys, load.start + target)
                if index == check:
                    fresh = self._capture(index, positions, hidden, residual)
                    pasted = tuple(_spread(part, target, len(positions)) for part in (keys, values))
                    chosen = selected | deviating(load.paste.policy, fresh, (pasted[0], pasted[1]), ~selected)
                    hidden = hidden[chosen]
                    residual = None if residual is None else residual[chosen]
                page = self.pages[index]
                page.write(keys, values, page.slots(load.blocks, load.start + target))
            hidden, residual = self._layer(load, index, positions[chosen], hidden, residual)
            if index + 1 < len(self._layers):
                yield

    def _layer(
        self, load: Load, index: int, positions: Tensor, hidden: Tensor, residual: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """A layer on some rows. Those of later pieces see what earlier ones have written."""
        done: list[tuple[Tensor, Tensor]] = []
        for rows in self._pieces(positions):
            with self._context(load, positions[rows]):
                left = None if residual is None else residual[rows]
                done.append(self._layers[index](positions[rows], hidden[rows], left))
        if len(done) <= 1:
            return done[0] if done else (hidden, residual)
        return torch.cat([one for one, _ in done]), torch.cat([other for _, other in done])

    def _capture(self, index: int, positions: Tensor, hidden: Tensor, residual: Tensor | None) -> tuple[Tensor, Tensor]:
        """Keys and values that a layer's attention would be given."""
        seen: list[tuple[Tensor, Tensor]] = []
        heads = self._attention[index].num_kv_heads

        def hook(module: Any, given: tuple[Any, ...]) -> None:
            seen.append(
                (given[1].view(-1, heads, self.pages[index].dim), given[2].view(-1, heads, self.pages[index].dim))
            )
            raise _Captured

        handle = self._attention[index].register_forward_pre_hook(hook)
        try:
            for rows in self._pieces(positions):
                left = None if residual is None else residual[rows].clone()
                with contextlib.suppress(_Captured):  # norms may write into what they are given
                    self._layers[index](positions[rows], hidden[rows].clone(), left)
        finally:
            handle.remove()
        return torch.cat([keys for keys, _ in seen]), torch.cat([values for _, values in seen])

    def _pieces(self, positions: Tensor) -> list[slice]:
        """Of what vLLM computes at most in a step: for more it has set no memory aside."""
        return [slice(begin, begin + self._most) for begin in range(0, len(positions), self._most)]

    @contextlib.contextmanager
    def _context(self, load: Load, positions: Tensor) -> Iterator[None]:
        """vLLM's forward context for these positions."""
        stretches = runs(positions)
        lengths = torch.tensor([end - start for start, end in stretches], dtype=torch.int32)
        begins = torch.zeros(len(stretches) + 1, dtype=torch.int32)
        torch.cumsum(lengths, 0, out=begins[1:])
        ends = torch.tensor([end for _, end in stretches], dtype=torch.int32)
        slots = self.pages[0].slots(load.blocks, positions)
        table = torch.tensor(load.blocks, dtype=torch.int32, device=self._device)
        common = CommonAttentionMetadata(
            query_start_loc=begins.to(self._device),
            query_start_loc_cpu=begins,
            seq_lens=ends.to(self._device),
            num_reqs=len(stretches),
            num_actual_tokens=len(positions),
            max_query_len=int(lengths.max()),
            max_seq_len=int(ends.max()),
            block_table_tensor=table.repeat(len(stretches), 1),
            slot_mapping=slots,
            positions=positions,
            seq_lens_cpu_upper_bound=ends,
        )
        built = self._builder.build(0, common)
        names = [page.name for page in self.pages]
        with set_forward_context(
            dict.fromkeys(names, built),
            self._config,
            num_tokens=len(positions),
            slot_mapping=dict.fromkeys(names, slots),
            skip_compiled=True,
        ):
            yield


def _covered(load: Load) -> tuple[Tensor, Tensor]:
    """Tokens of the chunks, one behind the other, that lie in the load; and where they lie in it."""
    source: list[Tensor] = []
    target: list[Tensor] = []
    before = 0
    for chunk in load.paste.chunks:
        low, high = max(chunk.start, load.start), max(chunk.start, load.start, min(chunk.end, load.end))
        source.append(torch.arange(low, high) - chunk.start + before)
        target.append(torch.arange(low, high) - load.start)
        before += chunk.end - chunk.start
    return torch.cat(source), torch.cat(target)


def _spread(part: Tensor, target: Tensor, length: Tokens) -> Tensor:
    """Rows at their places, nought elsewhere."""
    return part.new_zeros(length, *part.shape[1:]).index_copy_(0, target, part)
