"""One model, many sequences: the forwards of the transformers engine. Knows nothing of calls, text or sampling.

Sequences are numbered slots; decoding ones are slots 0 to n-1. `SlotBatch` runs them together over a SlotTable.
`SoloBatch` runs models that cannot share a table (recurrent or otherwise peculiar state) one sequence at a time on
their own caches: correct for every causal LM, without batching and prefix reuse. `make_batch` compares the first with
the model's own forward and falls back to the second when they differ.
"""

import copy
import inspect
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from transformers import PreTrainedModel

from flowserve.engines.slots import CannotShare, Kv, SlotTable
from flowserve.ids import Bytes, Tokens


class Batch(Protocol):
    """Forwards over slots. Logits are float32 on the model's device."""

    shares_prefixes: bool
    """`save` and `load` work."""
    chunks_prefill: bool
    """A prompt may be computed in several calls of `prefill`."""
    prefills_together: bool
    """`prefill_together` works."""

    def can_hold(self, slots: int, positions: Tokens) -> bool: ...

    def hold(self, slots: int, positions: Tokens) -> None: ...

    def release(self) -> None:
        """No slot is in use: give memory back."""
        ...

    def prefill(self, slot: int, ids: Sequence[int], start: Tokens) -> torch.Tensor:
        """Compute `ids` at positions from `start` on; logits (vocabulary) after the last."""
        ...

    def prefill_at(self, slot: int, ids: Sequence[int], positions: Sequence[Tokens]) -> torch.Tensor:
        """As `prefill` of tokens at ascending `positions` that need not be neighbours; each sees the places up to its own, which
        hold the KV of its prompt."""
        ...

    def prefill_together(self, slot: int, ids: Sequence[Sequence[int]], starts: Sequence[Tokens]) -> torch.Tensor:
        """As `prefill` of each slot from `slot` on, in one forward; logits (slots, vocabulary).

        Every slot must have room for the longest of `ids` after its start.
        """
        ...

    def decode(self, ids: Sequence[int], positions: Sequence[Tokens]) -> torch.Tensor:
        """One token for each slot from 0 on; logits (slots, vocabulary)."""
        ...

    def copy(self, source: int, target: int, length: Tokens) -> None: ...

    def move(self, source: int, target: int, length: Tokens) -> None:
        """As copy; the source is not used any more."""
        ...

    def save(self, slot: int, start: Tokens, end: Tokens) -> Kv: ...

    def load(self, slot: int, start: Tokens, kv: Kv) -> None: ...

    def used(self, tokens: Tokens) -> float:
        """Share of the KV budget that `tokens` tokens take, 0 to 1."""
        ...


class SlotBatch:
    """All sequences in one table, one forward per step."""

    shares_prefixes = True
    chunks_prefill = True
    prefills_together = True

    def __init__(self, model: PreTrainedModel, table: SlotTable, state_name: str) -> None:
        self._model = model
        self._table = table
        self._state_name = state_name
        self._device = model.device
        self._masks = Masks(model)
        self._last_only = _accepts(model, "logits_to_keep")

    @property
    def parts(self) -> tuple[SlotTable, "Masks", str]:
        """Its table, the masks over it, and the name by which the model's modules take the table: for who runs single layers."""
        return self._table, self._masks, self._state_name

    def can_hold(self, slots: int, positions: Tokens) -> bool:
        return self._table.can_hold(slots, positions)

    def hold(self, slots: int, positions: Tokens) -> None:
        self._table.hold(slots, positions)

    def release(self) -> None:
        self._table.release()

    def prefill(self, slot: int, ids: Sequence[int], start: Tokens) -> torch.Tensor:
        end = start + len(ids)
        self._table.aim_prefill(slot, start, end)
        positions = torch.arange(start, end, device=self._device)[None]
        return self._forward(torch.tensor([ids], device=self._device), positions)[0]

    def prefill_at(self, slot: int, ids: Sequence[int], positions: Sequence[Tokens]) -> torch.Tensor:
        at = torch.tensor([positions], device=self._device)
        self._table.aim_together(slot, at, positions[-1] + 1)
        return self._forward(torch.tensor([ids], device=self._device), at)[0]

    def prefill_together(self, slot: int, ids: Sequence[Sequence[int]], starts: Sequence[Tokens]) -> torch.Tensor:
        # Aligned to the right, so that the last column is everybody's last token. A row's padding is written behind its
        # tokens, where nothing looks until the sequence gets there and overwrites it, and looks at its start, so that it sees something.
        width = max(map(len, ids))
        rows: list[list[int]] = []
        places: list[list[Tokens]] = []
        positions: list[list[Tokens]] = []
        for row, start in zip(ids, starts, strict=True):
            end, padding = start + len(row), width - len(row)
            rows.append([row[0]] * padding + list(row))
            places.append([*range(end, end + padding), *range(start, end)])
            positions.append([start] * padding + list(range(start, end)))
        visible = max(start + len(row) for row, start in zip(ids, starts, strict=True))
        self._table.aim_together(slot, torch.tensor(places, device=self._device), visible)
        return self._forward(torch.tensor(rows, device=self._device), torch.tensor(positions, device=self._device))

    def decode(self, ids: Sequence[int], positions: Sequence[Tokens]) -> torch.Tensor:
        at = torch.tensor(positions, device=self._device)
        self._table.aim_decode(positions, at)
        return self._forward(torch.tensor(ids, device=self._device)[:, None], at[:, None])

    def copy(self, source: int, target: int, length: Tokens) -> None:
        self._table.copy(source, target, length)

    move = copy

    def save(self, slot: int, start: Tokens, end: Tokens) -> Kv:
        return self._table.save(slot, start, end)

    def load(self, slot: int, start: Tokens, kv: Kv) -> None:
        self._table.load(slot, start, kv)

    def used(self, tokens: Tokens) -> float:
        return min(1.0, tokens / max(1, self._table.budget_tokens))

    def _forward(self, ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        keep: dict[str, Any] = {"logits_to_keep": 1} if self._last_only else {}
        logits: torch.Tensor = self._model(
            input_ids=ids,
            attention_mask=self._masks(positions, self._table.visible),
            position_ids=positions,
            use_cache=True,
            **{self._state_name: self._table.cache},
            **keep,
        ).logits
        return logits[:, -1].float()


class SoloBatch:
    """Each sequence alone, on the model's own cache."""

    shares_prefixes = False
    chunks_prefill = False  # recurrent models start from an empty state or take one token
    prefills_together = False

    def __init__(self, model: PreTrainedModel, budget_tokens: Tokens) -> None:
        self._model = model
        self._device = model.device
        self._budget_tokens = budget_tokens
        self._caches: dict[int, Any] = {}
        self._last_only = _accepts(model, "logits_to_keep")
        self._state_name = ""

    def can_hold(self, slots: int, positions: Tokens) -> bool:
        return slots == 1 or slots * positions <= self._budget_tokens

    def hold(self, slots: int, positions: Tokens) -> None:
        """Caches grow by themselves."""

    def release(self) -> None:
        self._caches.clear()

    def prefill(self, slot: int, ids: Sequence[int], start: Tokens) -> torch.Tensor:
        self._caches.pop(slot, None)
        return self._forward(slot, ids)

    def prefill_at(self, slot: int, ids: Sequence[int], positions: Sequence[Tokens]) -> torch.Tensor:
        raise NotImplementedError("shares_prefixes is False")

    def prefill_together(self, slot: int, ids: Sequence[Sequence[int]], starts: Sequence[Tokens]) -> torch.Tensor:
        raise NotImplementedError("prefills_together is False")

    def decode(self, ids: Sequence[int], positions: Sequence[Tokens]) -> torch.Tensor:
        return torch.stack([self._forward(slot, [token]) for slot, token in enumerate(ids)])

    def copy(self, source: int, target: int, length: Tokens) -> None:
        self._caches[target] = copy.deepcopy(self._caches[source])

    def move(self, source: int, target: int, length: Tokens) -> None:
        if source in self._caches:
            self._caches[target] = self._caches.pop(source)

    def save(self, slot: int, start: Tokens, end: Tokens) -> Kv:
        raise NotImplementedError("shares_prefixes is False")

    def load(self, slot: int, start: Tokens, kv: Kv) -> None:
        raise NotImplementedError("shares_prefixes is False")

    def used(self, tokens: Tokens) -> float:
        return min(1.0, tokens / max(1, self._budget_tokens))

    def _forward(self, slot: int, ids: Sequence[int]) -> torch.Tensor:
        keep: dict[str, Any] = {"logits_to_keep": 1} if self._last_only else {}
        cache = self._caches.get(slot)
        state = {} if cache is None else {self._state_name: cache}
        output = self._model(input_ids=torch.tensor([ids], device=self._device), use_cache=True, **state, **keep)
        self._state_name, self._caches[slot] = _state_of(output)
        logits: torch.Tensor = output.logits[0, -1]
        return logits.float()


class Masks:
    """4-D attention masks over a table, in the form that the model's attention takes."""

    def __init__(self, model: PreTrainedModel) -> None:
        config = model.config.get_text_config()
        kinds = set(getattr(config, "layer_types", None) or ())
        window = getattr(config, "sliding_window", None)
        if window is not None and getattr(config, "use_sliding_window", True) is False:
            window = None
        self._window: int | None = window
        self._mixed = len(kinds) > 1
        self._sliding = kinds == {"sliding_attention"} or (not kinds and window is not None)
        self._additive = config._attn_implementation != "sdpa"
        self._dtype = model.dtype

    def __call__(self, positions: torch.Tensor, visible: Tokens) -> Any:
        """positions: (rows, queries). Of the `visible` places each query sees those up to its own position. A mapping by kind of
        layer where layers differ."""
        places = torch.arange(visible, device=positions.device)
        full = places <= positions[:, None, :, None]  # (rows, 1, queries, places)
        if not self._mixed:
            return self._shaped(full & self._near(places, positions) if self._sliding and self._window else full)
        near = full & self._near(places, positions) if self._window else full
        return {"full_attention": self._shaped(full), "sliding_attention": self._shaped(near)}

    def _near(self, places: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        assert self._window is not None
        return places > positions[:, None, :, None] - self._window

    def _shaped(self, allowed: torch.Tensor) -> torch.Tensor:
        if not self._additive:
            return allowed
        bias = torch.zeros(allowed.shape, dtype=self._dtype, device=allowed.device)
        return bias.masked_fill(~allowed, torch.finfo(self._dtype).min)


_MISFITS = (CannotShare, RuntimeError, TypeError, ValueError, LookupError, AttributeError)
"""What an architecture that is not made for our table does with it."""


def make_batch(model: PreTrainedModel, kv_bytes: Bytes) -> tuple[Batch, str]:
    """A batch that computes what the model computes, and a remark for the operator when that is one by one."""
    ids = [7, 3, 5, 1, 4, 9, 2, 6, 8, 5, 3, 7]
    try:
        state_name, state = _state_of(model(input_ids=torch.tensor([ids], device=model.device), use_cache=True))
        table = SlotTable(state, kv_bytes)
        if model.config._attn_implementation not in ("sdpa", "eager"):
            raise CannotShare(f"attention '{model.config._attn_implementation}' takes no mask")
        batch = SlotBatch(model, table, state_name)
        batch.hold(3, len(ids))
        batch.prefill(0, ids[:4], 0)
        batch.prefill(0, ids[4:-1], 4)
        batch.prefill_together(1, [ids[:5], ids[:1]], [0, 0])
        ours = batch.decode([ids[-1], ids[5], ids[1]], [len(ids) - 1, 5, 1])
        wanted = [model(input_ids=torch.tensor([ids[:n]], device=model.device)).logits[0, -1] for n in (12, 6, 2)]
        theirs = torch.stack(wanted).float()
        scale = float(theirs.abs().max())
        tolerance = (1e-3 if model.dtype == torch.float32 else 5e-2) * max(scale, 1e-6)
        difference = float((ours - theirs).abs().max())
        if not difference <= tolerance:
            raise CannotShare(f"logits differ by {difference:.3g} from the model's own")
    except _MISFITS as error:
        reason = str(error) if isinstance(error, CannotShare) else f"{type(error).__name__}: {error}"
        return SoloBatch(model, _solo_tokens(model, kv_bytes)), f"sequences run one by one, without sharing: {reason}"
    table.release()
    return batch, ""


def _solo_tokens(model: PreTrainedModel, kv_bytes: Bytes) -> Tokens:
    """A rough bound: as if every layer kept keys and values of the hidden size."""
    config = model.config.get_text_config()
    per_token = 2 * config.num_hidden_layers * config.hidden_size * torch.finfo(model.dtype).bits // 8
    return int(kv_bytes // max(1, per_token))


STATES = ("cache", "past_key_values", "cache_params")
"""Names of what a model has read, as input and as output: in newer transformers; before; and before, for recurrent models."""


def _state_of(output: Any) -> tuple[str, Any]:
    """Its name, and itself. Raises CannotShare for a model that keeps none."""
    for name in STATES:
        state = getattr(output, name, None)
        if state is not None:
            return name, state
    raise CannotShare("the model returns no cache")


def _accepts(model: PreTrainedModel, name: str) -> bool:
    return name in inspect.signature(model.forward).parameters
