"""W8, triage under contention: classify, four specialists side by side, a draft, a review; among long background decodes.

NeMo Agent Toolkit's demonstration: 5, 4 x 500, 500 and 20 tokens. The triage is interactive, the background is batch.
"""

import asyncio
from collections.abc import Mapping
from operator import add
from random import Random
from typing import Annotated, Any, TypedDict

import flowserve as fs
from flowserve.bench.workflows.shape import Arrival, Say, Workload, fixed, poisson, say_of, scaled, text
from flowserve.ids import Seconds

CLASSIFY, DRAFT, REVIEW, CHAT = (fixed(name, 200) for name in ("classify", "draft", "review", "chat"))
FIELDS = ("billing", "network", "legal", "safety")
EXPERTS = {name: fixed(name, 200) for name in FIELDS}
SHORT, LONG, LAST, BACKGROUND = scaled(40), scaled(500), scaled(160), scaled(1000)


@fs.llm(max_tokens=SHORT)
def classify(report: str) -> str:
    fs.prompt("Report\n{{ report|trim }}\nClass", system=CLASSIFY)


@fs.llm(max_tokens=LONG)
def expert(role: str, report: str, kind: str) -> str:
    fs.prompt("{{ role|trim }}\nReport\n{{ report|trim }}\nClass\n{{ kind|trim }}\nFindings")


@fs.llm(max_tokens=LONG)
def draft(report: str, findings: list[str]) -> str:
    fs.prompt(
        "Report\n{{ report|trim }}\n{% for f in findings %}Finding\n{{ f|trim }}\n{% endfor %}Answer", system=DRAFT
    )


@fs.llm(max_tokens=LAST)
def review(answer: str) -> str:
    fs.prompt("Answer\n{{ answer|trim }}\nVerdict", system=REVIEW)


@fs.workflow(slo=fs.SLO(tier="interactive"))
def triage(report: str) -> str:
    """Four specialists look at a report."""
    kind = classify(report)
    return review(draft(report, [expert(EXPERTS[name], report, kind) for name in FIELDS]))


@fs.llm(max_tokens=BACKGROUND)
def speak(message: str) -> str:
    fs.prompt("{{ message|trim }}", system=CHAT)


@fs.workflow(slo=fs.SLO(tier="batch"))
def background(message: str) -> str:
    """A long answer that nobody waits for."""
    return speak(message)


def _expert(role: str, report: str, kind: str) -> str:
    return f"{role}\nReport\n{report}\nClass\n{kind}\nFindings"


def _draft(report: str, findings: list[str]) -> str:
    return f"Report\n{report}\n" + "".join(f"Finding\n{finding}\n" for finding in findings) + "Answer"


# --- LangGraph ------------------------------------------------------------------------------------------


class _State(TypedDict):
    report: str
    kind: str
    findings: Annotated[list[tuple[str, str]], add]
    answer: str
    result: str


def graphs() -> dict[str, Any]:
    from langchain_core.runnables import RunnableConfig
    from langgraph.graph import END, START, StateGraph

    async def classify(state: _State, config: RunnableConfig) -> dict[str, Any]:
        return {"kind": await say_of(config)(CLASSIFY, f"Report\n{state['report']}\nClass", SHORT)}

    def expert_of(name: str) -> Any:
        async def expert(state: _State, config: RunnableConfig) -> dict[str, Any]:
            prompt = _expert(EXPERTS[name], state["report"], state["kind"])
            return {"findings": [(name, await say_of(config)("", prompt, LONG))]}

        return expert

    async def draft(state: _State, config: RunnableConfig) -> dict[str, Any]:
        found = dict(state["findings"])
        prompt = _draft(state["report"], [found[name] for name in FIELDS])
        return {"answer": await say_of(config)(DRAFT, prompt, LONG)}

    async def review(state: _State, config: RunnableConfig) -> dict[str, Any]:
        return {"result": await say_of(config)(REVIEW, f"Answer\n{state['answer']}\nVerdict", LAST)}

    async def speak(state: dict[str, Any], config: RunnableConfig) -> dict[str, Any]:
        return {"result": await say_of(config)(CHAT, state["message"], BACKGROUND)}

    graph: Any = StateGraph(_State)
    for name, node in {"classify": classify, "draft": draft, "review": review}.items():
        graph.add_node(name, node)
    graph.add_edge(START, "classify")
    for name in FIELDS:
        graph.add_node(name, expert_of(name))
        graph.add_edge("classify", name)
    graph.add_edge(list(FIELDS), "draft")
    graph.add_edge("draft", "review")
    graph.add_edge("review", END)
    return {"triage": graph.compile(), "background": one_node(speak, ("message", "result"))}


def one_node(node: Any, keys: tuple[str, ...]) -> Any:
    """A graph of one node over a state of strings."""
    from langgraph.graph import END, START, StateGraph

    state: Any = TypedDict("state", {key: str for key in keys}, total=False)  # type: ignore[misc]
    graph = StateGraph(state)
    graph.add_node("only", node)
    graph.add_edge(START, "only")
    graph.add_edge("only", END)
    return graph.compile()


# --- asyncio --------------------------------------------------------------------------------------------


async def plain_triage(say: Say, given: Mapping[str, Any]) -> str:
    report = given["report"]
    kind = await say(CLASSIFY, f"Report\n{report}\nClass", SHORT)
    found = await asyncio.gather(*(say("", _expert(EXPERTS[name], report, kind), LONG) for name in FIELDS))
    answer = await say(DRAFT, _draft(report, list(found)), LONG)
    return await say(REVIEW, f"Answer\n{answer}\nVerdict", LAST)


async def plain_background(say: Say, given: Mapping[str, Any]) -> str:
    return await say(CHAT, given["message"], BACKGROUND)


def arrivals(rnd: Random, load: float, seconds: Seconds) -> list[Arrival]:
    urgent = poisson(rnd, 0.9 * load, seconds, "triage", lambda: {"report": text(rnd, 500)})
    long = poisson(rnd, 5.0 * load, seconds, "background", lambda: {"message": text(rnd, 500)})
    return sorted(urgent + long, key=lambda arrival: arrival.at_s)


WORKLOAD = Workload(
    "W8 triage",
    "triage among background decodes",
    arrivals,
    graphs,
    {"triage": plain_triage, "background": plain_background},
    urgent="triage",
)
