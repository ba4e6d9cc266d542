"""The store on real tiers: what is found, kept, moved and given up, and that no damaged byte is ever served."""

import random
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flowserve.cachestore.admission import SecondSight
from flowserve.cachestore.geometry import Geometry
from flowserve.cachestore.keys import Identity, Recipe, chunk_key, seal_key
from flowserve.cachestore.record import About, Expected, Reason
from flowserve.cachestore.store import Level, Store, Wanted
from flowserve.cachestore.tier import Tier
from flowserve.cachestore.tiers.disk import DiskTier
from flowserve.cachestore.tiers.host import HostTier
from flowserve.errors import StoreError

SECRET = bytes(range(32))
GEOMETRY = Geometry(2, 1, 8, "float32")
IDENTITY = Identity("model", "1", "tokenizer", "float32")
RECIPE = Recipe((1, 2))
RECORD = 20_480
"""Bytes of a record of a chunk below: a header and two layers, padded."""


def seal(tenant: str) -> bytes:
    return seal_key(SECRET, tenant)


def about(number: int, tenant: str = "a", document: str = "", version: str = "", tokens: int = 100) -> About:
    ids = tuple(number * 1000 + i for i in range(tokens))
    key = chunk_key(SECRET, tenant, IDENTITY, RECIPE, ids)
    return About(key, ids, GEOMETRY, recipe=RECIPE.digest, document=document, version=version)


def layers(number: int, tokens: int = 100) -> list[tuple[Any, Any]]:
    draws = np.random.default_rng(number)
    shape = (tokens, GEOMETRY.kv_heads, GEOMETRY.head_dim)
    return [tuple(draws.standard_normal(shape, np.float32) for _ in "kv") for _ in range(GEOMETRY.layers)]  # type: ignore[misc]


def wanted(number: int, tenant: str = "a", document: str = "", version: str = "", saved_s: float = 1.0) -> Wanted:
    facts = about(number, tenant)
    return Wanted(tenant, Expected(facts.key, GEOMETRY, facts.ids, document=document, version=version), saved_s)


def put(store: Store, number: int, tenant: str = "a", **facts: Any) -> None:
    assert store.put(tenant, about(number, tenant, **facts), layers(number), 1.0)
    store.flush()


def read(store: Store, number: int, tenant: str = "a", **facts: Any) -> str | None:
    """The tier that the record came from, after its numbers were compared; None: a miss."""
    [lease] = store.lookup([wanted(number, tenant, **facts)])
    if lease is None:
        return None
    try:
        for index, pair in enumerate(layers(number)):
            found = lease.layer(index)
            if found is None:
                return None
            for right, given in zip(pair, found, strict=True):
                np.testing.assert_array_equal(right, given)
        return lease.tier
    finally:
        lease.release()


def opened(folder: Path, host: int = 3, disk: int = 100, **options: Any) -> Store:
    """With room for so many records on each tier."""
    quotas = options.pop("quotas", {})
    policy = options.pop("policy", "lru")
    levels = [
        Level(HostTier(1 << 30), host * RECORD, policy, quotas),
        Level(DiskTier(folder), disk * RECORD, policy),
    ]
    return Store(levels, seal_key=seal, **options)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = opened(tmp_path)
    yield store
    store.close()


def test_a_record_takes_what_the_other_tests_count_with(store: Store) -> None:
    put(store, 1)
    assert store.used_bytes() == {"host": RECORD, "disk": 0}


def test_what_was_put_is_found_and_another_tenant_finds_nothing(store: Store) -> None:
    put(store, 1)
    assert read(store, 1) == "host"
    assert read(store, 1, tenant="b") is None
    assert store.figures.hits == {"host": 1} and store.figures.hit_tokens == {"host": 100}
    assert store.figures.misses == 1 and store.leased == 0


def test_what_memory_has_no_room_for_goes_to_the_disk_and_comes_back_up_when_it_is_used(store: Store) -> None:
    for number in range(4):
        put(store, number)
    assert store.used_bytes() == {"host": 3 * RECORD, "disk": RECORD}
    assert read(store, 0) == "disk"
    store.flush()
    assert read(store, 0) == "host"
    assert store.figures.moved_down["disk"] == 2 and store.figures.moved_up["host"] == 1


def test_a_record_is_written_to_the_disk_once(store: Store) -> None:
    for number in (0, 1, 2, 3):
        put(store, number)
    for number in (0, 1, 2, 3) * 3:
        read(store, number)
        store.flush()
    assert store.figures.moved_up["host"] == 12
    assert store.figures.moved_down["disk"] == 4 == store.figures.put["disk"]


def test_what_is_leased_is_not_evicted_until_the_lease_expires(tmp_path: Path) -> None:
    now = [0.0]
    store = opened(tmp_path, host=1, disk=0, now=lambda: now[0], lease_s=10.0)
    put(store, 0)
    [lease] = store.lookup([wanted(0)])
    put(store, 1)
    assert read(store, 0) == "host" and read(store, 1) is None and store.figures.refused == 1
    now[0] = 11.0
    put(store, 1)
    assert read(store, 1) == "host" and read(store, 0) is None
    assert lease is not None and lease.layer(0) is None  # it came too late: a miss, not another's numbers
    lease.release()
    store.close()


def test_who_borrows_memory_gives_it_back_first(tmp_path: Path) -> None:
    store = opened(tmp_path, host=4, disk=0, quotas={"a": 3 * RECORD, "b": RECORD})
    put(store, 9, tenant="b")
    put(store, 1)
    put(store, 2)
    put(store, 8, tenant="b")  # borrowed
    put(store, 3)
    assert [read(store, n) for n in (1, 2, 3)] == ["host"] * 3
    assert [read(store, n, tenant="b") for n in (9, 8)] == [None, "host"]
    store.close()


def test_where_something_has_to_go_a_chunk_is_worth_keeping_at_its_second_sight_or_when_it_is_expected(
    tmp_path: Path,
) -> None:
    store = opened(tmp_path, host=2, disk=0)
    key = about(1).key
    put(store, 8)
    assert store.wants(key, RECORD)
    put(store, 9)
    assert not store.wants(key, RECORD)
    assert read(store, 1) is None and not store.wants(key, RECORD)
    assert read(store, 1) is None and store.wants(key, RECORD)
    put(store, 1)
    assert not store.wants(key, RECORD)
    store.expect(about(2).key)
    assert store.wants(about(2).key, RECORD)
    store.close()


def test_second_sight_forgets_the_oldest_name() -> None:
    sight = SecondSight(ghosts=2)
    for key in (b"a", b"b", b"c", b"a"):
        sight.missed(key)
    assert [sight.is_due(key) for key in (b"a", b"b", b"c")] == [False] * 3
    sight.missed(b"a")
    assert sight.is_due(b"a")


def test_what_takes_longer_to_load_than_to_compute_is_not_kept(store: Store) -> None:
    assert store.put("a", about(1), layers(1), 1e-9)
    store.flush()
    assert read(store, 1) is None and store.figures.refused == 1


def test_a_new_version_of_a_document_makes_the_records_of_the_old_one_stale(store: Store) -> None:
    put(store, 1, document="d", version="1")
    put(store, 2, document="d", version="2")
    put(store, 3, document="e", version="1")
    assert store.invalidate("b", "d") == 0
    assert store.invalidate("a", "d", version="2") == 1
    assert [read(store, n) for n in (1, 2, 3)] == [None, "host", "host"]


def test_a_restarted_store_finds_the_disk_and_knows_stale_versions_when_it_opens_them(tmp_path: Path) -> None:
    store = opened(tmp_path, host=0)
    put(store, 1, document="d", version="1")
    store.close()
    again = opened(tmp_path)
    assert read(again, 1, document="d", version="1") == "disk"
    again.flush()
    assert read(again, 1, document="d", version="2") is None
    assert again.figures.quarantined == {Reason.STALE: 2}
    again.flush()
    assert again.used_bytes() == {"host": 0, "disk": 0}
    again.close()


def test_a_store_that_has_become_smaller_keeps_what_fits(tmp_path: Path) -> None:
    store = opened(tmp_path, host=0)
    for number in range(4):
        put(store, number)
    store.close()
    again = opened(tmp_path, disk=2)
    assert again.used_bytes()["disk"] == 2 * RECORD == sum(path.stat().st_size for path in tmp_path.glob("*/*.kv"))
    assert sorted(read(again, number) or "" for number in range(4)) == ["", "", "disk", "disk"]
    again.close()


def test_a_folder_has_one_owner(store: Store, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="another process has the folder"):
        DiskTier(tmp_path)


def test_prefetching_brings_records_up(store: Store) -> None:
    for number in range(4):
        put(store, number)
    store.prefetch([wanted(0)])
    store.flush()
    assert read(store, 0) == "host"


def test_listeners_hear_what_is_there_and_what_comes_and_goes(tmp_path: Path) -> None:
    store = opened(tmp_path, host=1, disk=0)
    put(store, 1)
    heard: list[tuple[str, bytes, bool]] = []
    store.listen(lambda *told: heard.append(told))
    put(store, 2)
    one, two = about(1).key, about(2).key
    assert heard == [("host", one, True), ("host", one, False), ("host", two, True)]
    store.close()


@pytest.mark.parametrize("seed", range(3))
def test_any_flipped_or_missing_byte_is_a_miss_and_never_a_wrong_number(tmp_path: Path, seed: int) -> None:
    """T14: every class of bytes, by chance; `read` compares all numbers."""
    draws = random.Random(seed)
    outcomes: set[str | None] = set()
    for round in range(40):
        folder = tmp_path / str(round)
        store = opened(folder, host=0)
        put(store, round)
        [path] = folder.glob("*/*.kv")
        data = bytearray(path.read_bytes())
        if draws.random() < 0.2:
            data = data[: draws.randrange(len(data))]
        else:
            data[draws.randrange(len(data))] ^= 1 << draws.randrange(8)
        path.write_bytes(data)
        outcomes.add(read(store, round))
        assert store.figures.quarantined.total() in (1, 2)  # who moves it up may find it as well
        store.flush()
        assert read(store, round) is None and not path.exists()
        store.close()
    assert outcomes == {None}


def test_a_tier_that_cannot_be_read_is_a_miss(tmp_path: Path) -> None:
    class Broken(HostTier):
        def read(self, key: bytes, offset: int, length: int) -> memoryview:
            raise StoreError("the disk is gone")

    tier: Tier = Broken(1 << 20)
    store = Store([Level(tier, 1 << 20)], seal_key=seal)
    put(store, 1)
    assert read(store, 1) is None and store.figures.failed == {"host": 1}
    store.close()


def test_threads_that_put_and_look_up_see_whole_records_and_the_books_agree_with_the_tiers(tmp_path: Path) -> None:
    store = opened(tmp_path, host=5, disk=8)
    failures: list[BaseException] = []

    def work(seed: int) -> None:
        draws = random.Random(seed)
        try:
            for _ in range(150):
                number = draws.randrange(20)
                if draws.random() < 0.4:
                    store.put("a", about(number), layers(number), 1.0)
                elif draws.random() < 0.05:
                    store.invalidate("a", "d")
                else:
                    read(store, number)
        except BaseException as error:  # noqa: BLE001 shown by the assertion below
            failures.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    store.flush()
    assert not failures and store.leased == 0 and not store.figures.quarantined
    for place in store._levels:
        held = dict(place.tier.keys())
        assert held == {key: place.shelf[key].nbytes for key in place.shelf}
        assert sum(held.values()) == place.shelf.used_bytes <= place.shelf.capacity_bytes
    assert store.figures.hits["host"] and store.figures.hits["disk"] and store.figures.evicted["disk"]
    store.close()


CHILD = """
import sys
sys.path.insert(0, sys.argv[2])
import random
from pathlib import Path
from test_store import about, layers, opened, read
store = opened(Path(sys.argv[1]), host=2, disk=4)
print("ready", flush=True)
draws = random.Random(int(sys.argv[3]))
while True:
    number = draws.randrange(8)
    store.put("a", about(number), layers(number), 1.0)
    read(store, draws.randrange(8))
"""


def test_a_process_that_is_killed_leaves_whole_records_only(tmp_path: Path) -> None:
    """T15: kill -9 while records are put, evicted and moved up."""
    found = 0
    draws = random.Random(0)
    for round in range(12):
        command = [sys.executable, "-c", CHILD, str(tmp_path), str(Path(__file__).parent), str(round)]
        child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert child.stdout is not None and child.stdout.readline() == "ready\n"
        time.sleep(draws.uniform(0.0, 0.1))
        child.kill()
        child.wait()
        child.stdout.close()
        store = opened(tmp_path, host=2, disk=4)
        assert not list(tmp_path.glob("*/*.part"))
        tiers = [read(store, number) for number in range(8)]
        found += sum(tier is not None for tier in tiers)
        assert not store.figures.quarantined
        store.close()
    assert found > 12
