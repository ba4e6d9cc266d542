"""Chunks saved, pasted and recomputed inside unpatched vLLM: an engine in a process of its own tells what came out."""

import json
import os
import subprocess
import sys
from typing import Any

import pytest

pytestmark = [pytest.mark.vllm, pytest.mark.slow]

SCRIPT = """
import json, random, sys
from vllm import LLM, SamplingParams
from vllm.config import KVTransferConfig
from flowserve.cachestore.geometry import Geometry
from flowserve.cachestore.policies import Policy
from flowserve.engines.vllm.connector.metadata import Paste, Span, paste_params, save_params
from flowserve.engines.vllm.kv_memory import KVMemory

PLACE = "flowserve.engines.vllm.connector"
llm = LLM(
    sys.argv[1], dtype="float32", enforce_eager=True, block_size=32, max_num_seqs=4, kv_cache_memory_bytes=64 << 20,
    disable_log_stats=True, worker_extension_cls=f"{PLACE}.binding.Binding",
    kv_transfer_config=KVTransferConfig(
        kv_connector="ReuseConnector", kv_connector_module_path=f"{PLACE}.connector", kv_role="kv_both",
        kv_load_failure_policy="recompute",
    ),
)
geometry = Geometry(**llm.collective_rpc("flowserve_bind")[0])
draw = random.Random(0)

def ids(count):
    return [draw.randrange(10, 300) for _ in range(count)]

def ask(prompt, ours=None):
    extra = {"kv_transfer_params": ours} if ours else None
    params = SamplingParams(max_tokens=8, temperature=0.0, logprobs=5, ignore_eos=True, extra_args=extra)
    (output,) = llm.generate({"prompt_token_ids": prompt}, params, use_tqdm=False)
    best = [{str(i): one.logprob for i, one in step.items()} for step in output.outputs[0].logprobs]
    return {"ids": list(output.outputs[0].token_ids), "first": best[0], "cached": output.num_cached_tokens}

def encoded(passage):
    memory = KVMemory(geometry, len(passage))
    ask([5, *passage], save_params(1, 1 + len(passage), memory.place))
    assert memory.whole
    memory.close()
    return memory.kv

def handed(kvs):
    memory = KVMemory(geometry, sum(kv.shape[2] for kv in kvs))
    at = 0
    for kv in kvs:
        memory.kv[:, :, at : at + kv.shape[2]] = kv
        at += kv.shape[2]
    memory.seal()
    return memory

def blended(policy, memory=None, spans=None, **changes):
    memory = memory or handed(records)
    return ask(changes.get("prompt", prompt), paste_params(Paste(tuple(spans or whole), policy, memory.place)))

system, question, passages = ids(40), ids(21), [ids(70), ids(51), ids(64)]
records = [encoded(passage) for passage in passages]

prompt, whole = list(system), []
for number, passage in enumerate(passages):
    whole.append(Span(f"c{number}", len(prompt), len(prompt) + len(passage)))
    prompt += [*passage, 9]
prompt += question

told = {"prompt": prompt, "spans": [(span.start, span.end) for span in whole]}
for name, policy in {
    "all_hkvd": Policy("hkvd", ratio=1.0), "all_first_k": Policy("first_k", k=1000), "full": Policy("full"),
    "hkvd": Policy("hkvd", ratio=0.15), "first_k": Policy("first_k", k=8), "none": Policy("none"),
}.items():
    told[name] = blended(policy)
told["none_again"] = blended(Policy("none"))
told["exact"] = ask(prompt)
told["exact_again"] = ask(prompt)
told["first_alone"] = blended(
    Policy("none"), handed(records[:1]), [Span("c0", 0, 70)], prompt=[*passages[0], *question]
)
unsealed, closed, one, other = (handed(records) for _ in range(4))
unsealed._bytes[-1] ^= 1
closed.close()
one._token = other._token  # a descriptor that names something else meanwhile
gone = {"unsealed": unsealed, "closed": closed, "foreign": one, "short": handed(records[:2])}
for k, (name, memory) in enumerate(gone.items(), 20):  # recipes of their own: nothing of them is in the prefix cache
    told[name] = blended(Policy("first_k", k=k), memory)
told["free"] = llm.llm_engine.engine_core.engine_core.scheduler.kv_cache_manager.block_pool.get_usage()
print(json.dumps(told), flush=True)
"""


@pytest.fixture(scope="module", params=["llama-vllm", "qwen3-vllm"])
def told(request: pytest.FixtureRequest, tiny_folder: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What SCRIPT prints, of one model."""
    script = tmp_path_factory.mktemp("connector") / "engine.py"
    script.write_text(SCRIPT)
    environment = {**os.environ, "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "TORCH_COMPILE_DISABLE": "1"}
    command = [sys.executable, str(script), str(tiny_folder(request.param))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    return {"folder": tiny_folder(request.param), **json.loads(done.stdout.splitlines()[-1])}


def oracle(told: Any, k: int) -> Any:
    """First-token logprobs by transformers: passages encoded alone where they stand, all but their first `k` tokens pasted into a
    cache that grows from left to right, everything else computed on it."""
    import torch
    from transformers import AutoModelForCausalLM, DynamicCache

    model = AutoModelForCausalLM.from_pretrained(told["folder"], dtype=torch.float32).eval()
    prompt, cache, at = told["prompt"], DynamicCache(), 0
    logits = torch.empty(0)

    def compute(end: int) -> None:
        nonlocal at, logits
        if at < end:
            logits = model(
                torch.tensor([prompt[at:end]]), past_key_values=cache, position_ids=torch.arange(at, end)[None]
            ).logits[0, -1]
        at = end

    with torch.inference_mode():
        for start, end in told["spans"]:
            alone, ids = DynamicCache(), torch.tensor([[5, *prompt[start:end]]])
            model(ids, past_key_values=alone, position_ids=torch.arange(start - 1, end)[None])
            compute(start + k)
            layers: list[Any] = list(alone.layers)
            for index, layer in enumerate(layers):
                cache.update(layer.keys[:, :, 1 + k :], layer.values[:, :, 1 + k :], index)
            at = end
        compute(len(prompt))
    return {"first": {str(i): value for i, value in enumerate(logits.log_softmax(-1).tolist())}}


def gap(one: Any, other: Any) -> float:
    """Between first-token logprobs that both tell."""
    return max(abs(one["first"][i] - other["first"][i]) for i in one["first"].keys() & other["first"].keys())


def test_recomputing_everything_equals_prefill(told: Any) -> None:
    floor = gap(told["exact"], told["exact_again"])
    for name in ("all_hkvd", "all_first_k", "full"):
        assert told[name]["ids"] == told["exact"]["ids"]
        assert gap(told[name], told["exact"]) <= max(4 * floor, 1e-4)


@pytest.mark.parametrize(("name", "k"), [("none", 0), ("first_k", 8)])
def test_what_is_pasted_and_recomputed_equals_a_slow_oracle(told: Any, name: str, k: int) -> None:
    assert gap(told[name], oracle(told, k)) < 1e-3


def test_a_pasted_chunk_gives_other_probabilities_and_recompute_lies_between(told: Any) -> None:
    assert gap(told["none"], told["exact"]) > 1e-3
    assert gap(told["hkvd"], told["exact"]) > 1e-4
    assert gap(told["hkvd"], told["none"]) > 1e-4


def test_exact_requests_never_see_pasted_blocks_and_the_same_recipe_does(told: Any) -> None:
    assert told["exact"]["cached"] == 32
    assert told["none_again"]["cached"] >= 224 and told["none_again"]["ids"] == told["none"]["ids"]
    assert told["exact_again"]["ids"] == told["exact"]["ids"]


def test_records_that_are_gone_or_not_whole_or_of_others_are_recomputed(told: Any) -> None:
    for name in ("unsealed", "closed", "foreign", "short"):
        assert told[name]["ids"] == told["exact"]["ids"]
        assert gap(told[name], told["exact"]) <= 1e-4


def test_no_block_is_held_at_the_end(told: Any) -> None:
    assert told["free"] == 0
