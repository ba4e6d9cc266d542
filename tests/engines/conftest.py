"""Engines under test. A new adapter joins the contract suite by adding a maker to `MAKERS`."""

import importlib.util
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from flowserve.engines.base import Call, Engine, Origin, Sampling, Segment
from flowserve.engines.fake import FakeEngine

CORPUS = [
    "The quick brown fox jumps over the lazy dog. ",
    '{"name": "Krekol", "size": 12, "tags": ["a", "b"], "ok": true, "next": null}',
    "Krekol Systems is led by Mudi. Who leads Krekol Systems? é ü 漢字 🎈",
]
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def tiny_tokenizer() -> Any:
    """Byte-level BPE over a handful of sentences."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=384,
        special_tokens=["<pad>", "<s>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>", "<|tool|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(CORPUS, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token="<s>",
        eos_token="<|end|>",
        pad_token="<pad>",
        chat_template=CHAT_TEMPLATE,
    )


def tiny_config(family: str, vocabulary: int) -> Any:
    """A random model of a family, small enough to run in milliseconds."""
    import transformers as t

    common: dict[str, Any] = {
        "vocab_size": vocabulary,
        "hidden_size": 48,
        "intermediate_size": 96,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
        "initializer_range": 0.3,
    }
    gemma = {**common, "head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 8}
    gpt2: dict[str, Any] = {"n_positions": 512, "n_embd": 48, "n_layer": 3, "n_head": 4, "initializer_range": 0.3}
    ids: dict[str, Any] = {"vocab_size": vocabulary, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    make: dict[str, Callable[[], Any]] = {
        "llama": lambda: t.LlamaConfig(**common),
        "llama-vllm": lambda: t.LlamaConfig(**common, head_dim=32),  # vLLM's CPU kernels have no smaller heads
        "qwen2": lambda: t.Qwen2Config(**common),
        "qwen3": lambda: t.Qwen3Config(**common, head_dim=16),
        "qwen3-vllm": lambda: t.Qwen3Config(**common, head_dim=32),
        "mistral": lambda: t.MistralConfig(**common, sliding_window=8),
        "gemma2": lambda: t.Gemma2Config(**gemma),
        "gpt2": lambda: t.GPT2Config(**gpt2, **ids),
        "bloom": lambda: t.BloomConfig(hidden_size=48, n_layer=3, n_head=4, initializer_range=0.3, **ids),
        "mamba": lambda: t.MambaConfig(hidden_size=48, num_hidden_layers=3, state_size=8, initializer_range=0.3, **ids),
    }
    return make[family]()


def save_tiny(folder: Path, family: str) -> Path:
    """A random model of `family` with its tokenizer, in a folder of its own."""
    import torch
    from transformers import AutoModelForCausalLM

    target = folder / family
    if not target.exists():
        tokenizer = tiny_tokenizer()
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(tiny_config(family, len(tokenizer)))
        model.save_pretrained(target)
        tokenizer.save_pretrained(target)
    return target


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """By family: the folder of a tiny random model."""
    pytest.importorskip("torch", reason="the transformers engine needs torch")
    folder = tmp_path_factory.mktemp("models")
    return lambda family: save_tiny(folder, family)


@pytest.fixture(scope="session")
def tiny_tokenizer_of() -> Callable[[], Any]:
    """Makes a small byte-level BPE tokenizer."""
    return tiny_tokenizer


def import_file(path: Path) -> Any:
    """A module beside the tests: in importlib mode they are no package and cannot import it by name."""
    name = f"engines_{path.stem}"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None and spec.loader is not None
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


Maker = Callable[[pytest.FixtureRequest], Engine]


def scripted(call: Call) -> str | None:
    """What the scripted engine says in the contract suite."""
    by_node = {"colour": "red 123", "brackets": "(b)"}
    words = 'one two three "four" five six é🎈 seven eight nine ten'
    return None if call.schema else by_node.get(call.meta.get("node", ""), words)


def make_fake(request: pytest.FixtureRequest) -> Engine:
    return FakeEngine(scripted, max_context=512)


def make_hf(request: pytest.FixtureRequest) -> Engine:
    folder = request.getfixturevalue("tiny_folder")("llama")
    from flowserve.engines.hf import HFEngine

    return HFEngine(folder, max_batch=8, prefill_chunk=32, quiet=True)


def make_openai(request: pytest.FixtureRequest) -> Engine:
    from flowserve.engines.openai import OpenAIEngine, OpenAISettings

    return OpenAIEngine(OpenAISettings(request.getfixturevalue("vllm_server").url, priority=True, quiet=True))


@pytest.fixture(scope="session")
def vllm_server(tiny_folder: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """vLLM's own OpenAI server with a tiny random model, one for all tests; openai/servers.py."""
    servers = import_file(Path(__file__).parent / "openai" / "servers.py")
    log = tmp_path_factory.mktemp("vllm-server") / "log"
    with servers.vllm_server(tiny_folder("llama-vllm"), log) as server:
        yield server


def make_vllm(request: pytest.FixtureRequest) -> Engine:
    folder = request.getfixturevalue("tiny_folder")("llama-vllm")
    from flowserve.engines.vllm import VLLMEngine, VLLMSettings

    core = str(max(os.sched_getaffinity(0)))
    args = {"dtype": "float32", "max_num_seqs": 8}
    return VLLMEngine(VLLMSettings(str(folder), cores=core, kv_bytes=64 << 20, args=args, quiet=True))


MAKERS: dict[str, Maker] = {"fake": make_fake, "hf": make_hf, "openai": make_openai, "vllm": make_vllm}
LASTING = {"vllm"}
"""Kinds of which one engine serves all tests of a module, because they take a second to start and another to close."""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def lasting() -> AsyncIterator[dict[str, Engine]]:
    """The lasting engines, by kind."""
    engines: dict[str, Engine] = {}
    yield engines
    for engine in engines.values():
        await engine.close()


needs_vllm = pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="the vllm engine needs vLLM")


@pytest_asyncio.fixture(
    loop_scope="module",
    params=[
        "fake",
        pytest.param("hf", marks=pytest.mark.torch),
        pytest.param("openai", marks=[pytest.mark.torch, pytest.mark.slow]),
        pytest.param("vllm", marks=[pytest.mark.vllm, needs_vllm]),
    ],
)
async def engine(request: pytest.FixtureRequest, lasting: dict[str, Engine]) -> AsyncIterator[Engine]:
    """A started engine of each kind. Tests that use it run on their module's loop."""
    kind = request.param
    made = lasting.get(kind) or MAKERS[kind](request)
    if kind in LASTING:
        lasting[kind] = made
    if not made.status().up:
        await made.start()
    yield made
    made.watch(None)
    if kind not in LASTING:
        await made.close()


@pytest.fixture
def call(engine: Engine) -> Callable[..., Call]:
    """A call of `engine` with a text prompt; keywords are Sampling's or Call's."""
    return maker_of_calls(engine)


@pytest.fixture
def calls_for() -> Callable[[Engine], Callable[..., Call]]:
    """As `call`, for an engine that the test made."""
    return maker_of_calls


def maker_of_calls(engine: Engine) -> Callable[..., Call]:
    count = iter(range(1_000_000))

    def make(text: str = "Who leads Krekol?", **settings: Any) -> Call:
        fields = {name: settings.pop(name) for name in list(settings) if name in Call.__dataclass_fields__}
        segment = Segment(tuple(engine.tokenizer.encode(text)), Origin.VALUE, text)
        fields = {"id": f"call-{next(count)}", "segments": (segment,), **fields}
        return Call(sampling=Sampling(**{"max_tokens": 8, **settings}), **fields)

    return make


Settle = Callable[[Callable[[], bool]], Awaitable[None]]


@pytest.fixture
def settle() -> Settle:
    """Wait, without sleeping, until something is true that another thread makes true."""
    import asyncio

    async def wait(condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(20):
            while not condition():
                await asyncio.sleep(0)

    return wait
