"""A vLLM engine with a store of passages: what is exact stays exact, what is not is told, and damage never reaches an answer."""

import asyncio
import json
import os
import shutil
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from flowserve.cachestore.gatefiles import Gates
from flowserve.cachestore.gates import Figures, Gate, Subject, Thresholds, subject_of
from flowserve.cachestore.policies import Policy
from flowserve.cachestore.segments import Provenance, Quality
from flowserve.cachestore.settings import ReuseSettings
from flowserve.engines.base import Call, Origin, Output, Sampling, Segment
from flowserve.errors import ConfigError

if TYPE_CHECKING:
    from flowserve.engines.vllm import VLLMEngine, VLLMSettings

pytestmark = [pytest.mark.vllm, pytest.mark.slow, pytest.mark.asyncio(loop_scope="module")]

Start = Callable[..., Awaitable["VLLMEngine"]]
CHUNKS = [tuple(7 + (31 * i + 17 * j) % 280 for j in range(40)) for i in range(12)]
LAYERS = 3
"""Of the model."""
HEAD = tuple(range(50, 92))
"""Longer than a block of 32 tokens."""
PROMPT = len(HEAD) + 3 * 40 + 2


def ask(name: str, order: Sequence[int] = (0, 1, 2), sampling: dict[str, Any] | None = None, **fields: Any) -> Call:
    segments = [Segment(HEAD, Origin.TEMPLATE)]
    segments += [Segment(CHUNKS[i], Origin.CHUNK, document=f"d{i}") for i in order]
    segments.append(Segment((11, 12), Origin.VALUE))
    chosen = Sampling(**{"max_tokens": 12, "ignore_eos": True, **(sampling or {})})
    return Call(name, tuple(segments), chosen, **{"tenant": "a", "reuse": Quality.BALANCED, **fields})


async def run(engine: Any, call: Call) -> tuple[list[int], Provenance]:
    """Tokens of choice 0."""
    outputs: list[Output] = [output async for output in engine.generate(call)]
    [provenance] = [output.provenance for output in outputs if output.provenance is not None]
    assert sum(output.cached_tokens for output in outputs) == provenance.exact
    return [i for output in outputs if output.index == 0 for i in output.token_ids], provenance


def count(engine: "VLLMEngine", what: str) -> int:
    return sum(number for name, _, number in engine.status().records if name == what)


async def put(engine: "VLLMEngine", records: int) -> None:
    """Until the store has taken in so many."""
    async with asyncio.timeout(30):
        while count(engine, "put") < records:
            await asyncio.sleep(0.02)


async def learnt(engine: "VLLMEngine", order: Sequence[int], tenant: str) -> None:
    """Passages that the store did not have are in it."""
    before = count(engine, "put")
    await run(engine, ask(f"learn-{tenant}-{order}", order, tenant=tenant))
    await put(engine, before + len(order))


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the engine's records lie."""
    return tmp_path_factory.mktemp("records")


@pytest.fixture(scope="module")
def reuse(records: Path) -> ReuseSettings:
    return ReuseSettings(host_bytes=0, disk=records, balanced="first_k:4", fast="hkvd:1.0", measuring=True)


@pytest.fixture(scope="module")
def model(tiny_folder: Callable[[str], Path]) -> str:
    return str(tiny_folder("llama-vllm"))


_started: dict[str, Any] = {}


async def engine_of(start: Start, reuse: ReuseSettings, model: str) -> "VLLMEngine":
    """The one of most tests: it takes a while to start."""
    if "engine" not in _started:
        _started["engine"] = await start(model=model, reuse=reuse)
    engine: VLLMEngine = _started["engine"]
    return engine


@pytest.fixture(scope="module", autouse=True)
def forgotten() -> Iterator[None]:
    yield
    _started.clear()


async def test_the_second_question_over_the_same_passages_pastes_them_in_any_order(
    start: Start, reuse: ReuseSettings, model: str
) -> None:
    engine = await engine_of(start, reuse, model)
    assert engine.capabilities.chunk_reuse == ("first_k", "hkvd")
    before = count(engine, "put")
    _, first = await run(engine, ask("first"))
    assert first == Provenance(0, 0, PROMPT, "")
    await put(engine, before + 3)
    _, second = await run(engine, ask("second", (2, 0, 1)))
    assert second == Provenance(32, 3 * 36, PROMPT - 32 - 3 * 36, "first_k")
    _, some = await run(engine, ask("some", (9, 0, 1)))
    assert some == Provenance(32, 2 * 36, PROMPT - 32 - 2 * 36, "first_k"), "a passage without record is computed"


async def test_a_blend_that_recomputes_all_answers_as_a_plain_prefill(
    start: Start, reuse: ReuseSettings, model: str
) -> None:
    engine = await engine_of(start, reuse, model)
    await learnt(engine, (3, 4, 5), "all")
    plain, _ = await run(engine, ask("plain", (5, 3, 4), tenant="all", reuse=Quality.EXACT))
    blended, provenance = await run(engine, ask("blended", (5, 3, 4), tenant="all", reuse=Quality.FAST))
    assert blended == plain
    assert provenance == Provenance(32, 0, PROMPT - 32, "")
    assert count(engine, "hits") >= 3, "else this shows nothing"


async def test_exact_calls_never_see_pasted_blocks_and_the_same_recipe_does(
    start: Start, reuse: ReuseSettings, model: str
) -> None:
    engine = await engine_of(start, reuse, model)
    await learnt(engine, (0, 1, 2), "clean")
    wanted, _ = await run(engine, ask("fresh", (2, 1, 0), tenant="other", reuse=Quality.EXACT))
    blended, _ = await run(engine, ask("blended", (2, 1, 0), tenant="clean"))
    exact, provenance = await run(engine, ask("exact", (2, 1, 0), tenant="clean", reuse=Quality.EXACT))
    again, twice = await run(engine, ask("again", (2, 1, 0), tenant="clean"))
    assert exact == wanted and blended != wanted, "else this shows nothing"
    assert provenance == Provenance(32, 0, PROMPT - 32, "")
    assert again == blended and twice.exact == 32 and twice.pasted > 3 * 36


async def test_another_tenant_finds_nothing(start: Start, reuse: ReuseSettings, model: str) -> None:
    engine = await engine_of(start, reuse, model)
    await learnt(engine, (6, 7), "mine")
    _, theirs = await run(engine, ask("theirs", (7, 6), tenant="yours"))
    _, mine = await run(engine, ask("mine", (7, 6), tenant="mine"))
    assert theirs.pasted == theirs.exact == 0 and mine.pasted == 2 * 36


async def test_flipped_records_are_recomputed_and_made_anew(
    start: Start, reuse: ReuseSettings, model: str, records: Path
) -> None:
    engine = await engine_of(start, reuse, model)
    await learnt(engine, (8, 9, 10), "flipped")
    plain, _ = await run(engine, ask("plain", (10, 9, 8), tenant="flipped", reuse=Quality.EXACT))
    files = [path for path in records.rglob("*") if path.is_file() and path.stat().st_size > 4096]
    for path in files:  # in the middle of the values of some layer
        with path.open("r+b") as file:
            file.seek(path.stat().st_size // 2)
            byte = file.read(1)
            file.seek(-1, os.SEEK_CUR)
            file.write(bytes([byte[0] ^ 0x55]))
    before = count(engine, "put")
    answer, provenance = await run(engine, ask("damaged", (10, 9, 8), tenant="flipped"))
    assert answer == plain and provenance.pasted == 0
    await put(engine, before + 3)
    assert count(engine, "quarantined") >= 3
    _, provenance = await run(engine, ask("repaired", (9, 8, 10), tenant="flipped"))
    assert provenance.pasted == 3 * 36


async def test_choices_and_concurrent_calls_each_get_their_own(start: Start, reuse: ReuseSettings, model: str) -> None:
    engine = await engine_of(start, reuse, model)
    await learnt(engine, (0, 1, 2, 3), "many")
    orders = [(0, 1, 2), (1, 2, 0), (2, 0, 1), (3, 2, 1), (1, 3, 0)]
    alone = [await run(engine, ask(f"alone{i}", order, tenant="many")) for i, order in enumerate(orders)]
    await engine.close()
    await engine.start()
    together = await asyncio.gather(
        *(run(engine, ask(f"together{i}", order, tenant="many")) for i, order in enumerate(orders))
    )
    assert [tokens for tokens, _ in together] == [tokens for tokens, _ in alone]
    assert all(provenance.pasted >= 3 * 36 for _, provenance in together), "a restarted engine finds its records"
    sampled = ask("sampled", (3, 1, 2), {"n": 3, "temperature": 1.0, "seed": 3}, tenant="many")
    assert (await run(engine, sampled))[1].pasted >= 3 * 36


@pytest.mark.parametrize(("quality", "pasted"), [(Quality.FAST, 0), (Quality.BALANCED, 3 * 36)])
async def test_others_go_on_while_a_prompt_is_blended_and_it_makes_no_difference(
    start: Start, reuse: ReuseSettings, model: str, quality: Quality, pasted: int
) -> None:
    engine = await engine_of(start, reuse, model)
    await learnt(engine, (6, 7, 8), quality)
    alone, _ = await run(engine, ask("alone", (8, 7, 6), tenant=quality, reuse=quality))
    wanted = await run(engine, ask("long", (3, 9), {"max_tokens": 150}, reuse=Quality.EXACT))
    await engine.close()  # forgets prefixes
    await engine.start()
    written: list[int] = []
    at: list[int] = []

    async def long() -> None:
        async for output in engine.generate(ask("long", (3, 9), {"max_tokens": 150}, reuse=Quality.EXACT)):
            written.extend(output.token_ids)
            reading.set()

    async def blended() -> tuple[list[int], Provenance]:
        at.append(len(written))
        outputs = []
        async for output in engine.generate(ask("blended", (8, 7, 6), tenant=quality, reuse=quality)):
            at.append(len(written))
            outputs.append(output)
        assert outputs[0].provenance is not None
        return [i for output in outputs for i in output.token_ids], outputs[0].provenance

    reading = asyncio.Event()
    task = asyncio.ensure_future(long())
    await reading.wait()
    found, provenance = await blended()
    await task
    assert found == alone and written == wanted[0]
    assert provenance.pasted == pasted
    assert at[1] - at[0] >= LAYERS, "the other call has written a token for each layer of the blend"


async def test_calls_of_sessions_and_aborted_ones_leave_no_memory_behind(
    start: Start, reuse: ReuseSettings, model: str
) -> None:
    engine = await engine_of(start, reuse, model)
    await learnt(engine, (0, 1, 2), "kept")
    _, kept = await run(engine, ask("kept", (1, 2, 0), tenant="kept", session="s", keep_s=5.0))
    assert kept.pasted == 3 * 36, "it goes alone: what a session holds to the token is exact"
    stream = engine.generate(ask("stopped", (2, 1, 0), {"max_tokens": 200}, tenant="kept"))
    await anext(stream)
    await stream.aclose()  # type: ignore[attr-defined]
    await run(engine, ask("last", (0, 2, 1), tenant="kept"))
    async with asyncio.timeout(10):
        while handed(engine):
            await asyncio.sleep(0.02)


def handed(engine: "VLLMEngine") -> list[str]:
    """Memory with KV that the replica holds open."""
    folder = Path(f"/proc/{engine.pid}/fd")
    return [link for path in folder.iterdir() if path.is_symlink() and "flowserve-kv" in (link := os.readlink(path))]


async def test_the_transformers_engine_finds_the_records_and_gives_the_same_answer(
    start: Start, reuse: ReuseSettings, model: str
) -> None:
    """The same plan in both engines, over the same records."""
    from flowserve.engines.hf import HFEngine

    engine = await engine_of(start, reuse, model)
    await learnt(engine, (4, 5, 6), "both")
    wanted, _ = await run(engine, ask("vllm", (6, 5, 4), tenant="both"))
    await engine.close()
    other = HFEngine(model, reuse=replace(reuse, fast="first_k:4"), quiet=True, prefix_bytes=0)
    await other.start()
    try:
        assert await run(other, ask("hf", (6, 5, 4), tenant="both")) == (
            wanted,
            Provenance(0, 3 * 36, PROMPT - 3 * 36, "first_k"),
        )
    finally:
        await other.close()


async def test_nothing_is_pasted_without_a_gate_and_one_of_the_other_engine_holds(
    start: Start, model: str, tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM

    from flowserve.engines.model_identity import identity_of

    engine = await start(model=model, reuse=ReuseSettings(gates=tmp_path, balanced="first_k:4"))
    await run(engine, ask("first"))
    _, second = await run(engine, ask("second", (2, 1, 0)))
    assert not engine.capabilities.chunk_reuse and second.pasted == 0 and not engine.status().records
    await engine.close()
    loaded: Any = AutoModelForCausalLM.from_pretrained(model, dtype="float32")
    write_gate(tmp_path, subject_of(identity_of(loaded, engine.tokenizer), Policy("first_k", k=4), "raw16"))
    await engine.start()
    assert engine.capabilities.chunk_reuse == ("first_k",)
    await learnt(engine, (0, 1, 2), "a")
    _, second = await run(engine, ask("second", (2, 1, 0)))
    assert second.pasted == 3 * 36


def write_gate(folder: Path, subject: Subject) -> None:
    figures = Figures(
        n=400, score="f1", score_full=0.9, score_policy=0.9, loss_high=0.0, kl_mean=0.0, far=0, differing=0
    )
    created = datetime.now(UTC)
    Gates(folder).write(
        Gate(
            subject=subject,
            name="tiny",
            figures=figures,
            thresholds=Thresholds(),
            dataset="none",
            dataset_sha256="",
            created=created,
            expires=created + timedelta(days=1),
            versions={},
        )
    )


async def test_models_that_nothing_can_be_pasted_into_are_refused_with_the_reason(
    start: Start, model: str, tmp_path: Path
) -> None:
    windowed = Path(shutil.copytree(model, tmp_path / "windowed"))
    config = json.loads((windowed / "config.json").read_text())
    config |= {"model_type": "mistral", "architectures": ["MistralForCausalLM"], "sliding_window": 64}
    (windowed / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match="sliding window.*Turn reuse off"):
        await start(model=str(windowed), reuse=ReuseSettings(measuring=True))


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"kv_events": True}, "expected kv_events off beside it"),
        ({"args": {"tensor_parallel_size": 2}}, "args without tensor_parallel_size"),
        ({"args": {"kv_transfer_config": {}}}, "args without kv_transfer_config"),
        (
            {"reuse": ReuseSettings(balanced="query_attn:0.2")},
            "balanced: expected a policy of none, sink0, first_k, hkvd",
        ),
    ],
)
async def test_settings_that_cannot_go_together_are_refused(
    settings_of: "Callable[..., VLLMSettings]", settings: dict[str, Any], why: str
) -> None:
    with pytest.raises(ConfigError, match=why):
        settings_of(**{"reuse": ReuseSettings(), **settings})


async def test_settings_reach_the_replica_as_they_are(tmp_path: Path) -> None:
    import msgspec

    from flowserve.engines.vllm.settings import packed, unpacked

    for reuse in (ReuseSettings(), ReuseSettings(disk=tmp_path, gates=tmp_path, secret=b"secret" * 4, fast="hkvd:0.2")):
        assert unpacked(msgspec.msgpack.decode(msgspec.msgpack.encode(packed(reuse)))) == reuse
