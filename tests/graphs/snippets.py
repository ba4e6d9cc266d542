"""The language as its users write it; type checkers and tests read this file."""

from typing import Literal

from pydantic import BaseModel

import flowserve.graphs as fs


class Answer(BaseModel):
    text: str
    citations: list[int]


handbook = fs.Index("handbook")


@fs.llm(max_tokens=256, timeout=20)
def answer(question: str, passages: list[fs.Doc]) -> Answer:
    fs.prompt(
        """{% for p in passages %}[{{ loop.index }}] {{ p.text }}
{% endfor %}
Question: {{ question }}""",
        system="Answer from the passages only.",
    )


@fs.workflow(slo=fs.SLO(ttft=0.5, e2e=5))
def rag(question: str) -> Answer:
    return answer(question, handbook.search(question, k=5))


@fs.tool
def split(text: str, words: int = 800) -> list[str]:
    w = text.split()
    return [" ".join(w[i : i + words]) for i in range(0, len(w), words)]


@fs.llm(max_tokens=120, retry=2)
def summarise(chunk: str) -> str:
    fs.prompt("Summarise in three sentences:\n{{ chunk }}")


@fs.llm(max_tokens=400)
def combine(parts: list[str]) -> str:
    fs.prompt("Merge into one summary:\n{% for p in parts %}- {{ p }}\n{% endfor %}")


@fs.workflow()
def summary(text: str) -> str:
    return combine(summarise.map(split(text)))


@fs.tool
async def search(query: str) -> list[str]:
    """Search the web."""
    return [query]


@fs.tool
def calculate(expression: str) -> float:
    """Evaluate arithmetic."""
    return float(len(expression))


researcher = fs.agent(tools=[search, calculate], instructions="Think, then act.", output=Answer, max_steps=6)


@fs.workflow(slo=fs.SLO(e2e=30))
def research(task: str) -> Answer:
    return researcher(task)


class Solution(BaseModel):
    reasoning: str
    final: str


@fs.llm(temperature=0.8)
def solve(problem: str) -> Solution:
    fs.prompt("Think step by step, then give the final answer.\n{{ problem }}")


@fs.workflow()
def reason(problem: str) -> str:
    best = solve.sample(16, vote="final", stop=fs.certaindex(threshold=0.9, min_samples=4))
    return best(problem).final


class Draft(BaseModel):
    text: str
    score: int


@fs.llm
def write(topic: str) -> Draft:
    fs.prompt("Write about {{ topic }}.")


@fs.llm
def improve(draft: Draft) -> Draft:
    fs.prompt("Improve:\n{{ draft.text }}")


@fs.workflow()
def essay(topic: str, strict: bool) -> Draft:
    first = write(topic)
    return fs.when(
        strict, then=lambda: fs.loop(improve, first, until=lambda d: d.score >= 8, max_iters=3), otherwise=lambda: first
    )


@fs.dynamic(calls=[answer, summary], max_calls=10)
async def plan_it(q: str) -> str:
    a = await answer.acall(q, [])
    return await summary.acall(a.text)


@fs.workflow
def dyn(q: str) -> str:
    return plan_it(q)


# what else there is


@fs.llm(max_tokens=8)
def classify(question: str) -> Literal["easy", "hard"]:
    fs.prompt("Is this easy or hard? {{ question }}")


@fs.workflow()
def route(question: str) -> str:
    kind = classify(question)
    return fs.match(
        kind,
        {"easy": lambda: summarise(question), "hard": lambda: reason(question)},
    )


@fs.workflow()
def many(questions: list[str]) -> list[Answer]:
    hits = handbook.search.map(questions, k=3, max_width=50)
    return answer.map(questions, hits, concurrency=8, max_width=50)


@fs.llm
def reply(messages: list[fs.Message]) -> str:
    fs.prompt(history=messages)


@fs.workflow
def chat(messages: list[fs.Message]) -> str:
    return reply(messages)


@fs.workflow
def votes(problem: str) -> list[Solution]:
    return solve.sample(3)(problem)


def typed() -> None:
    """Only read by type checkers: what each call is."""
    a: Answer = rag.run("q")
    b: list[str] = summarise.map(["x"])
    c: float = calculate("1+1")
    d: list[str] = search("q")
    print(a, b, c, d)
