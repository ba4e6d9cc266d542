"""Parts of the connector that need no engine: layouts, selection, records, what requests may ask."""

from types import SimpleNamespace
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="the connector moves tensors")

from flowserve.cachestore.geometry import Geometry
from flowserve.cachestore.policies import Policy
from flowserve.engines.vllm.connector.hygiene import salted
from flowserve.engines.vllm.connector.layout import PagedLayer
from flowserve.engines.vllm.connector.metadata import (
    PARAMS,
    Load,
    Paste,
    Span,
    Step,
    Wish,
    paste_of,
    paste_params,
    save_params,
    wish_of,
)
from flowserve.engines.vllm.connector.scheduling import Scheduling
from flowserve.engines.vllm.connector.selection import count_pasted, count_rows, deviating, fixed, runs
from flowserve.engines.vllm.connector.working import Working
from flowserve.engines.vllm.kv_memory import KVMemory, Opened, Place
from flowserve.errors import ConfigError, FlowServeError

pytestmark = pytest.mark.vllm
HEADS, BLOCK, DIM = 2, 4, 3
PLACE = Place("/proc/0/fd/9", "00")


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
    return Load("r", (1, 2, 3), start, 10, tuple(range(start, 10)), Paste(chunks, policy, PLACE))


def chosen(selected: Any, start: int = 0) -> list[int]:
    return [start + int(i) for i in selected.nonzero().squeeze(1)]


def test_gaps_and_heads_of_chunks_are_selected_and_counted() -> None:
    assert chosen(fixed(load(Policy("none")))) == [4, 9]
    assert chosen(fixed(load(Policy("first_k", k=2)))) == [0, 1, 4, 5, 6, 9]
    assert chosen(fixed(load(Policy("first_k", k=2), 6)), 6) == [6, 9]
    assert chosen(fixed(load(Policy("first_k", k=99)))) == list(range(10))
    assert chosen(fixed(load(Policy("full")))) == list(range(10))
    assert [count_rows(load(Policy(name, k=2))) for name in ("none", "first_k", "hkvd", "full")] == [2, 6, 10, 10]
    assert [count_pasted(load(Policy("none"))), count_pasted(load(Policy("hkvd", ratio=0.3)))] == [8, 5]


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
    paste = Paste((Span("a", 9, 12),), Policy("none"), PLACE)
    hashes = [b"0", b"1", b"2", b"3"]
    ours = salted(hashes, paste, BLOCK)
    assert ours[:2] == hashes[:2] and not set(ours[2:]) & set(hashes)
    assert salted(hashes, Paste(paste.chunks, Policy("first_k"), PLACE), BLOCK)[2:] != ours[2:]
    assert salted(hashes, Paste((Span("a", 9, 13),), Policy("none"), PLACE), BLOCK)[2:] != ours[2:]
    assert salted(hashes, Paste(paste.chunks, Policy("none"), Place("elsewhere", "11"), "x"), BLOCK) == ours


def test_what_a_request_asks_for_survives_the_way_to_the_scheduler() -> None:
    for policy in (Policy("hkvd", ratio=0.3, metric="k_l2"), Policy("first_k", k=3)):
        paste = Paste((Span("a", 1, 4), Span("b", 4, 9)), policy, PLACE, "7.0.0")
        assert paste_of(paste_params(paste)) == paste and paste.tokens == 8
    assert wish_of(save_params(2, 6, PLACE)) == Wish(2, 6, PLACE)
    assert paste_of(None) is None and wish_of({}) is None


@pytest.mark.parametrize(
    "changes",
    [
        {"chunks": [{"key": "a", "start": 4, "end": 4}]},
        {"chunks": [{"key": "a", "start": 0, "end": 4}, {"key": "b", "start": 3, "end": 6}]},
        {"chunks": []},
        {"policy": {"name": "query_attn"}},
        {"policy": {"name": "hkvd", "check_layer": 0}},
        {"policy": {"name": "hkvd", "gradual": [0.15]}},
    ],
)
def test_requests_that_make_no_sense_are_named(changes: dict[str, Any]) -> None:
    told = paste_params(Paste((Span("a", 0, 4),), Policy("none"), PLACE))[PARAMS]["paste"] | changes
    with pytest.raises(FlowServeError, match="expected"):
        paste_of({PARAMS: {"paste": told}})


def request(name: str, tokens: int = 12, policy: Policy = Policy("none"), at: int = 4) -> Any:  # noqa: B008 frozen
    paste = Paste((Span("a", at, at + 4),), policy, PLACE, f"tag {name}")
    return SimpleNamespace(
        request_id=name,
        kv_transfer_params=paste_params(paste),
        num_prompt_tokens=tokens,
        num_tokens=tokens,
        prompt_token_ids=list(range(tokens)),
        block_hashes=[bytes([i]) for i in range(tokens // BLOCK)],
        lora_request=None,
    )


def begun(scheduling: Scheduling, asked: Any, local: int = 0) -> int | None:
    """As vLLM asks when it begins a request."""
    tokens = scheduling.matched(asked, local)
    if tokens is not None:
        scheduling.allocated(asked, [1, 2, 3], tokens)
    return tokens


def test_blends_that_would_compute_too_much_in_one_step_wait_for_the_next() -> None:
    scheduling = Scheduling(BLOCK, step_rows=7)
    asked = [request("a"), request("b"), request("c")]
    for one in asked:
        scheduling.arrived(one)
    assert [begun(scheduling, one) for one in asked] == [8, None, None]  # each computes 4 tokens of 8
    step = scheduling.step({}, None)
    assert [(load.request, load.start, load.end) for load in step.loads] == [("a", 0, 8)]
    assert begun(scheduling, asked[1], local=4) == 4 and begun(scheduling, asked[2], local=4) == 4
    assert [load.request for load in scheduling.step({}, None).loads] == ["b", "c"]


def test_while_others_are_computed_blends_go_on_in_the_background_and_still_count() -> None:
    scheduling = Scheduling(BLOCK, step_rows=5)
    asked = [request("a"), request("b")]
    for one in asked:
        scheduling.arrived(one)
    assert scheduling.step({"decoding": 1}, None).idle is False and scheduling.busy
    assert begun(scheduling, asked[0]) == 8
    [load] = scheduling.step({"decoding": 1}, None).loads
    assert load.background
    told = scheduling.told()
    assert told is not None and told.data == {PARAMS: {"tag a": (0, 4)}}
    assert begun(scheduling, asked[1]) is None, "the first one has not ended"
    scheduling.finished({"a"})
    scheduling.allocated(asked[0], [1, 2, 3], 0)
    assert scheduling.told() is None, "what was told when it was loaded holds"
    assert begun(scheduling, asked[1]) == 8
    assert scheduling.step({}, None).idle and not scheduling.busy


class Layers:
    """In place of a blend of three layers: notes what is computed."""

    def __init__(self) -> None:
        self.done: list[str] = []
        page = SimpleNamespace(heads=HEADS, dim=DIM, dtype=torch.float32)
        self.pages = [page, page, page]

    def layers(self, load: Load, recorded: Any) -> Any:
        for index in range(3):
            self.done.append(f"{load.request}{index}")
            if index < 2:
                yield


def worker() -> tuple[Working, Layers]:
    working, layers = Working(BLOCK), Layers()
    working._blend = layers  # type: ignore[assignment]
    return working, layers


def given(name: str, background: bool, seal: bool = True) -> tuple[Load, KVMemory]:
    memory = KVMemory(Geometry(3, HEADS, DIM, "float32"), 4)
    if seal:
        memory.seal()
    paste = Paste((Span("a", 4, 8),), Policy("none"), memory.place)
    return Load(name, (7, 8, 9), 4, 8, (1, 2, 3, 4), paste, background), memory


def test_a_load_in_the_background_computes_a_layer_per_step_and_then_ends() -> None:
    working, layers = worker()
    (late, kept), (now, also) = given("b", True), given("n", False)
    working.load(Step([late]))
    working.load(Step([now]))
    assert layers.done == ["b0", "n0", "n1", "n2", "b1"] and not working.finished()
    working.load(Step())
    assert layers.done[-1] == "b2" and working.finished() == {"b"} and not working.finished()
    assert working.failed() is None and not working.bad_blocks()
    kept.close()
    also.close()


def test_when_nothing_else_is_computed_the_background_comes_to_its_end() -> None:
    working, layers = worker()
    late, memory = given("b", True)
    working.load(Step([late], idle=True))
    assert layers.done == ["b0", "b1", "b2"] and working.finished() == {"b"}
    memory.close()


@pytest.mark.parametrize("background", [True, False])
def test_a_load_that_cannot_be_done_names_its_blocks_and_ends(background: bool) -> None:
    working, layers = worker()
    load, memory = given("b", background, seal=False)
    working.load(Step([load]))
    failed = working.failed()
    assert failed is not None and failed.requests == {"b"} and working.bad_blocks() == {8}
    assert working.finished() == ({"b"} if background else set()) and not layers.done
    memory.close()


def test_a_blend_that_is_larger_than_a_step_goes_alone() -> None:
    scheduling = Scheduling(BLOCK, step_rows=2)
    asked = request("a", policy=Policy("full"))
    scheduling.arrived(asked)
    assert begun(scheduling, asked) == 8


def test_it_is_told_how_much_was_exact_and_how_much_pasted() -> None:
    scheduling = Scheduling(BLOCK, step_rows=100)
    fresh, half, blended = request("a", at=5), request("b", at=5), request("c", at=5)
    for one, local in ((fresh, 0), (half, 4), (blended, 8)):
        scheduling.arrived(one)
        begun(scheduling, one, local)
    told = scheduling.told()
    assert told is not None and told.data == {PARAMS: {"tag a": (0, 4), "tag b": (4, 4), "tag c": (4, 5)}}
    assert scheduling.told() is None


def test_a_load_that_failed_is_told_and_not_tried_again() -> None:
    scheduling = Scheduling(BLOCK, step_rows=100)
    asked = request("a")
    scheduling.arrived(asked)
    begun(scheduling, asked, local=4)
    scheduling.failed({"a", "unknown"})
    told = scheduling.told()
    assert told is not None and told.data == {PARAMS: {"tag a": (4, 0)}}
    assert scheduling.matched(asked, 4) == 0
    scheduling.gone("a")
    assert scheduling.matched(asked, 4) == 0, "what is gone is not remembered"


def test_memory_is_read_only_by_whom_it_was_meant_for_and_when_it_is_whole() -> None:
    geometry = Geometry(2, HEADS, DIM, "bfloat16")
    shape = (2, 2, 5, HEADS, DIM)
    memory, other = KVMemory(geometry, 5), KVMemory(geometry, 5)
    worker = Opened(memory.place, shape, torch.bfloat16)
    assert not worker.whole and not memory.whole
    worker.kv.copy_(torch.arange(worker.kv.numel()).view(shape))
    worker.seal()
    assert memory.whole and memory.kv.shape == shape
    assert torch.equal(torch.from_numpy(memory.kv.copy()).view(torch.bfloat16), worker.kv)
    other.seal()
    assert not Opened(Place(other.place.path, memory.place.token), shape, torch.bfloat16).whole
    with pytest.raises(OSError, match="something else"):
        Opened(memory.place, (2, 2, 4, HEADS, DIM), torch.bfloat16)
    memory.close()
    memory.close()
    with pytest.raises(OSError):
        Opened(memory.place, shape, torch.bfloat16)
    assert memory.whole, "its maker still has it"
