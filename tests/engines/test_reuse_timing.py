"""`flowserve bench reuse` on a tiny model: that it measures what it says. Nothing here looks at a time."""

from collections.abc import Callable
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="the embedded engine needs torch")

from flowserve.bench.reuse.picture import picture
from flowserve.bench.reuse.timing import FULL, PREFIX, Shape, run
from flowserve.cachestore.policies import Policy
from flowserve.cachestore.settings import ReuseSettings
from flowserve.engines.hf import HFEngine
from flowserve.errors import ConfigError

pytestmark = pytest.mark.torch


@pytest.fixture
def folder(tiny_folder: Callable[[str], Path]) -> str:
    return str(tiny_folder("llama"))


def test_each_way_is_asked_in_each_round_and_tells_its_origins(folder: str) -> None:
    said: list[str] = []
    policies = ["none", "hkvd:0.5", "hkvd:1"]
    results = run(folder, policies, ["host", "disk"], [Shape(3, 24)], rounds=2, say=said.append)
    assert [text.split()[0] for text in said] == ["3", "round", "round"] * 2
    assert [case["policy"] for case in results["cases"][:5]] == [FULL, PREFIX, *(str(Policy("none")),), *(str(Policy("hkvd", ratio=ratio)) for ratio in (0.5, 1.0))]  # fmt: skip
    for tier in ("host", "disk"):
        full, prefix, none, half, whole = results["cases"][:5] if tier == "host" else results["cases"][5:]
        assert [(case["tier"], case["n"]) for case in (full, none, whole)] == [(None, 2), (tier, 2), (tier, 2)]
        assert full["exact"] == 0 and full["recomputed"] == full["prompt_tokens"] == 24 + 32 + 72
        assert prefix["exact"] == 24 + 24 and prefix["pasted"] == 0
        assert (none["pasted"], half["pasted"], whole["pasted"]) == (72, 36, 0)
        assert whole["kl_mean"] < 1e-4 < none["kl_mean"] and whole["agreement"] == 1.0
        assert full["speedup_vs_full"] == prefix["speedup_vs_prefix"] == 1.0
    drawn = picture("A title", results["cases"])
    assert drawn.count("<rect class=") == 10 and "hkvd:0.5 " in drawn


def test_what_cannot_be_measured_is_refused(folder: str) -> None:
    with pytest.raises(ConfigError, match="--tier: expected host or disk; got 'tape'"):
        run(folder, tiers=["tape"])
    with pytest.raises(ConfigError, match="a size of 4m.*got 'random:9t'"):
        run("random:9t")


async def test_only_an_engine_that_measures_changes_its_policy(folder: str) -> None:
    engine = HFEngine(folder, reuse=ReuseSettings(), quiet=True)
    await engine.start()
    with pytest.raises(ConfigError, match="expected ReuseSettings with measuring=True"):
        engine.paste_by(Policy("none"))
    await engine.close()
    engine = HFEngine(folder, reuse=ReuseSettings(balanced="hkvd:0.15", measuring=True), quiet=True)
    await engine.start()
    assert engine.capabilities.chunk_reuse == ("first_k", "hkvd")
    with pytest.raises(ConfigError, match="check_layer: expected less than the model's 3 layers"):
        engine.paste_by(Policy("hkvd", check_layer=3))
    await engine.close()
