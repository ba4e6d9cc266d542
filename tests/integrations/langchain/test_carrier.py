"""Model calls say which program they belong to, in the words of their server; nothing else about them changes."""

import asyncio
import operator
from typing import Annotated, Any, TypedDict

import pytest

pytest.importorskip("langchain_openai", reason="the extra 'langchain' is not installed")
pytest.importorskip("langgraph", reason="the extra 'langgraph' is not installed")

import httpx2
from langchain_core.output_parsers import StrOutputParser
from langchain_core.runnables import RunnableLambda
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import END, START, StateGraph
from langgraph.types import Send
from openai import DefaultAsyncHttpxClient, DefaultHttpxClient

from flowserve.errors import UnknownName
from flowserve.integrations.langchain.carrier import current, joined
from flowserve.integrations.langgraph.announce import Announcer
from flowserve.langgraph import Carrier, attach, hints, serve

# (an answer of OpenAI's form, for a server that notes what it was asked)
ANSWER = {
    "id": "1",
    "object": "chat.completion",
    "created": 0,
    "model": "m",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "ok"}, "finish_reason": "stop"}],
}


class Server:
    """Answers every chat alike and notes bodies and headers."""

    def __init__(self) -> None:
        self.asked: list[tuple[dict[str, Any], httpx2.Headers]] = []

    def __call__(self, request: httpx2.Request) -> httpx2.Response:
        import json

        self.asked.append((json.loads(request.content), request.headers))
        return httpx2.Response(200, json=ANSWER)

    def chat(self, **given: Any) -> Any:
        from flowserve.langchain import ChatFlowServe

        transport = httpx2.MockTransport(self)
        clients = {
            "http_client": DefaultHttpxClient(transport=transport),
            "http_async_client": DefaultAsyncHttpxClient(transport=transport),
        }
        return ChatFlowServe(model="m", base_url="http://server/v1", **clients, **given)

    @property
    def callers(self) -> list[dict[str, Any]]:
        return [body["flowserve"]["caller"] for body, _ in self.asked]


class State(TypedDict):
    topic: str
    notes: Annotated[list[str], operator.add]
    done: str


def graph_of(chat: Any, **options: Any) -> Any:
    """plan -> three searches at once -> write."""

    async def plan(state: State) -> dict[str, Any]:
        await chat.ainvoke(state["topic"])
        return {"notes": ["planned"]}

    async def search(state: Any) -> dict[str, Any]:
        answer = await chat.ainvoke(state["query"])
        return {"notes": [f"{state['query']} {answer.content}"]}

    async def write(state: State) -> dict[str, Any]:
        return {"done": (await chat.ainvoke("write")).content}

    def fan_out(state: State) -> list[Send]:
        return [Send("search", {"query": query}) for query in "abc"]

    graph: Any = StateGraph(State)
    for node in (plan, search, write):
        graph.add_node(node.__name__, node)
    graph.add_edge(START, "plan")
    graph.add_conditional_edges("plan", fan_out, ["search"])
    graph.add_edge("search", "write")
    graph.add_edge("write", END)
    return graph.compile(**options)


async def test_every_call_of_an_attached_graph_says_where_it_comes_from() -> None:
    server = Server()
    graph = attach(graph_of(server.chat(), checkpointer=InMemorySaver()), name="research")
    result = await graph.ainvoke({"topic": "t", "notes": []}, {"configurable": {"thread_id": "thread-7"}})
    assert result["notes"] == ["planned", "a ok", "b ok", "c ok"]
    assert {body["session_id"] for body, _ in server.asked} == {"thread-7"}
    assert len({caller.pop("run") for caller in server.callers}) == 1
    told = sorted(
        ({k: v for k, v in c.items() if k != "run"} for c in server.callers),
        key=lambda c: (c["step"], c.get("index", 0)),
    )
    pushed = [
        {"program": "research", "node": "search", "step": 2, "index": i, "triggers": ["__pregel_push"]}
        for i in range(3)
    ]
    assert told == [
        {"program": "research", "node": "plan", "step": 1, "triggers": ["branch:to:plan"]},
        *pushed,
        {"program": "research", "node": "write", "step": 3, "triggers": ["branch:to:write"]},
    ]


async def test_without_a_thread_each_run_is_a_session_of_its_own() -> None:
    server = Server()
    graph = attach(graph_of(server.chat()))
    for _ in range(2):
        await graph.ainvoke({"topic": "t", "notes": []})
    sessions = [body["session_id"] for body, _ in server.asked]
    assert len(set(sessions[:5])) == len(set(sessions[5:])) == 1
    assert sessions[0] != sessions[5]
    assert sessions == [caller["run"] for caller in server.callers]


async def test_a_graph_that_is_not_attached_says_nothing() -> None:
    server = Server()
    await graph_of(server.chat()).ainvoke({"topic": "t", "notes": []})
    assert all("flowserve" not in body and "session_id" not in body for body, _ in server.asked)
    assert hints() == {}


@pytest.mark.parametrize(
    "order", [lambda graph: attach(serve(graph), name="g"), lambda graph: serve(attach(graph, name="g"))]
)
async def test_attaching_goes_with_running_without_barriers(order: Any) -> None:
    server = Server()
    plain = await graph_of(Server().chat()).ainvoke({"topic": "t", "notes": []})
    graph = order(graph_of(server.chat()))
    assert await graph.ainvoke({"topic": "t", "notes": []}) == plain
    assert len({caller["run"] for caller in server.callers}) == 1
    assert {(caller["program"], caller["node"]) for caller in server.callers} == {
        ("g", "plan"),
        ("g", "search"),
        ("g", "write"),
    }


@pytest.mark.parametrize(
    ("dialect", "body", "headers"),
    [
        ("flowserve", {"session_id": "s", "flowserve": {"priority": 5, "caller": {"program": "p"}}}, {}),
        ("vllm", {"session_id": "s", "priority": -5}, {}),  # lower goes first
        ("dynamo", {"nvext": {"agent_hints": {"priority": 5}}}, {"x-dynamo-session-id": "s"}),  # higher goes first
        ("sglang", {"session_id": "s", "priority": 5}, {}),  # higher goes first
        ("openai", {}, {}),
    ],
)
async def test_a_priority_goes_out_in_the_direction_of_its_server(dialect: str, body: Any, headers: Any) -> None:
    server = Server()
    chat = server.chat(dialect=dialect)
    carrier = Carrier(session="s", program="p", priority=5)
    chat.invoke("x", {"callbacks": [carrier]})
    await chat.ainvoke("x", {"callbacks": [carrier]})
    plain = {"model", "messages", "stream"}
    for sent, sent_headers in server.asked:
        told = {key: value for key, value in sent.items() if key not in plain}
        if dialect == "flowserve":
            told["flowserve"]["caller"].pop("run")
        assert told == body
        assert {name: value for name, value in sent_headers.items() if "session" in name} == headers
    assert current() is None


async def test_no_priority_is_sent_where_none_was_given() -> None:
    """Stock vLLM refuses one unless it was started with a policy for it."""
    server = Server()
    server.chat(dialect="vllm").invoke("x", {"callbacks": [Carrier()]})
    assert "priority" not in server.asked[0][0]


async def test_a_call_by_hand_in_a_node_is_carried_too() -> None:
    told: list[Any] = []
    graph: Any = StateGraph(State)
    graph.add_node("plan", lambda state: told.append(hints("vllm")) or {"done": "x"})
    graph.add_edge(START, "plan")
    attached: Any = attach(graph.compile(), session="s")
    attached.invoke({"topic": "t", "notes": []})
    await attached.ainvoke({"topic": "t", "notes": []})
    assert told == [{"extra_body": {"session_id": "s"}}] * 2
    assert current() is None


async def test_the_end_of_a_program_is_told_once_however_it_ends() -> None:
    ended: list[str] = []
    server = Server()
    chat = server.chat()

    def fail(_: Any) -> None:
        raise ValueError("no")

    carrier = Carrier(ended=ended.append)
    await (chat | StrOutputParser() | chat).ainvoke("x", {"callbacks": [carrier]})
    with pytest.raises(ValueError, match="no"):
        await (chat | RunnableLambda(fail)).ainvoke("x", {"callbacks": [carrier]})
    await chat.ainvoke("x", {"callbacks": [carrier]})
    sessions = [body["session_id"] for body, _ in server.asked]
    assert sessions[0] == sessions[1]
    assert ended == sessions[1:]
    await RunnableLambda(lambda x: x).ainvoke("x", {"callbacks": [carrier]})
    assert len(ended) == 3, "a run that asked no model has no session"
    assert carrier._roots == carrier._below == carrier._sessions == carrier._calls == {}
    await chat.ainvoke("x", {"callbacks": [Carrier(session="s", ended=ended.append)]})
    await chat.ainvoke("x", {"callbacks": [carrier], "metadata": {"thread_id": "t"}})
    assert len(ended) == 3, "these may go on"


async def test_calls_at_the_same_time_keep_to_their_own_programs() -> None:
    server = Server()
    chat = server.chat()
    calls = [chat.ainvoke(f"{i}", {"callbacks": [Carrier(session=f"{i}")]}) for i in range(8)]
    await asyncio.gather(*calls)
    assert all(body["messages"][0]["content"] == body["session_id"] for body, _ in server.asked)


async def test_a_flowserve_server_is_told_of_the_graph_and_of_ends_beside_the_run() -> None:
    server, native = Server(), Server()
    announcer = Announcer("http://server/v1")
    announcer._client = announcer._client.with_options(
        http_client=DefaultHttpxClient(transport=httpx2.MockTransport(native))
    )
    graph = attach(graph_of(server.chat()), name="my research", announce=announcer)
    await graph.ainvoke({"topic": "t", "notes": []})
    announcer.flush()
    (declared, _), (ended, _) = native.asked
    assert declared == {
        "nodes": ["plan", "search", "write"],
        "edges": [
            {"source": "plan", "target": "search", "conditional": True},
            {"source": "search", "target": "write", "conditional": False},
        ],
    }
    assert ended == {"session_id": server.asked[0][0]["session_id"]}
    assert {caller["program"] for caller in server.callers} == {"my-research"}


async def test_a_server_that_is_away_costs_the_graph_nothing(caplog: pytest.LogCaptureFixture) -> None:
    announcer = Announcer("http://127.0.0.1:9/v1")
    announcer._client = announcer._client.with_options(max_retries=0)
    graph = attach(graph_of(Server().chat()), announce=announcer)
    assert (await graph.ainvoke({"topic": "t", "notes": []}))["done"] == "ok"
    announcer.flush()
    assert "was not told of /programs/LangGraph" in caplog.text


def test_what_the_caller_wrote_itself_stands() -> None:
    own = {"session_id": "mine", "flowserve": {"priority": 1}}
    told = {"session_id": "s", "flowserve": {"caller": {"node": "n"}}, "more": 1}
    assert joined(told, own) == {"session_id": "mine", "flowserve": {"priority": 1, "caller": {"node": "n"}}, "more": 1}


def test_an_unknown_kind_of_server_and_what_is_no_graph_are_refused() -> None:
    with pytest.raises(UnknownName, match="kind of server 'vlm'.*vllm"):
        hints("vlm")
    with pytest.raises(TypeError, match="compiled graph"):
        attach(StateGraph(State))  # type: ignore[type-var]
