"""W2, map-reduce summaries of long documents, alone and beside chat (Parrot, figures 14 and 19).

Chunks of 1,024 tokens, 50 tokens of summary; as many chunks as the ten arXiv articles of Parrot's artifact have. Chat:
prompts of 512 tokens, answers of 256, interactive.
"""

import asyncio
from collections.abc import Mapping
from operator import add
from random import Random
from typing import Annotated, Any, TypedDict

import flowserve as fs
from flowserve.bench.workflows import inputs
from flowserve.bench.workflows.shape import Arrival, Say, Workload, fixed, poisson, say_of, scaled, text
from flowserve.bench.workflows.triage import one_node
from flowserve.ids import Seconds

CHUNKS = (9, 10, 10, 11, 12, 13, 14, 15, 17, 19)
MAP, REDUCE, CHAT = (fixed(name, 128) for name in ("map", "reduce", "talk"))
SUMMARY, ANSWER = scaled(50), scaled(256)


@fs.llm(max_tokens=SUMMARY)
def summarise(chunk: str) -> str:
    fs.prompt("{{ chunk|trim }}\nSummary", system=MAP)


@fs.llm(max_tokens=SUMMARY)
def combine(parts: list[str]) -> str:
    fs.prompt("{% for part in parts %}Part\n{{ part|trim }}\n{% endfor %}Summary", system=REDUCE)


@fs.workflow()
def summary(chunks: list[str]) -> str:
    """Summarise each chunk, then the summaries."""
    return combine(summarise.map(chunks))


@fs.llm(max_tokens=ANSWER)
def reply(message: str) -> str:
    fs.prompt("{{ message|trim }}", system=CHAT)


@fs.workflow(slo=fs.SLO(tier="interactive"))
def chat(message: str) -> str:
    """One turn of a talk."""
    return reply(message)


def _combine(parts: list[str]) -> str:
    return "".join(f"Part\n{part}\n" for part in parts) + "Summary"


class _State(TypedDict):
    chunks: list[str]
    parts: Annotated[list[tuple[int, str]], add]
    result: str


def graphs() -> dict[str, Any]:
    from langchain_core.runnables import RunnableConfig
    from langgraph.graph import END, START, StateGraph
    from langgraph.types import Send

    def spread(state: _State) -> list[Send]:
        return [Send("summarise", {"number": n, "chunk": chunk}) for n, chunk in enumerate(state["chunks"])]

    async def summarise(state: dict[str, Any], config: RunnableConfig) -> dict[str, Any]:
        return {"parts": [(state["number"], await say_of(config)(MAP, f"{state['chunk']}\nSummary", SUMMARY))]}

    async def combine(state: _State, config: RunnableConfig) -> dict[str, Any]:
        parts = [part for _, part in sorted(state["parts"])]
        return {"result": await say_of(config)(REDUCE, _combine(parts), SUMMARY)}

    async def reply(state: dict[str, Any], config: RunnableConfig) -> dict[str, Any]:
        return {"result": await say_of(config)(CHAT, state["message"], ANSWER)}

    graph: Any = StateGraph(_State)
    graph.add_node("summarise", summarise)
    graph.add_node("combine", combine)
    graph.add_conditional_edges(START, spread, ["summarise"])
    graph.add_edge("summarise", "combine")
    graph.add_edge("combine", END)
    return {"summary": graph.compile(), "chat": one_node(reply, ("message", "result"))}


async def plain_summary(say: Say, given: Mapping[str, Any]) -> str:
    parts = await asyncio.gather(*(say(MAP, f"{chunk}\nSummary", SUMMARY) for chunk in given["chunks"]))
    return await say(REDUCE, _combine(list(parts)), SUMMARY)


async def plain_chat(say: Say, given: Mapping[str, Any]) -> str:
    return await say(CHAT, given["message"], ANSWER)


def _document(rnd: Random) -> dict[str, Any]:
    return {"chunks": inputs.chunks(rnd, 1024, CHUNKS)}


def alone(rnd: Random, load: float, seconds: Seconds) -> list[Arrival]:
    return poisson(rnd, 1.2 * load, seconds, "summary", lambda: _document(rnd))


def mixed(rnd: Random, load: float, seconds: Seconds) -> list[Arrival]:
    long = poisson(rnd, 0.9 * load, seconds, "summary", lambda: _document(rnd))
    talks = poisson(rnd, 6.0 * load, seconds, "chat", lambda: {"message": text(rnd, 512)})
    return sorted(long + talks, key=lambda arrival: arrival.at_s)


_PLAIN = {"summary": plain_summary, "chat": plain_chat}
ALONE = Workload("W2 map-reduce", "summaries of documents", alone, graphs, _PLAIN)
MIXED = Workload("W2 mixed", "summaries of documents beside chat", mixed, graphs, _PLAIN, urgent="chat")
