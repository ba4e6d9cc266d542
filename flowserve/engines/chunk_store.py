"""A store of its own for an engine: from an operator's settings to chunks that can be leased, and back into the store what the engine
has encoded.

A chunk that was missed is encoded once the store wants it. Which policies may paste is read from the folder of gates when the model
is loaded; without a gate that holds for this very model, nothing is pasted.
"""

import logging
import os
import secrets
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Final

from flowserve.cachestore.gatefiles import Gates
from flowserve.cachestore.gates import allowed
from flowserve.cachestore.geometry import Geometry, KForm
from flowserve.cachestore.keys import Identity, Recipe, chunk_key, seal_key
from flowserve.cachestore.lookup import Array, Lease
from flowserve.cachestore.policies import Policy
from flowserve.cachestore.record import About, Expected
from flowserve.cachestore.segments import Quality
from flowserve.cachestore.settings import ReuseSettings
from flowserve.cachestore.store import Level, Store, Wanted
from flowserve.cachestore.tiers.disk import DiskTier
from flowserve.cachestore.tiers.host import HostTier
from flowserve.cachestore.tiers.remote import open_remote
from flowserve.engines.base import Segment, Tokenizer
from flowserve.errors import StoreError
from flowserve.ids import Seconds, Tokens

log = logging.getLogger("flowserve.engines")

CODEC: Final = "raw16"


def sink_of(tokenizer: Tokenizer, tokens: Tokens) -> tuple[int, ...]:
    """What a chunk is encoded behind: the model's first token, again and again (LegoLink-0, EPIC, ICML 2025)."""
    bos = tokenizer.special_tokens.get("bos_token", "")
    first = tokenizer.encode_template(bos)[:1] if bos else list(tokenizer.eos_ids[:1])
    return tuple(first or [0]) * tokens


def policies_of(settings: ReuseSettings, identity: Identity, now: datetime) -> dict[Quality, Policy]:
    """By class, the configured policy, where it has passed the gate. Raises StoreError for a gate file that is broken."""
    wished = {
        quality: policy
        for quality in (Quality.BALANCED, Quality.FAST)
        if (policy := settings.policy(quality)) is not None
    }
    if settings.measuring:
        return wished
    gates = [] if settings.gates is None else list(Gates(settings.gates))
    passed = {quality: {str(policy) for policy in allowed(gates, identity, CODEC, quality, now)} for quality in wished}
    return {quality: policy for quality, policy in wished.items() if str(policy) in passed[quality]}


def open_store(settings: ReuseSettings, secret: bytes) -> Store:
    """The tiers that the settings name. Raises StoreError."""
    levels: list[Level] = []
    if settings.host_bytes:
        levels.append(Level(HostTier(settings.host_bytes), settings.host_bytes))
    if settings.disk is not None:
        levels.append(Level(DiskTier(settings.disk), settings.disk_bytes))
    if settings.remote:
        levels.append(Level(open_remote(settings.remote), settings.remote_bytes, shared=True))
    return Store(levels, seal_key=partial(seal_key, secret))


def secret_of(settings: ReuseSettings) -> bytes:
    """The one that is set; else a random one, kept in the disk folder where there is one, so that records are found again."""
    if settings.secret or settings.disk is None:
        return settings.secret or secrets.token_bytes(32)
    path = settings.disk / "secret"
    try:
        settings.disk.mkdir(parents=True, exist_ok=True, mode=0o700)
        if not path.exists():
            _write_private(path, secrets.token_bytes(32))
        return path.read_bytes()
    except OSError as error:
        raise StoreError(f"the secret of the store cannot be kept in {path}: {error}") from error


def _write_private(path: Path, data: bytes) -> None:
    partial_path = path.with_name(f"secret.{secrets.token_hex(8)}")
    with open(os.open(partial_path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial_path, path)


class StoredChunks:
    """The chunks of one model in a store: what `hf_reuse.Chunks` asks for, and `keep` for what was missed."""

    def __init__(
        self, store: Store, secret: bytes, identity: Identity, geometry: Geometry, sink: tuple[int, ...]
    ) -> None:
        self.store = store
        self.recipe = Recipe(sink)
        self._secret = secret
        self.identity = identity
        self._geometry = geometry
        self._token_s: Seconds = 0.0
        """Prefill of a token, the quickest seen; 0: none yet."""

    def key(self, tenant: str, ids: Sequence[int]) -> bytes:
        """Under which a chunk of this tenant is kept."""
        return chunk_key(self._secret, tenant, self.identity, self.recipe, ids)

    def lease(self, tenant: str, ids: Sequence[int]) -> Lease | None:
        expected = Expected(self.key(tenant, ids), self._geometry, tuple(ids), KForm.UNROTATED)
        [lease] = self.store.lookup([Wanted(tenant, expected, self._token_s * len(ids))])
        return lease

    def wants(self, tenant: str, ids: Sequence[int]) -> bool:
        """Is a missing chunk worth encoding?"""
        return self.store.wants(self.key(tenant, ids), self._geometry.nbytes(len(ids)))

    def keep(self, tenant: str, segment: Segment, layers: Sequence[tuple[Array, Array]], seconds: Seconds) -> None:
        """Put what was encoded in so many seconds: of each layer keys, un-rotated, and values, (tokens, kv_heads, head_dim). They
        must not change afterwards."""
        tokens = len(segment.ids)
        self._token_s = min(self._token_s or seconds / tokens, seconds / tokens)
        about = About(
            self.key(tenant, segment.ids),
            segment.ids,
            self._geometry,
            recipe=self.recipe.digest,
            document=segment.document,
            version=segment.version,
        )
        self.store.put(tenant, about, layers, self._token_s * tokens)


def open_chunks(
    settings: ReuseSettings, identity: Identity, tokenizer: Tokenizer, geometry: Geometry
) -> tuple[StoredChunks, dict[Quality, Policy]]:
    """The chunks of a model in a store, and by class the policies that may paste them. Raises StoreError, ConfigError."""
    secret = secret_of(settings)
    policies = policies_of(settings, identity, datetime.now(UTC))
    if not policies:
        log.warning("%s", no_gate(settings, identity))
    store = open_store(settings, secret)
    return StoredChunks(store, secret, identity, geometry, sink_of(tokenizer, settings.sink_tokens)), policies


def no_gate(settings: ReuseSettings, identity: Identity) -> str:
    """Why nothing is pasted, for operators."""
    return (
        f"reuse of passages: no gate in {settings.gates or 'any folder (none is set)'} holds for this model (fingerprint "
        f"{identity.model[:12]}, {identity.dtype}) and the policies '{settings.balanced}' and '{settings.fast}', so nothing is pasted; "
        "make one with `flowserve gate reuse`"
    )
