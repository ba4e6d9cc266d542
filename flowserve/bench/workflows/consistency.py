"""W10, self-consistency: eight samples of a solution, the answer by majority; what cannot change the vote any more is not waited for.

FlowServe and asyncio stop when the vote is decided, which is exact: the answer is that of all eight. LangGraph joins when all
branches have ended. Samples end at random, at one of `ENDS` or at 512 tokens. Random weights have no answers: a sample's is
one of those recorded for a problem, by its text.
"""

import asyncio
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from operator import add
from random import Random
from typing import Annotated, Any, TypedDict

import flowserve as fs
from flowserve.bench.random_model import WORDS
from flowserve.bench.workflows import inputs
from flowserve.bench.workflows.shape import Arrival, Say, Workload, fixed, poisson, say_of, scaled
from flowserve.ids import Seconds

SAMPLES = 8
SOLVE = fixed("solve", 256)
LIMIT = scaled(512)
ENDS = WORDS[::21]
"""Words at which a sample ends: of random words, every twentieth is one."""
SEED = 29


@dataclass(frozen=True, slots=True)
class Solution:
    """What a sample came to."""

    text: str
    final: str


def concluded(text: str, answers: Sequence[str]) -> str:
    """One of `answers`, the same for the same text."""
    return answers[int.from_bytes(blake2b(text.strip().encode(), digest_size=4).digest(), "big") % len(answers)]


@fs.llm(temperature=1.0, seed=SEED, max_tokens=LIMIT, stop=ENDS)
def solve(question: str) -> str:
    fs.prompt("{{ question|trim }}\nSolution", system=SOLVE)


@fs.tool(effects=False)
async def conclude(text: str, answers: list[str]) -> Solution:
    """The answer that stands in a solution."""
    return Solution(text, concluded(text, answers))


@fs.workflow()
def attempt(question: str, answers: list[str]) -> Solution:
    """One sample."""
    return conclude(solve(question), answers)


@fs.workflow()
def consistent(question: str, answers: list[str]) -> str:
    """The answer that most of eight samples give."""
    return attempt.sample(SAMPLES, vote="final", stop=fs.decided())(question, answers).final


def sampling(number: int) -> dict[str, Any]:
    """What sample `number` is asked with, as FlowServe derives it."""
    return {"temperature": 1.0, "seed": seed_of(number), "stop": ENDS}


def seed_of(number: int) -> int:
    """FlowServe's seed of a node in a sample: siblings must not draw alike."""
    if not number:
        return SEED
    given = f"{SEED}:attempt/solve:{(number, 0)}".encode()
    return int.from_bytes(blake2b(given, digest_size=6).digest(), "big")


def majority(finals: Mapping[int, str]) -> str:
    """The most frequent answer; of equals the one with the earliest sample. By sample number."""
    counts = Counter(finals.values())
    first = {final: number for number, final in sorted(finals.items(), reverse=True)}
    return min(counts, key=lambda final: (-counts[final], first[final]))


def is_decided(finals: Sequence[str]) -> bool:
    """The samples that are left cannot bring another answer level."""
    ordered = [*(count for _, count in Counter(finals).most_common(2)), 0, 0]
    return ordered[0] > ordered[1] + SAMPLES - len(finals)


class _State(TypedDict):
    question: str
    answers: list[str]
    finals: Annotated[list[tuple[int, str]], add]
    result: str


def _prompt(question: str) -> str:
    return f"{question}\nSolution"


def graphs() -> dict[str, Any]:
    from langchain_core.runnables import RunnableConfig
    from langgraph.graph import END, START, StateGraph
    from langgraph.types import Send

    def spread(state: _State) -> list[Send]:
        return [Send("solve", {**state, "number": number}) for number in range(SAMPLES)]

    async def solve(state: dict[str, Any], config: RunnableConfig) -> dict[str, Any]:
        number = state["number"]
        said = await say_of(config)(SOLVE, _prompt(state["question"]), LIMIT, **sampling(number))
        return {"finals": [(number, concluded(said, state["answers"]))]}

    def vote(state: _State) -> dict[str, Any]:
        return {"result": majority(dict(state["finals"]))}

    graph: Any = StateGraph(_State)
    graph.add_node("solve", solve)
    graph.add_node("vote", vote)
    graph.add_conditional_edges(START, spread, ["solve"])
    graph.add_edge("solve", "vote")
    graph.add_edge("vote", END)
    return {"consistent": graph.compile()}


async def plain(say: Say, given: Mapping[str, Any]) -> str:
    async def attempt(number: int) -> tuple[int, str]:
        said = await say(SOLVE, _prompt(given["question"]), LIMIT, **sampling(number))
        return number, concluded(said, given["answers"])

    attempts = [asyncio.create_task(attempt(number)) for number in range(SAMPLES)]
    finals: dict[int, str] = {}
    try:
        for ended in asyncio.as_completed(attempts):
            number, final = await ended
            finals[number] = final
            if is_decided(list(finals.values())):
                break
    finally:
        for task in attempts:
            task.cancel()
    return majority(finals)


def _problem(rnd: Random) -> dict[str, Any]:
    return {"question": inputs.question(rnd, 256), "answers": inputs.answers(rnd)}


def arrivals(rnd: Random, load: float, seconds: Seconds) -> list[Arrival]:
    return poisson(rnd, 2.0 * load, seconds, "consistent", lambda: _problem(rnd))


WORKLOAD = Workload("W10 votes", "eight samples and a majority", arrivals, graphs, {"consistent": plain})
