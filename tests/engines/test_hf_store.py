"""The transformers engine with a store of its own: what gates allow, what is kept, that damage never reaches an answer, and what shadows
of its blends show."""

import json
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="the transformers engine needs torch")

from flowserve.cachestore.divergence import kl
from flowserve.cachestore.gatefiles import Gates
from flowserve.cachestore.gates import Figures, Gate, Thresholds, subject_of
from flowserve.cachestore.policies import Policy
from flowserve.cachestore.segments import Provenance, Quality
from flowserve.cachestore.settings import ReuseSettings
from flowserve.engines.base import Call, Origin, Output, Sampling, Segment
from flowserve.engines.hf import HFEngine
from flowserve.engines.model_identity import weights_digest
from flowserve.errors import ConfigError

pytestmark = pytest.mark.torch

CHUNKS = [tuple(7 + (31 * i + 17 * j) % 280 for j in range(40)) for i in range(4)]
PROMPT = 3 + 3 * 40 + 2


def ask(name: str, order: Sequence[int] = (0, 1, 2), **fields: Any) -> Call:
    segments = [Segment((5, 6, 7), Origin.TEMPLATE)]
    segments += [Segment(CHUNKS[i], Origin.CHUNK) for i in order]
    segments.append(Segment((11, 12), Origin.VALUE))
    given: dict[str, Any] = {"tenant": "a", "reuse": Quality.BALANCED, **fields}
    return Call(name, tuple(segments), Sampling(max_tokens=16, ignore_eos=True), **given)


async def run(engine: HFEngine, call: Call) -> tuple[list[int], Provenance]:
    outputs: list[Output] = [output async for output in engine.generate(call)]
    [provenance] = [output.provenance for output in outputs if output.provenance is not None]
    return [i for output in outputs for i in output.token_ids], provenance


class Lab:
    """A tiny model, a folder of gates and one of records."""

    def __init__(self, model: Path, folder: Path) -> None:
        self.model = model
        self.gates = folder / "gates"
        self.records = folder / "records"
        self.gates.mkdir()
        self._engines: list[HFEngine] = []

    async def start(self, prefix_bytes: int = 0, **changes: Any) -> HFEngine:
        settings = ReuseSettings(**{"disk": self.records, "gates": self.gates, "balanced": "first_k:4", **changes})
        engine = HFEngine(self.model, reuse=settings, quiet=True, prefix_bytes=prefix_bytes)
        self._engines.append(engine)
        await engine.start()
        return engine

    async def open_gate(self, policy: Policy, **changes: Any) -> None:
        engine = await self.start(disk=None)
        identity = engine.identity
        assert identity is not None
        await engine.close()
        figures = Figures(
            n=400, score="f1", score_full=0.9, score_policy=0.9, loss_high=0.0, kl_mean=0.0, far=0, differing=0
        )
        created = datetime.now(UTC)
        facts: dict[str, Any] = {
            "subject": subject_of(identity, policy, "raw16"),
            "name": "tiny",
            "figures": figures,
            "thresholds": Thresholds(),
            "dataset": "none",
            "dataset_sha256": "",
            "created": created,
            "expires": created + timedelta(days=1),
            "versions": {},
        }
        Gates(self.gates).write(Gate(**facts | changes))

    async def close(self) -> None:
        for engine in self._engines:
            await engine.close()


@pytest.fixture
async def lab(tiny_folder: Callable[[str], Path], tmp_path: Path) -> Any:
    lab = Lab(tiny_folder("llama"), tmp_path)
    yield lab
    await lab.close()


async def test_the_second_question_over_the_same_passages_pastes_them_in_any_order(lab: Lab) -> None:
    await lab.open_gate(Policy("first_k", k=4))
    engine = await lab.start()
    assert engine.capabilities.chunk_reuse == ("first_k",)
    _, first = await run(engine, ask("first"))
    assert first == Provenance(0, 0, PROMPT, "")
    await engine.settled()
    _, second = await run(engine, ask("second", (2, 0, 1)))
    assert second == Provenance(0, 3 * 36, PROMPT - 3 * 36, "first_k")


async def test_a_restarted_engine_finds_its_records(lab: Lab) -> None:
    await lab.open_gate(Policy("first_k", k=4))
    engine = await lab.start(host_bytes=0)
    await run(engine, ask("first"))
    await engine.settled()
    wanted = await run(engine, ask("second"))
    await engine.close()
    again = await lab.start()
    assert await run(again, ask("third")) == wanted and wanted[1].pasted


@pytest.mark.parametrize("quality", [Quality.EXACT, Quality.FAST])
async def test_other_classes_than_the_one_whose_policy_passed_paste_nothing(lab: Lab, quality: Quality) -> None:
    await lab.open_gate(Policy("first_k", k=4))
    engine = await lab.start(fast="sink0")
    await run(engine, ask("first"))
    await engine.settled()
    _, found = await run(engine, ask("second", reuse=quality))
    assert found.pasted == 0


@pytest.mark.parametrize(
    "changes",
    [
        {"revoked": "by hand"},
        {"created": datetime(2020, 1, 1, tzinfo=UTC), "expires": datetime(2020, 3, 1, tzinfo=UTC)},
    ],
    ids=["revoked", "expired"],
)
async def test_without_a_gate_that_holds_nothing_is_pasted(
    lab: Lab, changes: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    await lab.open_gate(Policy("first_k", k=4), **changes)
    caplog.clear()
    engine = await lab.start()
    assert engine.capabilities.chunk_reuse == () and "nothing is pasted" in caplog.text
    for name in ("first", "second"):
        _, found = await run(engine, ask(name))
        assert found.pasted == 0


async def test_a_folder_that_another_engine_has_is_said_at_the_start(lab: Lab) -> None:
    await lab.start()
    with pytest.raises(ConfigError, match="another process has the folder"):
        await lab.start()


async def test_another_tenant_finds_nothing_of_the_same_passages(lab: Lab) -> None:
    await lab.open_gate(Policy("first_k", k=4))
    engine = await lab.start()
    await run(engine, ask("first"))
    await engine.settled()
    _, other = await run(engine, ask("second", tenant="b"))
    assert other.pasted == 0
    await engine.settled()
    _, own = await run(engine, ask("third", tenant="b"))
    assert own.pasted


async def test_bytes_flipped_in_every_record_while_it_serves_change_no_answer_and_raise_no_error(lab: Lab) -> None:
    await lab.open_gate(Policy("first_k", k=4))
    engine = await lab.start(host_bytes=0)
    exact, _ = await run(engine, ask("exact", reuse=Quality.EXACT))
    await run(engine, ask("first"))
    await engine.settled()
    files = sorted(lab.records.glob("*/*.kv"))
    assert len(files) == 3
    for number, path in enumerate(files):
        data = bytearray(path.read_bytes())
        data[len(data) * (number + 1) // 5] ^= 16
        path.write_bytes(data)
    answer, found = await run(engine, ask("second"))
    store = engine.store
    assert store is not None
    assert answer == exact and found.pasted == 0 and store.figures.quarantined.total() == 3
    await engine.settled()
    assert ("quarantined", "checksum", 3) in engine.status().records
    _, healed = await run(engine, ask("third"))
    assert healed.pasted == 3 * 36 and store.leased == 0


async def blend(engine: HFEngine, times: int, **fields: Any) -> list[int]:
    """Tokens pasted for each of so many calls, one after another, when the passages have records."""
    await run(engine, ask("warm", **fields))
    await engine.settled()
    pasted = []
    for number in range(times):
        _, found = await run(engine, ask(f"blend {number}", **fields))
        await engine.settled()
        pasted.append(found.pasted)
    return pasted


def shown(engine: HFEngine) -> dict[str, int]:
    """Verdicts of shadows."""
    return {detail: count for what, detail, count in engine.status().records if what == "shadow"}


def told_tally(lab: Lab) -> dict[str, int]:
    [path] = lab.gates.glob("*.shadows")
    tally: dict[str, int] = json.loads(path.read_text())["tally"]
    return tally


async def test_a_breach_turns_the_policy_off_at_once_and_after_a_restart(
    lab: Lab, caplog: pytest.LogCaptureFixture
) -> None:
    await lab.open_gate(Policy("first_k", k=4), thresholds=Thresholds(kl=1e-9))
    engine = await lab.start(shadow_share=1.0)
    pasted = await blend(engine, 8)
    number = pasted.index(0)
    assert 1 < number < 8 and pasted == [3 * 36] * number + [0] * (8 - number)
    assert ("turned_off", "first_k:k=4", 1) in engine.status().records and sum(shown(engine).values()) == number
    assert engine.capabilities.chunk_reuse == () and "is off for this model: shadows show more" in caplog.text
    [gate] = Gates(lab.gates)
    assert gate.revoked is not None and f"{number} of {number}" in gate.revoked
    await engine.close()
    again = await lab.start(shadow_share=1.0)
    assert await blend(again, 1) == [0] and again.capabilities.chunk_reuse == ()


@pytest.mark.parametrize(("scale", "far"), [(0.999, 1), (1.001, 0)])
async def test_a_shadow_compares_what_the_call_drew_from_with_full_prefill(lab: Lab, scale: float, far: int) -> None:
    await lab.open_gate(Policy("first_k", k=4))
    engine = await lab.start(shadow_share=0.0)
    await blend(engine, 0)
    full, blended = [await engine.first_logprobs(ask("first", reuse=q)) for q in (Quality.EXACT, Quality.BALANCED)]
    distance = kl(full.numpy(), blended.numpy())
    await engine.close()
    await lab.open_gate(Policy("first_k", k=4), thresholds=Thresholds(kl=distance * scale))
    watched = await lab.start(shadow_share=1.0)
    await blend(watched, 1)
    assert told_tally(lab) == {"seen": 1, "far": far, "differing": int(full.argmax() != blended.argmax())}


async def test_what_was_not_blended_and_what_is_not_in_the_share_has_no_shadow(lab: Lab) -> None:
    await lab.open_gate(Policy("first_k", k=4))
    engine = await lab.start(shadow_share=0.0)
    assert await blend(engine, 2) == [3 * 36] * 2
    await engine.close()
    other = await lab.start(shadow_share=1.0)
    await blend(other, 2, reuse=Quality.EXACT)
    assert not shown(engine) and not shown(other) and not list(lab.gates.glob("*.shadows"))


async def test_a_shadow_changes_no_answer_and_leaves_nothing_in_the_prefix_cache(lab: Lab) -> None:
    await lab.open_gate(Policy("first_k", k=4), thresholds=Thresholds(kl=99.0))
    answers = []
    for share in (0.0, 1.0):
        engine = await lab.start(prefix_bytes=1 << 20, shadow_share=share)
        await blend(engine, 0)
        answers.append(await run(engine, ask("blend", (3, 2, 1, 0))))
        await engine.settled()
        _, exact = await run(engine, ask("exact", (3, 2, 1, 0), reuse=Quality.EXACT))
        assert exact.exact == 3 + 40 + 4, "up to the first pasted token, and no further"
        await engine.close()
    assert answers[0] == answers[1] and told_tally(lab)["seen"] == 1


async def test_a_gate_that_is_shut_elsewhere_turns_the_policy_off_at_the_next_shadow(lab: Lab) -> None:
    await lab.open_gate(Policy("first_k", k=4))
    engine = await lab.start(shadow_share=1.0)
    assert await blend(engine, 1) == [3 * 36]
    [gate] = Gates(lab.gates)
    Gates(lab.gates).revoke(gate.subject, "by hand")
    assert await blend(engine, 2) == [0, 0], "the shadow of the call that warmed it has told"


async def test_an_engine_that_closes_while_a_shadow_waits_ends_it(lab: Lab) -> None:
    await lab.open_gate(Policy("first_k", k=4))
    engine = await lab.start(shadow_share=1.0)
    await blend(engine, 0)
    await run(engine, ask("blend"))
    await engine.close()
    again = await lab.start()
    assert again.capabilities.chunk_reuse == ("first_k",)


async def test_models_with_other_weights_are_others(tiny_folder: Callable[[str], Path]) -> None:
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(tiny_folder("llama"))
    before = weights_digest(model)
    assert weights_digest(model) == before
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight.mul_(1.01)
    assert weights_digest(model) != before
