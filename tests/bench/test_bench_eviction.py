"""Replay of eviction policies: what counts as a hit, that capacities hold, and that nobody beats the one who knows the future."""

import gzip
import json
from itertools import combinations
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flowserve.bench.eviction import Asked, Request, ceiling, chains, rates, replay, run, zipf
from flowserve.bench.eviction_plot import panels
from flowserve.cachestore.eviction import EVICTIONS, eviction
from flowserve.errors import ConfigError


def alone(*names: str) -> Request:
    return [Asked(name.encode(), 10, 1.0) for name in names]


def chain(*names: str) -> Request:
    keys = [name.encode() for name in names]
    return [Asked(key, 10, 1.0, keys[depth - 1] if depth else None) for depth, key in enumerate(keys)]


def test_a_chain_hits_up_to_its_first_missing_block() -> None:
    requests = [chain("a", "b", "c"), chain("a", "b", "d"), chain("a", "b", "c")]
    assert replay(requests, eviction("lru"), 100) == 5 / 9
    # Room for three: c made room for d, so the third finds a and b alone.
    assert replay(requests, eviction("lru"), 30) == 4 / 9


def test_what_stands_alone_hits_wherever_it_stands() -> None:
    assert replay([alone("a"), alone("x", "a")], eviction("lru"), 100) == 1 / 3


def test_a_request_never_evicts_what_it_asked_for_itself() -> None:
    requests = [chain("a", "b", "c"), chain("a", "b", "c")]
    assert replay(requests, eviction("lru"), 20) == 2 / 6


def test_the_ceiling_keeps_what_comes_back_and_lets_the_rest_pass() -> None:
    requests = [alone("a"), alone("b"), alone("c"), alone("a"), alone("d"), alone("a")]
    assert ceiling(requests, 10) == 2 / 6
    assert replay(requests, eviction("lru"), 10) == 0


keys = st.lists(st.sampled_from("abcdef"), min_size=1, max_size=1)


def best(requests: list[Request], room: int) -> int:
    """Most hits of requests of one record of equal size: all contents that a tier could have had, walked forward."""
    states = {frozenset[bytes](): 0}
    for [asked] in requests:
        following: dict[frozenset[bytes], int] = {}
        for held, hits in states.items():
            seen = hits + (asked.key in held)
            may = sorted(held | {asked.key})
            for size in range(min(room, len(may)) + 1):
                for kept in combinations(may, size):
                    following[frozenset(kept)] = max(following.get(frozenset(kept), 0), seen)
        states = following
    return max(states.values())


@settings(max_examples=40, deadline=None)
@given(st.lists(keys, min_size=1, max_size=12), st.integers(1, 3))
def test_the_ceiling_is_the_optimum_of_blocks_of_one_size(names: list[list[str]], room: int) -> None:
    requests = [alone(*name) for name in names]
    assert ceiling(requests, 10 * room) * len(requests) == pytest.approx(best(requests, room))


@settings(max_examples=40, deadline=None)
@given(st.lists(st.lists(st.sampled_from("abc"), min_size=1, max_size=4), min_size=1, max_size=30), st.integers(1, 8))
def test_no_policy_beats_the_ceiling_on_chains(paths: list[list[str]], room: int) -> None:
    requests = [chain(*("".join(path[: end + 1]) for end in range(len(path)))) for path in paths]
    bound = ceiling(requests, 10 * room)
    for name in EVICTIONS:
        assert replay(requests, eviction(name), 10 * room) <= bound + 1e-9, name


def test_made_up_requests_are_the_same_for_the_same_seed_and_scans_are_asked_for_once() -> None:
    assert zipf(0.5, 1)[:50] == zipf(0.5, 1)[:50] != zipf(0.5, 2)[:50]
    seen = [asked.key for request in zipf(0.5, 1) for asked in request]
    assert len(set(seen)) / len(seen) > 0.45


def write(path: Path) -> None:
    with gzip.open(path, "wt") as file:
        for ids in ([1, 2, 3], [1, 2, 4], [1, 2, 3]):
            line = {"timestamp": 0, "input_length": 512 * len(ids) - 5, "output_length": 9, "hash_ids": ids}
            file.write(json.dumps(line) + "\n")


def test_the_last_block_of_a_prompt_counts_only_if_it_is_full(tmp_path: Path) -> None:
    write(tmp_path / "mooncake_small.jsonl.gz")
    requests = chains(tmp_path / "mooncake_small.jsonl.gz")
    assert [len(request) for request in requests] == [2, 2, 2]
    assert requests[0][1].parent == requests[0][0].key
    assert requests[0][1].saved_s > requests[0][0].saved_s
    assert rates(requests, 1.0) == dict.fromkeys([*EVICTIONS, "belady"], round(4 / 6, 4))


def test_the_report_has_a_row_per_trace_and_capacity_and_a_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flowserve.bench.eviction.REQUESTS", 40)
    write(tmp_path / "mooncake_small.jsonl.gz")
    rows = run(tmp_path, lambda line: None, shares=(0.1, 0.5))["traces"]
    assert [(row["name"], row["capacity"]) for row in rows] == [
        (name, share) for name in ("mooncake_small", "zipf", "zipf_scan") for share in (0.1, 0.5)
    ]
    picture = panels("title", rows)
    assert picture.count("<polyline") == 3 * (len(EVICTIONS) + 1)


def test_a_folder_without_traces_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"mooncake_\*\.jsonl\.gz, got"):
        run(tmp_path, lambda line: None)
