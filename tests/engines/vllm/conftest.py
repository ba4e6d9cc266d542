"""Real vLLM on one core of the CPU, with models that start in a second once vLLM is imported."""

import importlib.util
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio

if TYPE_CHECKING:
    from flowserve.engines.vllm import VLLMEngine, VLLMSettings

Start = Callable[..., Awaitable["VLLMEngine"]]
SMALL = {"dtype": "float32", "max_num_seqs": 8}


class Unimportable(pytest.Module):
    """A test module that is not even imported."""

    def collect(self) -> Iterable[pytest.Item | pytest.Collector]:
        pytest.skip("the vllm engine needs vLLM", allow_module_level=True)


def pytest_pycollect_makemodule(module_path: Path, parent: pytest.Collector) -> pytest.Module | None:
    """Of this folder's tests."""
    if importlib.util.find_spec("vllm") is None:
        return Unimportable.from_parent(parent, path=module_path)
    return None


@pytest.fixture(scope="session")
def core() -> str:
    """The one that engines compute on."""
    return str(max(os.sched_getaffinity(0)))


@pytest.fixture(scope="session")
def tiny(tiny_folder: Callable[[str], Path]) -> str:
    """A random Llama with a byte-level tokenizer."""
    return str(tiny_folder("llama-vllm"))


@pytest.fixture(scope="session")
def settings_of(tiny: str, core: str) -> "Callable[..., VLLMSettings]":
    """Settings of a small engine; keywords are VLLMSettings', `args` go over the small ones."""
    from flowserve.engines.vllm import VLLMSettings

    def make(model: str = tiny, args: dict[str, Any] | None = None, **settings: Any) -> VLLMSettings:
        given = {"cores": core, "kv_bytes": 64 << 20, "quiet": True, **settings}
        return VLLMSettings(model, args={**SMALL, **(args or {})}, **given)

    return make


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def start(settings_of: "Callable[..., VLLMSettings]") -> AsyncIterator[Start]:
    """Starts an engine that lives until the module's end; keywords as in `settings_of`."""
    from flowserve.engines.vllm import VLLMEngine

    engines: list[VLLMEngine] = []

    async def begin(**settings: Any) -> "VLLMEngine":
        engine = VLLMEngine(settings_of(**settings))
        engines.append(engine)
        await engine.start()
        return engine

    yield begin
    for engine in engines:
        await engine.close()
