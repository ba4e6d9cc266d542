"""`flowserve bench eviction`: which share of asked bytes each eviction policy would have held, on recorded and made-up requests.

Recorded: Mooncake's requests as chains of 512-token blocks (Qin et al., FAST 2025). A request hits the blocks from its start up to
the first that is missing; the others are computed and come in; the last block of a prompt is left out unless it is full, as
engines that cache whole blocks do. Made up: chunks of unlike sizes asked for by Zipf popularity, with and without scans of
what is never asked for again.

Every policy sees the same requests in order and is fitted to nothing. The ceiling knows the future: it keeps what is asked for
again soonest (Belady 1966), which is optimal for blocks of one size and a bound worth comparing with for others.
"""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from heapq import heappop, heappush
from math import inf
from pathlib import Path
from random import Random
from typing import Any

from flowserve.cachestore.eviction import EVICTIONS, Eviction
from flowserve.cachestore.tier import Key
from flowserve.errors import ConfigError
from flowserve.ids import Bytes, Seconds
from flowserve.sim.traces import MOONCAKE_BLOCK, mooncake_lines

SEED = 5
SHARES = (0.01, 0.05, 0.10, 0.20)
"""Capacities, as shares of all bytes that are asked for anywhere in the trace."""
CEILING = "belady"
BLOCK_BYTES: Bytes = MOONCAKE_BLOCK * 131_072
"""KV of Llama-3-8B: 32 layers, 8 heads of 128, keys and values, 2 bytes."""
SECONDS_PER_TOKEN, SECONDS_PER_PAIR = 6e-5, 2e-9
"""Prefill: linear in tokens, and in pairs of a token and what stands before it. Only ratios matter here."""
CHUNKS, REQUESTS, PASSAGES = 4_000, 12_000, 6
"""Of the made-up traces: different chunks, requests, chunks of a request."""
ZIPF = 0.9
SCAN = 0.5
"""Share of the chunks of the trace `zipf_scan` that are asked for once only."""


@dataclass(frozen=True, slots=True)
class Asked:
    """One record that a request asks for."""

    key: Key
    nbytes: Bytes
    saved_s: Seconds
    """Prefill that a hit spares."""
    parent: Key | None = None


Request = Sequence[Asked]
"""In the order of the prompt. Records with parents hit only together with all before them."""


def run(folder: Path, say: Callable[[str], object], shares: Sequence[float] = SHARES) -> dict[str, Any]:
    """`{"traces": [{"name", "capacity", "byte_hit_rate": {policy: rate}}]}`, one per trace and capacity (a share of its bytes).

    `folder`: where `mooncake_*.jsonl.gz` lie; ConfigError if none does.
    """
    found = sorted(folder.glob("mooncake_*.jsonl*")) or sorted(folder.glob("traces/mooncake_*.jsonl*"))
    if not found:
        raise ConfigError(f"--data: expected a folder with files mooncake_*.jsonl.gz, got {folder}")
    traces: dict[str, Callable[[], list[Request]]] = {path.name.split(".")[0]: partial(chains, path) for path in found}
    traces |= {"zipf": partial(zipf, 0.0, SEED), "zipf_scan": partial(zipf, SCAN, SEED)}
    rows: list[dict[str, Any]] = []
    for name, read in traces.items():
        requests = read()
        for share in shares:
            say(f"{name}: {len(requests):,} requests, capacity {share:.0%}")
            rows.append({"name": name, "capacity": share, "byte_hit_rate": rates(requests, share)})
    return {"traces": rows}


def chains(path: Path) -> list[Request]:
    """Requests of a Mooncake trace: full blocks, each behind the one before it."""
    found: list[Request] = []
    for line in mooncake_lines(path):
        keys = [id.to_bytes(8, "big") for id in line.blocks[: line.prompt // MOONCAKE_BLOCK]]
        found.append(
            [
                Asked(
                    key,
                    BLOCK_BYTES,
                    prefill(depth * MOONCAKE_BLOCK, MOONCAKE_BLOCK),
                    keys[depth - 1] if depth else None,
                )
                for depth, key in enumerate(keys)
            ]
        )
    return found


def zipf(scan: float, seed: int) -> list[Request]:
    """Requests for chunks of 128 to 1,024 tokens that stand anywhere; of each, `scan` are new and never asked for again."""
    random = Random(seed)
    tokens = [random.randrange(128, 1025) for _ in range(CHUNKS)]
    weights = [1 / rank**ZIPF for rank in range(1, CHUNKS + 1)]
    once = CHUNKS
    found: list[Request] = []
    for _ in range(REQUESTS):
        request = {}
        for chunk in random.choices(range(CHUNKS), weights, k=PASSAGES):
            if random.random() < scan:
                chunk, once = once, once + 1
            size = tokens[chunk % CHUNKS]
            request[chunk] = Asked(chunk.to_bytes(8, "big"), size * BLOCK_BYTES // MOONCAKE_BLOCK, prefill(0, size))
        found.append(list(request.values()))
    return found


def prefill(behind: int, tokens: int) -> Seconds:
    """Of `tokens` behind so many that are known."""
    return SECONDS_PER_TOKEN * tokens + SECONDS_PER_PAIR * tokens * (behind + tokens / 2)


def rates(requests: Sequence[Request], share: float) -> dict[str, float]:
    """Byte-weighted hit rate of every policy and of the ceiling; capacity is `share` of the bytes of all different records."""
    sizes = {asked.key: asked.nbytes for request in requests for asked in request}
    capacity = int(share * sum(sizes.values()))
    found = {name: round(replay(requests, make(), capacity), 4) for name, make in EVICTIONS.items()}
    return found | {CEILING: round(ceiling(requests, capacity), 4)}


def replay(requests: Sequence[Request], policy: Eviction, capacity: Bytes) -> float:
    """Share of all asked bytes that were resident."""
    tier = _Tier(policy, capacity)
    hit = total = 0
    for request in requests:
        hit += sum(asked.nbytes for asked in tier.serve(request))
        total += sum(asked.nbytes for asked in request)
    return hit / total if total else 0.0


class _Tier:
    """What is resident under one policy."""

    def __init__(self, policy: Eviction, capacity: Bytes) -> None:
        self._policy = policy
        self._room = capacity
        self._sizes: dict[Key, Bytes] = {}

    def serve(self, request: Request) -> list[Asked]:
        """The records that it found. The others come in as far as room can be made without those of the request itself."""
        found = []
        broken = False
        for asked in request:
            resident = asked.key in self._sizes
            broken |= asked.parent is not None and not resident
            if resident and not (broken and asked.parent is not None):
                found.append(asked)
        for asked in reversed(found):
            self._policy.touch(asked.key, asked.saved_s)
        held = {asked.key for asked in request}
        for asked in request:
            if asked.key not in self._sizes and not self._admit(asked, held):
                break
        return found

    def _admit(self, asked: Asked, held: set[Key]) -> bool:
        while self._room < asked.nbytes:
            victim = self._policy.victim(held)
            if victim is None:
                return asked.parent is None
            self._policy.remove(victim, evicted=True)
            self._room += self._sizes.pop(victim)
        self._policy.add(asked.key, asked.nbytes, asked.saved_s, parent=asked.parent)
        self._sizes[asked.key] = asked.nbytes
        self._room -= asked.nbytes
        return True


def ceiling(requests: Sequence[Request], capacity: Bytes) -> float:
    """Share of all asked bytes that one who knows the future would have held: farthest next use goes first, and what is asked
    for later than all that is resident does not come in (Belady 1966). What stands deeper in a chain goes before what it stands on.
    """
    ahead: dict[Key, deque[int]] = {}
    for number, request in enumerate(requests):
        for asked in request:
            ahead.setdefault(asked.key, deque()).append(number)
    sizes: dict[Key, Bytes] = {}
    heap: list[tuple[float, int, Key]] = []  # (-next use, -depth, key); out of date unless it is the key's next use
    room, hit, total = capacity, 0, 0
    for request in requests:
        broken = False
        for depth, asked in enumerate(request):
            uses = ahead[asked.key]
            uses.popleft()
            total += asked.nbytes
            resident = asked.key in sizes
            broken |= asked.parent is not None and not resident
            if resident and not (broken and asked.parent is not None):
                hit += asked.nbytes
            if resident and uses:
                heappush(heap, (-uses[0], -depth, asked.key))
            elif resident:
                room += sizes.pop(asked.key)
        for depth, asked in enumerate(request):
            uses = ahead[asked.key]
            if not uses or asked.key in sizes:
                continue
            mine = (-uses[0], -depth, asked.key)
            while room < asked.nbytes and heap and heap[0] < mine:
                later, _, key = heappop(heap)
                if key in sizes and -later == (ahead[key][0] if ahead[key] else inf):
                    room += sizes.pop(key)
            if room >= asked.nbytes:
                room -= asked.nbytes
                sizes[asked.key] = asked.nbytes
                heappush(heap, mine)
    return hit / total if total else 0.0
