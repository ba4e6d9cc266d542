"""Calls that end early on vLLM: the demo's arithmetic model, forked beside its stream."""

from collections.abc import Callable
from dataclasses import replace
from random import Random
from typing import Any

import pytest

import flowserve as fs
from flowserve import demo
from flowserve.demo.sums import SYSTEM, draw_problem
from flowserve.engines.vllm import VLLMEngine
from flowserve.graphs.plan import ExitSpec
from flowserve.runtime.run import Run
from flowserve.runtime.runner import Runtime

pytestmark = pytest.mark.vllm

EXIT = fs.early_exit(rule="certified", answer="number", trial=" The answer is", at=".", skip=0)
PROBLEMS = [draw_problem(Random(seed), 3, "eval") for seed in range(4)]


class Certified:
    """A sum takes at most nine tokens, so the first place from 20 on is behind the last of three."""

    def __init__(self) -> None:
        self.threshold = 1.0

    def rule(self, model: str, template: str, task: str) -> tuple[str, tuple[tuple[str, float], ...]]:
        return ("default", (("threshold", self.threshold), ("apart", 20.0)))

    def watch(self, request: str, model: str, template: str, task: str) -> None:
        return None


async def solved(runtime: Runtime, exit: ExitSpec | None) -> list[Run]:
    @fs.llm(max_tokens=160, exit=exit, quality="exact" if exit is None else "balanced")
    def solve(question: str) -> str:
        fs.prompt("{{ question }}", system=SYSTEM)

    @fs.workflow()
    def sums(question: str) -> str:
        return solve(question)

    runs = [await runtime.submit(sums.program, {"question": problem.question}) for problem in PROBLEMS]
    for run in runs:
        await run.wait()
    return runs


def spent(runs: list[Run]) -> tuple[int, int]:
    records = [record for run in runs for record in run.records.values()]
    return sum(record.tokens_out for record in records), sum(record.trial_tokens for record in records)


def answer(run: Run) -> str:
    """The word behind the trial's text."""
    word: str = run.outcome().split(EXIT.trial)[-1].split()[0]
    return word


async def test_forks_leave_the_stream_as_it_was_and_end_it_when_they_are_sure(settings_of: Callable[..., Any]) -> None:
    engine, certified = VLLMEngine(settings_of(model=str(demo.arithmetic_path()))), Certified()
    runtime = Runtime([engine], certificates=certified)
    await runtime.start()
    try:
        plain, watched = await solved(runtime, None), await solved(runtime, EXIT)
        assert [run.outcome() for run in plain] == [run.outcome() for run in watched] == [p.answer for p in PROBLEMS]
        main, trials = spent(watched)
        assert main == spent(plain)[0] and trials > 0
        assert engine.status().prefix_hit > 0
        certified.threshold = 0.999
        stopped, read_out = await solved(runtime, EXIT), await solved(runtime, replace(EXIT, deliver="readout"))
        assert [run.snapshot().exits[0]["did"] for run in (*stopped, *read_out)] == ["stopped"] * 2 * len(PROBLEMS)
        results = [str(problem.result) for problem in PROBLEMS]
        assert [answer(run) for run in stopped] == results
        assert [answer(run) for run in read_out] == [f"{result}." for result in results]  # and then it checks
        assert sum(spent(stopped)) < 0.9 * main
    finally:
        await runtime.aclose()
    assert not engine.status().running
