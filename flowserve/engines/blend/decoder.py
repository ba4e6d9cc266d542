"""A transformers decoder taken apart: its own modules, one layer at a time, at any positions of a slot.

Llama, Mistral, Qwen2 and Qwen3 name their parts alike and differ in two: Qwen3 normalises queries and keys per head, and layers may have
a sliding window. Whether the parts put together again compute what the whole does is tried once, when the model is loaded.

Axes: hidden (rows, width); queries, keys and values (heads, rows, head_dim).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from flowserve.engines.batch import SlotBatch
from flowserve.errors import ConfigError
from flowserve.ids import Tokens

MODELS: Final = ("llama", "mistral", "qwen2", "qwen3")
"""Families whose inner model embeds without scaling and whose keys are rotated whole, halves of a head against each other."""
PROBE: Final = (7, 3, 5, 1, 4, 9, 2, 6, 8, 5, 3, 7)


@dataclass(frozen=True, slots=True, eq=False)
class Block:
    """Rows that are computed together: where they stand, and what follows from that alone."""

    positions: torch.Tensor
    """(rows,), ascending."""
    visible: Tokens
    """Places up to the last of them."""
    angles: tuple[torch.Tensor, torch.Tensor]
    """Cosines and sines, (1, rows, head_dim) each."""
    masks: Any
    """As the model's attention takes them; a mapping by kind of layer where layers differ."""


class Decoder:
    """See the module. `slot` is a row of the batch's table, and its places hold the KV that is not computed here."""

    def __init__(self, model: Any, batch: SlotBatch) -> None:
        """Raises ConfigError for other families and for modules that do not compute what the model does."""
        if model.config.model_type not in MODELS:
            raise ConfigError(
                f"reuse of chunks: expected a model of {', '.join(MODELS)}; got '{model.config.model_type}'. Turn reuse off for it."
            )
        self._inner = model.base_model
        self._head = model.get_output_embeddings()
        self._layers = list(self._inner.layers)[: model.config.num_hidden_layers]
        self._kinds = getattr(model.config, "layer_types", None) or [""] * len(self._layers)
        self._device = model.device
        self._tolerance = 1e-3 if model.dtype == torch.float32 else 5e-2
        self.table, self._masks, self._state_name = batch.parts
        self._check(model, batch)

    @property
    def num_layers(self) -> int:
        return len(self._layers)

    def embed(self, ids: Sequence[int]) -> torch.Tensor:
        """(rows, width), as the first layer takes them."""
        embedded: torch.Tensor = self._inner.embed_tokens(torch.tensor(ids, device=self._device))
        return embedded

    def block(self, positions: torch.Tensor, like: torch.Tensor) -> Block:
        """like: of the dtype of hidden rows."""
        visible = int(positions[-1]) + 1
        angles = self._inner.rotary_emb(like, position_ids=positions[None])
        return Block(positions, visible, angles, self._masks(positions[None], visible))

    def mask(self, index: int, block: Block) -> torch.Tensor:
        """Of a layer, (1, 1, rows, visible): allowed places, or the numbers that are added to logits."""
        masks = block.masks
        mask: torch.Tensor = masks[self._kinds[index]] if isinstance(masks, dict) else masks
        return mask

    def run(self, index: int, slot: int, hidden: torch.Tensor, block: Block) -> torch.Tensor:
        """One layer for the rows of a block: their KV goes into the slot, they see all places up to their own."""
        self.table.aim_together(slot, block.positions[None], block.visible)
        out: torch.Tensor = self._layers[index](
            hidden[None],
            attention_mask=self.mask(index, block),
            position_ids=block.positions[None],
            position_embeddings=block.angles,
            use_cache=True,
            **{self._state_name: self.table.cache},
        )
        return out[0]

    def keys_values(self, index: int, hidden: torch.Tensor, block: Block) -> tuple[torch.Tensor, torch.Tensor]:
        """What `run` would write of these rows."""
        attention = self._layers[index].self_attn
        normed = self._layers[index].input_layernorm(hidden)
        keys = self._rotated(self._heads(attention, "k", normed), block)
        return keys, self._heads(attention, "v", normed)

    def queries(self, index: int, hidden: torch.Tensor, block: Block) -> torch.Tensor:
        """With which these rows look at keys, times the scale of attention."""
        attention = self._layers[index].self_attn
        normed = self._layers[index].input_layernorm(hidden)
        scale: float = attention.scaling
        return self._rotated(self._heads(attention, "q", normed), block) * scale

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """After the last layer: (rows, vocabulary) in float32."""
        logits: torch.Tensor = self._head(self._inner.norm(hidden))
        return logits.float()

    @staticmethod
    def _heads(attention: Any, part: str, normed: torch.Tensor) -> torch.Tensor:
        """Projected, and normalised where the family does that."""
        states = getattr(attention, f"{part}_proj")(normed).view(len(normed), -1, attention.head_dim)
        norm = getattr(attention, f"{part}_norm", None)
        heads: torch.Tensor = (states if norm is None else norm(states)).transpose(0, 1)
        return heads

    @staticmethod
    def _rotated(states: torch.Tensor, block: Block) -> torch.Tensor:
        rotated: torch.Tensor = apply_rotary_pos_emb(states[None], states[None], *block.angles)[0][0]
        return rotated

    def _check(self, model: Any, batch: SlotBatch) -> None:
        """Is a prefill by layers the model's own, to rounding?"""
        batch.hold(1, len(PROBE))
        try:
            hidden = self.embed(PROBE)
            block = self.block(torch.arange(len(PROBE), device=self._device), hidden)
            for index in range(self.num_layers):
                keys, values = self.keys_values(index, hidden, block)
                hidden = self.run(index, 0, hidden, block)
                for ours, theirs in zip((keys, values), self.table.read(index, 0, block.positions), strict=True):
                    self._compare(f"keys and values of layer {index}", ours, theirs)
            whole = model(input_ids=torch.tensor([PROBE], device=self._device)).logits[0].float()
            self._compare("logits", self.logits(hidden), whole)
        except (TypeError, AttributeError, LookupError, RuntimeError) as error:
            raise ConfigError(f"reuse of chunks: this model's layers cannot be run one by one: {error}") from error
        finally:
            batch.release()

    def _compare(self, what: str, ours: torch.Tensor, theirs: torch.Tensor) -> None:
        scale = float(theirs.float().abs().max())
        difference = float((ours.float() - theirs.float()).abs().max())
        if not difference <= self._tolerance * max(scale, 1e-6):
            raise ConfigError(
                f"reuse of chunks: expected layers that compute what the model does; {what} differ by {difference:.3g} "
                f"of {scale:.3g}. Turn reuse off for it."
            )
