"""Chunks whose KV was computed elsewhere, put where they stand in a prompt: what the transformers engine needs for it.

Which chunks are at hand is found, and their records are read, in a thread before the call reaches the compute loop, so a slow tier delays its own
call alone and no lease outlives that thread. The loop then puts them into a slot with keys rotated to their places and computes
every other token there by the model's own forward, each at its position, in ascending order and under a mask of `place <=
position`. So what is recomputed sees nothing that stands after it, and a long blend is cut between steps as any prompt is.

What a static policy recomputes is known before; dynamic ones choose while layers are computed (blend/). Read next: stepper.py,
`_prefill_some`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
import torch

from flowserve.cachestore.floats import STORED
from flowserve.cachestore.geometry import Geometry, KForm
from flowserve.cachestore.lookup import Array, Lease
from flowserve.cachestore.policies import Policy
from flowserve.cachestore.segments import Provenance, Quality
from flowserve.engines.base import Call, Origin, Segment
from flowserve.engines.blend.decoder import MODELS
from flowserve.engines.slots import Kv
from flowserve.errors import ConfigError, StoreError
from flowserve.ids import Tokens


class Chunks(Protocol):
    """Where canonical records are found. Called in threads; may block."""

    def lease(self, tenant: str, ids: Sequence[int]) -> Lease | None:
        """The record of a chunk of this tenant; None: there is none. The caller releases it."""
        ...


@dataclass(frozen=True, slots=True)
class ChunkReuse:
    """What an engine may paste, and from where."""

    chunks: Chunks
    policies: Mapping[Quality, Policy]
    """Of each class that may paste, its policy, which has passed the gate of this model. Other classes paste nothing."""
    least_chunk_tokens: Tokens = 32
    """Shorter chunks are computed."""
    missing: Callable[[str, Segment], None] | None = None
    """Told of (tenant, chunk) that had no record, or a damaged one, in the thread that looked; None: nobody makes records."""

    def __post_init__(self) -> None:
        if Quality.EXACT in self.policies:
            raise ConfigError(f"reuse policies: expected none of class '{Quality.EXACT}', which never pastes")

    def check(self, layers: int) -> None:
        """Raises ConfigError for policies that a model of so many layers cannot run."""
        for quality, policy in self.policies.items():
            if policy.name == "hkvd" and policy.check_layer >= layers:
                raise ConfigError(
                    f"reuse policy of class '{quality}': check_layer: expected less than the model's {layers} layers, "
                    f"numbered from 0; got {policy.check_layer}"
                )


@dataclass(frozen=True, slots=True, eq=False)
class Pasted:
    """A chunk at hand, at its place in a prompt."""

    start: Tokens
    kv: torch.Tensor
    """(layers' keys and values, kv_heads, tokens, head_dim), keys un-rotated: as a plane of a SlotTable has a stretch."""

    @property
    def end(self) -> Tokens:
        return self.start + self.kv.shape[2]


@dataclass(frozen=True, slots=True, eq=False)
class Patch:
    """What is at hand for one prompt, and how it is repaired."""

    policy: Policy
    pasted: tuple[Pasted, ...]
    """Ascending, disjoint."""
    question: Tokens
    """Where what stands behind all passages begins, those without a record as well."""

    def computed(self, start: Tokens, length: Tokens) -> list[Tokens]:
        """Positions from `start` on that are computed whatever else the policy chooses; the last of the prompt always is."""
        heads = [(chunk, self.policy.head(chunk.end - chunk.start)) for chunk in self.pasted]
        kept = {i for chunk, head in heads for i in range(chunk.start + head, chunk.end)}
        return [i for i in range(start, length) if i not in kept or i == length - 1]


@dataclass(slots=True)
class Counts:
    """Of the chunks of one engine's calls, since it was made."""

    found: int = 0
    """Records that were read whole."""
    missing: int = 0
    """Chunks that had no record."""
    lost: int = 0
    """Records that did not fit the model or could not be read: their chunks were computed."""


@dataclass(eq=False)
class Finder:
    """Finds and reads the chunks of calls, for a model of one geometry. `find` is called in a thread."""

    reuse: ChunkReuse
    geometry: Geometry
    counts: Counts = field(default_factory=Counts)

    @property
    def names(self) -> tuple[str, ...]:
        """Of the policies that may paste."""
        return tuple(sorted({policy.name for policy in self.reuse.policies.values()}))

    def turn_off(self, policy: Policy) -> None:
        """Calls that are looked up from now on are not blended by it."""
        left = {quality: each for quality, each in self.reuse.policies.items() if each != policy}
        self.reuse = replace(self.reuse, policies=left)

    def find(self, call: Call) -> Patch | None:
        """What is at hand for a call; None: nothing, or its class pastes nothing."""
        policy = self.reuse.policies.get(call.reuse)
        if policy is None:
            return None
        found: list[Pasted] = []
        at = question = 0
        for segment in call.segments:
            if segment.origin is Origin.CHUNK and len(segment.ids) >= self.reuse.least_chunk_tokens:
                kv = self._read(call.tenant, segment)
                if kv is not None:
                    found.append(Pasted(at, kv))
            at += len(segment.ids)
            question = at if segment.origin is Origin.CHUNK else question
        return Patch(policy, tuple(found), question) if found else None

    def _read(self, tenant: str, segment: Segment) -> torch.Tensor | None:
        try:
            lease = self.reuse.chunks.lease(tenant, segment.ids)
            if lease is None:
                self.counts.missing += 1
                self._tell_missing(tenant, segment)
                return None
            try:
                kv = self._layers(lease, len(segment.ids))
            finally:
                lease.release()
        except StoreError:  # a tier that is away costs time, never an answer
            kv = None
        if kv is None:
            self.counts.lost += 1
            self._tell_missing(tenant, segment)
        else:
            self.counts.found += 1
        return kv

    def _tell_missing(self, tenant: str, segment: Segment) -> None:
        if self.reuse.missing is not None:
            self.reuse.missing(tenant, segment)

    def _layers(self, lease: Lease, tokens: Tokens) -> torch.Tensor | None:
        if (lease.geometry, lease.tokens, lease.k_form) != (self.geometry, tokens, KForm.UNROTATED):
            return None
        rows: list[Array] = []
        for layer in range(self.geometry.layers):
            kv = lease.layer(layer)
            if kv is None:
                return None
            rows += kv
        # (layers' keys and values, tokens, kv_heads, head_dim), copied once. Numpy lacks bfloat16: it comes as the uint16 of its bits.
        return torch.from_numpy(np.stack(rows)).view(getattr(torch, self.geometry.dtype)).transpose(1, 2)


class Rotary:
    """A model's own rotation of keys. Arithmetic in float32; its scaling of cosines (YaRN) is applied and undone."""

    def __init__(self, model: Any) -> None:
        """Raises ConfigError for models without one rotary table of fixed frequencies: dynamic NTK's and longrope's change with the
        length of the prompt, so a key that was rotated in a short one cannot be moved into a long one."""
        own: Any = getattr(model.base_model, "rotary_emb", None)
        kind = getattr(own, "rope_type", None)
        if kind not in ("default", "linear", "llama3", "yarn") or model.config.model_type not in MODELS:
            why = ", whose frequencies change with the length of the prompt" if kind in ("dynamic", "longrope") else ""
            raise ConfigError(
                f"reuse of chunks: expected a model of {', '.join(MODELS)} whose rotary frequencies are fixed; "
                f"got '{model.config.model_type}' with rope_type '{kind}'{why}. Turn reuse off for it."
            )
        self._frequencies = own.inv_freq.float()
        self.device: torch.device = self._frequencies.device
        self._scaling = float(own.attention_scaling)

    def rotate(self, keys: torch.Tensor, start: Tokens) -> torch.Tensor:
        """Keys without position, (..., tokens, head_dim), to positions from `start` on."""
        return self._turned(keys, start, 1.0, self._scaling)

    def unrotate(self, keys: torch.Tensor, start: Tokens) -> torch.Tensor:
        """Undoes `rotate`, up to rounding."""
        return self._turned(keys, start, -1.0, 1.0 / self._scaling)

    def _turned(self, keys: torch.Tensor, start: Tokens, sign: float, scaling: float) -> torch.Tensor:
        positions = torch.arange(start, start + keys.shape[-2], device=keys.device, dtype=torch.float32)
        angles = torch.outer(positions, self._frequencies).repeat(1, 2)
        first, second = keys.float().chunk(2, dim=-1)
        turned = keys.float() * angles.cos() + torch.cat((-second, first), dim=-1) * angles.sin() * sign
        return (turned * scaling).to(keys.dtype)


def geometry_of(model: Any) -> Geometry:
    """What KV of a model looks like."""
    config = model.config
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    dtype = str(model.dtype).removeprefix("torch.")
    return Geometry(config.num_hidden_layers, config.num_key_value_heads, head_dim, dtype)


def placed(chunk: Pasted, start: Tokens, rotary: Rotary) -> tuple[Tokens, Kv] | None:
    """Where to put what of a chunk lies from `start` on, and its KV there; None: all of it lies before."""
    skip = max(0, start - chunk.start)
    if chunk.start + skip >= chunk.end:
        return None
    kv = chunk.kv[:, :, skip:].to(rotary.device, copy=True)
    kv[0::2] = rotary.rotate(kv[0::2], chunk.start + skip)
    return chunk.start + skip, (kv,)


def provenance(patch: Patch | None, start: Tokens, length: Tokens, todo: Sequence[Tokens]) -> Provenance:
    """Of the first `length` tokens of what is read, when `start` are reused exactly and those at `todo` computed."""
    start = min(start, length)
    computed = sum(position < length for position in todo)
    pasted = length - start - computed
    return Provenance(start, pasted, computed, patch.policy.name if patch and pasted else "")


def layers_of(kv: torch.Tensor) -> list[tuple[Array, Array]]:
    """Of (layers' keys and values, kv_heads, tokens, head_dim), as stores take them: (tokens, kv_heads, head_dim) each."""
    rows = [_array(row) for row in kv.transpose(1, 2)]
    return list(zip(rows[0::2], rows[1::2], strict=True))


def _array(row: torch.Tensor) -> Array:
    """Numpy lacks bfloat16: the uint16 of its bits."""
    dtype = str(row.dtype).removeprefix("torch.")
    row = row.contiguous().cpu()
    array: Array = (row.view(torch.int16) if dtype == "bfloat16" else row).numpy()
    return array.view(STORED[dtype])
