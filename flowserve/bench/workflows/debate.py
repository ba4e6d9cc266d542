"""W7, the batch shapes of Helium: fourteen experts and a summariser; three agents that debate for two rounds.

Answers of 512 tokens at most, here a quarter of that. Questions come in bursts of several, as the suite's batches do.
"""

import asyncio
from collections.abc import Mapping, Sequence
from operator import add
from random import Random
from typing import Annotated, Any, TypedDict

import flowserve as fs
from flowserve.bench.workflows import inputs
from flowserve.bench.workflows.shape import Arrival, Say, Workload, fixed, say_of, scaled
from flowserve.ids import Seconds

EXPERTS = [fixed(f"expert {n}", 256) for n in range(14)]
DEBATERS = [fixed(f"debater {n}", 256) for n in range(3)]
JUDGE = fixed("judge", 256)
ANSWER = scaled(128)


@fs.llm(max_tokens=ANSWER)
def opinion(role: str, question: str) -> str:
    fs.prompt("{{ role|trim }}\nQuestion\n{{ question|trim }}\nAnswer")


@fs.llm(max_tokens=ANSWER)
def rebut(role: str, question: str, others: list[str]) -> str:
    fs.prompt(
        "{{ role|trim }}\nQuestion\n{{ question|trim }}\n{% for o in others %}Said\n{{ o|trim }}\n{% endfor %}Answer"
    )


@fs.llm(max_tokens=ANSWER)
def judge(question: str, answers: list[str]) -> str:
    fs.prompt(
        "Question\n{{ question|trim }}\n{% for a in answers %}Said\n{{ a|trim }}\n{% endfor %}Verdict", system=JUDGE
    )


@fs.workflow()
def experts(question: str) -> str:
    """Fourteen opinions and a verdict."""
    return judge(question, [opinion(role, question) for role in EXPERTS])


@fs.workflow()
def debate(question: str) -> str:
    """Three agents answer, read each other and answer again; then a verdict."""
    said = [opinion(role, question) for role in DEBATERS]
    said = [rebut(role, question, said) for role in DEBATERS]
    return judge(question, said)


def _opinion(role: str, question: str) -> str:
    return f"{role}\nQuestion\n{question}\nAnswer"


def _rebut(role: str, question: str, others: Sequence[str]) -> str:
    return f"{role}\nQuestion\n{question}\n" + "".join(f"Said\n{other}\n" for other in others) + "Answer"


def _judge(question: str, answers: Sequence[str]) -> str:
    return f"Question\n{question}\n" + "".join(f"Said\n{answer}\n" for answer in answers) + "Verdict"


class _State(TypedDict):
    question: str
    said: Annotated[list[tuple[int, int, str]], add]
    result: str


def graphs() -> dict[str, Any]:
    from langchain_core.runnables import RunnableConfig
    from langgraph.graph import END, START, StateGraph

    def of_turn(state: _State, turn: int) -> list[str]:
        return [text for at, _, text in sorted(state["said"]) if at == turn]

    def speaker(roles: Sequence[str], number: int, turn: int) -> Any:
        async def speak(state: _State, config: RunnableConfig) -> dict[str, Any]:
            role, question = roles[number], state["question"]
            prompt = _rebut(role, question, of_turn(state, turn - 1)) if turn else _opinion(role, question)
            return {"said": [(turn, number, await say_of(config)("", prompt, ANSWER))]}

        return speak

    def panel(roles: Sequence[str], turns: int) -> Any:
        async def verdict(state: _State, config: RunnableConfig) -> dict[str, Any]:
            prompt = _judge(state["question"], of_turn(state, turns - 1))
            return {"result": await say_of(config)(JUDGE, prompt, ANSWER)}

        graph: Any = StateGraph(_State)
        graph.add_node("verdict", verdict)
        before: list[str] = [START]
        for turn in range(turns):
            names = [f"{turn}-{number}" for number in range(len(roles))]
            for number, name in enumerate(names):
                graph.add_node(name, speaker(roles, number, turn))
                graph.add_edge(before if turn else START, name)
            before = names
        graph.add_edge(before, "verdict")
        graph.add_edge("verdict", END)
        return graph.compile()

    return {"experts": panel(EXPERTS, 1), "debate": panel(DEBATERS, 2)}


async def plain_experts(say: Say, given: Mapping[str, Any]) -> str:
    question = given["question"]
    said = await asyncio.gather(*(say("", _opinion(role, question), ANSWER) for role in EXPERTS))
    return await say(JUDGE, _judge(question, said), ANSWER)


async def plain_debate(say: Say, given: Mapping[str, Any]) -> str:
    question = given["question"]
    said = await asyncio.gather(*(say("", _opinion(role, question), ANSWER) for role in DEBATERS))
    said = await asyncio.gather(*(say("", _rebut(role, question, said), ANSWER) for role in DEBATERS))
    return await say(JUDGE, _judge(question, said), ANSWER)


def bursts(workflow: str, every_s: Seconds, size: int) -> Any:
    def arrivals(rnd: Random, load: float, seconds: Seconds) -> list[Arrival]:
        found, at = [], 0.0
        while at < seconds:
            found += [Arrival(at, workflow, {"question": inputs.question(rnd, 400)}) for _ in range(size)]
            at += every_s / load
        return found

    return arrivals


MAPRED = Workload(
    "W7 experts", "fourteen experts and a verdict", bursts("experts", 5.0, 8), graphs, {"experts": plain_experts}
)
DEBATE = Workload("W7 debate", "three agents, two rounds", bursts("debate", 5.0, 16), graphs, {"debate": plain_debate})
