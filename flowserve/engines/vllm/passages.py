"""Records of passages on a host of vLLM: found in its store, and handed to the worker in memory.

What blocks is called in threads, so that a slow tier delays its own call alone, and vLLM never waits for one.
"""

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig

from flowserve.cachestore.geometry import Geometry, KForm
from flowserve.cachestore.lookup import Lease
from flowserve.cachestore.policies import Policy
from flowserve.cachestore.segments import Quality
from flowserve.cachestore.settings import ReuseSettings
from flowserve.cachestore.store import told
from flowserve.engines.base import Origin, Segment, Tokenizer
from flowserve.engines.chunk_store import StoredChunks, no_gate, open_chunks
from flowserve.engines.model_identity import identity_of_files
from flowserve.engines.vllm.connector.metadata import Paste, Span
from flowserve.engines.vllm.kv_memory import KVMemory
from flowserve.engines.vllm.wire import Ask
from flowserve.errors import ConfigError, StoreError
from flowserve.ids import Seconds, Tokens

log = logging.getLogger("flowserve.engines")


@dataclass(frozen=True, slots=True)
class Missing:
    """A passage that has no record, or a damaged one."""

    tenant: str
    segment: Segment


@dataclass(frozen=True, slots=True, eq=False)
class Staged:
    """What is at hand for one call."""

    chunks: tuple[Span, ...]
    policy: Policy
    memory: KVMemory

    def paste(self, name: str) -> Paste:
        """name: of a request, in what is told of it."""
        return Paste(self.chunks, self.policy, self.memory.place, name)


class Passages:
    """Of one model."""

    def __init__(
        self, chunks: StoredChunks, geometry: Geometry, policies: Mapping[Quality, Policy], least_tokens: Tokens
    ) -> None:
        """policies: by class, what has passed the gate. least_tokens: shorter passages are computed."""
        self._chunks = chunks
        self._geometry = geometry
        self._policies = policies
        self._least_tokens = least_tokens

    @property
    def sink(self) -> tuple[int, ...]:
        """What a passage is encoded behind."""
        return self._chunks.recipe.sink

    @property
    def names(self) -> dict[str, str]:
        """By class, the name of its policy."""
        return {str(quality): policy.name for quality, policy in self._policies.items()}

    def concern(self, ask: Ask) -> bool:
        """May something be pasted into it?"""
        return ask.reuse in self.names and bool(ask.chunks) and not ask.lora

    def find(self, ask: Ask) -> tuple[Staged | None, list[Missing]]:
        """In a thread: what is at hand for a call that they concern, None: nothing; and what is not. Who gets it closes it.

        Raises StoreError when there is no memory for it.
        """
        wanted = {self._span(ask.tenant, segment, start): segment for start, segment in self._long(ask)}
        found = {span: lease for span, segment in wanted.items() if (lease := self._lease(ask.tenant, segment))}
        try:
            memory = self._filled(found)
        finally:
            for lease in found.values():
                lease.release()
        missing = [Missing(ask.tenant, segment) for span, segment in wanted.items() if span not in found]
        if memory is None:
            return None, missing
        return Staged(tuple(found), self._policies[Quality(ask.reuse)], memory), missing

    def wants(self, missing: Missing) -> bool:
        """In a thread: is it worth encoding?"""
        return self._chunks.wants(missing.tenant, missing.segment.ids)

    def memory_for(self, missing: Missing) -> KVMemory:
        """For what is encoded. Raises StoreError."""
        return KVMemory(self._geometry, len(missing.segment.ids))

    def keep(self, missing: Missing, memory: KVMemory, seconds: Seconds) -> None:
        """In a thread: put what was encoded, and wait until it is in the store."""
        layers = [(keys, values) for keys, values in memory.kv]
        self._chunks.keep(missing.tenant, missing.segment, layers, seconds)
        self._chunks.store.flush()

    def key(self, missing: Missing) -> bytes:
        return self._chunks.key(missing.tenant, missing.segment.ids)

    def records(self) -> list[tuple[str, str, int]]:
        """What happened to records so far; see `base.EngineStatus.records`."""
        return list(told(self._chunks.store.figures))

    def close(self) -> None:
        """In a thread."""
        self._chunks.store.close()

    def _long(self, ask: Ask) -> Iterator[tuple[Tokens, Segment]]:
        """Passages that are worth looking for, and where they begin."""
        for start, end, document, version in ask.chunks:
            if end - start >= self._least_tokens:
                yield start, Segment(tuple(ask.prompt[start:end]), Origin.CHUNK, document=document, version=version)

    def _span(self, tenant: str, segment: Segment, start: Tokens) -> Span:
        return Span(self._chunks.key(tenant, segment.ids).hex(), start, start + len(segment.ids))

    def _lease(self, tenant: str, segment: Segment) -> Lease | None:
        """Of a record that fits and is whole."""
        try:
            lease = self._chunks.lease(tenant, segment.ids)
        except StoreError:  # a tier that is away costs time, never an answer
            return None
        if lease is None:
            return None
        shape = (lease.geometry, lease.tokens, lease.k_form)
        if shape != (self._geometry, len(segment.ids), KForm.UNROTATED):
            lease.release()
            return None
        return lease

    def _filled(self, found: dict[Span, Lease]) -> KVMemory | None:
        """The KV of all of them, without those that cannot be read, which are taken out; None: none is left."""
        while found:
            memory = KVMemory(self._geometry, sum(lease.tokens for lease in found.values()))
            damaged = self._fill(memory, found)
            if damaged is None:
                memory.seal()
                return memory
            memory.close()
            found.pop(damaged).release()
        return None

    def _fill(self, memory: KVMemory, found: Mapping[Span, Lease]) -> Span | None:
        """None: it is filled; else the first that cannot be read."""
        at = 0
        for span, lease in found.items():
            rows = slice(at, at + lease.tokens)
            for layer in range(self._geometry.layers):
                kv = lease.layer(layer)
                if kv is None:
                    return span
                memory.kv[layer, 0, rows], memory.kv[layer, 1, rows] = kv
            at += lease.tokens
        return None


def open_passages(
    settings: ReuseSettings, model: Any, tokenizer: Tokenizer, layout: Mapping[str, Any]
) -> tuple[Passages, str]:
    """The store that the settings name, for vLLM's ModelConfig `model`; and what operators should know, or "".

    layout: what the worker tells of its KV (`Working.bind`). Raises ConfigError.
    """
    if "refused" in layout:
        raise ConfigError(f"{layout['refused']}. Turn reuse off for this model")
    geometry = Geometry(**layout)
    hub = {"revision": model.revision, "trust_remote_code": model.trust_remote_code}
    config = AutoConfig.from_pretrained(model.model, **hub)
    dtype: torch.dtype = model.dtype
    quantisation = str(model.quantization or "")
    identity = identity_of_files(_folder(model), config, dtype, quantisation, tokenizer.fingerprint)
    try:
        chunks, policies = open_chunks(settings, identity, tokenizer, geometry)
    except StoreError as error:
        raise ConfigError(f"reuse of passages: {error}") from error
    return Passages(chunks, geometry, policies, settings.least_chunk_tokens), (
        "" if policies else no_gate(settings, identity)
    )


def _folder(model: Any) -> Path:
    """Where the weights are, that vLLM has loaded."""
    if Path(model.model).is_dir():
        return Path(model.model)
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(model.model, revision=model.revision, local_files_only=True))
