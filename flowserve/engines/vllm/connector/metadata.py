"""What requests ask of the connector, and what its two halves say to each other."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from typing import Any

from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorMetadata, KVConnectorWorkerMetadata
from vllm.distributed.kv_transfer.kv_connector.v1.metrics import KVConnectorStats

from flowserve.cachestore.policies import Policy
from flowserve.engines.vllm.kv_memory import Place
from flowserve.engines.vllm.settings import RUNS
from flowserve.errors import InputError
from flowserve.ids import Tokens

PARAMS = "flowserve"
"""Key of ours in a request's `kv_transfer_params`, and in the connector's statistics."""


@dataclass(frozen=True, slots=True)
class Span:
    """Tokens [start, end) of a prompt, and the key of the record of their KV."""

    key: str
    start: Tokens
    end: Tokens


@dataclass(frozen=True, slots=True)
class Paste:
    """Chunks of one prompt, in their order, and what is recomputed of them."""

    chunks: tuple[Span, ...]
    policy: Policy
    place: Place
    """Of their KV, one behind the other."""
    name: str = ""
    """Of the request, in what is told of it; "": nothing is."""

    @property
    def tokens(self) -> Tokens:
        """Of all chunks."""
        return sum(chunk.end - chunk.start for chunk in self.chunks)


@dataclass(frozen=True, slots=True)
class Load:
    """Fill positions [start, end) of a request whose blocks are allocated."""

    request: str
    blocks: tuple[int, ...]
    start: Tokens
    end: Tokens
    ids: tuple[int, ...]
    """Tokens of the positions."""
    paste: Paste
    background: bool = False
    """A layer per step, while other requests go on; False: before this step's forward pass."""


@dataclass(frozen=True, slots=True)
class Wish:
    """Tokens [start, end) of a prompt, whose KV shall be written to a place."""

    start: Tokens
    end: Tokens
    place: Place


@dataclass(frozen=True, slots=True)
class Save:
    """A wish whose blocks are complete after this step."""

    wish: Wish
    blocks: tuple[int, ...]


@dataclass(slots=True)
class Step(KVConnectorMetadata):  # type: ignore[misc]
    """Work of one engine step."""

    loads: list[Load] = field(default_factory=list[Load])
    saves: list[Save] = field(default_factory=list[Save])
    idle: bool = False
    """Nothing else is computed in this step, so nobody waits for what goes on in the background."""


@dataclass(slots=True)
class Failed(KVConnectorWorkerMetadata):  # type: ignore[misc]
    """Requests whose load failed."""

    requests: set[str] = field(default_factory=set[str])

    def aggregate(self, other: Any) -> "Failed":
        return Failed(self.requests | other.requests)


@dataclass
class Told(KVConnectorStats):  # type: ignore[misc]
    """What became of prompts, for the front end: {PARAMS: {name: (tokens reused exactly, tokens pasted)}}."""

    data: dict[str, Any] = field(default_factory=dict[str, Any])

    def reset(self) -> None:
        self.data = {}

    def aggregate(self, other: Any) -> "Told":
        self.data = {PARAMS: {**self.data.get(PARAMS, {}), **other.data.get(PARAMS, {})}}
        return self

    def reduce(self) -> dict[str, int | float]:
        rows = self.data.get(PARAMS, {}).values()
        return {"tokens exact": sum(row[0] for row in rows), "tokens pasted": sum(row[1] for row in rows)}

    def is_empty(self) -> bool:
        return not self.data.get(PARAMS)


def wish_of(params: Mapping[str, Any] | None) -> Wish | None:
    """What a request shall leave behind. Raises InputError."""
    told = ((params or {}).get(PARAMS) or {}).get("save")
    if told is None:
        return None
    wish = Wish(int(told["start"]), int(told["end"]), Place(**told["place"]))
    _check(wish.start, wish.end)
    return wish


def paste_of(params: Mapping[str, Any] | None) -> Paste | None:
    """What a request may begin with. Raises InputError."""
    told = ((params or {}).get(PARAMS) or {}).get("paste")
    if told is None:
        return None
    chunks = tuple(Span(str(one["key"]), int(one["start"]), int(one["end"])) for one in told["chunks"])
    for chunk in chunks:
        _check(chunk.start, chunk.end)
    if not chunks or any(later.start < earlier.end for earlier, later in pairwise(chunks)):
        raise InputError(f"kv_transfer_params: expected chunks in order and apart; got {chunks}")
    policy = Policy(**{**told["policy"], "gradual": tuple(told["policy"].get("gradual", ()))})
    if policy.name not in RUNS or policy.gradual:
        raise InputError(f"kv_transfer_params: expected a policy of {', '.join(RUNS)}, without gradual; got {policy}")
    return Paste(chunks, policy, Place(**told["place"]), str(told.get("name", "")))


def save_params(start: Tokens, end: Tokens, place: Place) -> dict[str, Any]:
    """`kv_transfer_params` that `wish_of` reads."""
    return {PARAMS: {"save": {"start": start, "end": end, "place": asdict(place)}}}


def paste_params(paste: Paste) -> dict[str, Any]:
    """`kv_transfer_params` that `paste_of` reads."""
    return {PARAMS: {"paste": asdict(paste)}}


def _check(start: Tokens, end: Tokens) -> None:
    if not 0 <= start < end:
        raise InputError(f"kv_transfer_params: expected 0 <= start < end; got {start} and {end}")
