"""The records of one server on all its tiers, fastest first: found, read, kept, moved and given up.

Lookups run in the callers' threads and only read. One thread of the store's own writes: it takes in what is put, moves hot
records up and those that have to go down, so no two moves meet and no caller waits for one. The books (shelf.py) are changed under a
lock; no byte is moved under it.

A record that leaves a tier goes to the next one unless it is there already, which is so when it was there before
(swap-out-only-once, RAGCache). Any fault of a record is a miss: it is put away, counted by reason, and never served again.
"""

import queue
import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import partial

from flowserve.cachestore.admission import SecondSight
from flowserve.cachestore.eviction import eviction
from flowserve.cachestore.geometry import Geometry, KForm
from flowserve.cachestore.lookup import Array, Lease
from flowserve.cachestore.record import About, Damaged, Expected, Reader, Reason, open_record, pack
from flowserve.cachestore.shelf import Shelf
from flowserve.cachestore.tier import Buffer, Key, Tier
from flowserve.errors import StoreError
from flowserve.ids import Bytes, Seconds, Tokens

LEASE_S: Seconds = 60.0
"""A lease that nobody released holds its record for so long."""
WAITING = 64
"""Records that may wait to be written; what comes beyond that is dropped."""
DOCUMENTS = 65_536
"""Documents whose keys are remembered. Records of others are found to be stale when they are opened."""
GUESSED_RATE = {"device": 200e9, "host": 10e9, "disk": 1e9, "remote": 0.2e9}
"""Bytes per second of a tier, by name, until some have been read from it."""

Listener = Callable[[str, Key, bool], None]
"""(tier, key, it is there now). Called in the store's thread."""


@dataclass(frozen=True, slots=True)
class Level:
    """A tier and how much of it is ours."""

    tier: Tier
    capacity_bytes: Bytes
    policy: str = "net"
    """Name in `eviction.EVICTIONS`."""
    quotas: Mapping[str, Bytes] = field(default_factory=dict)
    """By tenant, `*` for others: what it has without borrowing."""
    shared: bool = False
    """Others write there too: it is asked even for what our books do not have, and what it gives is checked against forgery."""
    codec: str = "raw16"
    """Of what is put there."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """A record that somebody asks for."""

    tenant: str
    expected: Expected
    saved_s: Seconds = 0.0
    """Prefill that it spares."""


@dataclass(slots=True)
class Figures:
    """Since the store was opened. By tier unless said otherwise."""

    hits: Counter[str] = field(default_factory=Counter)
    hit_tokens: Counter[str] = field(default_factory=Counter)
    misses: int = 0
    put: Counter[str] = field(default_factory=Counter)
    evicted: Counter[str] = field(default_factory=Counter)
    moved_down: Counter[str] = field(default_factory=Counter)
    """Written to that tier when the one above needed room."""
    moved_up: Counter[str] = field(default_factory=Counter)
    quarantined: Counter[str] = field(default_factory=Counter)
    """By reason."""
    gone: int = 0
    """Records that were evicted, or removed by somebody else, between being found and being read."""
    failed: Counter[str] = field(default_factory=Counter)
    """Operations that the tier refused or could not do."""
    dropped: int = 0
    """Records that were not kept because too many waited to be written."""
    refused: int = 0
    """Records that would not have been worth their loading, or for which no room could be made."""


def told(figures: Figures) -> tuple[tuple[str, str, int], ...]:
    """(what, tier or reason or "", how often) of everything that happened, for metrics."""
    rows: list[tuple[str, str, int]] = []
    for item in fields(figures):
        value = getattr(figures, item.name)
        counts = value.items() if isinstance(value, Counter) else [("", value)]
        rows += [(item.name, str(detail), count) for detail, count in sorted(counts) if count]
    return tuple(rows)


class _Shelved:
    """A level with its books and its measured speed."""

    def __init__(self, level: Level) -> None:
        self.level = level
        self.tier = level.tier
        self.name = level.tier.name
        self.shelf = Shelf(level.capacity_bytes, eviction(level.policy), level.quotas)
        self.rate = GUESSED_RATE.get(self.name, 1e9)

    def load_s(self, nbytes: Bytes) -> Seconds:
        return nbytes / self.rate

    def measured(self, nbytes: Bytes, seconds: Seconds) -> None:
        """So much was read in so long."""
        if nbytes and seconds > 0:
            self.rate += (nbytes / seconds - self.rate) / 8


class _Leases:
    """Which keys are in use, until when."""

    def __init__(self, now: Callable[[], Seconds], lease_s: Seconds) -> None:
        self._now = now
        self._lease_s = lease_s
        self._until: dict[Key, list[Seconds]] = {}

    def take(self, key: Key) -> Seconds:
        until = self._now() + self._lease_s
        self._until.setdefault(key, []).append(until)
        return until

    def give(self, key: Key, until: Seconds) -> None:
        held = self._until.get(key, [])
        if until in held:
            held.remove(until)
        if not held:
            self._until.pop(key, None)

    def __contains__(self, key: object) -> bool:
        held = self._until.get(key, []) if isinstance(key, bytes) else []
        return any(until > self._now() for until in held)

    def __len__(self) -> int:
        return sum(map(len, self._until.values()))


class Store:
    """See the module. Methods may be called from any thread."""

    def __init__(
        self,
        levels: Sequence[Level],
        *,
        seal_key: Callable[[str], bytes],
        now: Callable[[], Seconds] = time.monotonic,
        lease_s: Seconds = LEASE_S,
        admission: SecondSight | None = None,
    ) -> None:
        """levels: fastest first. seal_key: of a tenant's records (`keys.seal_key`). What lies on the tiers is found again."""
        if not levels:
            raise StoreError("store: expected at least one tier, got none")
        self.figures = Figures()
        self._levels = [_Shelved(level) for level in levels]
        self._seal_key = seal_key
        self._now = now
        self._leases = _Leases(now, lease_s)
        self._admission = admission or SecondSight()
        self._documents: OrderedDict[tuple[str, str], dict[Key, str]] = OrderedDict()
        """(tenant, document) to its keys, each with its version; those of the least recently used documents are forgotten."""
        self._listener: Listener | None = None
        self._lock = threading.RLock()
        self._bad: set[tuple[str, Key]] = set()
        """(tier, key) of what is put away: not served from now on, and deleted as soon as the store's thread comes to it."""
        self._jobs: queue.Queue[Callable[[], None] | None] = queue.Queue()
        for place in self._levels:
            self._adopt(place)
        self._writer = threading.Thread(target=self._write, name="cachestore", daemon=True)
        self._writer.start()

    # --- for callers -----------------------------------------------------------------------------------------

    def lookup(self, wanted: Iterable[Wanted]) -> list[Lease | None]:
        """For each, the record on the fastest tier that has it whole, else None. Release what you were given. May block."""
        return [self._find(each) for each in wanted]

    def wants(self, key: Key, nbytes: Bytes) -> bool:
        """Is a record worth making and putting here? Once it was missed twice or is expected; or while nothing has to go for it."""
        with self._lock:
            if any(key in place.shelf and (place.name, key) not in self._bad for place in self._levels):
                return False
            return self._admission.is_due(key) or any(place.shelf.has_room(nbytes) for place in self._levels)

    def expect(self, key: Key) -> None:
        """It will be asked for."""
        with self._lock:
            self._admission.expect(key)

    def put(self, tenant: str, about: About, layers: Sequence[tuple[Array, Array]], saved_s: Seconds) -> bool:
        """Keep a record, soon. False: too many wait already, and it is not kept. Arrays must not change afterwards."""
        return self._later(partial(self._put, tenant, about, layers, saved_s))

    def prefetch(self, wanted: Iterable[Wanted]) -> None:
        """Bring them to the fastest tier before they are asked for."""
        for each in wanted:
            self._later(partial(self._move_up, each))

    def invalidate(self, tenant: str, document: str, version: str | None = None) -> int:
        """Give up the records of a document that are not of `version`; None: all. How many of them there were in memory of
        this process; those that only a restarted store would find are stale when they are opened."""
        with self._lock:
            known = self._documents.get((tenant, document), {})
            stale = [key for key, of in known.items() if of != version]
            for key in stale:
                del known[key]
        for key in stale:
            for place in self._levels:
                self._put_away(place, key)
        return len(stale)

    def listen(self, listener: Listener | None) -> None:
        """Tell `listener` which keys come and go, and first which are there."""
        with self._lock:
            self._listener = listener
            present = [(place.name, key) for place in self._levels for key in place.shelf]
        for name, key in present:
            if listener is not None:
                listener(name, key, True)

    @property
    def leased(self) -> int:
        """Leases that were not released."""
        with self._lock:
            return len(self._leases)

    def used_bytes(self) -> dict[str, Bytes]:
        """By tier, as the books say."""
        with self._lock:
            return {place.name: place.shelf.used_bytes for place in self._levels}

    def flush(self) -> None:
        """Wait until all that was put or asked to be moved is done."""
        self._jobs.join()

    def close(self) -> None:
        """Finish what waits, and close the tiers."""
        self._jobs.put(None)
        self._writer.join()
        for place in self._levels:
            place.tier.close()

    # --- finding ---------------------------------------------------------------------------------------------

    def _find(self, wanted: Wanted) -> Lease | None:
        key = wanted.expected.key
        for index, place in enumerate(self._levels):
            reader = self._open(place, wanted)
            if reader is None:
                continue
            with self._lock:
                until = self._leases.take(key)
                self.figures.hits[place.name] += 1
                self.figures.hit_tokens[place.name] += len(reader.about.ids)
                place.shelf.touch(key, wanted.saved_s, place.load_s(reader.nbytes))
                place.shelf.own(key, wanted.tenant)
                self._note(wanted.tenant, reader.about)
            if index:
                self._later(partial(self._move_up, wanted))
            return _Leased(self, place, reader, until)
        with self._lock:
            self.figures.misses += 1
            self._admission.missed(key)
        return None

    def _open(self, place: _Shelved, wanted: Wanted) -> Reader | None:
        """The record on one tier, its header checked; None: it is not there, or not to be believed."""
        key = wanted.expected.key
        with self._lock:
            if (place.name, key) in self._bad or not (key in place.shelf or place.level.shared):
                return None
        try:
            size = place.tier.size(key)
            if size is None:
                self._gone(place, key)
                return None
            seal = self._seal_key(wanted.tenant)
            return open_record(partial(place.tier.read, key), wanted.expected, size, seal, digests=place.level.shared)
        except Damaged as error:
            self._damaged(place, key, error.reason)
        except StoreError:
            self._failed(place)
        return None

    def _layer(self, place: _Shelved, reader: Reader, index: int) -> tuple[Array, Array] | None:
        began = self._now()
        try:
            found = reader.layer(index)
        except Damaged as error:
            self._damaged(place, reader.about.key, error.reason)
            return None
        except StoreError:
            self._failed(place)
            return None
        with self._lock:
            place.measured(reader.span(index)[1], self._now() - began)
        return found

    def _release(self, key: Key, until: Seconds) -> None:
        with self._lock:
            self._leases.give(key, until)

    # --- moving: in the store's thread only ------------------------------------------------------------------

    def _write(self) -> None:
        while self._do(self._jobs.get()):
            pass  # nothing of a job is held while the next one is waited for: its arrays may be large

    def _do(self, job: Callable[[], None] | None) -> bool:
        """False: it was the last one."""
        try:
            if job is not None:
                job()
        except StoreError:  # counted where it happened
            pass
        finally:
            self._jobs.task_done()
        return job is not None

    def _later(self, job: Callable[[], None]) -> bool:
        if self._jobs.qsize() >= WAITING:
            with self._lock:
                self.figures.dropped += 1
            return False
        self._jobs.put(job)
        return True

    def _put(self, tenant: str, about: About, layers: Sequence[tuple[Array, Array]], saved_s: Seconds) -> None:
        first = self._levels[0]
        seal = self._seal_key(tenant)
        parts = pack(about, layers, first.level.codec, seal)
        with self._lock:
            self._note(tenant, about)
        if not self._place(0, about.key, parts, tenant, saved_s):
            with self._lock:
                self.figures.refused += 1

    def _place(self, index: int, key: Key, parts: Sequence[Buffer], tenant: str, saved_s: Seconds) -> bool:
        """Keep a record on a level, making room by moving others down. False: it was refused."""
        place = self._levels[index]
        nbytes = sum(memoryview(part).nbytes for part in parts)
        if saved_s and place.load_s(nbytes) >= saved_s:
            return self._refuse(index, key, parts, tenant, saved_s)
        with self._lock:
            gone = place.shelf.victims(nbytes, self._leases)
        if gone is None:
            return self._refuse(index, key, parts, tenant, saved_s)
        for victim, held in gone:
            self._move_down(index, victim, held.tenant)
        try:
            place.tier.put(key, parts)
        except StoreError:
            self._failed(place)
            return False
        with self._lock:
            place.shelf.add(key, nbytes, tenant, saved_s, place.load_s(nbytes))
            self._bad.discard((place.name, key))
            self.figures.put[place.name] += 1
        self._tell(place.name, key, True)
        return True

    def _refuse(self, index: int, key: Key, parts: Sequence[Buffer], tenant: str, saved_s: Seconds) -> bool:
        """It is not kept on this level, so perhaps on the next: what is too large for memory may fit on a disk."""
        return index + 1 < len(self._levels) and self._place(index + 1, key, parts, tenant, saved_s)

    def _move_down(self, index: int, key: Key, tenant: str) -> None:
        """A record has left the books of a level: its bytes follow, to the next one unless they are there."""
        place = self._levels[index]
        with self._lock:
            self.figures.evicted[place.name] += 1
            below = self._levels[index + 1] if index + 1 < len(self._levels) else None
            known = below is None or key in below.shelf
        try:
            size = None if known else place.tier.size(key)
            data = None if size is None else place.tier.read(key, 0, size)
            place.tier.delete(key)
        except StoreError:
            self._failed(place)
            return
        finally:
            self._tell(place.name, key, False)
        if data is not None and below is not None and self._place(index + 1, key, [data], tenant, 0.0):
            with self._lock:
                self.figures.moved_down[below.name] += 1

    def _move_up(self, wanted: Wanted) -> None:
        """Copy a record to the fastest level, if it is on a slower one. What is not whole is not copied."""
        key, first = wanted.expected.key, self._levels[0]
        with self._lock:
            if key in first.shelf:
                return
        for place in self._levels[1:]:
            reader = self._open(place, wanted)
            if reader is None:
                continue
            try:
                reader.check()
                data = place.tier.read(key, 0, reader.nbytes)
            except Damaged as error:
                self._damaged(place, key, error.reason)
                continue
            if data is not None and self._place(0, key, [data], wanted.tenant, wanted.saved_s):
                with self._lock:
                    self.figures.moved_up[first.name] += 1
            return

    # --- giving up -------------------------------------------------------------------------------------------

    def _damaged(self, place: _Shelved, key: Key, reason: Reason) -> None:
        """A record cannot be believed: it is put away on that tier. One that has gone meanwhile was evicted, no more."""
        if reason is Reason.MISSING:
            self._gone(place, key)
            return
        with self._lock:
            self.figures.quarantined[reason] += (place.name, key) not in self._bad
        self._put_away(place, key)

    def _gone(self, place: _Shelved, key: Key) -> None:
        """The books may have it and the tier has not."""
        with self._lock:
            self.figures.gone += 1
        self._put_away(place, key)

    def _put_away(self, place: _Shelved, key: Key) -> None:
        with self._lock:
            self._bad.add((place.name, key))
        self._jobs.put(partial(self._drop, place, key))

    def _drop(self, place: _Shelved, key: Key) -> None:
        """In the store's thread: delete what is still put away."""
        with self._lock:
            if (place.name, key) not in self._bad:
                return  # it was written anew meanwhile
            place.shelf.remove(key)
        try:
            place.tier.delete(key)
        except StoreError:
            self._failed(place)
        with self._lock:
            self._bad.discard((place.name, key))
        self._tell(place.name, key, False)

    # --- books -----------------------------------------------------------------------------------------------

    def _adopt(self, place: _Shelved) -> None:
        """Enter what lies on a tier since before. What others may have put there is not in our books."""
        if place.level.shared:
            return
        for key, nbytes in list(place.tier.keys()):
            if place.shelf.has_room(nbytes):
                place.shelf.add(key, nbytes, "", 0.0, place.load_s(nbytes))
            else:  # the tier has become smaller
                place.tier.delete(key)

    def _note(self, tenant: str, about: About) -> None:
        if not about.document:
            return
        known = self._documents.pop((tenant, about.document), {})
        known[about.key] = about.version
        self._documents[tenant, about.document] = known
        if len(self._documents) > DOCUMENTS:
            self._documents.popitem(last=False)

    def _failed(self, place: _Shelved) -> None:
        with self._lock:
            self.figures.failed[place.name] += 1

    def _tell(self, tier: str, key: Key, present: bool) -> None:
        listener = self._listener
        if listener is not None:
            listener(tier, key, present)


class _Leased:
    """A lease on a record of a `Store`."""

    def __init__(self, store: Store, place: _Shelved, reader: Reader, until: Seconds) -> None:
        self._store = store
        self._place = place
        self._reader = reader
        self._until: Seconds | None = until

    @property
    def key(self) -> Key:
        return self._reader.about.key

    @property
    def geometry(self) -> Geometry:
        return self._reader.about.geometry

    @property
    def tokens(self) -> Tokens:
        return len(self._reader.about.ids)

    @property
    def k_form(self) -> KForm:
        return self._reader.about.k_form

    @property
    def tier(self) -> str:
        return self._place.name

    def layer(self, index: int) -> tuple[Array, Array] | None:
        return self._store._layer(self._place, self._reader, index)

    def release(self) -> None:
        if self._until is not None:
            self._store._release(self.key, self._until)
            self._until = None
