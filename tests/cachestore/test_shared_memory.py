"""Shared memory: what another process sees, and that it never takes one record for another."""

import random
import secrets
import subprocess
import sys
from collections.abc import Iterator

import pytest

from flowserve.cachestore.tiers.extents import Extents
from flowserve.cachestore.tiers.shared import PAGE_BYTES, SharedReader, SharedTier
from flowserve.errors import StoreError

KEY, OTHER = b"k" * 32, b"o" * 32


@pytest.fixture
def name() -> str:
    return f"flowserve-test-{secrets.token_hex(8)}"


@pytest.fixture
def tier(name: str) -> Iterator[SharedTier]:
    tier = SharedTier(name, 4 * PAGE_BYTES)
    yield tier
    tier.close()


def test_another_process_reads_a_record_at_its_place(tier: SharedTier, name: str) -> None:
    tier.put(KEY, [b"abc", b"def"])
    place = tier.place(KEY)
    assert place is not None
    program = (
        "import sys\n"
        "from flowserve.cachestore.tiers.shared import Place, SharedReader\n"
        f"reader = SharedReader({name!r})\n"
        f"print(reader.read(Place({place.page}, {place.nbytes}, {place.counter}), 2, 100))\n"
        "reader.close()\n"
    )
    told = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert told.stdout == "b'cdef'\n"


def test_a_place_whose_pages_have_another_record_is_gone(tier: SharedTier, name: str) -> None:
    tier.put(KEY, [b"first"])
    place = tier.place(KEY)
    reader = SharedReader(name)
    assert place is not None and reader.read(place, 0, 9) == b"first"
    tier.delete(KEY)
    assert reader.read(place, 0, 9) is None
    tier.put(OTHER, [b"other"])
    again = tier.place(OTHER)
    assert again is not None and again.page == place.page
    assert reader.read(place, 0, 9) is None and reader.read(again, 0, 9) == b"other"
    reader.close()


def test_what_finds_no_room_is_refused_and_leaves_the_rest(tier: SharedTier) -> None:
    tier.put(KEY, [bytes(3 * PAGE_BYTES)])
    with pytest.raises(StoreError, match="needs 2 pages in a row; the longest free stretch has 1 of 4"):
        tier.put(OTHER, [bytes(PAGE_BYTES + 1)])
    assert tier.size(KEY) == 3 * PAGE_BYTES and tier.size(OTHER) is None


def test_a_name_is_taken_once_and_has_no_paths_in_it(tier: SharedTier, name: str) -> None:
    with pytest.raises(StoreError, match="another process owns it"):
        SharedTier(name, PAGE_BYTES)
    for maker in (lambda: SharedTier("../x", 1), lambda: SharedReader("../x")):
        with pytest.raises(StoreError, match="expected a name of up to 64"):
            maker()
    with pytest.raises(StoreError, match="cannot attach"):
        SharedReader("nobody-has-made-this")


@pytest.mark.parametrize("seed", range(20))
def test_stretches_never_overlap_and_neighbours_join(seed: int) -> None:
    draws, extents = random.Random(seed), Extents(64)
    taken: dict[int, int] = {}
    for _ in range(300):
        if taken and draws.random() < 0.5:
            start = draws.choice(sorted(taken))
            extents.give(start, taken.pop(start))
        else:
            length = draws.randrange(1, 12)
            begin = extents.take(length)
            used = sorted(i for start, count in taken.items() for i in range(start, start + count))
            if begin is None:
                free = "".join("x" if i in used else "." for i in range(64))
                assert "." * length not in free
            else:
                assert not set(range(begin, begin + length)) & set(used)
                taken[begin] = length
        assert extents.free == 64 - sum(taken.values())
    for start in list(taken):
        extents.give(start, taken.pop(start))
    assert extents.largest == 64
