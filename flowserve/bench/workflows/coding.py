"""W3, several agents write software: an architect, a coder per file, then rounds of reviews and revisions (Parrot, figure 18).

Lengths of the MetaGPT log: 182 in and 706 out, 2991/447, 3717/308, 4175/424. Every reviewer reads all files, so rounds
have a barrier by their data; the files stand first, so that the prompts of a round share all but their end.
"""

import asyncio
from collections.abc import Mapping, Sequence
from operator import add
from random import Random
from typing import Annotated, Any, TypedDict

import flowserve as fs
from flowserve.bench.workflows.shape import Arrival, Say, Workload, fixed, poisson, say_of, scaled, text
from flowserve.ids import Seconds

FILES, ROUNDS = 4, 2
ARCHITECT, CODER, REVIEWER, REVISER = (fixed(f"agent {n}", tokens) for n, tokens in enumerate((128, 2048, 1024, 1024)))
PLAN, CODE, REVIEW, REVISION = scaled(706), scaled(447), scaled(308), scaled(424)
NAMES = [fixed(f"file {n}", 24) for n in range(FILES)]


@fs.llm(max_tokens=PLAN)
def design(task: str) -> str:
    fs.prompt("{{ task|trim }}\nDesign", system=ARCHITECT)


@fs.llm(max_tokens=CODE)
def code(plan: str, file: str) -> str:
    fs.prompt("{{ plan|trim }}\nFile\n{{ file|trim }}\nCode", system=CODER)


@fs.llm(max_tokens=REVIEW)
def criticise(files: list[str], file: str) -> str:
    fs.prompt("{% for f in files %}File\n{{ f|trim }}\n{% endfor %}Review\n{{ file|trim }}\n", system=REVIEWER)


@fs.llm(max_tokens=REVISION)
def revise(files: list[str], file: str, review: str) -> str:
    fs.prompt(
        "{% for f in files %}File\n{{ f|trim }}\n{% endfor %}Revise\n{{ file|trim }}\nReview\n{{ review|trim }}\nCode",
        system=REVISER,
    )


@fs.workflow()
def software(task: str) -> list[str]:
    """Files of a program, written and revised."""
    plan = design(task)
    files = [code(plan, name) for name in NAMES]
    for _ in range(ROUNDS):
        reviews = [criticise(files, name) for name in NAMES]
        files = [revise(files, name, review) for name, review in zip(NAMES, reviews, strict=True)]
    return files


def _listed(files: Sequence[str]) -> str:
    return "".join(f"File\n{file}\n" for file in files)


def _revise(files: Sequence[str], name: str, review: str) -> str:
    return f"{_listed(files)}Revise\n{name}\nReview\n{review}\nCode"


class _State(TypedDict):
    task: str
    plan: str
    round: int
    files: list[str]
    made: Annotated[list[tuple[int, int, str]], add]
    result: list[str]


def graphs() -> dict[str, Any]:
    from langchain_core.runnables import RunnableConfig
    from langgraph.graph import END, START, StateGraph
    from langgraph.types import Send

    async def design(state: _State, config: RunnableConfig) -> dict[str, Any]:
        return {"plan": await say_of(config)(ARCHITECT, f"{state['task']}\nDesign", PLAN), "round": 0}

    def coders(state: _State) -> list[Send]:
        return [Send("code", {"plan": state["plan"], "number": n}) for n in range(FILES)]

    async def code(state: dict[str, Any], config: RunnableConfig) -> dict[str, Any]:
        number = state["number"]
        prompt = f"{state['plan']}\nFile\n{NAMES[number]}\nCode"
        return {"made": [(0, number, await say_of(config)(CODER, prompt, CODE))]}

    def collect(state: _State) -> dict[str, Any]:
        files = [text for turn, _, text in sorted(state["made"]) if turn == state["round"]]
        return {"files": files, "round": state["round"] + 1, "result": files}

    def reviewers(state: _State) -> Any:
        if state["round"] > ROUNDS:
            return END
        return [Send("improve", {"files": state["files"], "round": state["round"], "number": n}) for n in range(FILES)]

    async def improve(state: dict[str, Any], config: RunnableConfig) -> dict[str, Any]:
        files, number = state["files"], state["number"]
        review = await say_of(config)(REVIEWER, f"{_listed(files)}Review\n{NAMES[number]}\n", REVIEW)
        revised = await say_of(config)(REVISER, _revise(files, NAMES[number], review), REVISION)
        return {"made": [(state["round"], number, revised)]}

    graph: Any = StateGraph(_State)
    for name, node in {"design": design, "code": code, "collect": collect, "improve": improve}.items():
        graph.add_node(name, node)
    graph.add_edge(START, "design")
    graph.add_conditional_edges("design", coders, ["code"])
    graph.add_edge("code", "collect")
    graph.add_conditional_edges("collect", reviewers, ["improve", END])
    graph.add_edge("improve", "collect")
    return {"software": graph.compile()}


async def plain(say: Say, given: Mapping[str, Any]) -> list[str]:
    plan = await say(ARCHITECT, f"{given['task']}\nDesign", PLAN)
    files = list(await asyncio.gather(*(say(CODER, f"{plan}\nFile\n{name}\nCode", CODE) for name in NAMES)))

    async def improved(files: Sequence[str], name: str) -> str:
        review = await say(REVIEWER, f"{_listed(files)}Review\n{name}\n", REVIEW)
        return await say(REVISER, _revise(files, name, review), REVISION)

    for _ in range(ROUNDS):
        files = list(await asyncio.gather(*(improved(files, name) for name in NAMES)))
    return files


def arrivals(rnd: Random, load: float, seconds: Seconds) -> list[Arrival]:
    return poisson(rnd, 0.8 * load, seconds, "software", lambda: {"task": text(rnd, 182)})


WORKLOAD = Workload("W3 coding", "agents that write and review files", arrivals, graphs, {"software": plain})
