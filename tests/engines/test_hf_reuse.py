"""Chunks pasted into prompts of the transformers engine: what is exact stays exact, what is not is told and never remembered."""

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="the transformers engine needs torch")

from flowserve.cachestore.geometry import Geometry, KForm
from flowserve.cachestore.policies import Policy
from flowserve.cachestore.segments import Provenance, Quality
from flowserve.engines.base import Call, Finish, Origin, Output, Sampling, Segment
from flowserve.engines.hf import HFEngine
from flowserve.engines.hf_reuse import ChunkReuse
from flowserve.errors import ConfigError, StoreError, Unsupported

pytestmark = pytest.mark.torch

FAMILIES = ["llama", "mistral", "qwen2", "qwen3"]
SOURCE = random.Random(4)
CHUNKS = [tuple(SOURCE.randrange(7, 290) for _ in range(length)) for length in (24, 9, 31, 24)]
QUESTION = (11, 12, 13, 14, 15)


class Record:
    """A lease on arrays in memory."""

    k_form = KForm.UNROTATED
    tier = "host"
    key = bytes(32)

    def __init__(self, memory: "Memory", kv: Any) -> None:
        self._memory = memory
        self._kv = kv
        self.geometry = Geometry(kv.shape[0] // 2, kv.shape[1], kv.shape[3], "float32")
        self.tokens = kv.shape[2]

    def layer(self, index: int) -> Any:
        if index == self._memory.damaged_layer:
            return None
        return tuple(self._kv[2 * index + part].transpose(0, 1).contiguous().numpy() for part in (0, 1))

    def release(self) -> None:
        self._memory.leased -= 1


class Memory:
    """Records by tenant and ids; counts what is leased."""

    def __init__(self) -> None:
        self.kv: dict[tuple[str, tuple[int, ...]], Any] = {}
        self.leased = 0
        self.taken = 0
        self.damaged_layer: int | None = None
        self.away = False

    def lease(self, tenant: str, ids: Sequence[int]) -> Any:
        if self.away:
            raise StoreError("the tier is away")
        kv = self.kv.get((tenant, tuple(ids)))
        if kv is None:
            return None
        self.leased += 1
        self.taken += 1
        return Record(self, kv)


@pytest.fixture
async def start(tiny_folder: Callable[[str], Path]) -> AsyncIterator[Callable[..., Any]]:
    """Starts engines whose store has all of CHUNKS for tenant "a"; closes them at the end."""
    engines: list[HFEngine] = []

    async def make(policy: Policy | None, family: str = "llama", **options: Any) -> tuple[HFEngine, Memory]:
        memory = Memory()
        reuse = None if policy is None else ChunkReuse(memory, {Quality.BALANCED: policy}, least_chunk_tokens=8)
        engine = HFEngine(
            tiny_folder(family), reuse=reuse, **{"max_batch": 8, "prefill_chunk": 16, "quiet": True, **options}
        )
        engines.append(engine)
        await engine.start()
        if policy is not None:
            for chunk in CHUNKS:
                memory.kv["a", chunk] = await engine.encode(chunk, sink=(1, 8), tenant="a")
        return engine, memory

    yield make
    for engine in engines:
        await engine.close()


def ask(name: str, reuse: Quality = Quality.BALANCED, order: Sequence[int] = (2, 0, 1), **fields: Any) -> Call:
    segments = [Segment((5, 6, 7), Origin.TEMPLATE)]
    segments += [Segment(CHUNKS[i], Origin.CHUNK) for i in order]
    segments.append(Segment(QUESTION, Origin.VALUE))
    sampling = Sampling(**{"max_tokens": 32, "ignore_eos": True, "logprobs": 0, **fields.pop("sampling", {})})
    return Call(name, tuple(segments), sampling, reuse=reuse, **{"tenant": "a", **fields})


async def run(engine: HFEngine, call: Call) -> list[Output]:
    return [output async for output in engine.generate(call)]


def tokens(outputs: list[Output], index: int = 0) -> list[int]:
    return [i for output in outputs if output.index == index for i in output.token_ids]


def logprobs(outputs: list[Output]) -> list[float]:
    return [logprob.logprob for output in outputs for logprob in output.logprobs]


@pytest.mark.parametrize("family", FAMILIES)
async def test_all_recomputed_equals_a_full_prefill(start: Callable[..., Any], family: str) -> None:
    plain, _ = await start(None, family)
    blending, _ = await start(Policy("full"), family)
    wanted, found = [await run(engine, ask("x")) for engine in (plain, blending)]
    assert tokens(found) == tokens(wanted)
    assert logprobs(found) == pytest.approx(logprobs(wanted), abs=1e-4)
    assert found[0].provenance == Provenance(recomputed=72)


async def test_first_k_of_whole_chunks_equals_a_full_prefill(start: Callable[..., Any]) -> None:
    """T9."""
    plain, _ = await start(None)
    blending, _ = await start(Policy("first_k", k=31))
    wanted, found = [await run(engine, ask("x")) for engine in (plain, blending)]
    assert tokens(found) == tokens(wanted)
    assert logprobs(found) == pytest.approx(logprobs(wanted), abs=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
async def test_a_chunk_that_begins_the_prompt_as_it_was_read_is_as_good_as_cached(
    start: Callable[..., Any], family: str
) -> None:
    """T2, to rounding: its keys were taken to no position and back."""
    plain, _ = await start(None, family)
    blending, memory = await start(Policy("none"), family)
    memory.kv["a", CHUNKS[2]] = await blending.encode(CHUNKS[2], sink=(), tenant="a")
    segments = (Segment(CHUNKS[2], Origin.CHUNK), Segment(QUESTION, Origin.VALUE))
    call = Call("x", segments, Sampling(16, ignore_eos=True, logprobs=0), tenant="a", reuse=Quality.BALANCED)
    wanted, found = await run(plain, call), await run(blending, call)
    assert found[0].provenance == Provenance(pasted=31, recomputed=5, policy="none")
    assert tokens(found) == tokens(wanted)
    assert logprobs(found) == pytest.approx(logprobs(wanted), abs=1e-4)


async def test_a_record_does_not_depend_on_what_is_computed_beside_it(start: Callable[..., Any]) -> None:
    """T17, to rounding: where its prompt is cut between steps depends on the others."""
    engine, _ = await start(Policy("none"), prefill_chunk=16)
    alone = await engine.encode(CHUNKS[2], sink=(1, 8), tenant="b")
    others = [asyncio.create_task(run(engine, ask(f"o{i}", Quality.EXACT, order=(i,)))) for i in range(3)]
    among = await engine.encode(CHUNKS[2], sink=(1, 8), tenant="c")
    await asyncio.gather(*others)
    assert torch.allclose(alone, among, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
async def test_a_chunk_behind_what_it_was_encoded_behind_is_as_good_as_computed(
    start: Callable[..., Any], family: str
) -> None:
    """T7: nothing that is pasted deviates, so scattered rows give a full prefill, unless their mask shows them the future."""
    plain, _ = await start(None, family)
    blending, memory = await start(Policy("none"), family)
    memory.kv["a", CHUNKS[3]] = await blending.encode(CHUNKS[3], sink=(5, 6, 7), tenant="a")
    del memory.kv["a", CHUNKS[0]], memory.kv["a", CHUNKS[1]]
    call = ask("x", order=(3, 0, 1))
    wanted, found = await run(plain, call), await run(blending, call)
    assert found[0].provenance == Provenance(pasted=24, recomputed=41, policy="none")
    assert tokens(found) == tokens(wanted)
    assert logprobs(found) == pytest.approx(logprobs(wanted), abs=1e-4)


async def test_an_approximate_call_leaves_nothing_for_an_exact_one(start: Callable[..., Any]) -> None:
    """T19."""
    plain, _ = await start(None)
    blending, _ = await start(Policy("none"))
    blended = await run(blending, ask("blended"))
    exact = await run(blending, ask("exact", Quality.EXACT))
    wanted = await run(plain, ask("x"))
    assert blended[0].provenance == Provenance(pasted=64, recomputed=8, policy="none")
    assert logprobs(blended) != pytest.approx(logprobs(wanted), abs=1e-2), "else this shows nothing"
    assert exact[0].provenance == Provenance(exact=3, recomputed=69), "the computed beginning may be reused"
    assert tokens(exact) == tokens(wanted)
    assert logprobs(exact) == pytest.approx(logprobs(wanted), abs=1e-4)


async def test_what_is_cached_exactly_goes_before_what_is_pasted(start: Callable[..., Any]) -> None:
    blending, _ = await start(Policy("first_k", k=4))
    await run(blending, ask("exact", Quality.EXACT, order=(2, 0)))
    outputs = await run(blending, ask("blended", order=(2, 3, 1)))
    assert outputs[0].cached_tokens == 34
    assert outputs[0].provenance == Provenance(exact=34, pasted=25, recomputed=13, policy="first_k")


async def test_where_a_blend_is_cut_between_steps_changes_nothing(start: Callable[..., Any]) -> None:
    whole, _ = await start(Policy("first_k", k=6), prefill_chunk=256)
    cut, _ = await start(Policy("first_k", k=6), prefill_chunk=3)
    others = [ask(f"o{i}", Quality.EXACT, order=(3,), sampling={"max_tokens": 4 + i}) for i in range(3)]
    wanted = await run(whole, ask("x"))
    found, *_ = await asyncio.gather(run(cut, ask("x")), *(run(cut, other) for other in others))
    assert tokens(found) == tokens(wanted)
    assert logprobs(found) == pytest.approx(logprobs(wanted), abs=1e-4)


async def test_blends_in_one_batch_give_what_they_give_alone(start: Callable[..., Any]) -> None:
    blending, _ = await start(Policy("first_k", k=2))
    orders = [(0, 1), (1, 0), (2, 3, 1), (0,)]
    alone = [tokens(await run(blending, ask(f"a{i}", order=order))) for i, order in enumerate(orders)]
    together = await asyncio.gather(*(run(blending, ask(f"t{i}", order=order)) for i, order in enumerate(orders)))
    assert [tokens(outputs) for outputs in together] == alone
    choices = await run(blending, ask("n", order=orders[0], sampling={"n": 3}))
    assert [tokens(choices, index) for index in range(3)] == [alone[0]] * 3


DYNAMIC = [
    Policy("hkvd", ratio=0.25), Policy("hkvd", ratio=0.5, gradual=(0.25,)), Policy("budgeted", ratio=0.25),
    Policy("query_attn", ratio=0.25),
]  # fmt: skip


@pytest.mark.parametrize("policy", DYNAMIC, ids=str)
async def test_a_dynamic_policy_recomputes_its_share_and_remembers_only_what_is_exact(
    start: Callable[..., Any], policy: Policy
) -> None:
    plain, _ = await start(None)
    blending, _ = await start(policy)
    wanted = await run(plain, ask("x"))
    blended = await run(blending, ask("blended"))
    assert blended[0].provenance == Provenance(pasted=48, recomputed=24, policy=policy.name)
    assert logprobs(blended) != pytest.approx(logprobs(wanted), abs=1e-2), "else this shows nothing"
    exact = await run(blending, ask("exact", Quality.EXACT))
    told = exact[0].provenance
    assert told is not None and told.pasted == 0 and told.exact < 3 + 31
    assert tokens(exact) == tokens(wanted)
    assert logprobs(exact) == pytest.approx(logprobs(wanted), abs=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", ["hkvd", "budgeted", "query_attn"])
async def test_a_dynamic_policy_that_recomputes_all_equals_a_full_prefill(
    start: Callable[..., Any], family: str, name: str
) -> None:
    plain, _ = await start(None, family)
    blending, _ = await start(Policy(name, ratio=1.0), family)
    wanted, found = [await run(engine, ask("x")) for engine in (plain, blending)]
    assert tokens(found) == tokens(wanted)
    assert logprobs(found) == pytest.approx(logprobs(wanted), abs=1e-4)
    assert found[0].provenance == Provenance(recomputed=72)


@pytest.mark.parametrize("name", ["hkvd", "budgeted", "query_attn"])
async def test_a_dynamic_policy_that_recomputes_nothing_pastes_all(start: Callable[..., Any], name: str) -> None:
    """T4, with `none`, which is held against an oracle in blend/test_static.py."""
    pasting, _ = await start(Policy("none"))
    blending, _ = await start(Policy(name, ratio=0.0))
    wanted, found = [await run(engine, ask("x")) for engine in (pasting, blending)]
    assert (tokens(found), logprobs(found)) == (tokens(wanted), logprobs(wanted))
    assert found[0].provenance == Provenance(pasted=64, recomputed=8, policy=name)


@pytest.mark.parametrize("policy", DYNAMIC, ids=str)
async def test_others_may_come_and_go_while_a_dynamic_policy_chooses(start: Callable[..., Any], policy: Policy) -> None:
    """Calls that end meanwhile move its slot; a step takes three tokens' worth of it."""
    whole, _ = await start(policy, prefill_chunk=256, prefix_bytes=0)
    cut, memory = await start(policy, prefill_chunk=3, prefix_bytes=0)
    orders = [(2, 0, 1), (1, 0), (2, 3, 1)]
    alone = [await run(whole, ask(f"a{i}", order=order)) for i, order in enumerate(orders)]
    others = [ask(f"o{i}", Quality.EXACT, order=(3,), sampling={"max_tokens": 2 + 3 * i}) for i in range(4)]
    calls = [ask(f"t{i}", order=order) for i, order in enumerate(orders)]
    together = await asyncio.gather(*(run(cut, call) for call in (*others, *calls)))
    for wanted, found in zip(alone, together[len(others) :], strict=True):
        assert tokens(found) == tokens(wanted)
        assert logprobs(found) == pytest.approx(logprobs(wanted), abs=1e-4)
        assert found[0].provenance == wanted[0].provenance
    assert memory.leased == 0


async def test_a_call_that_is_aborted_while_a_policy_chooses_tells_no_origin(start: Callable[..., Any]) -> None:
    blending, _ = await start(Policy("hkvd"), prefill_chunk=1)
    task = asyncio.create_task(run(blending, ask("x")))
    while not blending.status().running:
        await asyncio.sleep(0)
    await blending.abort("x")
    outputs = await task
    assert outputs[-1].finish is Finish.ABORT
    told = (await run(blending, ask("y")))[0].provenance
    assert told is not None and told.policy == "hkvd"


async def test_an_exact_call_pastes_nothing_and_asks_for_nothing(start: Callable[..., Any]) -> None:
    blending, memory = await start(Policy("none"))
    outputs = await run(blending, ask("x", Quality.EXACT))
    assert (memory.taken, outputs[0].provenance) == (0, Provenance(recomputed=72))
    outputs = await run(blending, ask("y", Quality.FAST))
    assert memory.taken == 0, "no policy of that class has passed"


async def test_another_tenant_finds_nothing(start: Callable[..., Any]) -> None:
    blending, memory = await start(Policy("none"))
    outputs = await run(blending, ask("x", tenant="b"))
    assert (memory.taken, outputs[0].provenance) == (0, Provenance(recomputed=72))


@pytest.mark.parametrize("fault", ["damaged", "away", "foreign"])
async def test_records_that_cannot_be_read_are_computed(start: Callable[..., Any], fault: str) -> None:
    plain, _ = await start(None)
    blending, memory = await start(Policy("none"))
    if fault == "damaged":
        memory.damaged_layer = 2
    elif fault == "away":
        memory.away = True
    else:
        memory.kv = {key: kv[:, :, 1:] for key, kv in memory.kv.items()}
    wanted, found = await run(plain, ask("x")), await run(blending, ask("x"))
    assert tokens(found) == tokens(wanted)
    assert found[0].provenance == Provenance(recomputed=72)
    assert blending.chunk_counts.lost == 3
    assert memory.leased == 0


async def test_no_lease_is_left_whatever_becomes_of_a_call(start: Callable[..., Any]) -> None:
    blending, memory = await start(Policy("none"), prefill_chunk=1)
    ended = await run(blending, ask("ended"))
    aborted: list[Output] = []
    async for output in blending.generate(ask("aborted")):
        aborted.append(output)
        await blending.abort("aborted")
    assert ended[-1].finish is Finish.LENGTH and aborted[-1].finish is Finish.ABORT
    waiting = [asyncio.create_task(run(blending, ask(f"w{i}"))) for i in range(4)]
    await asyncio.sleep(0)
    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
    await run(blending, ask("last"))  # by now the threads of the cancelled have ended
    assert memory.taken >= 9
    assert memory.leased == 0
    assert blending.status().running == 0


async def test_the_last_token_is_computed_even_within_a_chunk(start: Callable[..., Any]) -> None:
    blending, _ = await start(Policy("none"))
    call = Call(
        "x", (Segment(CHUNKS[0], Origin.CHUNK),), Sampling(2, ignore_eos=True), tenant="a", reuse=Quality.BALANCED
    )
    outputs = await run(blending, call)
    assert outputs[0].provenance == Provenance(pasted=23, recomputed=1, policy="none")


async def test_a_record_is_the_same_wherever_its_sink_stood(start: Callable[..., Any]) -> None:
    """Of layer 0 nothing but the position tells the two apart, and that is taken out."""
    blending, _ = await start(Policy("none"))
    near, far = [await blending.encode(CHUNKS[0], sink=(9,) * n) for n in (1, 40)]
    assert torch.allclose(near[:2], far[:2], atol=1e-5)
    assert not torch.allclose(near[2:], far[2:], atol=1e-3)


async def test_reuse_that_cannot_be_is_refused(start: Callable[..., Any], tiny_folder: Callable[[str], Path]) -> None:
    with pytest.raises(ConfigError, match="check_layer: expected less than the model's 3 layers.*got 3"):
        await start(Policy("hkvd", check_layer=3))
    with pytest.raises(ConfigError, match="which never pastes"):
        ChunkReuse(Memory(), {Quality.EXACT: Policy("full")})
    for family in ("gpt2", "gemma2", "mamba"):
        with pytest.raises(ConfigError, match="Turn reuse off"):
            await start(Policy("full"), family)
    plain, _ = await start(None)
    with pytest.raises(Unsupported, match="give it `reuse`"):
        await plain.encode(CHUNKS[0])
    assert plain.capabilities.chunk_reuse == ()
