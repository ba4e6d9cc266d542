"""The held-back questions of the demo language, asked of a running server: retrieval, prompt, generation.

An answer counts when it equals the expected sentence up to outer white space. Nothing is tuned here: the
names in the questions do not occur in the model's training data.
"""

import asyncio
from typing import Any

import aiohttp

from flowserve import demo
from flowserve.demo import CorpusQuestion

WORKERS = 8


def run(url: str, limit: int | None = None) -> dict[str, Any]:
    """Accuracy by question type, and the answers that were wrong."""
    return asyncio.run(_run(url, demo.questions()[:limit]))


async def _run(url: str, questions: list[CorpusQuestion]) -> dict[str, Any]:
    pending = list(enumerate(questions))
    answers: dict[int, str] = {}
    async with aiohttp.ClientSession() as session:

        async def worker() -> None:
            while pending:
                place, item = pending.pop()
                answers[place] = await ask(session, url, item.question)

        await asyncio.gather(*(worker() for _ in range(WORKERS)))
    return score(questions, [answers[place] for place in range(len(questions))])


async def ask(session: aiohttp.ClientSession, url: str, question: str) -> str:
    """The answer of workflow `rag`, waiting where the server says that it is full."""
    body = {"input": {"question": question}, "mode": "wait"}
    while True:
        async with session.post(f"{url}/v1/workflows/rag/runs", json=body) as response:
            if response.status == 429:
                await asyncio.sleep(float(response.headers.get("Retry-After", "1")))
                continue
            response.raise_for_status()
            return str((await response.json())["result"])


def score(questions: list[CorpusQuestion], answers: list[str]) -> dict[str, Any]:
    """Share of exact answers, in all and by type, with n."""
    right: dict[str, list[bool]] = {}
    wrong = []
    for item, answer in zip(questions, answers, strict=True):
        same = answer.strip() == item.answer.strip()
        right.setdefault(item.type, []).append(same)
        if not same:
            wrong.append({"question": item.question, "expected": item.answer, "came": answer})
    by_type = {kind: {"accuracy": sum(hits) / len(hits), "n": len(hits)} for kind, hits in sorted(right.items())}
    total = sum(sum(hits) for hits in right.values())
    return {"accuracy": total / max(1, len(questions)), "n": len(questions), "by_type": by_type, "wrong": wrong}
