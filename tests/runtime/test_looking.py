"""LLM nodes that look passages up while they write: what readers see, what is counted, what goes wrong clearly."""

import asyncio
from pathlib import Path
from typing import Any
from zlib import crc32

import pytest

import flowserve as fs
from flowserve.core.log import replay
from flowserve.core.speculation.stride import Stride
from flowserve.core.speculation.transaction import Mode
from flowserve.engines.base import Call, Origin
from flowserve.engines.fake import FakeEngine
from flowserve.errors import GraphError, RunFailed
from flowserve.graphs.retrieving import MODES
from flowserve.retrieval import Document, Retrieval
from flowserve.retrieval.embed import HashEmbedder
from flowserve.runtime.looking import MARK
from flowserve.runtime.records import RunEvent, SubmitOptions
from flowserve.runtime.run import Run
from flowserve.runtime.runner import Runtime

WORDS = ["tide", "moon", "wave", "sun", "wind", "salt", "sand", "reef"]


def reply(call: Call) -> str:
    """The next word is a hash of everything before it."""
    engine = ENGINE
    written = [engine.tokenizer.decode((i,)) for i in call.resumed]
    while len(written) <= call.sampling.max_tokens:
        drawn = crc32(f"{call.prompt_text}|{''.join(written)}".encode())
        written.append(f" {WORDS[drawn // 64 % len(WORDS)]}")
    return "".join(written)


ENGINE = FakeEngine(reply)


def flow_with(mode: str | None, index: str = "sea", **settings: Any) -> fs.Workflow[Any, str]:
    @fs.llm(max_tokens=24, retrieve_every=4, retrieve_from=index, retrieve_mode=mode, **settings)
    def tell(topic: str) -> str:
        fs.prompt("Tell of {{ topic }}.", system="Be brief.")

    @fs.workflow()
    def flow(topic: str) -> str:
        return tell(topic)

    return flow


async def indexed(folder: Path) -> Retrieval:
    service = Retrieval(folder, HashEmbedder(64))
    texts = [" ".join(WORDS[(3 * row + step * step) % 8] for step in range(1 + row % 6)) for row in range(40)]
    await service.ingest("sea", [Document(f"d{row}", text) for row, text in enumerate(texts)])
    return service


async def ended(
    folder: Path, mode: str | None, lines: list[str] | None = None, index: str = "sea", **settings: Any
) -> Run:
    service = await indexed(folder)
    runtime = Runtime([ENGINE], retrieval=service, log_line=None if lines is None else lines.append)
    await runtime.start()
    run = await runtime.submit(flow_with(mode, index, **settings).program, {"topic": "tide and moon"})
    await run.wait()
    await runtime.aclose()
    await service.close()
    return run


def test_the_modes_that_an_author_may_name_are_the_modes_there_are() -> None:
    assert tuple(Mode) == MODES


def speculation(run: Run) -> list[RunEvent]:
    return [event for event in run.log.events if event.type == "node.speculation"]


def shown(run: Run) -> str:
    return "".join(event.data["text"] for event in run.log.events if event.type == "node.delta")


def test_all_modes_write_the_same_and_stream_what_they_return(tmp_path: Path) -> None:
    runs = {mode: asyncio.run(ended(tmp_path, mode)) for mode in (*MODES, None)}
    values = {run.outcome() for run in runs.values()}
    assert len(values) == 1
    assert all(shown(run) == run.value for run in runs.values())
    assert all(run.snapshot().tokens_out == 24 for run in runs.values())
    assert not speculation(runs["sequential"])


def test_the_passage_stands_in_front_of_the_users_text_and_no_mark_is_left(tmp_path: Path) -> None:
    ENGINE.calls.clear()
    asyncio.run(ended(tmp_path, "sequential"))
    assert ENGINE.calls
    for call in ENGINE.calls:
        assert MARK not in call.prompt_text
        (passage,) = [segment for segment in call.segments if segment.origin is Origin.CHUNK]
        assert passage.document.startswith("d")
        assert f"Be brief.<|end|><|user|>{passage.text}\n\nTell of tide and moon." in call.prompt_text


@pytest.mark.parametrize("mode", ["speculative", "overlapped"])
def test_commits_and_roll_backs_are_events_and_waste_is_counted(
    tmp_path: Path, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flowserve.runtime.looking.Stride", lambda overlapped: Stride(overlapped, fixed=3))
    monkeypatch.setattr("flowserve.retrieval.lookup.LocalCache.guess", lambda self, lookup, query: 0)
    lines: list[str] = []
    run = asyncio.run(ended(tmp_path, mode, lines))
    told = [event.data for event in speculation(run)]
    assert {data["did"] for data in told} == {"commit", "rollback"}
    commits = [data["steps"] for data in told if data["did"] == "commit"]
    assert commits == sorted(commits) and commits[-1] == 6
    wasted = sum(data["tokens"] for data in told if data["did"] == "rollback")
    snapshot = run.snapshot()
    assert snapshot.wasted_tokens == wasted > 0
    assert run.value == asyncio.run(ended(tmp_path, "sequential")).value
    assert snapshot.spent is not None and snapshot.spent.output == 24 + wasted
    assert run.log.events[-1].data["usage"]["wasted_tokens"] == wasted
    assert list(replay(lines))  # the scheduler's log tells the same story again


def test_text_is_shown_only_after_its_commit(tmp_path: Path) -> None:
    run = asyncio.run(ended(tmp_path, "overlapped"))
    steps = words = 0
    for event in run.log.events:
        if event.type == "node.speculation" and event.data["did"] == "commit":
            steps = event.data["steps"]
        if event.type == "node.delta":
            words += len(event.data["text"].split())
            assert words <= 4 * steps


def test_an_index_that_is_not_there_fails_the_node_by_name(tmp_path: Path) -> None:
    run = asyncio.run(ended(tmp_path, None, index="land"))
    with pytest.raises(RunFailed, match="node tell failed: .*land"):
        run.outcome()
    assert shown(run) == ""


@pytest.mark.parametrize("kind", ["ivf:clusters=4,nprobe=1", "bm25"])
def test_approximate_indexes_give_their_own_answer_and_those_without_vectors_are_refused(
    tmp_path: Path, kind: str
) -> None:
    async def work(mode: str) -> Run:
        service = await indexed(tmp_path)
        await service.ingest("sea", [], kind=kind)
        runtime = Runtime([ENGINE], retrieval=service)
        await runtime.start()
        run = await runtime.submit(flow_with(mode).program, {"topic": "tide and moon"})
        await run.wait()
        await runtime.aclose()
        await service.close()
        return run

    runs = [asyncio.run(work(mode)) for mode in MODES]
    if kind == "bm25":
        with pytest.raises(RunFailed, match="needs one that goes by vectors alone"):
            runs[0].outcome()
    else:
        assert len({run.outcome() for run in runs}) == 1


def test_without_a_retrieval_folder_it_says_what_to_start(tmp_path: Path) -> None:
    async def work() -> Run:
        runtime = Runtime([ENGINE])
        await runtime.start()
        run = await runtime.submit(flow_with(None).program, {"topic": "tide"})
        await run.wait()
        await runtime.aclose()
        return run

    with pytest.raises(RunFailed, match="looks into index 'sea' but this runtime has no retrieval folder"):
        asyncio.run(work()).outcome()


def test_a_search_that_hangs_ends_with_the_nodes_time_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def hang(self: Any, queries: Any, k: int) -> Any:
        await asyncio.Event().wait()

    monkeypatch.setattr("flowserve.retrieval.lookup.DenseLookup.search", hang)
    run = asyncio.run(ended(tmp_path, "overlapped", timeout=0.2))
    with pytest.raises(RunFailed, match="node tell failed"):
        run.outcome()
    assert shown(run) == ""
    assert not ENGINE._running


def test_a_drawn_answer_is_refused_in_a_run_as_in_the_declaration(tmp_path: Path) -> None:
    with pytest.raises(GraphError, match="a greedy answer where passages are looked up; got temperature=1"):
        _ = flow_with(None, temperature=1.0).program

    async def work() -> Run:
        service = await indexed(tmp_path)
        runtime = Runtime([ENGINE], retrieval=service)
        await runtime.start()
        options = SubmitOptions(overrides={"tell": {"temperature": 1.0}})
        run = await runtime.submit(flow_with(None).program, {"topic": "tide"}, options)
        await run.wait()
        await runtime.aclose()
        await service.close()
        return run

    with pytest.raises(RunFailed, match="takes one greedy answer of free form"):
        asyncio.run(work()).outcome()
