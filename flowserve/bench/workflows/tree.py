"""W10, a tree of thoughts: plan, execute, reflect, answer, two branches each, 30 calls (SGLang's benchmark: at most 256 tokens).

Branches go on by themselves in FlowServe and asyncio; LangGraph's super-steps wait for the slowest of a level. Limits differ
between branches, as the lengths of thoughts do.
"""

import asyncio
from collections.abc import Mapping
from itertools import pairwise
from operator import add
from random import Random
from typing import Annotated, Any, TypedDict

import flowserve as fs
from flowserve.bench.workflows import inputs
from flowserve.bench.workflows.shape import Arrival, Say, Workload, fixed, poisson, say_of, scaled
from flowserve.ids import Seconds

STAGES = ("plan", "execute", "reflect", "answer")
RULES = [fixed(stage, 256) for stage in STAGES]
LIMITS = (scaled(256), scaled(96))
"""Of the first and of the second branch."""
MARKS = [fixed(f"branch {n}", 16) for n in range(2)]


@fs.llm(max_tokens=LIMITS[0])
def longer(rules: str, path: str, mark: str) -> str:
    fs.prompt("{{ rules|trim }}\n{{ path|trim }}\n{{ mark|trim }}\n")


@fs.llm(max_tokens=LIMITS[1])
def shorter(rules: str, path: str, mark: str) -> str:
    fs.prompt("{{ rules|trim }}\n{{ path|trim }}\n{{ mark|trim }}\n")


@fs.workflow()
def tree(question: str) -> list[str]:
    """Sixteen answers, each the end of a path of four thoughts."""
    paths = [question]
    for rules in RULES:
        paths = [node(rules, path, mark) for path in paths for node, mark in zip((longer, shorter), MARKS, strict=True)]
    return paths


class _State(TypedDict):
    question: str
    thoughts: Annotated[list[tuple[tuple[int, ...], str]], add]
    result: list[str]


def _prompt(depth: int, path: str, branch: int) -> str:
    return f"{RULES[depth]}\n{path}\n{MARKS[branch]}\n"


def graphs() -> dict[str, Any]:
    from langchain_core.runnables import RunnableConfig
    from langgraph.graph import END, START, StateGraph
    from langgraph.types import Send

    def branches(at: tuple[int, ...], path: str) -> list[Send]:
        return [Send(STAGES[len(at)], {"at": (*at, branch), "path": path}) for branch in range(2)]

    def begin(state: _State) -> list[Send]:
        return branches((), state["question"])

    async def think(state: dict[str, Any], config: RunnableConfig) -> dict[str, Any]:
        at = state["at"]
        thought = await say_of(config)("", _prompt(len(at) - 1, state["path"], at[-1]), LIMITS[at[-1]])
        return {"thoughts": [(at, thought)]}

    def next_level(depth: int) -> Any:
        def spread(state: _State) -> list[Send]:
            return [send for at, thought in state["thoughts"] if len(at) == depth for send in branches(at, thought)]

        return spread

    def finish(state: _State) -> dict[str, Any]:
        return {"result": [text for at, text in sorted(state["thoughts"]) if len(at) == len(STAGES)]}

    graph: Any = StateGraph(_State)
    for stage in STAGES:
        graph.add_node(stage, think)
    graph.add_node("finish", finish)
    graph.add_conditional_edges(START, begin, [STAGES[0]])
    for depth, (stage, following) in enumerate(pairwise(STAGES), 1):
        graph.add_conditional_edges(stage, next_level(depth), [following])
    graph.add_edge(STAGES[-1], "finish")
    graph.add_edge("finish", END)
    return {"tree": graph.compile()}


async def plain(say: Say, given: Mapping[str, Any]) -> list[str]:
    async def below(depth: int, path: str) -> list[str]:
        if depth == len(STAGES):
            return [path]
        both = await asyncio.gather(*(branch(depth, path, number) for number in range(2)))
        return [leaf for leaves in both for leaf in leaves]

    async def branch(depth: int, path: str, number: int) -> list[str]:
        return await below(depth + 1, await say("", _prompt(depth, path, number), LIMITS[number]))

    return await below(0, given["question"])


def arrivals(rnd: Random, load: float, seconds: Seconds) -> list[Arrival]:
    return poisson(rnd, 1.0 * load, seconds, "tree", lambda: {"question": inputs.question(rnd, 256)})


WORKLOAD = Workload("W10 tree", "thoughts that branch four times", arrivals, graphs, {"tree": plain})
