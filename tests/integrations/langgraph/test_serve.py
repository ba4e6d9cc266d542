"""A graph served without barriers gives what LangGraph gives; a slow sibling no longer holds up who does not need it."""

import asyncio
import operator
from typing import Annotated, Any, TypedDict

import pytest

pytest.importorskip("langgraph")

from hypothesis import given, settings
from hypothesis import strategies as st
from langchain_core.messages import AIMessage, HumanMessage
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.errors import InvalidUpdateError
from langgraph.graph import END, START, StateGraph
from langgraph.graph.message import add_messages
from langgraph.types import Command, Send, interrupt

from flowserve.errors import GraphError
from flowserve.langgraph import serve


class State(TypedDict):
    a: str
    b: str
    c: str
    d: str
    log: Annotated[list[str], operator.add]
    messages: Annotated[list[Any], add_messages]


def diamond(gate: asyncio.Event | None) -> Any:
    """slow and quick side by side; two steps behind quick; the end needs both. slow ends only after the last of the steps began."""

    async def slow(state: State) -> Any:
        if gate:
            await asyncio.wait_for(gate.wait(), 5)
        return {"a": "slow"}

    async def quick(state: State) -> Any:
        return {"b": "quick"}

    async def second(state: State) -> Any:
        return {"c": state["b"] + " second"}

    async def third(state: State) -> Any:
        if gate:
            gate.set()
        return {"d": state["c"] + " third"}

    async def end(state: State) -> Any:
        return {"log": [state["a"], state["d"]]}

    builder = StateGraph(State)
    for node in (slow, quick, second, third, end):
        builder.add_node(node.__name__, node)
    builder.add_edge(START, "slow")
    builder.add_edge(START, "quick")
    builder.add_edge("quick", "second")
    builder.add_edge("second", "third")
    builder.add_edge(["slow", "third"], "end")
    return builder.compile()


async def test_a_slow_sibling_does_not_hold_up_a_branch_that_does_not_need_it() -> None:
    """In LangGraph this graph cannot end: slow waits for third, which waits for the super-step of slow."""
    graph = serve(diamond(asyncio.Event()))
    plain = await diamond(None).ainvoke({})
    assert await graph.ainvoke({}) == plain
    assert graph.last_run == {"begun_early": 3, "taken_over": 3, "surprised": ""}
    assert await graph.ainvoke({}) == plain


async def test_updates_are_streamed_in_the_order_of_langgraph() -> None:
    served = [part async for part in serve(diamond(asyncio.Event())).astream({}, stream_mode="values")]
    plain = [part async for part in diamond(None).astream({}, stream_mode="values")]
    assert served == plain


def test_threads_run_without_barriers_too() -> None:
    import threading

    gate = threading.Event()

    def slow(state: State) -> Any:
        assert gate.wait(5)
        return {"a": "slow"}

    def quick(state: State) -> Any:
        return {"b": "quick"}

    def second(state: State) -> Any:
        gate.set()
        return {"c": state["b"] + " second"}

    builder = StateGraph(State)
    builder.add_node("slow", slow)
    builder.add_node("quick", quick)
    builder.add_node("second", second)
    builder.add_edge(START, "slow")
    builder.add_edge(START, "quick")
    builder.add_edge("quick", "second")
    graph = serve(builder.compile())
    assert graph.invoke({}) == {"a": "slow", "b": "quick", "c": "quick second", "log": [], "messages": []}
    assert graph.last_run["taken_over"] == 1


async def test_a_node_that_reads_what_a_slow_sibling_writes_waits_for_it() -> None:
    seen: list[Any] = []

    async def slow(state: State) -> Any:
        await asyncio.sleep(0.01)
        return {"a": "late"}

    async def quick(state: State) -> Any:
        return {"b": "x"}

    async def reader(state: State) -> Any:
        seen.append(state.get("a"))
        return {"c": "y"}

    builder = StateGraph(State)
    builder.add_node("slow", slow)
    builder.add_node("quick", quick)
    builder.add_node("reader", reader)
    builder.add_edge(START, "slow")
    builder.add_edge(START, "quick")
    builder.add_edge("quick", "reader")
    graph = serve(builder.compile())
    await graph.ainvoke({})
    assert seen == ["late"]
    assert graph.last_run["surprised"] == ""


async def test_branches_and_sends_run_ahead_and_are_decided_once() -> None:
    gate, decided, worked = asyncio.Event(), [], []

    async def slow(state: State) -> Any:
        await asyncio.wait_for(gate.wait(), 5)
        return {"a": "slow"}

    async def plan(state: State) -> Any:
        return {"b": "3"}

    def fan(state: State) -> Any:
        decided.append("fan")
        return [Send("work", {"item": i}) for i in range(int(state["b"]))]

    async def work(state: Any) -> Any:
        worked.append(state["item"])
        if len(worked) == 3:
            gate.set()
        return {"log": [str(state["item"])]}

    builder = StateGraph(State)
    builder.add_node("slow", slow)
    builder.add_node("start", plan)
    builder.add_node("plan", plan)
    builder.add_node("work", work)
    builder.add_edge(START, "slow")
    builder.add_edge(START, "start")
    builder.add_edge("start", "plan")
    builder.add_conditional_edges("plan", fan, ["work"])
    graph = serve(builder.compile())
    result = await graph.ainvoke({})
    assert (result["log"], decided, sorted(worked)) == (["0", "1", "2"], ["fan"], [0, 1, 2])
    assert graph.last_run == {"begun_early": 4, "taken_over": 4, "surprised": ""}


async def test_messages_keep_one_identity_ahead_and_in_the_state() -> None:
    gate = asyncio.Event()
    ids: list[Any] = []

    async def slow(state: State) -> Any:
        await asyncio.wait_for(gate.wait(), 5)
        return {"a": "slow"}

    async def speak(state: State) -> Any:
        return {"messages": [AIMessage("one")]}

    async def listen(state: State) -> Any:
        ids.extend(message.id for message in state["messages"])
        gate.set()
        return {"b": "heard"}

    builder = StateGraph(State)
    builder.add_node("slow", slow)
    builder.add_node("speak", speak)
    builder.add_node("listen", listen)
    builder.add_edge(START, "slow")
    builder.add_edge(START, "speak")
    builder.add_edge("speak", "listen")
    graph = serve(builder.compile())
    result = await graph.ainvoke({"messages": [HumanMessage("zero")]})
    assert [message.id for message in result["messages"]] == ids
    assert graph.last_run["surprised"] == ""


async def test_a_cycle_with_a_command_ends_as_in_langgraph() -> None:
    def build() -> Any:
        async def count(state: State) -> Any:
            return {"log": ["x"]}

        async def judge(state: State) -> Any:
            return Command(goto=END if len(state["log"]) > 2 else "count")

        builder = StateGraph(State)
        builder.add_node("count", count)
        builder.add_node("judge", judge)
        builder.add_edge(START, "count")
        builder.add_edge("count", "judge")
        return builder.compile()

    graph = serve(build())
    assert await graph.ainvoke({}) == await build().ainvoke({})
    assert graph.last_run["surprised"] == ""


async def test_nothing_begins_behind_a_node_that_may_interrupt_and_a_resumed_run_gives_the_same() -> None:
    ran: list[str] = []

    async def ask(state: State) -> Any:
        return {"a": interrupt("sure?")}

    async def quick(state: State) -> Any:
        return {"b": "quick"}

    async def second(state: State) -> Any:
        ran.append("second")
        return {"c": state["b"]}

    builder = StateGraph(State)
    builder.add_node("ask", ask)
    builder.add_node("quick", quick)
    builder.add_node("second", second)
    builder.add_edge(START, "ask")
    builder.add_edge(START, "quick")
    builder.add_edge("quick", "second")
    graph = serve(builder.compile(checkpointer=InMemorySaver()))
    config: Any = {"configurable": {"thread_id": "1"}}
    paused = await graph.ainvoke({}, config)
    assert "__interrupt__" in paused and ran == []
    result = await graph.ainvoke(Command(resume="yes"), config)
    assert (result["a"], result["c"], ran) == ("yes", "quick", ["second"])


async def test_a_failure_ahead_is_raised_in_its_place_and_tried_again_as_the_policy_says() -> None:
    from langgraph.types import RetryPolicy

    gate, tries = asyncio.Event(), []

    async def slow(state: State) -> Any:
        await asyncio.wait_for(gate.wait(), 5)
        return {"a": "slow"}

    async def quick(state: State) -> Any:
        return {"b": "quick"}

    async def shaky(state: State) -> Any:
        tries.append(state["b"])
        gate.set()
        if len(tries) == 1:
            raise ConnectionError("gone")
        return {"c": "at last"}

    builder = StateGraph(State)
    builder.add_node("slow", slow)
    builder.add_node("quick", quick)
    builder.add_node("shaky", shaky, retry_policy=RetryPolicy(initial_interval=0.001, jitter=False))
    builder.add_edge(START, "slow")
    builder.add_edge(START, "quick")
    builder.add_edge("quick", "shaky")
    graph = serve(builder.compile())
    assert (await graph.ainvoke({}))["c"] == "at last"
    assert len(tries) == 2


async def test_what_is_held_is_named_with_its_reason() -> None:
    graph = serve(diamond(None), hold=["third"])
    assert graph.held == {"third": "held by you"}
    await graph.ainvoke({})
    with pytest.raises(GraphError, match="fourth"):
        serve(diamond(None), hold=["fourth"])
    with pytest.raises(TypeError, match="compiled StateGraph"):
        serve(object())  # type: ignore[arg-type]


async def test_a_wrong_word_about_what_a_node_reads_is_an_error_and_about_what_it_writes_ends_looking_ahead() -> None:
    gate = asyncio.Event()

    async def slow(state: State) -> Any:
        await asyncio.wait_for(gate.wait(), 5)
        return {"a": "slow"}

    async def quick(state: State) -> Any:
        return {"b": "quick"}

    async def reader(state: State) -> Any:
        gate.set()
        return {"c": str(state.get("a"))}

    def build() -> Any:
        builder = StateGraph(State)
        builder.add_node("slow", slow)
        builder.add_node("quick", quick)
        builder.add_node("reader", reader)
        builder.add_edge(START, "slow")
        builder.add_edge(START, "quick")
        builder.add_edge("quick", "reader")
        return builder.compile()

    with pytest.raises(LookupError, match="correct serve"):
        await serve(build(), reads={"reader": ["b"]}).ainvoke({})
    gate.set()
    graph = serve(build(), writes={"slow": ["d"]})
    result = await graph.ainvoke({})
    assert result["c"] == "slow" and "beside the keys" in graph.last_run["surprised"]


async def test_a_subgraph_as_a_node_runs_as_in_langgraph() -> None:
    inner = diamond(None)

    async def after(state: State) -> Any:
        return {"log": ["after " + state["d"]]}

    builder = StateGraph(State)
    builder.add_node("inner", inner)
    builder.add_node("after", after)
    builder.add_edge(START, "inner")
    builder.add_edge("inner", "after")
    plain: Any = builder.compile()
    graph = serve(plain)
    assert "inner" in graph.held
    assert await graph.ainvoke({}) == await plain.ainvoke({})
    assert graph.last_run["surprised"] == ""


KEYS = ("a", "b", "c", "d")


@st.composite
def graphs(draw: Any) -> tuple[list[tuple[str, ...]], list[str], list[tuple[int, int]], dict[int, int]]:
    size = draw(st.integers(2, 6))
    reads = [tuple(draw(st.lists(st.sampled_from(KEYS), max_size=2, unique=True))) for _ in range(size)]
    writes = [draw(st.sampled_from((*KEYS, "log"))) for _ in range(size)]
    edges = [(i, j) for j in range(1, size) for i in range(j) if draw(st.booleans())]
    waits = {i: draw(st.integers(0, 6)) for i in range(size)}
    return reads, writes, edges, waits


def build(spec: Any, ran: list[Any]) -> Any:
    """Nodes whose sources do not show what they use: it is told. LastValue keys written twice in a step fail in both."""
    reads, writes, edges, waits = spec
    builder = StateGraph(State)
    has_parent = {j for _, j in edges}

    def node(index: int) -> Any:
        async def run(state: Any) -> Any:
            for _ in range(waits[index]):
                await asyncio.sleep(0)
            seen = {key: state.get(key) for key in reads[index]}
            ran.append((index, str(seen)))
            value = f"{index}({seen})"
            return {writes[index]: [value] if writes[index] == "log" else value[:200]}

        return run

    for index in range(len(reads)):
        builder.add_node(str(index), node(index))
        if index not in has_parent:
            builder.add_edge(START, str(index))
    for i, j in edges:
        builder.add_edge(str(i), str(j))
    return builder.compile()


@settings(max_examples=150, deadline=None)
@given(graphs())
def test_random_graphs_give_the_same_state_and_run_every_node_as_often_on_the_same_input(spec: Any) -> None:
    reads, writes, _, _ = spec
    told = {str(i): keys for i, keys in enumerate(reads)}
    wrote = {str(i): [key] for i, key in enumerate(writes)}

    def outcome(served: bool) -> Any:
        ran: list[Any] = []
        graph = build(spec, ran)
        graph = serve(graph, reads=told, writes=wrote) if served else graph
        try:
            result = asyncio.run(graph.ainvoke({}))
        except InvalidUpdateError as failure:  # two nodes of a step wrote one key: in both
            return type(failure).__name__, None, ""
        return result, sorted(ran), graph.last_run["surprised"] if served else ""

    assert outcome(True) == outcome(False)
