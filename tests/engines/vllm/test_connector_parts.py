"""Parts of the connector that need no engine: layouts, selection, records, what requests may ask."""

from types import SimpleNamespace
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="the connector moves tensors")

from flowserve.cachestore.policies import Policy
from flowserve.engines.vllm.connector.hygiene import salted
from flowserve.engines.vllm.connector.layout import PagedLayer
from flowserve.engines.vllm.connector.metadata import Load, Paste, Span, paste_of
from flowserve.engines.vllm.connector.records import Records
from flowserve.engines.vllm.connector.selection import deviating, fixed, runs
from flowserve.errors import ConfigError, FlowServeError

pytestmark = pytest.mark.vllm
HEADS, BLOCK, DIM = 2, 4, 3


def attention(write: Any, dtype: Any = None) -> Any:
    """What PagedLayer sees of vLLM's Attention. write: into the flat blocks, tokens of one slot."""

    class Backend:
        def do_kv_cache_update(self, layer: Any, keys: Any, values: Any, cache: Any, slots: Any) -> None:
            for slot, key, value in zip(slots.tolist(), keys, values, strict=True):
                write(cache[slot // BLOCK], slot % BLOCK, key, value)

    cache = torch.full((3, HEADS, BLOCK, 2 * DIM), 7.0, dtype=dtype or torch.float32)
    return SimpleNamespace(kv_cache=cache, num_kv_heads=HEADS, head_size=DIM, impl=Backend())


def keys_across(block: Any, offset: int, key: Any, value: Any) -> None:
    """Keys transposed in the first half, as vLLM's on a CPU, values in rows in the second."""
    halves = block.view(HEADS, 2, BLOCK * DIM)
    halves[:, 0].view(HEADS, DIM, BLOCK)[:, :, offset] = key
    halves[:, 1].view(HEADS, BLOCK, DIM)[:, offset] = value


def side_by_side(block: Any, offset: int, key: Any, value: Any) -> None:
    """Key and value of a token in one row, as FlashAttention's."""
    block[:, offset, :DIM], block[:, offset, DIM:] = key, value


@pytest.mark.parametrize("write", [keys_across, side_by_side])
def test_what_is_written_is_read_back_whatever_the_layout(write: Any) -> None:
    page = PagedLayer("l", attention(write), torch.float32)
    assert (page._cache[0] == 7.0).all(), "the null block is as it was"
    keys, values = torch.randn(6, HEADS, DIM), torch.randn(6, HEADS, DIM)
    page.write(keys, values, page.slots([2, 1], torch.arange(1, 7)))
    read = page.read([2, 1], 1, 7)
    assert torch.equal(read[0], keys) and torch.equal(read[1], values)
    assert torch.equal(page.read([2, 1], 5, 6)[0], keys[4:5])


def test_layouts_that_are_no_permutation_are_refused() -> None:
    def shared(block: Any, offset: int, key: Any, value: Any) -> None:
        block[:, offset, :DIM], block[:, offset, DIM:] = key, key

    def halved(block: Any, offset: int, key: Any, value: Any) -> None:
        side_by_side(block, offset, key / 2, value / 2)

    for write in (shared, halved):
        with pytest.raises(ConfigError, match="no permutation"):
            PagedLayer("l", attention(write), torch.float32)
    with pytest.raises(ConfigError, match=r"expected a KV cache of torch.float32 in layer 'l'; got torch.uint8"):
        PagedLayer("l", attention(side_by_side, torch.uint8), torch.float32)


def load(policy: Policy, start: int = 0) -> Load:
    chunks = (Span("a", 0, 4), Span("b", 5, 9))
    return Load("r", (1, 2, 3), start, 10, tuple(range(start, 10)), Paste(chunks, policy))


def chosen(selected: Any, start: int = 0) -> list[int]:
    return [start + int(i) for i in selected.nonzero().squeeze(1)]


def test_gaps_and_heads_of_chunks_are_selected_but_a_chunk_at_nought_has_its_context() -> None:
    assert chosen(fixed(load(Policy("none")))) == [4, 9]
    assert chosen(fixed(load(Policy("first_k", k=2)))) == [4, 5, 6, 9]
    assert chosen(fixed(load(Policy("first_k", k=2), 6)), 6) == [6, 9]
    assert chosen(fixed(load(Policy("first_k", k=99)))) == [4, 5, 6, 7, 8, 9]
    assert chosen(fixed(load(Policy("full")))) == list(range(10))


def test_the_most_deviating_are_selected_ties_by_position() -> None:
    old = torch.zeros(5, HEADS, DIM)
    values = old + torch.tensor([9.0, 1.0, 2.0, 2.0, 0.0]).view(5, 1, 1)
    open_ = torch.tensor([False, True, True, True, True])
    policy = Policy("hkvd", ratio=0.25)
    assert chosen(deviating(policy, (old, values), (old, old), open_)) == [2]
    assert chosen(deviating(Policy("hkvd", ratio=1.0), (old, values), (old, old), open_)) == [1, 2, 3, 4]
    assert chosen(deviating(Policy("hkvd", ratio=0.0), (old, values), (old, old), open_)) == []


def test_runs_are_maximal() -> None:
    assert runs(torch.tensor([0, 1, 4, 6, 7, 8])) == [(0, 2), (4, 5), (6, 9)]


def test_hashes_are_salted_from_the_first_block_with_a_pasted_token_on() -> None:
    paste = Paste((Span("a", 9, 12),), Policy("none"))
    hashes = [b"0", b"1", b"2", b"3"]
    ours = salted(hashes, paste, BLOCK)
    assert ours[:2] == hashes[:2] and not set(ours[2:]) & set(hashes)
    assert salted(hashes, Paste(paste.chunks, Policy("first_k")), BLOCK)[2:] != ours[2:]
    assert salted(hashes, Paste((Span("a", 9, 13),), Policy("none")), BLOCK)[2:] != ours[2:]


def test_records_leave_by_age_of_use_and_tell_of_it() -> None:
    def layers(tokens: int) -> list[Any]:
        return [(torch.zeros(tokens, 1, 1), torch.zeros(tokens, 1, 1))]

    records = Records(8 * 6)
    records.put("a", layers(3))
    records.put("b", layers(3))
    assert records.get("a", 3) is not None and records.get("a", 2) is None
    records.put("c", layers(2))
    assert records.gained == {"a", "c"} and records.lost == {"b"}
    records.told()
    records.put("d", layers(7))
    assert records.get("d", 7) is None and not records.gained and not records.lost


@pytest.mark.parametrize(
    "told",
    [
        {"chunks": [{"key": "a", "start": 4, "end": 4}], "policy": {"name": "none"}},
        {
            "chunks": [{"key": "a", "start": 0, "end": 4}, {"key": "b", "start": 3, "end": 6}],
            "policy": {"name": "none"},
        },
        {"chunks": [], "policy": {"name": "query_attn"}},
        {"chunks": [], "policy": {"name": "hkvd", "check_layer": 0}},
    ],
)
def test_requests_that_make_no_sense_are_named(told: dict[str, Any]) -> None:
    with pytest.raises(FlowServeError, match="expected"):
        paste_of({"flowserve": {"paste": told}})
