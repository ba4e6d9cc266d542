"""`bench reuse --engine vllm` measures what it says, on a model that is too small for its figures to mean anything."""

from collections.abc import Callable
from pathlib import Path

import pytest

from flowserve.bench.reuse import on_vllm
from flowserve.errors import ConfigError

pytestmark = [pytest.mark.vllm, pytest.mark.slow]


def test_every_way_is_measured_and_only_blends_paste(tiny_folder: Callable[[str], Path]) -> None:
    model = str(tiny_folder("llama-vllm"))
    found = on_vllm.run(model, ["first_k:4"], chunks=4, tokens=40, rounds=2, say=lambda _: None)
    full, prefix, blended = found["cases"]
    prompt = on_vllm.HEAD + 4 * 40 + on_vllm.QUESTION
    for case in found["cases"]:
        assert case["exact"] + case["pasted"] + case["recomputed"] == prompt
        assert case["n"] == 2 and case["ttft_ms_p50"] > 0
    assert (full["exact"], full["pasted"], full["speedup_vs_full"]) == (0, 0, 1.0)
    assert prefix["exact"] >= on_vllm.HEAD + 32 and prefix["pasted"] == 0 and prefix["first_token_agrees"] == 1.0
    assert (blended["exact"], blended["pasted"]) == (on_vllm.HEAD, 4 * 36)


def test_more_rounds_than_orders_are_refused() -> None:
    with pytest.raises(ConfigError, match="for 4 different orders"):
        on_vllm.run("nowhere", ["none"], chunks=3, tokens=40, rounds=2, say=print)
    with pytest.raises(ConfigError, match="expected random:SIZE"):
        on_vllm.run("random:7t", ["none"], chunks=6, tokens=40, rounds=2, say=print)
