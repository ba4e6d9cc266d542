"""W5, advanced retrieval-augmented answering: expand the question, three searches, one ranking, an answer refined twice (Ayo).

200 tokens of expansion, 16 hits a search in passages of 256 tokens, the best three passages in turn, answers of 256. Documents
are indexed beforehand. Instead of a cross-encoder the three lists are fused by reciprocal rank, as none is at hand.
"""

import asyncio
from collections.abc import Mapping, Sequence
from random import Random
from typing import Any, TypedDict

import flowserve as fs
from flowserve.bench.workflows import inputs, searching
from flowserve.bench.workflows.shape import Arrival, Say, Workload, fixed, poisson, say_of, scaled
from flowserve.ids import Seconds

QUERIES, HITS, KEPT, PASSAGES = 3, 16, 3, 2000
PASSAGE = 256
EXPAND, ANSWER, REFINE = (fixed(name, 256) for name in ("expand", "respond", "refine"))
EXPANSION, LENGTH = scaled(200), scaled(256)
DAMPING = 60
"""Of reciprocal rank fusion, as usual."""


def split(text: str) -> list[str]:
    """Queries of about equal length."""
    words = text.split() or ["nothing"]
    size = -(-len(words) // QUERIES)
    return [" ".join(words[at : at + size]) for at in range(0, len(words), size)]


def fuse(lists: Sequence[Sequence[str]]) -> list[str]:
    """The `KEPT` best passages of several lists, by reciprocal rank."""
    scores: dict[str, float] = {}
    for found in lists:
        for rank, passage in enumerate(found, 1):
            scores[passage] = scores.get(passage, 0.0) + 1.0 / (DAMPING + rank)
    return sorted(scores, key=lambda passage: (-scores[passage], passage))[:KEPT]


@fs.tool(effects=False)
async def queries(expansion: str) -> list[str]:
    """What to search for."""
    return split(expansion)


@fs.tool(effects=False)
async def best(found: list[list[fs.Doc]]) -> list[str]:
    """What to read."""
    return fuse([[doc.text for doc in docs] for docs in found])


@fs.llm(max_tokens=EXPANSION)
def expand(question: str) -> str:
    fs.prompt("{{ question|trim }}\nQueries", system=EXPAND)


@fs.llm(max_tokens=LENGTH)
def respond(question: str, passage: str) -> str:
    fs.prompt("{{ question|trim }}\nPassage\n{{ passage|trim }}\nAnswer", system=ANSWER)


@fs.llm(max_tokens=LENGTH)
def refine(question: str, passage: str, answer: str) -> str:
    fs.prompt("{{ question|trim }}\nPassage\n{{ passage|trim }}\nBefore\n{{ answer|trim }}\nAnswer", system=REFINE)


@fs.workflow()
def rag(question: str) -> str:
    """Answer from the three best passages."""
    hits = fs.Index(searching.INDEX).search.map(queries(expand(question)), k=HITS, max_width=QUERIES)
    passages = best(hits)
    answer = respond(question, passages[0])
    for number in range(1, KEPT):
        answer = refine(question, passages[number], answer)
    return answer


def _respond(question: str, passage: str) -> str:
    return f"{question}\nPassage\n{passage}\nAnswer"


def _refine(question: str, passage: str, answer: str) -> str:
    return f"{question}\nPassage\n{passage}\nBefore\n{answer}\nAnswer"


async def _retrieved(expansion: str) -> list[str]:
    return fuse(await asyncio.gather(*(searching.search(query, HITS) for query in split(expansion))))


class _State(TypedDict):
    question: str
    expansion: str
    passages: list[str]
    result: str


def graphs() -> dict[str, Any]:
    from langchain_core.runnables import RunnableConfig
    from langgraph.graph import END, START, StateGraph

    async def expand(state: _State, config: RunnableConfig) -> dict[str, Any]:
        return {"expansion": await say_of(config)(EXPAND, f"{state['question']}\nQueries", EXPANSION)}

    async def retrieve(state: _State) -> dict[str, Any]:
        return {"passages": await _retrieved(state["expansion"])}

    async def respond(state: _State, config: RunnableConfig) -> dict[str, Any]:
        prompt = _respond(state["question"], state["passages"][0])
        return {"result": await say_of(config)(ANSWER, prompt, LENGTH)}

    def refiner(number: int) -> Any:
        async def refine(state: _State, config: RunnableConfig) -> dict[str, Any]:
            prompt = _refine(state["question"], state["passages"][number], state["result"])
            return {"result": await say_of(config)(REFINE, prompt, LENGTH)}

        return refine

    graph: Any = StateGraph(_State)
    nodes = {"expand": expand, "retrieve": retrieve, "respond": respond}
    nodes |= {f"refine-{number}": refiner(number) for number in range(1, KEPT)}
    last = START
    for name, node in nodes.items():
        graph.add_node(name, node)
        graph.add_edge(last, name)
        last = name
    graph.add_edge(last, END)
    return {"rag": graph.compile()}


async def plain(say: Say, given: Mapping[str, Any]) -> str:
    question = given["question"]
    passages = await _retrieved(await say(EXPAND, f"{question}\nQueries", EXPANSION))
    answer = await say(ANSWER, _respond(question, passages[0]), LENGTH)
    for passage in passages[1:]:
        answer = await say(REFINE, _refine(question, passage, answer), LENGTH)
    return answer


def corpus() -> tuple[str, ...]:
    return inputs.passages(PASSAGE, PASSAGES)


def arrivals(rnd: Random, load: float, seconds: Seconds) -> list[Arrival]:
    return poisson(rnd, 4.0 * load, seconds, "rag", lambda: {"question": inputs.search_question(rnd, 256)})


WORKLOAD = Workload("W5 RAG", "expanded, searched, ranked, refined", arrivals, graphs, {"rag": plain}, corpus=corpus)
