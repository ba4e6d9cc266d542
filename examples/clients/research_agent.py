"""A research agent in LangGraph that keeps LangGraph: ten nodes, a fan-out, a cycle, asking a FlowServe server.

flowserve ingest NOTES --index notes --indexes ./indexes
flowserve serve examples/rag.py --indexes ./indexes                    # any application: its models and indexes are asked
python examples/clients/research_agent.py --model demo --index notes "Who governs Velol?"

It is run three ways with the same answer: as LangGraph runs it; attached, so that the server is told which calls belong together
(level 1); and without super-step barriers (level 2), where `title` holds up nothing that does not read it.
"""

import argparse
import asyncio
import operator
import time
from statistics import median
from typing import Annotated, Any, TypedDict

from langgraph.graph import END, START, StateGraph
from langgraph.types import Send

from flowserve.langchain import ChatFlowServe, FlowServeRetriever
from flowserve.langgraph import attach, serve

MOST_ROUNDS = 2


class State(TypedDict):
    question: str
    brief: str
    title: str
    queries: list[str]
    passages: Annotated[list[str], operator.add]
    notes: str
    claims: str
    doubts: str
    draft: str
    verdict: str
    rounds: int
    answer: str


def build(chat: Any, retriever: Any) -> Any:
    """brief -> title, and brief -> plan -> search per query -> gather -> claims, doubts -> draft -> judge -> plan or polish."""

    async def ask(prompt: str) -> str:
        return str((await chat.ainvoke(prompt)).content)

    async def brief(state: State) -> dict[str, Any]:
        return {"brief": await ask(f"Say in one sentence what is asked: {state['question']}"), "rounds": 0}

    async def title(state: State) -> dict[str, Any]:
        return {"title": await ask(f"Write a title for a report on: {state['brief']}")}

    async def plan(state: State) -> dict[str, Any]:
        lines = await ask(f"Round {state['rounds']}. Write search queries, one a line, for: {state['brief']}")
        return {"queries": lines.splitlines()[:4] or [state["brief"]]}

    async def search(state: Any) -> dict[str, Any]:
        return {"passages": [found.page_content for found in await retriever.ainvoke(state["query"])]}

    async def gather(state: State) -> dict[str, Any]:
        return {"notes": "\n".join(dict.fromkeys(state["passages"])), "rounds": state["rounds"] + 1}

    async def claims(state: State) -> dict[str, Any]:
        return {"claims": await ask(f"List what these notes say:\n{state['notes']}")}

    async def doubts(state: State) -> dict[str, Any]:
        return {"doubts": await ask(f"List what these notes leave open:\n{state['notes']}")}

    async def draft(state: State) -> dict[str, Any]:
        return {"draft": await ask(f"Answer {state['brief']} by\n{state['claims']}\nopen:\n{state['doubts']}")}

    async def judge(state: State) -> dict[str, Any]:
        return {"verdict": await ask(f"Is this enough? Say 'enough' or 'more':\n{state['draft']}")}

    async def polish(state: State) -> dict[str, Any]:
        return {"answer": await ask(f"Write the report '{state['title']}':\n{state['draft']}")}

    def each_query(state: State) -> list[Send]:
        return [Send("search", {"query": query}) for query in state["queries"]]

    def enough(state: State) -> str:
        return "plan" if "more" in state["verdict"] and state["rounds"] < MOST_ROUNDS else "polish"

    graph: Any = StateGraph(State)
    for node in (brief, title, plan, search, gather, claims, doubts, draft, judge, polish):
        graph.add_node(node.__name__, node)
    graph.add_edge(START, "brief")
    graph.add_edge("brief", "title")
    graph.add_edge("brief", "plan")
    graph.add_conditional_edges("plan", each_query, ["search"])
    graph.add_edge("search", "gather")
    graph.add_edge("gather", "claims")
    graph.add_edge("gather", "doubts")
    graph.add_edge(["claims", "doubts"], "draft")
    graph.add_edge("draft", "judge")
    graph.add_conditional_edges("judge", enough, ["plan", "polish"])
    graph.add_edge("polish", END)
    return graph.compile()


def ways(graph: Any) -> dict[str, Any]:
    """The same graph as LangGraph runs it, at level 1 and at level 2."""
    return {
        "plain": graph,
        "level 1": attach(graph, name="research"),
        "level 2": attach(serve(graph), name="research"),
    }


async def main(question: str, model: str, index: str, base_url: str, rounds: int) -> None:
    chat = ChatFlowServe(model=model, temperature=0, max_tokens=128, base_url=base_url)
    graphs = ways(build(chat, FlowServeRetriever(index=index, base_url=base_url)))
    answers = {way: (await graph.ainvoke({"question": question}))["answer"] for way, graph in graphs.items()}
    print(answers["plain"] if len(set(answers.values())) == 1 else f"the answers differ: {answers}")
    took: dict[str, list[float]] = {way: [] for way in graphs}
    for number in range(rounds):
        order = list(graphs)[number % len(graphs) :] + list(graphs)[: number % len(graphs)]
        for way in order:
            begun = time.perf_counter()
            # Asked so nowhere before, so that no way finds in the prefix cache what another one has put there.
            await graphs[way].ainvoke({"question": f"{number} {way[-1]} {question}"})
            took[way].append(time.perf_counter() - begun)
    for way, seconds in took.items():
        if seconds:
            ratios = [plain / own for plain, own in zip(took["plain"], seconds, strict=True)]
            print(f"{way}: median {median(seconds):.2f} s, x{median(ratios):.2f} of plain within a round")


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description="Answer a question from an index of a FlowServe server.")
    arguments.add_argument("question")
    arguments.add_argument("--model", required=True, help="as /v1/models lists it")
    arguments.add_argument("--index", required=True)
    arguments.add_argument("--base-url", default="http://127.0.0.1:8000/v1")
    arguments.add_argument("--rounds", type=int, default=3, help="of timing, each way once")
    given = arguments.parse_args()
    asyncio.run(main(given.question, given.model, given.index, given.base_url, given.rounds))
