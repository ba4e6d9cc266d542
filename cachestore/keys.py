"""Under which name KV is kept: 32 bytes that differ as soon as one of two pieces of KV could not stand in for the other.

A key is HMAC-SHA-256, under a key of the tenant's own, over every field that decides what the KV is, each field with its length before
it: two different inputs never give the same bytes to hash. Whoever lacks the secret can neither make keys nor test guesses of
a text against them. Not in a key: how a record is encoded, where it lies, pages, and how a model is split over GPUs.

Two namespaces, which never share a key: `canon/` for chunks that were encoded alone, `exact/` for blocks of a prompt, each named
after all that stands before it.
"""

import hashlib
import hmac
import json
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from flowserve.cachestore.tier import Key
from flowserve.errors import ConfigError
from flowserve.ids import Bytes, Tokens

SCHEMA = 1
"""Of the encoding below; a change of it changes all keys."""
MIN_SECRET_BYTES: Bytes = 16


class Namespace(StrEnum):
    """What KV may be used for."""

    CANON = "canon"
    """Chunks encoded behind a sink prefix alone: may stand anywhere, approximately."""
    EXACT = "exact"
    """Blocks of prompts in their context: may stand behind the same text alone, exactly."""


@dataclass(frozen=True, slots=True)
class Identity:
    """Whose KV it is: two models with the same identity compute interchangeable KV."""

    model: str
    """Fingerprint of the configuration, RoPE's parameters among it (`fingerprint`)."""
    weights: str
    """Revision of the weights."""
    tokenizer: str
    """Fingerprint of the tokenizer."""
    dtype: str
    """Logical type of KV, a key of `geometry.ITEM_BYTES`."""
    quantisation: str = ""
    """Of the weights; "" where there is none."""
    adapter: str = ""
    """Name and revision of a LoRA or the like; "" where there is none."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a canonical chunk is encoded."""

    sink: tuple[int, ...]
    """Token ids that stood before the chunk when it was encoded and whose KV was dropped; (): nothing did."""
    schema: int = 1
    """Of the rest of the procedure; a change that changes KV counts it up."""

    @property
    def digest(self) -> str:
        """Names the recipe in a record."""
        return hashlib.sha256(self.encoded).hexdigest()

    @property
    def encoded(self) -> bytes:
        return _encode(_number(self.schema), _ids(self.sink))


def fingerprint(facts: Mapping[str, object]) -> str:
    """Of facts that JSON can hold, whatever their order: what `Identity.model` and a record's `rope` are made with."""
    text = json.dumps(facts, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def chunk_key(secret: bytes, tenant: str, identity: Identity, recipe: Recipe, ids: Sequence[int]) -> Key:
    """Of a chunk that was encoded alone, after `recipe`."""
    fields = (*_identity(identity), recipe.encoded, _ids(ids))
    return _keyed(tenant_key(secret, tenant), Namespace.CANON, *fields)


def prefix_key(secret: bytes, tenant: str, identity: Identity, parent: Key | None, ids: Sequence[int]) -> Key:
    """Of a block of a prompt: `parent` is the key of the block before it, None of the first."""
    fields = (*_identity(identity), parent or b"", _ids(ids))
    return _keyed(tenant_key(secret, tenant), Namespace.EXACT, *fields)


def prefix_keys(
    secret: bytes, tenant: str, identity: Identity, ids: Sequence[int], block_tokens: Tokens
) -> tuple[Key, ...]:
    """Of all whole blocks of a prompt, in their order."""
    keys: list[Key] = []
    for end in range(block_tokens, len(ids) + 1, block_tokens):
        parent = keys[-1] if keys else None
        keys.append(prefix_key(secret, tenant, identity, parent, ids[end - block_tokens : end]))
    return tuple(keys)


def tenant_key(secret: bytes, tenant: str) -> bytes:
    """What this tenant's records are named with."""
    return _derived(secret, "key", tenant)


def seal_key(secret: bytes, tenant: str) -> bytes:
    """What this tenant's records are sealed with (record.py)."""
    return _derived(secret, "seal", tenant)


def _derived(secret: bytes, purpose: str, tenant: str) -> bytes:
    if len(secret) < MIN_SECRET_BYTES:
        raise ConfigError(f"cachestore secret: expected at least {MIN_SECRET_BYTES} bytes, got {len(secret)}")
    return _keyed(secret, "flowserve.cachestore", purpose.encode(), tenant.encode())


def _keyed(key: bytes, domain: str, *fields: bytes) -> bytes:
    return hmac.digest(key, _encode(_number(SCHEMA), domain.encode(), *fields), "sha256")


def _identity(identity: Identity) -> tuple[bytes, ...]:
    facts = (identity.model, identity.weights, identity.tokenizer, identity.dtype)
    return tuple(fact.encode() for fact in (*facts, identity.quantisation, identity.adapter))


def _encode(*fields: bytes) -> bytes:
    """Injective: no two lists of fields give the same bytes."""
    return b"".join(_number(len(field)) + field for field in fields)


def _number(number: int) -> bytes:
    return struct.pack("<Q", number)


def _ids(ids: Sequence[int]) -> bytes:
    return struct.pack(f"<{len(ids)}I", *ids)
