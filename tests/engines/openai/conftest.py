"""An engine on a server that can be wrong in every way (mock.py)."""

import importlib.util
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from flowserve.engines.openai.engine import OpenAIEngine
from flowserve.engines.openai.settings import OpenAISettings
from flowserve.engines.openai.tokenizers import load_tokenizer


def _beside(stem: str) -> ModuleType:
    """A module of this folder: in importlib mode tests are no package and cannot import it by name."""
    name = f"engines_openai_{stem}"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{stem}.py"))
        assert spec is not None and spec.loader is not None
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


@pytest.fixture(scope="session")
def mocks() -> ModuleType:
    """mock.py"""
    return _beside("mock")


@pytest.fixture(scope="session")
def servers() -> ModuleType:
    """servers.py"""
    return _beside("servers")


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer_of: Callable[[], Any]) -> Path:
    """A tiny tokenizer as a model has it."""
    pytest.importorskip("transformers", reason="a server's tokenizer needs transformers")
    folder = tmp_path_factory.mktemp("tokenizer")
    tiny_tokenizer_of().save_pretrained(folder)
    return folder


@pytest.fixture
async def mock(mocks: ModuleType, tokenizer_folder: Path) -> AsyncIterator[Any]:
    """A server that listens."""
    tokenizer = load_tokenizer(str(tokenizer_folder))
    async with mocks.Mock(tokenizer.decode, str(tokenizer_folder)) as mock:
        yield mock


Connect = Callable[..., AbstractAsyncContextManager[OpenAIEngine]]


@pytest.fixture
def connect(mock: Any) -> Connect:
    """`async with connect(...) as engine`: a started engine on the mock; keywords are OpenAIEngine's."""

    @asynccontextmanager
    async def started(**settings: Any) -> AsyncIterator[OpenAIEngine]:
        engine = OpenAIEngine(
            OpenAISettings(mock.url, **{"quiet": True, "poll_s": 0.0, "start_timeout_s": 5.0, **settings})
        )
        await engine.start()
        try:
            yield engine
        finally:
            await engine.close()

    return started


@pytest.fixture
async def engine(connect: Connect) -> AsyncIterator[OpenAIEngine]:
    """A started engine on the mock."""
    async with connect() as engine:
        yield engine
