"""The research agent in LangGraph, run plain, attached and without barriers against a server: equal answers, equal work."""

import asyncio
import importlib.util
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("langchain_openai", reason="the extra 'langchain' is not installed")
pytest.importorskip("langgraph", reason="the extra 'langgraph' is not installed")

from flowserve.engines.base import Call
from flowserve.engines.fake import FakeEngine
from flowserve.integrations.langgraph.announce import Announcer
from flowserve.langchain import ChatFlowServe, FlowServeRetriever, FlowServeVectorStore
from flowserve.langgraph import attach
from flowserve.retrieval.service import Retrieval
from flowserve.runtime.runner import Runtime
from flowserve.server.app import create_app
from flowserve.server.listen import listener
from flowserve.server.settings import ServerSettings

FILE = Path(__file__).resolve().parents[2] / "examples" / "clients" / "research_agent.py"
NOTES = ["Rusu governs Velol.", "Velol is known for apples.", "Krekol is led by Mudi."]


def reply(call: Call) -> str:
    """One that depends on all that was asked, so that equal answers mean equal prompts; the first draft is not enough."""
    prompt = call.prompt_text[call.prompt_text.rfind("<|user|>") :]
    if "search queries" in prompt:
        return "who governs Velol\nwhat is Velol known for" if "Round 0" in prompt else "who leads Krekol\nKrekol"
    if "leave open" in prompt:
        return "nothing" if "Mudi" in prompt else "who leads Krekol"
    if "open:" in prompt:
        return "settled" if "open:\nnothing" in prompt else "thin"
    if "Is this enough" in prompt:
        return "enough" if "settled" in prompt else "more"
    return f"of {len(prompt)} characters"


@pytest.fixture
async def asked(tmp_path: Path) -> Any:
    """(url, the engine) of a server whose index `notes` holds the notes."""
    engine = FakeEngine(reply)
    runtime = Runtime([engine], retrieval=Retrieval(tmp_path, embedder="hash"))
    await runtime.start()
    server = listener(create_app(runtime), ServerSettings(port=0))
    task = asyncio.create_task(server.serve())
    await server.listening.wait()
    try:
        store = FlowServeVectorStore("notes", base_url=f"{server.url}/v1")
        await store.aadd_texts(NOTES)
        yield f"{server.url}/v1", engine, runtime
    finally:
        server.stop(hurry=True)
        await task
        await runtime.aclose()


def load() -> Any:
    spec = importlib.util.spec_from_file_location("research_agent", FILE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


async def test_three_ways_of_running_it_give_equal_answers_by_equal_calls(asked: Any) -> None:
    url, engine, _ = asked
    example = load()
    chat = ChatFlowServe(model="fake", temperature=0, base_url=url)
    graph = example.build(chat, FlowServeRetriever(index="notes", k=2, base_url=url))
    assert len(graph.builder.nodes) == 10
    results, prompts = {}, {}
    for way, running in example.ways(graph).items():
        engine.calls.clear()
        results[way] = await running.ainvoke({"question": "Who governs Velol?"})
        prompts[way] = sorted(call.prompt_text for call in engine.calls)
        if way == "level 2":
            assert running.last_run["surprised"] == ""
            assert running.last_run["taken_over"] > 0
    assert results["plain"]["rounds"] == 2, "the cycle was taken"
    assert results["plain"] == results["level 1"] == results["level 2"]
    assert prompts["plain"] == prompts["level 1"] == prompts["level 2"]


async def test_the_server_learns_of_each_node_by_itself_once_it_knows_the_graph(asked: Any) -> None:
    url, _, runtime = asked
    chat = ChatFlowServe(model="fake", temperature=0, base_url=url)
    graph = load().build(chat, FlowServeRetriever(index="notes", k=2, base_url=url))
    announcer = Announcer(url)
    attached = attach(graph, name="research", announce=announcer)
    await asyncio.to_thread(announcer.flush)
    await attached.ainvoke({"question": "Who governs Velol?"})
    await asyncio.to_thread(announcer.flush)
    told: Any = await chat.root_async_client.get("/programs/research", cast_to=object)
    rows = {row["name"]: (row["next"], row["calls"]) for row in told["nodes"]}
    assert len(rows) == 10
    assert rows["judge"] == (["plan", "polish"], 2)
    assert rows["search"] == (["gather"], 0), "it asks an index, not a model"
    calling = {name for name, (_, calls) in rows.items() if calls}
    plans = runtime._driver.state.estimates.plans
    assert {digest.rpartition("/")[2] for digest in plans if "@" in digest} == calling
    assert runtime._driver.state.homes == {}, "the run has ended, and with it its session"


async def test_the_server_is_told_at_level_1_and_2_which_calls_belong_together(asked: Any) -> None:
    url, _, runtime = asked
    example = load()
    chat = ChatFlowServe(model="fake", temperature=0, base_url=url)
    graph = example.build(chat, FlowServeRetriever(index="notes", k=2, base_url=url))
    told = {}
    for way, running in example.ways(graph).items():
        before = {run.id for run in runtime.runs(limit=1_000)}
        await running.ainvoke({"question": "Who governs Velol?"})
        snapshots = [run.snapshot() for run in runtime.runs(limit=1_000) if run.id not in before]
        assert len({snapshot.session for snapshot in snapshots}) == 1
        told[way] = sorted((s.caller.node, s.caller.step) for s in snapshots if s.caller is not None)
    nodes = {"brief", "title", "plan", "claims", "doubts", "draft", "judge", "polish"}
    assert told["plain"] == []
    assert {node for node, _ in told["level 1"]} == nodes
    assert told["level 1"] == told["level 2"]
