"""Remote tiers when things go wrong: servers that die, hang, are full, forget, or lie."""

import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import pytest

from flowserve.cachestore.geometry import Geometry
from flowserve.cachestore.record import About, Damaged, Expected, Reason, open_record, pack
from flowserve.cachestore.tiers.breaker import Breaker
from flowserve.cachestore.tiers.remote import open_remote
from flowserve.cachestore.tiers.s3 import MIN_PART_BYTES, S3Tier
from flowserve.cachestore.tiers.valkey import HEADER, MAX_PARTS, ValkeyTier
from flowserve.clock import ManualClock
from flowserve.errors import ConfigError, StoreAway, StoreError

KEY, OTHER = bytes(range(32)), bytes(reversed(range(32)))
Servers = Callable[..., Any]


class Memory:
    """A tier whose server answers while it is `up`."""

    name = "remote"

    def __init__(self) -> None:
        self.up = True
        self.records: dict[bytes, bytes] = {}
        self.calls = 0

    def _reached(self) -> None:
        self.calls += 1
        if not self.up:
            raise StoreAway("no route")

    def put(self, key: bytes, parts: Any) -> None:
        self._reached()
        self.records[key] = b"".join(parts)

    def read(self, key: bytes, offset: int, length: int) -> bytes | None:
        self._reached()
        found = self.records.get(key)
        return None if found is None else found[offset : offset + length]

    def size(self, key: bytes) -> int | None:
        self._reached()
        return len(self.records[key]) if key in self.records else None

    def delete(self, key: bytes) -> None:
        self._reached()
        self.records.pop(key, None)

    def keys(self) -> Iterator[tuple[bytes, int]]:
        self._reached()
        return iter([(key, len(record)) for key, record in self.records.items()])

    def close(self) -> None:
        pass


def broken(memory: Memory, clock: ManualClock) -> Breaker:
    """With a rest that has just begun."""
    breaker = Breaker(memory, failures=3, rest_s=1.0, longest_rest_s=4.0, now=clock.now)
    memory.up = False
    for _ in range(3):
        assert breaker.read(KEY, 0, 1) is None
    assert breaker.rests
    return breaker


def test_a_tier_that_is_away_is_a_miss_for_readers_and_an_error_for_writers() -> None:
    memory = Memory()
    breaker = broken(memory, ManualClock())
    assert breaker.size(KEY) is None
    assert list(breaker.keys()) == []
    with pytest.raises(StoreAway, match="left alone for 1.0 s more"):
        breaker.put(KEY, [b"x"])
    assert memory.calls == 3
    assert breaker.failed == {"read": 3}
    assert breaker.refused == {"size": 1, "keys": 1, "put": 1}


def test_failures_that_are_not_in_a_row_do_not_end_it() -> None:
    memory = Memory()
    breaker = Breaker(memory, failures=2)
    for up in (False, True, False, True, False):
        memory.up = up
        breaker.read(KEY, 0, 1)
    assert not breaker.rests


def test_after_a_rest_one_call_tries_and_each_failed_try_doubles_the_rest_up_to_the_longest() -> None:
    memory, clock = Memory(), ManualClock()
    breaker = broken(memory, clock)
    for rest_s in (1.0, 2.0, 4.0, 4.0):
        calls = memory.calls
        clock.advance(rest_s - 0.01)
        breaker.read(KEY, 0, 1)
        assert memory.calls == calls
        clock.advance(0.01)
        breaker.read(KEY, 0, 1)
        breaker.read(KEY, 0, 1)
        assert memory.calls == calls + 1
    memory.up = True
    clock.advance(4.0)
    breaker.put(KEY, [b"record"])
    assert not breaker.rests
    assert breaker.read(KEY, 0, 6) == b"record"


def test_while_one_call_tries_all_others_are_answered_at_once() -> None:
    memory, clock = Memory(), ManualClock()
    breaker = broken(memory, clock)
    meanwhile: list[Any] = []

    class Slow(Memory):
        def read(self, key: bytes, offset: int, length: int) -> bytes | None:
            meanwhile.append(breaker.size(KEY))
            return super().read(key, offset, length)

    slow = Slow()
    breaker._inner = slow
    clock.advance(1.0)
    breaker.read(OTHER, 0, 1)
    assert (meanwhile, slow.calls, breaker.refused) == ([None], 1, {"size": 1})
    assert not breaker.rests


def test_a_deletion_that_did_not_arrive_is_owed_and_its_record_not_served() -> None:
    memory, clock = Memory(), ManualClock()
    memory.records = {KEY: b"old", OTHER: b"kept"}
    breaker = broken(memory, clock)
    breaker.delete(KEY)
    memory.up = True
    clock.advance(1.0)
    assert breaker.read(KEY, 0, 3) is None
    assert breaker.size(KEY) is None
    assert dict(breaker.keys()) == {OTHER: 4}
    assert memory.records == {OTHER: b"kept"}
    assert breaker.read(OTHER, 0, 4) == b"kept"


def test_what_is_put_after_an_owed_deletion_stays() -> None:
    memory, clock = Memory(), ManualClock()
    memory.records = {KEY: b"old"}
    breaker = broken(memory, clock)
    breaker.delete(KEY)
    with pytest.raises(StoreAway):
        breaker.put(KEY, [b"new"])
    memory.up = True
    clock.advance(1.0)
    assert breaker.read(KEY, 0, 3) is None
    breaker.put(KEY, [b"new"])
    assert breaker.read(KEY, 0, 3) == b"new"
    assert breaker.read(KEY, 0, 3) == b"new"


def test_a_full_tier_is_not_away() -> None:
    class Full(Memory):
        def put(self, key: bytes, parts: Any) -> None:
            raise StoreError("no room")

    breaker = Breaker(Full(), failures=1)
    for _ in range(3):
        with pytest.raises(StoreError, match="no room"):
            breaker.put(KEY, [b"x"])
    assert not breaker.rests


def test_a_killed_server_costs_microseconds_and_is_found_when_it_is_back(valkey_servers: Servers) -> None:
    server = valkey_servers()
    breaker = Breaker(ValkeyTier(server.url), rest_s=0.2)
    breaker.put(KEY, [b"record"])
    server.stop()
    assert [breaker.read(KEY, 0, 6) for _ in range(4)] == [None] * 4
    begin = time.perf_counter()
    for _ in range(1000):
        breaker.read(KEY, 0, 6)
    assert (time.perf_counter() - begin) / 1000 < 1e-3
    assert breaker.failed["read"] < 10
    server.start()
    deadline = time.monotonic() + 20
    while breaker.rests and time.monotonic() < deadline:
        breaker.size(KEY)
        time.sleep(0.02)
    breaker.put(KEY, [b"again"])
    assert breaker.read(KEY, 0, 5) == b"again"


def test_a_server_that_was_restarted_between_two_calls_is_no_failure(valkey_servers: Servers) -> None:
    server = valkey_servers()
    tier = ValkeyTier(server.url)
    tier.put(KEY, [b"record"])
    server.stop()
    server.start()
    assert tier.read(KEY, 0, 6) is None


@pytest.mark.parametrize("scheme", ["valkey", "s3"])
def test_a_server_that_does_not_answer_is_away_after_its_time_and_only_a_few_times(
    scheme: str, s3_url: str, valkey_url: str
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        inner = (
            ValkeyTier(f"valkey://127.0.0.1:{port}", timeout_s=0.1)
            if scheme == "valkey"
            else S3Tier("records", endpoint=f"http://127.0.0.1:{port}", region="us-east-1", timeout_s=0.1)
        )
        with pytest.raises(StoreAway):
            inner.read(KEY, 0, 1)
        breaker = Breaker(inner, failures=1)
        breaker.read(KEY, 0, 1)
        begin = time.perf_counter()
        assert breaker.read(KEY, 0, 1) is None
        assert time.perf_counter() - begin < 0.05


@pytest.mark.parametrize("size", [3 << 20, 900 << 10])
def test_a_server_without_room_refuses_and_nothing_is_there(valkey_servers: Servers, size: int) -> None:
    server = valkey_servers("--maxmemory", "2500kb", "--maxmemory-policy", "noeviction")
    tier = ValkeyTier(server.url, part_bytes=256 << 10)
    with pytest.raises(StoreError, match="no room"):
        for number in range(20):
            tier.put(bytes([number]) * 32, [bytes(size)])
    assert all(len(tier.read(key, 0, size) or b"") == size for key, _ in [*tier.keys()])


def test_parts_whose_header_never_came_are_nobodys_and_vanish(valkey_servers: Servers, monkeypatch: Any) -> None:
    server = valkey_servers()
    tier = ValkeyTier(server.url, part_bytes=10)
    monkeypatch.setattr("flowserve.cachestore.tiers.valkey.STAGING_S", 0.2)
    monkeypatch.setattr(tier, "_commit", lambda *_: None)
    tier.put(KEY, [bytes(100)])
    client = _client(server.url)
    assert client.dbsize() == 10
    assert (list(tier.keys()), tier.size(KEY)) == ([], None)
    assert _within(5.0, lambda: client.dbsize() == 0)


WRITER = """
import sys
from flowserve.cachestore.tiers.valkey import ValkeyTier
tier = ValkeyTier(sys.argv[1], part_bytes=100_000)
number = 0
while True:
    number += 1
    tier.put(bytes(32), [bytes([number % 251]) * (1_000_000 + number % 7)])
    print(number, flush=True)
"""


def test_a_writer_that_is_killed_leaves_the_old_or_the_new_record_whole(valkey_servers: Servers) -> None:
    server = valkey_servers()
    tier = ValkeyTier(server.url, part_bytes=100_000)
    for delay_ms in range(0, 40, 4):
        writer = subprocess.Popen([sys.executable, "-c", WRITER, server.url], stdout=subprocess.PIPE)
        assert writer.stdout is not None
        writer.stdout.readline()
        time.sleep(delay_ms / 1000)
        writer.kill()
        writer.wait()
        writer.stdout.close()
        ((key, size),) = tier.keys()
        found = tier.read(key, 0, 2_000_000)
        assert found is not None
        assert (len(found), len(set(bytes(found)))) == (size, 1)


def test_parts_that_waited_too_long_for_their_header_are_no_record(valkey_servers: Servers, monkeypatch: Any) -> None:
    server = valkey_servers()
    tier = ValkeyTier(server.url, part_bytes=10)
    stage = tier._stage

    def stage_and_lose(*arguments: Any) -> None:
        stage(*arguments)
        client = _client(server.url)
        client.delete(*client.keys("*:3"))

    monkeypatch.setattr(tier, "_stage", stage_and_lose)
    with pytest.raises(StoreError, match="1 of 10 parts were dropped"):
        tier.put(KEY, [bytes(100)])
    assert _client(server.url).dbsize() == 0


@pytest.mark.parametrize("size", [5, 100])
def test_records_are_forgotten_after_their_time(valkey_servers: Servers, size: int) -> None:
    server = valkey_servers()
    tier = ValkeyTier(server.url, ttl_s=0.3, part_bytes=10)
    tier.put(KEY, [bytes(size)])
    assert tier.size(KEY) == size
    assert _within(5.0, lambda: _client(server.url).dbsize() == 0)
    assert tier.read(KEY, 0, 5) is None


def test_without_a_time_parts_stay_and_replaced_ones_go(valkey_servers: Servers) -> None:
    server = valkey_servers()
    tier, client = ValkeyTier(server.url, part_bytes=10), _client(server.url)
    for _ in range(3):
        tier.put(KEY, [bytes(100)])
    assert {client.ttl(name) for name in client.keys("*")} == {-1}
    assert client.dbsize() == 11
    tier.delete(KEY)
    assert client.dbsize() == 0


def test_a_record_that_lost_a_part_is_a_miss_where_the_part_is_needed(valkey_servers: Servers) -> None:
    server = valkey_servers()
    tier, client = ValkeyTier(server.url, part_bytes=10), _client(server.url)
    tier.put(KEY, [bytes(100)])
    client.delete(*client.keys("*:3"))
    assert tier.read(KEY, 25, 10) is None
    assert tier.read(KEY, 40, 10) == bytes(10)


@pytest.mark.parametrize("header", [(1, 1 << 60, 1), (1, 5, 0), (0, (MAX_PARTS + 1) * 7, 7)])
def test_a_header_that_claims_more_than_we_write_is_no_record(
    valkey_servers: Servers, header: tuple[int, int, int]
) -> None:
    """Listing the parts of the first would take more memory than there is."""
    server = valkey_servers()
    tier = ValkeyTier(server.url)
    _client(server.url).set(f"flowserve:record:{KEY.hex()}", HEADER.pack(*header))
    assert (tier.size(KEY), tier.read(KEY, 0, 1 << 40), list(tier.keys())) == (None, None, [])
    tier.put(KEY, [b"record"])
    assert tier.read(KEY, 0, 6) == b"record"


def test_foreign_names_are_not_listed(valkey_servers: Servers) -> None:
    server = valkey_servers()
    tier = ValkeyTier(server.url, "a*[b")
    _client(server.url).mset({"a*[b:record:zz": b"x" * 99, "axb:record:00": b"x" * 99, "other": b"x" * 99})
    tier.put(KEY, [b"record"])
    assert list(tier.keys()) == [(KEY, 6)]


def test_a_record_of_several_parts_is_one_object(s3_url: str) -> None:
    address = s3_url.partition("endpoint=")[2].partition("&")[0]
    tier = S3Tier("records", "long", address, "us-east-1", part_bytes=MIN_PART_BYTES)
    content = np.random.default_rng(0).bytes(2 * MIN_PART_BYTES + 17)
    tier.put(KEY, [content[:100], content[100:]])
    assert list(tier.keys()) == [(KEY, len(content))]
    assert tier.read(KEY, MIN_PART_BYTES - 3, 10) == content[MIN_PART_BYTES - 3 :][:10]


def test_a_bucket_that_is_not_there_is_away_and_not_empty(s3_url: str) -> None:
    address = s3_url.partition("endpoint=")[2].partition("&")[0]
    tier = S3Tier("nowhere", endpoint=address, region="us-east-1")
    for asked in (lambda: tier.put(KEY, [b"x"]), lambda: tier.read(KEY, 0, 1), lambda: list(tier.keys())):
        with pytest.raises(StoreAway, match="s3://nowhere/flowserve/: .*NoSuchBucket"):
            asked()


def test_bytes_that_somebody_changed_on_the_server_are_never_used(valkey_servers: Servers) -> None:
    """With the seal and digests, also where the checksums were made to fit: only the secret's owner can write records."""
    server = valkey_servers()
    tier, client = ValkeyTier(server.url), _client(server.url)
    about = About(KEY, (1, 2, 3), Geometry(2, 1, 4, "float32"))
    layers = [(np.ones((3, 1, 4), np.float32), np.ones((3, 1, 4), np.float32))] * 2
    expected = Expected(KEY, about.geometry)
    name = f"flowserve:record:{KEY.hex()}"

    tier.put(KEY, pack(about, layers, seal_key=b"s" * 32))
    reader = open_record(partial(tier.read, KEY), expected, seal_key=b"s" * 32, digests=True)
    assert (reader.layer(1)[0] == 1).all()

    tier.put(KEY, pack(about, layers, seal_key=b"forger" * 6))
    with pytest.raises(Damaged) as forged:
        open_record(partial(tier.read, KEY), expected, seal_key=b"s" * 32, digests=True)
    assert forged.value.reason is Reason.SEAL

    tier.put(KEY, pack(about, layers, seal_key=b"s" * 32))
    offset, _ = open_record(partial(tier.read, KEY), expected, seal_key=b"s" * 32).span(1)
    client.setrange(name, HEADER.size + offset, b"\x01")
    with pytest.raises(Damaged) as flipped:
        open_record(partial(tier.read, KEY), expected, seal_key=b"s" * 32, digests=True).layer(1)
    assert flipped.value.reason is Reason.CHECKSUM


@pytest.mark.parametrize(
    ("url", "ttl_s", "told"),
    [
        ("http://host", None, "expected a URL of scheme s3, valkey, .*; got scheme 'http'"),
        ("s3:///prefix", None, "expected a bucket, as s3://bucket/prefix"),
        ("s3://bucket/p?end=x", None, "unknown 'end'; known are endpoint, region"),
        ("s3://bucket/p", 60.0, "objects expire by the bucket's lifecycle rule"),
        ("s3://bucket/p?endpoint=here&region=x", None, "endpoint 'here', region 'x': Invalid endpoint: here"),
        ("valkey://host:port/0", None, "valkey tier at host: Port could not be cast"),
        ("valkey://:sesame@host?socket_timeout=x", None, "^valkey://host: expected options that the client knows: Inv"),
        ("valkey://host?nonsense=1", None, "unexpected keyword argument 'nonsense'"),
        ("valkey://host", 0.0, "ttl_s: expected at least 0.001 seconds, got 0.0"),
    ],
)
def test_what_is_set_wrongly_is_told(url: str, ttl_s: float | None, told: str) -> None:
    pytest.importorskip("valkey", reason="the client is not installed (flowserve[valkey])")
    pytest.importorskip("boto3", reason="the client is not installed (flowserve[s3])")
    with pytest.raises(ConfigError, match=told):
        open_remote(url, ttl_s)


def test_no_message_tells_a_password() -> None:
    pytest.importorskip("valkey", reason="the client is not installed (flowserve[valkey])")
    tier = ValkeyTier("valkey://user:sesame@127.0.0.1:1/0")
    with pytest.raises(StoreAway) as away:
        tier.size(KEY)
    assert str(away.value).startswith("valkey://127.0.0.1:1/0: size: ")
    assert "sesame" not in str(away.value)


def _client(url: str) -> Any:
    from valkey import Valkey

    return Valkey.from_url(url)


def _within(seconds: float, holds: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True
