"""What requests ask of the connector, and what its two halves say to each other."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorMetadata, KVConnectorWorkerMetadata

from flowserve.cachestore.policies import Policy
from flowserve.errors import InputError

PARAMS = "flowserve"
"""Key of ours in a request's `kv_transfer_params`."""
POLICIES = ("none", "sink0", "first_k", "hkvd", "full")
"""What the worker can run."""


@dataclass(frozen=True, slots=True)
class Span:
    """Tokens [start, end) of a prompt, and the key of the record of their KV."""

    key: str
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Paste:
    """Chunks of one prompt, in their order, and what is recomputed of them."""

    chunks: tuple[Span, ...]
    policy: Policy


@dataclass(frozen=True, slots=True)
class Load:
    """Fill positions [start, end) of a request whose blocks are allocated."""

    request: str
    blocks: tuple[int, ...]
    start: int
    end: int
    ids: tuple[int, ...]
    """Tokens of the positions."""
    paste: Paste


@dataclass(frozen=True, slots=True)
class Save:
    """Keep the KV of a span whose blocks are complete after this step."""

    span: Span
    blocks: tuple[int, ...]


@dataclass(slots=True)
class Step(KVConnectorMetadata):  # type: ignore[misc]
    """Work of one engine step."""

    loads: list[Load] = field(default_factory=list[Load])
    saves: list[Save] = field(default_factory=list[Save])


@dataclass(slots=True)
class Kept(KVConnectorWorkerMetadata):  # type: ignore[misc]
    """Which records the worker has gained and lost; and requests whose load failed."""

    gained: set[str] = field(default_factory=set[str])
    lost: set[str] = field(default_factory=set[str])
    failed: set[str] = field(default_factory=set[str])

    def aggregate(self, other: Any) -> "Kept":
        """A record is there when all workers have their part of it."""
        lost = self.lost | other.lost
        return Kept((self.gained & other.gained) - lost, lost, self.failed | other.failed)


def save_of(params: Mapping[str, Any] | None) -> Span | None:
    """What a request shall leave behind. Raises InputError."""
    told = ((params or {}).get(PARAMS) or {}).get("save")
    return None if told is None else _span(told)


def paste_of(params: Mapping[str, Any] | None) -> Paste | None:
    """What a request may begin with. Raises InputError."""
    told = ((params or {}).get(PARAMS) or {}).get("paste")
    if told is None:
        return None
    chunks = tuple(_span(one) for one in told["chunks"])
    if any(later.start < earlier.end for earlier, later in pairwise(chunks)):
        raise InputError(f"kv_transfer_params: expected chunks in order and apart; got {chunks}")
    policy = Policy(**told["policy"])
    if policy.name not in POLICIES or policy.gradual:
        raise InputError(
            f"kv_transfer_params: expected a policy of {', '.join(POLICIES)}, without gradual; got {policy}"
        )
    return Paste(chunks, policy)


def _span(told: Mapping[str, Any]) -> Span:
    span = Span(str(told["key"]), int(told["start"]), int(told["end"]))
    if not 0 <= span.start < span.end:
        raise InputError(f"kv_transfer_params: expected 0 <= start < end; got {span}")
    return span
