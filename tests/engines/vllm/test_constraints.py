"""Constrained output, thinking budgets and adapters, and what an engine says that has none of them."""

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from flowserve import demo
from flowserve.engines.base import Call, Origin, Output, Segment
from flowserve.engines.vllm import VLLMEngine
from flowserve.errors import EngineLost, InputError, UnknownName, Unsupported

pytestmark = [pytest.mark.vllm, pytest.mark.asyncio(loop_scope="module")]
MakeCall = Callable[..., Call]
Start = Callable[..., Awaitable[VLLMEngine]]
SCHEMA = {
    "type": "object",
    "properties": {
        "list": {"type": "array", "items": {"enum": ["x", "y"]}, "minItems": 2, "maxItems": 3},
        "ok": {"type": "boolean"},
    },
    "required": ["list", "ok"],
    "additionalProperties": False,
}


@pytest.fixture(scope="session")
def adapter(tiny: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A LoRA adapter of the tiny model that changes its answers."""
    import torch
    from safetensors.torch import save_file

    config = json.loads((Path(tiny) / "config.json").read_text())
    folder = tmp_path_factory.mktemp("adapter")
    torch.manual_seed(1)
    weights = {}
    for layer in range(config["num_hidden_layers"]):
        for name, heads in (("q_proj", config["num_attention_heads"]), ("v_proj", config["num_key_value_heads"])):
            key = f"base_model.model.model.layers.{layer}.self_attn.{name}"
            weights[f"{key}.lora_A.weight"] = torch.randn(8, config["hidden_size"])
            weights[f"{key}.lora_B.weight"] = torch.randn(heads * config["head_dim"], 8)
    save_file(weights, folder / "adapter_model.safetensors")
    described = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": 8,
        "lora_alpha": 16,
        "target_modules": ["q_proj", "v_proj"],
    }
    (folder / "adapter_config.json").write_text(
        json.dumps({**described, "bias": "none", "base_model_name_or_path": tiny})
    )
    return str(folder)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine(start: Start, adapter: str) -> VLLMEngine:
    """With an adapter, and with marks of thinking."""
    marks = {"reasoning_start_str": "<|system|>", "reasoning_end_str": "<|tool|>"}
    return await start(name="tiny", loras={"tuned": adapter}, args={"reasoning_config": marks})


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def plain(start: Start) -> VLLMEngine:
    """The demo model, whose tokenizer cannot be constrained, with nothing else either."""
    return await start(model=str(demo.reader_path()))


@pytest.fixture
def call(engine: VLLMEngine, calls_for: Callable[[VLLMEngine], MakeCall]) -> MakeCall:
    return calls_for(engine)


async def collect(engine: VLLMEngine, call: Call) -> list[Output]:
    return [output async for output in engine.generate(call)]


def text(outputs: Iterable[Output]) -> str:
    return "".join(output.text for output in outputs)


def ids(outputs: Iterable[Output]) -> tuple[int, ...]:
    return tuple(i for output in outputs for i in output.token_ids)


async def test_json_comes_in_the_form_of_the_transformers_engine(engine: VLLMEngine, call: MakeCall) -> None:
    """A weak model could otherwise write white space without end."""
    wanted = [call(schema=SCHEMA, temperature=1.5, seed=seed, max_tokens=200) for seed in range(4)]
    for outputs in await asyncio.gather(*(collect(engine, one) for one in wanted)):
        assert json.dumps(json.loads(text(outputs))) == text(outputs)


async def test_logprobs_of_constrained_output_are_finite(engine: VLLMEngine, call: MakeCall) -> None:
    outputs = await collect(engine, call(regex="(a|b)c", logprobs=20, max_tokens=10))
    entries = [entry for output in outputs for entry in output.logprobs]
    assert [entry.token_id for entry in entries] == list(ids(outputs))
    assert all(-1000 < value <= 0 for entry in entries for value in (entry.logprob, *(top[2] for top in entry.top)))


@pytest.mark.parametrize(
    "wrong",
    [
        {"schema": {"type": "no such type"}},
        {"regex": "(unclosed"},
        {"grammar": "start: nowhere"},
        {"grammar": "start: <|nowhere|>"},
    ],
    ids=["schema", "regex", "grammar", "token"],
)
async def test_a_wrong_constraint_is_the_callers_fault(
    engine: VLLMEngine, call: MakeCall, wrong: dict[str, Any]
) -> None:
    """Of the last one vLLM only logs that it is wrong."""
    with pytest.raises(InputError):
        await collect(engine, call(**wrong))
    assert await collect(engine, call())


@pytest.mark.parametrize("budget", [0, 5])
async def test_thinking_ends_with_its_budget(engine: VLLMEngine, call: MakeCall, budget: int) -> None:
    mark, end = engine.tokenizer.encode_template("<|system|><|tool|>")
    prompt = (*call("Think.").segments, Segment((mark,), Origin.TEMPLATE, "<|system|>"))
    outputs = await collect(engine, call(segments=prompt, thinking_budget=budget, max_tokens=12, ignore_eos=True))
    assert ids(outputs).index(end) == budget


async def test_an_adapter_is_a_model_by_name_and_shares_no_prefix(engine: VLLMEngine, call: MakeCall) -> None:
    assert engine.capabilities.models == ("tiny", "tuned") and engine.capabilities.lora
    prompt = call("a prompt that is longer than a block or two of the prefix cache " * 3).segments
    base = await collect(engine, call(segments=prompt, model="tiny", max_tokens=12, ignore_eos=True))
    tuned = await collect(engine, call(segments=prompt, model="tuned", max_tokens=12, ignore_eos=True))
    assert ids(tuned) != ids(base)
    assert tuned[0].cached_tokens == 0
    again = await collect(engine, call(segments=prompt, model="tuned", max_tokens=12, ignore_eos=True))
    assert ids(again) == ids(tuned) and again[0].cached_tokens > 0
    with pytest.raises(UnknownName, match="tuned"):
        await collect(engine, call(model="other"))


async def test_a_session_belongs_to_its_adapter(engine: VLLMEngine, call: MakeCall) -> None:
    settings: dict[str, Any] = {"max_tokens": 6, "ignore_eos": True, "session": "talk"}
    first = call("A talk with an adapter. ", model="tuned", keep_s=30, **settings)
    answer = ids(await collect(engine, first))
    segments = (*first.segments, Segment(answer, Origin.GENERATED), *call("More.").segments)
    kept = await collect(engine, call(segments=segments, model="tuned", keep_s=30, **settings))
    assert kept[0].cached_tokens == len(first.prompt_ids) + len(answer) - 1
    assert (await collect(engine, call(segments=segments, model="tiny", **settings)))[0].cached_tokens == 0
    await engine.release("talk")


@pytest.mark.parametrize(
    ("wanted", "flag"),
    [
        ({"schema": SCHEMA}, "structured-outputs-config"),
        ({"regex": "a"}, "structured-outputs-config"),
        ({"grammar": 'start: "a"'}, "structured-outputs-config"),
        ({"thinking_budget": 3}, "--reasoning-parser"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
async def test_what_is_missing_names_vllms_flag(
    plain: VLLMEngine, calls_for: Callable[[VLLMEngine], MakeCall], wanted: dict[str, Any], flag: str
) -> None:
    with pytest.raises(Unsupported, match=flag):
        await collect(plain, calls_for(plain)(**wanted))


async def test_sleep_is_not_offered_on_a_cpu(plain: VLLMEngine) -> None:
    for act in (plain.sleep, plain.wake):
        with pytest.raises(Unsupported, match="enable-sleep-mode"):
            await act()


async def test_a_call_that_nobody_reads_along_comes_in_larger_pieces(engine: VLLMEngine, call: MakeCall) -> None:
    settings: dict[str, Any] = {"max_tokens": 100, "ignore_eos": True, "logprobs": 1}
    pieces = await collect(engine, call(stream=False, **settings))
    single = await collect(engine, call(**settings))
    assert ids(pieces) == ids(single) and text(pieces) == text(single)
    assert [e.token_id for o in pieces for e in o.logprobs] == list(ids(pieces))
    assert len(pieces) < 10 < len(single)


async def test_a_stop_string_among_large_pieces_cuts_at_the_token_that_completes_it(
    engine: VLLMEngine, call: MakeCall
) -> None:
    whole = text(await collect(engine, call(max_tokens=60, ignore_eos=True)))
    at = next(i for i in range(30, len(whole) - 2) if whole[i : i + 2].isascii())
    stop = whole[at : at + 2]
    for stream in (True, False):
        outputs = await collect(engine, call(max_tokens=60, ignore_eos=True, stop=(stop,), stream=stream))
        assert text(outputs) == whole[: whole.index(stop)]
        assert engine.tokenizer.decode(ids(outputs)).endswith(stop[-1])


async def test_a_token_outside_the_vocabulary_is_the_callers_fault(engine: VLLMEngine) -> None:
    with pytest.raises(InputError):
        await collect(engine, Call("outside", (Segment((5, 1 << 20), Origin.VALUE),)))


async def test_the_server_process_loads_neither_vllm_nor_torch_for_it() -> None:
    import subprocess
    import sys

    loaded = (
        "import sys, flowserve.engines.vllm; print([m for m in ('vllm', 'torch', 'transformers') if m in sys.modules])"
    )
    done = await asyncio.to_thread(subprocess.run, [sys.executable, "-c", loaded], capture_output=True, text=True)
    assert done.stdout.strip() == "[]"


async def test_an_engine_that_was_not_started_says_so(settings_of: Callable[..., Any]) -> None:
    engine = VLLMEngine(settings_of())
    with pytest.raises(EngineLost, match="not started"):
        await engine.prefill(Call("early", (Segment((5,), Origin.VALUE),)))
    with pytest.raises(EngineLost, match="not started"):
        await collect(engine, Call("early", (Segment((5,), Origin.VALUE),)))
    await engine.close()
