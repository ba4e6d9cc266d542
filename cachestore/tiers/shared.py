"""Records in shared memory, which other processes of this machine may read without a copy through a socket.

One process owns a slab and writes it; it hands out a `Place`, a few integers, and whoever has attached the slab reads that place.
The slab begins with one counter per page:

    [u64 counter of page 0] [.. of page 1] .. | page 0 | page 1 | ..

A record takes consecutive pages. The counter of its first page is raised when it is written and again when it is freed,
before any of its pages can be taken by another. A reader copies and then looks at that counter: if it is not the one of its Place,
what was copied may be another record's, and counts as gone.
"""

import mmap
import os
import re
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.shared_memory import SharedMemory

from flowserve.cachestore.tier import Buffer, Key
from flowserve.cachestore.tiers.extents import Extents
from flowserve.errors import StoreError
from flowserve.ids import Bytes

PAGE_BYTES: Bytes = 1 << 16
"""A record wastes half a page on average: nothing beside records of tens of megabytes."""
COUNTER_BYTES: Bytes = 8
NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
FOLDER = "/dev/shm"
"""Where Linux shows shared memory by name; attaching through it can be read-only, which SharedMemory cannot."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a record lies in a slab, for as long as its pages' counter stands at `counter`."""

    page: int
    nbytes: Bytes
    counter: int


class Slab:
    """The pages and counters of one piece of shared memory, as the owner and its readers see them."""

    def __init__(self, memory: memoryview, pages: int) -> None:
        self.counters = memory[: pages * COUNTER_BYTES].cast("Q")
        self.bytes = memory[_head_bytes(pages) :]

    def read(self, place: Place, offset: Bytes, length: Bytes) -> bytes | None:
        """A copy of a range of a record, shorter where the record ends; None: its pages were freed, before or meanwhile."""
        start = place.page * PAGE_BYTES
        copied = bytes(self.bytes[start + offset : start + max(offset, min(offset + length, place.nbytes))])
        return copied if self.counters[place.page] == place.counter else None

    def release(self) -> None:
        self.counters.release()
        self.bytes.release()


class SharedTier:
    """A tier in a slab of shared memory that this process makes, owns and removes."""

    def __init__(self, name: str, capacity_bytes: Bytes, tier: str = "host") -> None:
        """`name` is how other processes attach it. Raises StoreError where it is taken."""
        if not NAME.fullmatch(name):
            raise StoreError(f"shared memory: expected a name of up to 64 letters, digits, '_' and '-'; got {name!r}")
        self.name = tier
        pages = capacity_bytes // PAGE_BYTES
        try:
            self._memory = SharedMemory(name, create=True, size=_head_bytes(pages) + pages * PAGE_BYTES)
        except FileExistsError as error:
            raise StoreError(
                f"shared memory '{name}' exists: another process owns it, or one died and left it; "
                f"take another name, or remove {FOLDER}/{name} when nothing uses it"
            ) from error
        except OSError as error:
            raise StoreError(f"shared memory '{name}': cannot make {capacity_bytes} bytes: {error}") from error
        assert self._memory.buf is not None, "it was just made"
        self._slab = Slab(self._memory.buf, pages)
        self._extents = Extents(pages)
        self._places: dict[Key, Place] = {}
        self._lock = threading.Lock()

    def put(self, key: Key, parts: Sequence[Buffer]) -> None:
        nbytes = sum(memoryview(part).nbytes for part in parts)
        with self._lock:
            self._free(key)
            page = self._extents.take(_pages(nbytes))
            if page is None:
                raise StoreError(
                    f"tier '{self.name}': a record of {nbytes} bytes needs {_pages(nbytes)} pages in a row; "
                    f"the longest free stretch has {self._extents.largest} of {self._extents.size}"
                )
        self._copy(page, parts)
        with self._lock:
            self._free(key)  # another thread may have put the same key meanwhile
            self._slab.counters[page] += 1
            self._places[key] = Place(page, nbytes, self._slab.counters[page])

    def place(self, key: Key) -> Place | None:
        """Where a record lies, for a reader in another process."""
        return self._places.get(key)

    def read(self, key: Key, offset: Bytes, length: Bytes) -> Buffer | None:
        place = self._places.get(key)
        return None if place is None else self._slab.read(place, offset, length)

    def size(self, key: Key) -> Bytes | None:
        place = self._places.get(key)
        return None if place is None else place.nbytes

    def delete(self, key: Key) -> None:
        with self._lock:
            self._free(key)

    def keys(self) -> Iterator[tuple[Key, Bytes]]:
        with self._lock:
            found = [(key, place.nbytes) for key, place in self._places.items()]
        yield from found

    def close(self) -> None:
        """Remove the slab. Who has attached it keeps the memory until it detaches; every Place of it is gone."""
        with self._lock:
            for key in list(self._places):
                self._free(key)
            self._slab.release()
            self._memory.close()
            self._memory.unlink()

    def _copy(self, page: int, parts: Sequence[Buffer]) -> None:
        at = page * PAGE_BYTES
        for part in parts:
            view = memoryview(part).cast("B")
            self._slab.bytes[at : at + len(view)] = view
            at += len(view)

    def _free(self, key: Key) -> None:
        place = self._places.pop(key, None)
        if place is not None:
            self._slab.counters[place.page] += 1
            self._extents.give(place.page, _pages(place.nbytes))


class SharedReader:
    """Another process's slab, attached read-only."""

    def __init__(self, name: str) -> None:
        if not NAME.fullmatch(name):
            raise StoreError(f"shared memory: expected a name of up to 64 letters, digits, '_' and '-'; got {name!r}")
        try:
            descriptor = os.open(f"{FOLDER}/{name}", os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise StoreError(f"shared memory '{name}': cannot attach: {error}") from error
        try:
            self._mapped = mmap.mmap(descriptor, 0, prot=mmap.PROT_READ)
        finally:
            os.close(descriptor)
        self._memory = memoryview(self._mapped)
        self._slab = Slab(self._memory, _pages_in(len(self._memory)))

    def read(self, place: Place, offset: Bytes, length: Bytes) -> bytes | None:
        """A copy of a range of the record at `place`; None: it is not there any more."""
        return self._slab.read(place, offset, length)

    def close(self) -> None:
        self._slab.release()
        self._memory.release()
        self._mapped.close()


def _pages(nbytes: Bytes) -> int:
    return max(1, -(-nbytes // PAGE_BYTES))


def _head_bytes(pages: int) -> Bytes:
    """The counters, rounded up to whole pages, so that records stay aligned."""
    return -(-pages * COUNTER_BYTES // PAGE_BYTES) * PAGE_BYTES


def _pages_in(nbytes: Bytes) -> int:
    """How many pages a slab of `nbytes` bytes has: the most that fit beside their counters."""
    pages = nbytes // PAGE_BYTES
    while _head_bytes(pages) + pages * PAGE_BYTES > nbytes:
        pages -= 1
    return pages
