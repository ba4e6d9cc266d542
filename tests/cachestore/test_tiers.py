"""What every tier must do, whatever it keeps records in. A new tier is a function in TIERS."""

import secrets
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from flowserve.cachestore.tier import Key, Tier
from flowserve.cachestore.tiers.breaker import Breaker
from flowserve.cachestore.tiers.disk import DiskTier
from flowserve.cachestore.tiers.host import HostTier
from flowserve.cachestore.tiers.remote import open_remote
from flowserve.cachestore.tiers.shared import SharedTier
from flowserve.cachestore.tiers.valkey import ValkeyTier

KEY, OTHER = bytes(range(32)), bytes(reversed(range(32)))
RECORD = bytes(range(251)) * 40
Open = Callable[[], Tier]
"""Opens the tier; again: as a restarted process would, with what is there."""


def _valkey(request: pytest.FixtureRequest, folder: Path) -> Open:
    url, namespace = request.getfixturevalue("valkey_url"), secrets.token_hex(8)
    return lambda: ValkeyTier(url, namespace)


def _valkey_in_parts(request: pytest.FixtureRequest, folder: Path) -> Open:
    url, namespace = request.getfixturevalue("valkey_url"), secrets.token_hex(8)
    return lambda: ValkeyTier(url, namespace, part_bytes=1000)


def _valkey_behind_breaker(request: pytest.FixtureRequest, folder: Path) -> Open:
    opened = _valkey(request, folder)
    return lambda: Breaker(opened())


def _s3(request: pytest.FixtureRequest, folder: Path) -> Open:
    address, prefix = request.getfixturevalue("s3_url"), secrets.token_hex(8)
    return lambda: open_remote(address.replace("/kv", f"/{prefix}"))


def _host(request: pytest.FixtureRequest, folder: Path) -> Open:
    return lambda: HostTier(1 << 24)


def _shared(request: pytest.FixtureRequest, folder: Path) -> Open:
    return lambda: SharedTier(f"flowserve-test-{secrets.token_hex(8)}", 1 << 24)


def _disk(request: pytest.FixtureRequest, folder: Path) -> Open:
    return lambda: DiskTier(folder)


Opener = Callable[[pytest.FixtureRequest, Path], Open]
LASTING: Mapping[str, Opener] = {
    "valkey": _valkey,
    "valkey in parts": _valkey_in_parts,
    "valkey behind a breaker": _valkey_behind_breaker,
    "s3": _s3,
    "disk": _disk,
}
TIERS: Mapping[str, Opener] = {**LASTING, "host": _host, "shared memory": _shared}


@pytest.fixture(params=TIERS)
def opened(request: pytest.FixtureRequest, tmp_path: Path) -> Open:
    return TIERS[request.param](request, tmp_path)


@pytest.fixture
def tier(opened: Open) -> Iterator[Tier]:
    tier = opened()
    yield tier
    tier.close()


def whole(tier: Tier, key: Key, size: int = len(RECORD)) -> bytes | None:
    found = tier.read(key, 0, size)
    return None if found is None else bytes(found)


def test_parts_are_read_back_as_one_record(tier: Tier) -> None:
    tier.put(KEY, [RECORD[:7], bytearray(RECORD[7:5000]), memoryview(RECORD)[5000:], b""])
    assert whole(tier, KEY) == RECORD
    assert tier.size(KEY) == len(RECORD)


@pytest.mark.parametrize(
    ("offset", "length"), [(0, 1), (0, 1000), (999, 2), (1000, 1000), (1, 5000), (3333, 6000), (10_039, 1), (4, 0)]
)
def test_a_range_is_read_as_it_stands_in_the_record(tier: Tier, offset: int, length: int) -> None:
    tier.put(KEY, [RECORD])
    assert bytes(tier.read(KEY, offset, length) or b"") == RECORD[offset : offset + length]


@pytest.mark.parametrize("offset", [0, 9000, 10_039, 10_040, 20_000])
def test_a_range_beyond_the_end_is_shorter(tier: Tier, offset: int) -> None:
    tier.put(KEY, [RECORD])
    found = tier.read(KEY, offset, 50_000)
    assert found is not None
    assert bytes(found) == RECORD[offset:]


def test_what_is_not_there_is_none_and_forgetting_it_is_no_error(tier: Tier) -> None:
    tier.put(OTHER, [RECORD])
    assert tier.read(KEY, 0, 10) is None
    assert tier.read(KEY, 0, 0) is None
    assert tier.size(KEY) is None
    tier.delete(KEY)
    assert whole(tier, OTHER) == RECORD


@pytest.mark.parametrize(("first", "second"), [(b"short", RECORD), (RECORD, b"short"), (RECORD, RECORD[::-1])])
def test_a_put_replaces_all_of_what_was_there(tier: Tier, first: bytes, second: bytes) -> None:
    tier.put(KEY, [first])
    tier.put(KEY, [second])
    assert whole(tier, KEY, 50_000) == second
    assert dict(tier.keys()) == {KEY: len(second)}


def test_a_deleted_record_is_gone_and_what_was_read_of_it_stays(tier: Tier) -> None:
    tier.put(KEY, [RECORD])
    found = tier.read(KEY, 0, len(RECORD))
    tier.delete(KEY)
    assert found is not None
    assert bytes(found) == RECORD
    assert tier.size(KEY) is None
    assert whole(tier, KEY) is None
    assert dict(tier.keys()) == {}


@pytest.mark.parametrize("opened", LASTING, indirect=True)
def test_a_restarted_process_finds_every_record_with_its_size(opened: Open) -> None:
    first, sizes = opened(), {secrets.token_bytes(32): 10 + 500 * number for number in range(12)}
    for key, size in sizes.items():
        first.put(key, [RECORD[:size]])
    first.close()
    second = opened()
    assert dict(second.keys()) == sizes
    assert all(whole(second, key) == RECORD[:size] for key, size in sizes.items())
    second.close()


def test_readers_beside_a_writer_see_whole_records_only(tier: Tier) -> None:
    """Both lengths have parts where the tier has them; a record that is being replaced may be a miss."""
    records = (b"a" * 4500, b"b" * 3300)
    tier.put(KEY, [records[0]])
    ended, torn, seen = threading.Event(), [], set()

    def read() -> None:
        while not ended.is_set():
            found = tier.read(KEY, 0, 5000)
            if found is not None:
                seen.add(bytes(found))
                if bytes(found) not in records:
                    torn.append(bytes(found))

    readers = [threading.Thread(target=read) for _ in range(2)]
    for reader in readers:
        reader.start()
    for number in range(60):
        tier.put(KEY, [records[number % 2]])
    ended.set()
    for reader in readers:
        reader.join()
    assert not torn
    assert seen


def test_its_name_is_one_that_metrics_know(tier: Tier) -> None:
    assert tier.name in ("device", "host", "disk", "remote")
