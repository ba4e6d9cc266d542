"""For tests of workflows: a scripted engine instead of a model.

    with fs.testing.engine(replies={"answer": Answer(text="42", citations=[1])}):
        assert rag.run("how many?").text == "42"

No model, no network, no waiting. Nodes without a scripted reply get one that fits their declared output.
"""

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from flowserve.clock import Clock
from flowserve.config import RuntimeConfig
from flowserve.engines.fake import FakeEngine
from flowserve.graphs.runner import override_runner
from flowserve.retrieval.documents import Document
from flowserve.retrieval.protocols import RetrievalService
from flowserve.runtime.blocking import BlockingRunner
from flowserve.runtime.runner import Runtime

__all__ = ["FakeEngine", "Session", "engine"]

Texts = Mapping[str, Sequence[str]]


class Session:
    """What `engine()` gives: the scripted engine (with the calls it got) and the runner behind `wf.run`."""

    def __init__(self, engine: FakeEngine, runner: BlockingRunner) -> None:
        self.engine = engine
        self.runner = runner

    @property
    def calls(self) -> list[Any]:
        """Every `Call` that reached the engine, in order."""
        return list(self.engine.calls)


@contextmanager
def engine(
    replies: Any = None,
    *,
    indexes: Texts | None = None,
    config: RuntimeConfig | None = None,
    clock: Clock | None = None,
    **fake: Any,
) -> Iterator[Session]:
    """Inside the block every `wf.run`, `arun`, `stream` and `submit` uses a scripted engine.

    `replies`: by node name (a value, a list of values in turn, an exception to raise), or a function of the `Call`.
    `indexes`: by index name, texts that `fs.Index(name).search` finds, one passage each.
    Further keywords go to `FakeEngine`.
    """
    fake_engine = FakeEngine(replies, **fake)
    with tempfile.TemporaryDirectory(prefix="flowserve-test-") as folder:

        async def make() -> Runtime:
            retrieval = await _indexed(Path(folder), indexes) if indexes else None
            runtime = Runtime([fake_engine], retrieval=retrieval, config=config, clock=clock)
            await runtime.start()
            return runtime

        runner = BlockingRunner(make)
        try:
            with override_runner(runner):
                yield Session(fake_engine, runner)
        finally:
            runner.close()


async def _indexed(folder: Path, indexes: Texts) -> RetrievalService:
    from flowserve.retrieval.service import Retrieval

    service = Retrieval(folder, embedder="hash")
    for name, texts in indexes.items():
        await service.ingest(name, [Document(f"doc{i}", text) for i, text in enumerate(texts)])
    return service
