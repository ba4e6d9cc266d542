"""Which record leaves a tier when room is needed: one protocol, and the policies by name.

A tier has one instance, so every tier has its own clock: one shared by two lets the big tier starve the small. Pure: time is
the number of uses seen. An instance only answers; the store (store.py) moves bytes and tells it what it did.

`exact/` records name the record before them in their chain, and the leaf rule holds: what has resident children is no victim,
because nobody could reach them without it. `canon/` records have no parent.
"""

from collections import OrderedDict
from collections.abc import Callable, Container
from dataclasses import dataclass
from heapq import heapify, heappop, heappush
from typing import Protocol

from flowserve.cachestore.tier import Key
from flowserve.errors import ConfigError
from flowserve.ids import Bytes, Seconds

SLACK = 64
"""Places in a heap that may be out of date, beside as many as there are records, before it is made anew."""
HALF_LIFE = 16
"""Of a count that decays: uses per resident record until it is half. Shorter forgets what is popular for good
(docs/results/2026-11-29-eviction.md), longer keeps what was popular once."""


class Eviction(Protocol):
    """What one tier holds, and what of it is worth least. Every method takes O(log n), a victim besides O(log n) per held record
    that was worth less."""

    def add(self, key: Key, nbytes: Bytes, saved_s: Seconds, load_s: Seconds = 0.0, parent: Key | None = None) -> None:
        """It came in, because somebody missed it. `saved_s`: prefill that a use of it spares; `load_s`: reading it from here;
        `parent`: what stands before it in its chain. A known key is replaced."""
        ...

    def touch(self, key: Key, saved_s: Seconds, load_s: Seconds = 0.0) -> None:
        """It was used, which spared so much this time. Unknown keys are ignored. Of a chain touch the last record first."""
        ...

    def victim(self, held: Container[Key] = ()) -> Key | None:
        """What should go next, none of `held` (leased records); None: nothing may. Changes nothing that another question sees."""
        ...

    def remove(self, key: Key, evicted: bool = False) -> None:
        """It is gone: for lack of room (`evicted`), or for another reason. Unknown keys are ignored."""
        ...


@dataclass(slots=True)
class Entry:
    """A record of a tier, or the memory of one that left it."""

    key: Key
    arrival: int
    """Order of first coming: decides ties."""
    nbytes: Bytes = 0
    saved_s: Seconds = 0.0
    """As last told."""
    parent: Key | None = None
    used: int = 0
    """When it was last used: a number of uses of the whole tier."""
    times: int = 0
    """How often, ever."""
    uses: float = 0.0
    """How often; decayed where the policy says so."""
    missed: int = 0
    """How often it had to be computed."""
    missed_cost: float = 0.0
    """Sum over these of seconds per byte."""
    net_cost: float = 0.0
    """Mean over all uses of seconds per byte that it spares, less those that loading takes."""
    rank: float = 0.0
    """What it was worth when it was last used."""
    turn: int = 0
    """Of its place in the heap; another number there is out of date."""


Rank = Callable[[Entry, float], float]
"""(entry as of this use, clock) -> worth; the least goes first."""


def lru(entry: Entry, clock: float) -> float:
    """Least recently used."""
    return entry.used


def lfu(entry: Entry, clock: float) -> float:
    """Least frequently used."""
    return entry.uses


def gdsf(entry: Entry, clock: float) -> float:
    """Greedy-Dual-Size-Frequency (Cherkasova 1998), with prefill seconds as cost."""
    return clock + entry.uses * entry.saved_s / entry.nbytes


def pgdsf(entry: Entry, clock: float) -> float:
    """Prefix-aware GDSF (RAGCache, section 5.1): cost per size is the mean over the computations of what was not cached then."""
    return clock + entry.uses * entry.missed_cost / entry.missed


def net(entry: Entry, clock: float) -> float:
    """Seconds spared per byte net of loading, at the context lengths seen, times a decayed frequency."""
    return clock + entry.uses * max(0.0, entry.net_cost)


class Ranked:
    """A policy that gives a record its rank whenever it is used, and keeps it until the next use."""

    def __init__(self, rank: Rank, *, remembers: bool = False, decays: bool = False) -> None:
        """`remembers`: counts go on where they were when a record comes back soon; as many are remembered as were ever resident
        at once. `decays`: a count halves while HALF_LIFE uses per resident record go by."""
        self.clock = 0.0
        """Rank of the most valuable record that was evicted so far: what GDSF ages by."""
        self._rank = rank
        self._remembers = remembers
        self._decays = decays
        self._entries: dict[Key, Entry] = {}
        self._gone: OrderedDict[Key, Entry] = OrderedDict()
        self._peak = 0
        self._now = 0
        self._arrivals = 0
        self._turns = 0
        self._children: dict[Key, int] = {}
        """Resident records that name this one as their parent, which may have come after them."""
        self._heap: list[tuple[float, int, int, Key]] = []
        """(rank, arrival, turn, key)."""

    def add(self, key: Key, nbytes: Bytes, saved_s: Seconds, load_s: Seconds = 0.0, parent: Key | None = None) -> None:
        self.remove(key)
        entry = self._gone.pop(key, None)
        if entry is None:
            self._arrivals += 1
            entry = Entry(key, self._arrivals)
        entry.nbytes, entry.parent = max(1, nbytes), parent
        entry.missed += 1
        entry.missed_cost += saved_s / entry.nbytes
        self._entries[key] = entry
        self._peak = max(self._peak, len(self._entries))
        if parent is not None:
            self._children[parent] = self._children.get(parent, 0) + 1
        self._use(entry, saved_s, load_s)

    def touch(self, key: Key, saved_s: Seconds, load_s: Seconds = 0.0) -> None:
        entry = self._entries.get(key)
        if entry is not None:
            self._use(entry, saved_s, load_s)

    def victim(self, held: Container[Key] = ()) -> Key | None:
        passed = []
        found = None
        while self._heap and found is None:
            _, _, turn, key = self._heap[0]
            if not self._is_current(key, turn):
                heappop(self._heap)  # out of date; a parent returns with the end of its last child
            elif key in held:
                passed.append(heappop(self._heap))
            else:
                found = key
        for item in passed:
            heappush(self._heap, item)
        return found

    def remove(self, key: Key, evicted: bool = False) -> None:
        entry = self._entries.pop(key, None)
        if entry is None:
            return
        if evicted:
            self.clock = max(self.clock, entry.rank)
        if self._remembers and evicted:
            self._gone[key] = entry
            if len(self._gone) > self._peak:
                self._gone.popitem(last=False)
        if entry.parent is not None:
            self._orphan(entry.parent)

    def _orphan(self, parent: Key) -> None:
        self._children[parent] -= 1
        if not self._children[parent]:
            del self._children[parent]
            if parent in self._entries:
                self._push(self._entries[parent])

    def _use(self, entry: Entry, saved_s: Seconds, load_s: Seconds) -> None:
        self._now += 1
        if self._decays:
            entry.uses *= 0.5 ** ((self._now - entry.used) / (HALF_LIFE * len(self._entries)))
        entry.times += 1
        entry.net_cost += ((saved_s - load_s) / entry.nbytes - entry.net_cost) / entry.times
        entry.uses += 1.0
        entry.used, entry.saved_s = self._now, saved_s
        entry.rank = self._rank(entry, self.clock)
        self._push(entry)

    def _push(self, entry: Entry) -> None:
        self._turns += 1
        entry.turn = self._turns
        if entry.key not in self._children:
            heappush(self._heap, (entry.rank, entry.arrival, entry.turn, entry.key))
        if len(self._heap) > SLACK + 2 * len(self._entries):  # mostly places that are out of date
            self._heap = [item for item in self._heap if self._is_current(item[3], item[2])]
            heapify(self._heap)

    def _is_current(self, key: Key, turn: int) -> bool:
        entry = self._entries.get(key)
        return entry is not None and entry.turn == turn and key not in self._children


EVICTIONS: dict[str, Callable[[], Ranked]] = {
    "lru": lambda: Ranked(lru),
    "lfu": lambda: Ranked(lfu),
    "gdsf": lambda: Ranked(gdsf),
    "pgdsf": lambda: Ranked(pgdsf, remembers=True),
    "net": lambda: Ranked(net, remembers=True, decays=True),
}
"""By the name that settings and `flowserve bench eviction` use."""


def eviction(name: str) -> Ranked:
    """A fresh instance, for one tier."""
    if name not in EVICTIONS:
        raise ConfigError(f"eviction policy: expected one of {', '.join(EVICTIONS)}; got '{name}'")
    return EVICTIONS[name]()
