"""The radix tree of remembered prefixes, against a slow obvious oracle."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch", reason="KV are torch tensors")

from flowserve.engines.prefix import PrefixCache
from flowserve.engines.slots import Kv

pytestmark = pytest.mark.torch
PER_TOKEN = 2 * 1 * 4 * 4


def kv_of(tokens: tuple[int, ...], start: int, end: int) -> Kv:
    """KV that tells where it is from: each position holds a checksum of the tokens up to it."""
    marks = [float(hash(tokens[: i + 1]) % 1_000_003) for i in range(start, end)]
    return (torch.tensor(marks)[None, None, :, None].expand(2, 1, end - start, 4).clone(),)


def remember(cache: PrefixCache, tenant: str, tokens: tuple[int, ...]) -> None:
    cache.insert(tenant, tokens, lambda start, end: kv_of(tokens, start, end))


def found(cache: PrefixCache, tenant: str, tokens: tuple[int, ...]) -> int:
    """Length of the match; fails when its KV is not that of the tokens."""
    parts = cache.match(tenant, tokens)
    length = sum(part[0].shape[2] for part in parts)
    if length:
        assert torch.equal(torch.cat([part[0] for part in parts], dim=2), kv_of(tokens, 0, length)[0])
    return length


TOKENS = st.lists(st.integers(0, 2), max_size=10).map(tuple)


@given(st.lists(st.tuples(st.sampled_from("ab"), TOKENS), max_size=12), st.tuples(st.sampled_from("ab"), TOKENS))
@settings(deadline=None)
def test_the_longest_common_prefix_of_the_tenant_is_found(
    known: list[tuple[str, tuple[int, ...]]], asked: tuple[str, tuple[int, ...]]
) -> None:
    cache = PrefixCache(1 << 30)
    for tenant, tokens in known:
        remember(cache, tenant, tokens)
    tenant, tokens = asked
    longest = max(
        (n for t, k in known if t == tenant for n in range(len(tokens) + 1) if k[:n] == tokens[:n] and len(k) >= n),
        default=0,
    )
    assert found(cache, tenant, tokens) == longest
    distinct = {(t, k[:n]) for t, k in known for n in range(1, len(k) + 1)}
    assert cache.used_bytes == len(distinct) * PER_TOKEN, "what is shared is stored once"


@given(st.lists(TOKENS, max_size=20), st.integers(0, 30))
@settings(deadline=None)
def test_memory_stays_within_its_bound_and_what_is_left_is_right(known: list[tuple[int, ...]], room: int) -> None:
    cache = PrefixCache(room * PER_TOKEN)
    for tokens in known:
        remember(cache, "", tokens)
        assert cache.used_bytes <= cache.capacity_bytes
    for tokens in known:
        found(cache, "", tokens)


def test_the_least_recently_used_goes_first() -> None:
    cache = PrefixCache(8 * PER_TOKEN)
    first, second, third = (1, 1, 1, 1), (2, 2, 2, 2), (3, 3, 3, 3)
    remember(cache, "", first)
    remember(cache, "", second)
    assert found(cache, "", first) == 4
    remember(cache, "", third)
    assert [found(cache, "", tokens) for tokens in (first, second, third)] == [4, 0, 4]


def test_a_capacity_of_zero_remembers_nothing() -> None:
    cache = PrefixCache(0)
    remember(cache, "", (1, 2, 3))
    assert found(cache, "", (1, 2, 3)) == 0


def test_many_tenants_that_were_evicted_leave_nothing_behind() -> None:
    cache = PrefixCache(10 * PER_TOKEN)
    for i in range(200):
        remember(cache, f"tenant {i}", (random.Random(i).randrange(9),) * 5)
    assert len(cache._roots) <= 2
