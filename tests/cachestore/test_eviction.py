"""T18: every policy equals a brute-force simulator; leaf rule; clocks only rise."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flowserve.cachestore.eviction import EVICTIONS, eviction
from flowserve.errors import ConfigError


class Slow:
    """The same policies, told once more: the whole history is kept, ranks are searched, nothing is remembered twice."""

    def __init__(self, name: str) -> None:
        self.name, self.clock, self.now, self.peak = name, 0.0, 0, 0
        self.rank: dict[bytes, float] = {}
        self.parent: dict[bytes, bytes | None] = {}
        self.size: dict[bytes, int] = {}
        self.arrival: dict[bytes, int] = {}
        self.history: dict[bytes, list[tuple[int, float, float, bool, int]]] = {}
        self.ghosts: list[bytes] = []
        self.arrivals = 0

    def use(self, key: bytes, saved: float, load: float, missed: bool) -> None:
        self.now += 1
        story = self.history.setdefault(key, [])
        story.append(
            (self.now, saved / self.size[key], load / self.size[key], missed, len(self.rank) + (key not in self.rank))
        )
        uses = float(len(story))
        if self.name == "net":
            uses, last = 0.0, 0
            for at, _, _, _, resident in story:
                uses, last = uses * 0.5 ** ((at - last) / (16 * resident)) + 1.0, at
        misses = [cost for _, cost, _, missed, _ in story if missed]
        net = sum(cost - load for _, cost, load, _, _ in story) / len(story)
        worth = {
            "lru": float(self.now),
            "lfu": uses,
            "gdsf": self.clock + uses * story[-1][1],
            "pgdsf": self.clock + uses * sum(misses) / len(misses),
            "net": self.clock + uses * max(0.0, net),
        }
        self.rank[key] = worth[self.name]

    def add(self, key: bytes, nbytes: int, saved: float, load: float, parent: bytes | None) -> None:
        self.gone(key, False)
        if key in self.ghosts:
            self.ghosts.remove(key)
        if key not in self.arrival:
            self.arrivals += 1
            self.arrival[key] = self.arrivals
        self.size[key], self.parent[key] = nbytes, parent
        self.use(key, saved, load, True)
        self.peak = max(self.peak, len(self.rank))

    def victim(self, held: frozenset[bytes]) -> bytes | None:
        parents = {self.parent[key] for key in self.rank}
        leaves = [key for key in self.rank if key not in parents and key not in held]
        return min(leaves, key=lambda key: (self.rank[key], self.arrival[key]), default=None)

    def gone(self, key: bytes, evicted: bool) -> None:
        if key not in self.rank:
            return
        rank = self.rank.pop(key)
        if evicted:
            self.clock = max(self.clock, rank)
        if evicted and self.name in ("pgdsf", "net"):
            self.ghosts.append(key)
            forgotten = [self.ghosts.pop(0)] if len(self.ghosts) > self.peak else []
        else:
            forgotten = [key]
        for old in forgotten:
            del self.history[old], self.arrival[old]


KEYS = [bytes([i]) for i in range(8)]
STEP = st.tuples(
    st.sampled_from(("use", "use", "use", "evict", "remove")),
    st.integers(0, 7),
    st.integers(0, 3).map(float),
    st.integers(0, 2).map(float),
    st.frozensets(st.sampled_from(KEYS), max_size=3),
)


@pytest.mark.parametrize("chained", [False, True])
@pytest.mark.parametrize("name", sorted(EVICTIONS))
@settings(max_examples=80, deadline=None)
@given(steps=st.lists(STEP, max_size=60))
def test_a_policy_names_the_victims_of_the_brute_force_simulator(name, chained, steps):
    fast, slow = eviction(name), Slow(name)
    for what, number, saved, load, held in steps:
        key, before = KEYS[number], fast.clock
        if what == "use" and key in slow.rank:
            fast.touch(key, saved, load)
            slow.use(key, saved, load, False)
        elif what == "use":
            parent = KEYS[(number - 1) // 2] if chained and number else None
            fast.add(key, 2**number, saved, load, parent)
            slow.add(key, 2**number, saved, load, parent)
        elif what == "remove":
            fast.remove(key)
            slow.gone(key, False)
        else:
            found = fast.victim(held)
            if found is not None:
                fast.remove(found, evicted=True)
                slow_found = slow.victim(held)
                assert slow_found is not None
                assert slow.rank[slow_found] == pytest.approx(slow.rank[found])
                slow.gone(found, True)
        asked = slow.victim(held)
        answered = fast.victim(held)
        assert (asked is None) == (answered is None)
        if asked is not None and answered is not None and asked != answered:
            assert slow.rank[asked] == pytest.approx(slow.rank[answered])  # a sum in another order
        assert fast.clock >= before


def test_what_has_resident_children_is_no_victim_until_they_are_gone() -> None:
    policy = eviction("lru")
    policy.add(b"root", 1, 1.0)
    policy.add(b"leaf", 1, 1.0, parent=b"root")
    assert policy.victim() == b"leaf"
    assert policy.victim(held={b"leaf"}) is None
    policy.remove(b"leaf", evicted=True)
    assert policy.victim() == b"root"


def test_ties_go_by_arrival() -> None:
    policy = eviction("lfu")
    for key in (b"z", b"a"):
        policy.add(key, 1, 1.0)
    assert policy.victim() == b"z"


def test_each_tier_has_its_own_clock() -> None:
    host, disk = eviction("gdsf"), eviction("gdsf")
    for tier in (host, disk):
        tier.add(b"k", 1, 5.0)
    host.remove(b"k", evicted=True)
    assert (host.clock, disk.clock) == (5.0, 0.0)


def test_a_record_that_loads_slower_than_it_saves_goes_first() -> None:
    policy = eviction("net")
    policy.add(b"slow", 1, 1.0, 2.0)
    policy.add(b"good", 1, 1.0, 0.5)
    policy.touch(b"slow", 1.0, 2.0)
    assert policy.victim() == b"slow"


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="lru, lfu, gdsf, pgdsf, net; got 'fifo'"):
        eviction("fifo")


@pytest.mark.parametrize("name", EVICTIONS)
def test_uses_without_evictions_do_not_pile_up(name: str) -> None:
    policy = eviction(name)
    for number in range(10):
        policy.add(bytes([number]) * 32, 1, 1.0)
    for number in range(5_000):
        policy.touch(bytes([number % 9]) * 32, 1.0)
    assert len(policy._heap) < 200
    assert policy.victim() == bytes([9]) * 32
