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
from flowserve.engines.vllm.connector.records import Layer
from flowserve.engines.vllm.connector.rotation import Rotation
from flowserve.engines.vllm.connector.selection import deviating, fixed, runs
from flowserve.errors import ConfigError

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
        self.rotations = [Rotation(layer.self_attn.rotary_emb) for layer in self._layers]
        dtype = runner.model_config.dtype
        self.pages = [PagedLayer(attention.layer_name, attention, dtype) for attention in self._attention]
        (group,) = groups
        # Of our own: vLLM's keeps buffers of the step that is being computed.
        self._builder = group.backend.get_builder_cls()(
            group.kv_cache_spec, group.layer_names, self._config, self._device
        )

    @torch.inference_mode()
    def run(self, load: Load, records: list[list[Layer]]) -> None:
        """records: of the load's chunks, in order. Afterwards KV of [start, end) is in the cache, in every layer."""
        positions = torch.arange(load.start, load.end, device=self._device)
        selected = fixed(load).to(self._device)
        check = load.paste.policy.check_layer if load.paste.policy.name == "hkvd" else None
        chosen = torch.ones_like(selected) if check is not None else selected
        hidden = self._inner.embed_input_ids(torch.tensor(load.ids, device=self._device)[chosen])
        residual: Tensor | None = None
        for index, layer in enumerate(self._layers):
            if index == check:
                pasted = self._pasted(load, index, records)
                fresh = self._capture(index, positions, hidden, residual)
                keep = selected | deviating(load.paste.policy, fresh, pasted, ~selected)
                hidden = hidden[keep]
                residual = None if residual is None else residual[keep]
                chosen = keep
            if check is None or index >= check:
                self._paste(load, index, records)
            if len(hidden):
                with self._context(load, positions[chosen]):
                    hidden, residual = layer(positions[chosen], hidden, residual)

    def _paste(self, load: Load, index: int, records: list[list[Layer]]) -> None:
        page = self.pages[index]
        positions = torch.arange(load.start, load.end, device=self._device)
        covered = torch.zeros(len(positions), dtype=torch.bool, device=self._device)
        for chunk in load.paste.chunks:
            covered[max(chunk.start - load.start, 0) : max(chunk.end - load.start, 0)] = True
        keys, values = self._pasted(load, index, records)
        page.write(keys[covered], values[covered], page.slots(load.blocks, positions[covered]))

    def _pasted(self, load: Load, index: int, records: list[list[Layer]]) -> tuple[Tensor, Tensor]:
        """Recorded keys, rotated, and values of all positions; nought in gaps."""
        like = records[0][index][0]
        keys, values = (like.new_zeros(load.end - load.start, *like.shape[1:]) for _ in range(2))
        for chunk, record in zip(load.paste.chunks, records, strict=True):
            low, high = max(chunk.start, load.start), min(chunk.end, load.end)
            if low < high:
                where = slice(low - load.start, high - load.start)
                part = slice(low - chunk.start, high - chunk.start)
                moved = torch.arange(low, high, device=self._device)
                keys[where] = self.rotations[index].done(record[index][0][part].to(self._device), moved)
                values[where] = record[index][1][part]
        return keys, values

    def _capture(self, index: int, positions: Tensor, hidden: Tensor, residual: Tensor | None) -> tuple[Tensor, Tensor]:
        """Keys and values that a layer's attention would be given."""
        seen: list[Tensor] = []

        def hook(module: Any, given: tuple[Any, ...]) -> None:
            seen.extend(given[1:3])
            raise _Captured

        handle = self._attention[index].register_forward_pre_hook(hook)
        try:
            with contextlib.suppress(_Captured):  # norms may write into what they are given
                self._layers[index](positions, hidden.clone(), None if residual is None else residual.clone())
        finally:
            handle.remove()
        keys, values = (part.view(len(positions), self._attention[index].num_kv_heads, -1) for part in seen)
        return keys, values

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
