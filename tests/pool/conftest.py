"""Real vLLM engines for a pool, and a journal of what was done to them. The model is tiny, its weights random."""

import importlib.util
import os
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from flowserve.engines.vllm import VLLMEngine

JOURNAL: list[str] = []
"""What the tests of this folder did and saw; shown at the end of the session."""


def pytest_terminal_summary(terminalreporter: Any) -> None:
    if JOURNAL:
        terminalreporter.section("faults and loads that the pool was given, on real vLLM")
        for line in JOURNAL:
            terminalreporter.write_line(line)


class Journal:
    """Lines of one test, with seconds since its beginning."""

    def __init__(self, name: str) -> None:
        self._began = time.monotonic()
        JOURNAL.append(name)

    def __call__(self, line: str) -> None:
        JOURNAL.append(f"  {time.monotonic() - self._began:6.2f} s  {line}")


@pytest.fixture
def journal(request: pytest.FixtureRequest) -> Iterator[Journal]:
    said = Journal(request.node.name.removeprefix("test_").replace("_", " "))
    yield said
    report = getattr(request.node, "outcome", None)
    said("as expected" if report is None or report.passed else "NOT as expected")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    report: Any = yield
    if report.when == "call":
        setattr(item, "outcome", report)  # noqa: B010 read by `journal`
    return report


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Folder of a Llama with four million random weights and a context of 8,192 tokens."""
    for name in ("torch", "vllm"):
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"needs {name}")
    from flowserve.bench import random_model

    return str(random_model.make("4m", tmp_path_factory.mktemp("models") / "4m"))


Make = Callable[..., "VLLMEngine"]


@pytest.fixture(scope="session")
def make_engine(model: str) -> Make:
    """An engine that is not started: number, then fields of VLLMSettings; `args` go over small ones."""
    from flowserve.engines.vllm import VLLMEngine, VLLMSettings

    cores = sorted(os.sched_getaffinity(0))

    def make(number: int = 0, kind: type[VLLMEngine] = VLLMEngine, **settings: Any) -> VLLMEngine:
        args = {"dtype": "float32", "max_num_seqs": 16, "max_model_len": 1024, **settings.pop("args", {})}
        given = {"cores": str(cores[number % len(cores)]), "kv_bytes": 64 << 20, "quiet": True, **settings}
        return kind(VLLMSettings(model, name="tiny", id=f"vllm-{number}", args=args, **given))

    return make
