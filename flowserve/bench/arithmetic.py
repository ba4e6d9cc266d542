"""Sums that the demo model computes step by step, voted on with and without stopping early, on a real server.

The model is drawn from at a temperature at which one sample is often wrong, so that there is something to vote about. Votes see the same
problems and, by their seeds, the same samples as far as they draw them; problems are of the split that training never saw. This
file is also what the server serves.
"""

import asyncio
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

import aiohttp
from pydantic import BaseModel

import flowserve as fs
from flowserve.bench import servers
from flowserve.demo import sums
from flowserve.programs import Consensus, self_consistency

SEED = 20261128
TEMPERATURE = 2.0
"""At 1.6 nearly every sample is right, at 2.5 one in ten."""
SAMPLES = 16
WORKERS = 4


class Sum(BaseModel):
    text: str
    result: str
    """The first that the text concludes with; empty if it concludes with none."""


@fs.llm(temperature=TEMPERATURE, max_tokens=64, stop="Check")
def compute(question: str) -> str:
    fs.prompt("{{ question }}", system=sums.SYSTEM)


@fs.tool(effects=False)
def read(text: str) -> Sum:
    """Find the answer in what was written."""
    found = re.search(r"The answer is (\d+)\.", text)
    return Sum(text=text, result=found[1] if found else "")


@fs.workflow()
def solve(question: str) -> Sum:
    """One sample."""
    return read(compute(question))


_all = self_consistency(solve, n=SAMPLES, vote="result", stop=None)
_certaindex = self_consistency(solve, n=SAMPLES, vote="result")
_beta = self_consistency(solve, n=SAMPLES, vote="result", stop=fs.adaptive_consistency(threshold=0.95))
_decided = self_consistency(solve, n=SAMPLES, vote="result", stop=fs.decided())


@fs.workflow()
def all_samples(question: str) -> Consensus[Sum]:
    """A vote over all samples."""
    return _all(question)


@fs.workflow()
def certaindex(question: str) -> Consensus[Sum]:
    """A vote that ends by Certaindex as published."""
    return _certaindex(question)


@fs.workflow()
def adaptive_consistency(question: str) -> Consensus[Sum]:
    """A vote that ends when the leader very probably has the majority."""
    return _beta(question)


@fs.workflow()
def decided(question: str) -> Consensus[Sum]:
    """A vote that ends when the rest cannot change it."""
    return _decided(question)


WAYS = ("solve", "all_samples", "certaindex", "adaptive_consistency", "decided")


def problems(limit: int) -> list[sums.Problem]:
    """Of three steps each, without repetition."""
    rng = Random(SEED)
    drawn: dict[str, sums.Problem] = {}
    while len(drawn) < limit:
        problem = sums.draw_problem(rng, sums.MAX_STEPS, "eval")
        drawn[problem.question] = problem
    return list(drawn.values())


def run(limit: int, ways: Sequence[str] = WAYS) -> dict[str, Any]:
    """Accuracy, samples and tokens of each way, on the CPU or GPU of this machine."""
    return asyncio.run(_run(problems(limit), ways))


async def _run(asked: list[sums.Problem], ways: Sequence[str]) -> dict[str, Any]:
    port = servers.free_port()
    command = [
        *servers.FLOWSERVE,
        "serve",
        __file__,
        "--engine",
        "hf",
        "--model",
        "demo-arithmetic",
        "--port",
        str(port),
    ]
    with tempfile.TemporaryDirectory(prefix="flowserve-bench-") as folder:
        async with (
            servers.started(command, port, "/ready", Path(folder) / "server.log") as server,
            aiohttp.ClientSession() as session,
        ):
            return {way: figures(asked, await _ask_all(session, server.url, way, asked)) for way in ways}


async def _ask_all(
    session: aiohttp.ClientSession, url: str, way: str, asked: list[sums.Problem]
) -> list[dict[str, Any]]:
    """Finished runs, in the order of the problems; a few at once."""
    room = asyncio.Semaphore(WORKERS)

    async def one(place: int, problem: sums.Problem) -> dict[str, Any]:
        body = {"input": {"question": problem.question}, "mode": "wait", "seed": SEED + place}
        async with room, session.post(f"{url}/v1/workflows/{way}/runs", json=body) as response:
            response.raise_for_status()
            run: dict[str, Any] = await response.json()
            return run

    return await asyncio.gather(*(one(place, problem) for place, problem in enumerate(asked)))


def figures(asked: Sequence[sums.Problem], runs: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Share of right answers; and per problem, samples that voted and tokens that engines wrote, those of dropped samples included."""
    results = [run["result"] for run in runs]
    answers = [result.get("answer", result)["result"] for result in results]
    right = sum(answer == str(problem.result) for problem, answer in zip(asked, answers, strict=True))
    samples = sum(result.get("drawn", 1) - result.get("dropped", 0) for result in results)
    written = sum(run["usage"]["tokens_out"] for run in runs)
    n = len(asked)
    return {
        "n": n,
        "accuracy": right / n,
        "samples_mean": samples / n,
        "output_tokens_per_problem": written / n,
    }
