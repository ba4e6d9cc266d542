"""The LangGraph door, asked by LangGraph's own SDK and by `RemoteGraph` over a real port."""

import asyncio
import itertools
import operator
from collections.abc import AsyncIterator
from typing import Annotated, Any, TypedDict

import pytest

from flowserve.engines.fake import FailAfter
from flowserve.errors import EngineError
from flowserve.server.auth import Keyring
from flowserve.server.langgraph import threads as kept_threads
from flowserve.server.settings import ServerSettings

langgraph_sdk = pytest.importorskip("langgraph_sdk", reason="needs LangGraph's SDK")
from langgraph_sdk import errors, get_client

HUMAN = {"type": "human", "content": "hello", "id": "h1"}


@pytest.fixture
async def client(served: Any) -> AsyncIterator[Any]:
    async with get_client(url=served.url, api_key=None) as ready:
        yield ready


async def until(client: Any, thread: str, run: str, *statuses: str) -> Any:
    found: Any = None
    for _ in range(400):
        found = await client.runs.get(thread, run)
        if found["status"] in statuses:
            return found
        await asyncio.sleep(0.01)
    raise AssertionError(f"still {found['status']}")


async def parts(stream: Any) -> list[tuple[str, Any]]:
    return [(part.event, part.data) async for part in stream]


# --- assistants -----------------------------------------------------------------------------------------------------


async def test_workflows_are_assistants_by_name_and_by_id(client: Any) -> None:
    every = await client.assistants.search(limit=100)
    names = [found["graph_id"] for found in every]
    assert names == sorted(names)
    assert {"echo", "verdict"} <= set(names)
    assert await client.assistants.count() == len(every)
    assert [found["name"] for found in await client.assistants.search(graph_id="echo")] == ["echo"]
    one = await client.assistants.get("echo")
    assert await client.assistants.get(one["assistant_id"]) == one
    assert (await client.runs.wait(None, one["assistant_id"], input={"text": "x"}))["output"] == "one two three"
    with pytest.raises(errors.NotFoundError, match="echo"):
        await client.assistants.get("nobody")


async def test_an_assistant_tells_its_graph_and_its_schemas(client: Any) -> None:
    graph = await client.assistants.get_graph("each")
    ids = [node["id"] for node in graph["nodes"]]
    assert (ids[0], ids[-1]) == ("__start__", "__end__")
    assert all(edge["source"] in ids and edge["target"] in ids for edge in graph["edges"])
    assert {"source": "__start__", "target": ids[1]} in graph["edges"]
    schemas = await client.assistants.get_schemas("verdict")
    assert set(schemas["input_schema"]["properties"]) == {"text", "strict"}
    assert set(schemas["state_schema"]["properties"]) == {"text", "strict", "score"}
    assert await client.assistants.get_subgraphs("each") == {}


# --- runs without a thread --------------------------------------------------------------------------------------------


async def test_values_after_a_run_are_its_input_and_its_result(client: Any) -> None:
    assert await client.runs.wait(None, "echo", input={"text": "hi"}) == {"text": "hi", "output": "one two three"}
    assert await client.runs.wait(None, "verdict", input={"text": "hi"}) == {"text": "good", "score": 3}
    extra = await client.runs.wait(None, "echo", input={"text": "hi", "stranger": 1})
    assert extra == {"text": "hi", "stranger": 1, "output": "one two three"}, "kept, as a channel nobody reads is"


async def test_a_chat_fills_the_one_text_and_is_answered_with_a_message(served: Any, client: Any) -> None:
    values = await client.runs.wait(None, "echo", input={"messages": [HUMAN]})
    assert [message["type"] for message in values["messages"]] == ["human", "ai"]
    assert values["messages"][1]["content"] == "one two three"
    assert "hello" in served.engine.calls[0].prompt_text
    with pytest.raises(Exception, match="422"):
        await client.runs.wait(None, "echo", input={"messages": [{"type": "ai", "content": "x"}]})


async def test_a_stream_has_what_its_modes_ask_for(client: Any) -> None:
    values = await parts(client.runs.stream(None, "echo", input={"text": "hi"}))
    assert [name for name, _ in values] == ["metadata", "values", "values", "end"]
    assert values[1][1] == {"text": "hi"}
    assert values[2][1] == {"text": "hi", "output": "one two three"}
    modes = ["updates", "messages-tuple"]
    mixed = await parts(client.runs.stream(None, "echo", input={"text": "hi"}, stream_mode=modes))
    chunks = [data for name, data in mixed if name == "messages"]
    assert "".join(chunk["content"] for chunk, _ in chunks) == "one two three"
    assert len(chunks) == 3
    assert {about["langgraph_node"] for _, about in chunks} == {"say"}
    assert [data for name, data in mixed if name == "updates"] == [{"say": {"output": "one two three"}}]
    partial = await parts(client.runs.stream(None, "echo", input={"text": "hi"}, stream_mode="messages"))
    grown = [data[0]["content"] for name, data in partial if name == "messages/partial"]
    assert grown == ["one", "one two", "one two three"]
    assert [data[0]["content"] for name, data in partial if name == "messages/complete"] == ["one two three"]


async def test_the_answer_of_a_chat_has_one_id_from_its_first_token_on(client: Any) -> None:
    modes = ["values", "messages-tuple"]
    seen = await parts(client.runs.stream(None, "echo", input={"messages": [HUMAN]}, stream_mode=modes))
    ids = {data[0]["id"] for name, data in seen if name == "messages"}
    final = [data for name, data in seen if name == "values"][-1]
    assert ids == {final["messages"][-1]["id"]}


async def test_a_stream_goes_on_behind_the_event_that_was_seen(served: Any, client: Any) -> None:
    created: list[Any] = []
    modes = ["values", "updates", "messages-tuple"]
    thread = await client.threads.create()
    asked = client.runs.stream(
        thread["thread_id"], "echo", input={"text": "x"}, stream_mode=modes, on_run_created=created.append
    )
    whole = [part async for part in asked]
    run = created[0]["run_id"]
    assert whole[0].data["run_id"] == run
    for seen in (0, 3, len(whole) - 2):
        rest = client.runs.join_stream(thread["thread_id"], run, stream_mode=modes, last_event_id=whole[seen].id)
        assert [part async for part in rest] == whole[seen + 1 :]


async def test_a_run_that_fails_says_why_in_each_way_of_asking(serve: Any) -> None:
    def reply(call: Any) -> Any:
        return FailAfter("half", EngineError("the engine stumbled"))

    async with serve(replies=reply) as served, get_client(url=served.url) as client:
        with pytest.raises(Exception, match="engine_failed.*stumbled"):
            await client.runs.wait(None, "echo", input={"text": "x"})
        told: Any = await client.runs.wait(None, "echo", input={"text": "x"}, raise_error=False)
        assert told["__error__"]["error"] == "engine_failed"
        last = (await parts(client.runs.stream(None, "echo", input={"text": "x"})))[-1]
        assert (last[0], last[1]["error"]) == ("error", "engine_failed")
        begun = await client.runs.create(None, "echo", input={"text": "x"})
        ended = await until(client, begun["thread_id"], begun["run_id"], "error")
        assert (await client.threads.get(ended["thread_id"]))["status"] == "error"


@pytest.mark.parametrize(
    "wish",
    [
        {"command": {"resume": 1}},
        {"interrupt_before": ["say"]},
        {"webhook": "http://localhost/x"},
        {"after_seconds": 5},
        {"checkpoint_id": "x"},
        {"stream_mode": "debug"},
    ],
)
async def test_what_a_workflow_does_not_have_is_refused_by_name(client: Any, wish: dict[str, Any]) -> None:
    thread = await client.threads.create()
    with pytest.raises(errors.UnprocessableEntityError, match=next(iter(wish))):
        await client.runs.create(thread["thread_id"], "echo", input={"text": "x"}, **wish)


# --- threads ----------------------------------------------------------------------------------------------------------


async def test_a_thread_keeps_its_messages_and_its_history(served: Any, client: Any) -> None:
    thread = (await client.threads.create(metadata={"who": "me"}))["thread_id"]
    await client.runs.wait(thread, "echo", input={"messages": [HUMAN]})
    values = await client.runs.wait(thread, "echo", input={"messages": [{"role": "user", "content": "again"}]})
    said = [message.get("content") for message in values["messages"]]
    assert said == ["hello", "one two three", "again", "one two three"]
    assert "again" in served.engine.calls[-1].prompt_text
    state = await client.threads.get_state(thread)
    assert state["values"] == values
    assert state["next"] == []
    history = await client.threads.get_history(thread)
    assert [len(entry["values"]["messages"]) for entry in history] == [4, 2]
    assert history[0]["parent_checkpoint"] == history[1]["checkpoint"]
    assert await client.threads.get_state(thread, checkpoint_id=history[1]["checkpoint"]["checkpoint_id"]) == history[1]
    assert await client.threads.get_state(thread, checkpoint=history[1]["checkpoint"]) == history[1]
    with pytest.raises(errors.NotFoundError):
        await client.threads.get_state(thread, checkpoint_id="nothing")
    assert {call.session for call in served.engine.calls} == {thread}, "its calls stay together"
    runs = await client.runs.list(thread)
    assert [run["status"] for run in runs] == ["success", "success"]


async def test_a_run_that_is_forgotten_elsewhere_is_gone_from_its_threads_list(served: Any, client: Any) -> None:
    thread = (await client.threads.create())["thread_id"]
    for text in ("a", "b"):
        await client.runs.wait(thread, "echo", input={"text": text})
    newest, oldest = [run["run_id"] for run in await client.runs.list(thread)]
    await served.http.delete(f"/v1/runs/{oldest}")
    assert [run["run_id"] for run in await client.runs.list(thread)] == [newest]
    assert (await client.threads.get_state(thread))["values"]["text"] == "b", "what it did stays"


async def test_what_a_run_is_not_given_it_takes_from_its_thread(served: Any, client: Any) -> None:
    thread = (await client.threads.create())["thread_id"]
    await client.threads.update_state(thread, {"text": "kept words"})
    await client.runs.wait(thread, "echo", input={})
    assert "kept words" in served.engine.calls[0].prompt_text


async def test_threads_are_made_found_changed_copied_and_deleted(client: Any) -> None:
    mine = await client.threads.create(thread_id="mine", metadata={"a": "1"})
    with pytest.raises(errors.ConflictError):
        await client.threads.create(thread_id="mine")
    assert await client.threads.create(thread_id="mine", if_exists="do_nothing") == mine
    await client.threads.update("mine", metadata={"b": "2"})
    await client.threads.update_state("mine", {"x": 1})
    assert [t["thread_id"] for t in await client.threads.search(metadata={"a": "1", "b": "2"})] == ["mine"]
    assert await client.threads.search(values={"x": 2}) == []
    copied = await client.threads.copy("mine")
    assert copied["values"] == {"x": 1}
    assert await client.threads.count() == 2
    await client.threads.delete("mine")
    with pytest.raises(errors.NotFoundError):
        await client.threads.get("mine")
    with pytest.raises(errors.NotFoundError):
        await client.runs.list("mine")


async def test_a_run_that_names_no_thread_leaves_none_in_the_list(client: Any) -> None:
    await client.runs.wait(None, "echo", input={"text": "x"})
    assert await client.threads.search() == []
    made = client.runs.stream("fresh", "echo", input={"text": "x"}, if_not_exists="create")
    assert (await parts(made))[-1][0] == "end"
    assert [t["thread_id"] for t in await client.threads.search()] == ["fresh"]


async def test_another_tenants_thread_and_run_are_unknown(serve: Any) -> None:
    settings = ServerSettings(port=0, keys=Keyring.parse("a:key-of-a-for-this-test,b:key-of-b-for-this-test"))

    def ask(served: Any, key: str) -> Any:
        return get_client(url=served.url, api_key=None, headers={"authorization": f"Bearer {key}"})

    async with (
        serve(settings=settings) as served,
        ask(served, "key-of-a-for-this-test") as a,
        ask(served, "key-of-b-for-this-test") as b,
    ):
        thread = (await a.threads.create(thread_id="shared-name"))["thread_id"]
        run = await a.runs.create(thread, "stuck", input={"text": "x"})
        for refused in (b.threads.get(thread), b.runs.get(thread, run["run_id"]), b.runs.cancel(thread, run["run_id"])):
            with pytest.raises(errors.NotFoundError):
                await refused
        assert (await b.threads.create(thread_id="shared-name"))["values"] is None, "names are each tenant's own"
        await b.runs.cancel_many(run_ids=[run["run_id"]])
        assert (await a.runs.get(thread, run["run_id"]))["status"] == "running"
        await a.runs.cancel(thread, run["run_id"], wait=True)


async def test_the_thread_that_was_idle_longest_makes_room(served: Any) -> None:
    threads = kept_threads.Threads(most=3)
    made = [threads.add("t", float(i), str(i)) for i in range(3)]
    made[0].status = "busy"
    threads.find("t", "1")
    threads.add("t", 9.0, "new")
    assert {thread.id for thread in threads.of("t")} == {"0", "1", "new"}


# --- two runs of one thread, cancellation -----------------------------------------------------------------------------


async def test_a_busy_thread_refuses_or_makes_room(served: Any, client: Any) -> None:
    thread = (await client.threads.create())["thread_id"]
    first = await client.runs.create(thread, "stuck", input={"text": "x"})
    assert (await client.threads.get(thread))["status"] == "busy"
    with pytest.raises(errors.ConflictError, match="enqueue"):
        await client.runs.create(thread, "echo", input={"text": "y"})
    with pytest.raises(errors.ConflictError):
        await client.threads.update_state(thread, {"x": 1})
    second = await client.runs.create(thread, "echo", input={"text": "y"}, multitask_strategy="interrupt")
    assert (await client.runs.get(thread, first["run_id"]))["status"] == "interrupted"
    await client.runs.join(thread, second["run_id"])
    assert [len(entry["values"]) for entry in await client.threads.get_history(thread)] == [2, 1]


async def test_rolled_back_is_as_if_it_had_never_been(client: Any) -> None:
    thread = (await client.threads.create())["thread_id"]
    await client.threads.update_state(thread, {"text": "before"})
    run = await client.runs.create(thread, "stuck", input={"text": "during"})
    await client.runs.cancel(thread, run["run_id"], action="rollback", wait=True)
    assert (await client.threads.get_state(thread))["values"] == {"text": "before"}
    with pytest.raises(errors.NotFoundError):
        await client.runs.get(thread, run["run_id"])
    assert (await client.threads.get(thread))["status"] == "idle"


async def test_what_is_waited_for_stands_in_line(served: Any, client: Any) -> None:
    thread = (await client.threads.create())["thread_id"]
    held = await client.runs.create(thread, "stuck", input={"text": "x"})
    after = [asyncio.create_task(client.runs.wait(thread, "echo", input={"text": f"n{i}"})) for i in range(3)]
    await asyncio.sleep(0.1)
    assert not any(task.done() for task in after)
    await client.runs.cancel(thread, held["run_id"])
    assert {values["output"] for values in await asyncio.gather(*after)} == {"one two three"}
    runs = [run for run in served.runtime.runs() if run.program.plan.name == "echo"]
    spans = sorted((run.started, run.ended) for run in runs)
    assert all(one[1] <= next[0] for one, next in itertools.pairwise(spans)), "never two at once"


async def test_runs_are_cancelled_joined_deleted_and_batched(served: Any, client: Any) -> None:
    begun = await client.runs.create_batch([{"assistant_id": "stuck", "input": {"text": str(i)}} for i in range(3)])
    assert len({run["thread_id"] for run in begun}) == 3
    await client.runs.cancel_many(run_ids=[begun[0]["run_id"]])
    await until(client, begun[0]["thread_id"], begun[0]["run_id"], "interrupted")
    await client.runs.cancel_many(status="all")
    for run in begun:
        await until(client, run["thread_id"], run["run_id"], "interrupted")
    assert "__error__" in await client.runs.join(begun[1]["thread_id"], begun[1]["run_id"])
    await client.runs.delete(begun[1]["thread_id"], begun[1]["run_id"])
    with pytest.raises(errors.NotFoundError):
        await client.runs.get(begun[1]["thread_id"], begun[1]["run_id"])


@pytest.mark.parametrize(("wish", "status"), [("cancel", "cancelled"), ("continue", "running")])
async def test_leaving_a_stream_does_what_was_wished(served: Any, client: Any, wish: str, status: str) -> None:
    stream = client.runs.stream(None, "stuck", input={"text": "x"}, on_disconnect=wish)
    await anext(aiter(stream))
    await stream.aclose()
    run = served.runtime.runs()[0]
    for _ in range(200):
        if run.status.value == status:
            break
        await asyncio.sleep(0.01)
    await asyncio.sleep(0.05)
    assert run.status.value == status
    run.cancel()


# --- RemoteGraph ------------------------------------------------------------------------------------------------------


async def test_a_workflow_is_a_node_of_somebody_elses_graph(served: Any) -> None:
    from langgraph.graph import END, START, StateGraph
    from langgraph.pregel.remote import RemoteGraph

    class State(TypedDict):
        text: str
        output: str
        log: Annotated[list[str], operator.add]

    def before(state: State) -> Any:
        return {"text": state["text"].upper(), "log": ["before"]}

    async def call(state: State) -> Any:
        return await remote.ainvoke({"text": state["text"]})

    remote = RemoteGraph("echo", url=served.url)
    builder = StateGraph(State)
    builder.add_node("before", before)
    builder.add_node("remote", call)
    builder.add_edge(START, "before")
    builder.add_edge("before", "remote")
    builder.add_edge("remote", END)
    graph: Any = builder.compile()
    ended = await graph.ainvoke({"text": "loud"})
    assert ended == {"text": "LOUD", "output": "one two three", "log": ["before"]}
    assert "LOUD" in served.engine.calls[0].prompt_text


async def test_remote_graph_streams_states_and_draws(served: Any) -> None:
    from langgraph.pregel.remote import RemoteGraph

    remote: Any = RemoteGraph("echo", url=served.url)
    updates = [chunk async for chunk in remote.astream({"text": "x"}, stream_mode="updates")]
    assert updates == [{"say": {"output": "one two three"}}]
    messages = [chunk async for chunk in remote.astream({"text": "x"}, stream_mode="messages")]
    assert "".join(chunk["content"] for chunk, _ in messages) == "one two three"
    config = {"configurable": {"thread_id": "t1"}}
    await remote.ainvoke({"messages": [HUMAN]}, config)
    state = await remote.aget_state(config)
    assert [message["type"] for message in state.values["messages"]] == ["human", "ai"]
    await remote.aupdate_state(config, {"note": "x"})
    history = [snapshot.values.keys() async for snapshot in remote.aget_state_history(config)]
    assert [set(keys) for keys in history] == [{"messages", "note"}, {"messages"}]
    drawn = await remote.aget_graph()
    assert {edge.source for edge in drawn.edges} == {"__start__", "say"}
