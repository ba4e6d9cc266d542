"""Calls that end early on a real model: sums of the demo's arithmetic model, which checks its results when it has them."""

from random import Random

import pytest

pytest.importorskip("torch", reason="the demo model needs torch")

import flowserve as fs
from flowserve import demo
from flowserve.demo.sums import SYSTEM, Problem, draw_problem
from flowserve.engines.hf import HFEngine
from flowserve.graphs.plan import ExitSpec
from flowserve.runtime.run import Run
from flowserve.runtime.runner import Runtime

pytestmark = pytest.mark.torch

EXIT = fs.early_exit(rule="certified", answer="number", trial=" The answer is", at=".", skip=0)


class Certified:
    """Of a sum in the middle this model is as sure as of the last one, so no threshold would do; but a sum takes at most nine tokens,
    so the first place from 20 on is behind the last of three."""

    def __init__(self, threshold: float) -> None:
        self.threshold = threshold

    def rule(self, model: str, template: str, task: str) -> tuple[str, tuple[tuple[str, float], ...]]:
        return ("default", (("threshold", self.threshold), ("apart", 20.0)))

    def watch(self, request: str, model: str, template: str, task: str) -> None:
        return None


class Watched(HFEngine):
    """Keeps count of what it has written, also when it is closed."""

    def __init__(self) -> None:
        super().__init__(demo.arithmetic_path(), quiet=True)
        self.written = 0

    async def close(self) -> None:
        self.written = max(self.written, self.status().tokens_out_total)
        await super().close()


async def solved(problems: list[Problem], exit: ExitSpec | None, threshold: float = 1.0) -> tuple[list[Run], Watched]:
    """Each problem in turn."""

    @fs.llm(max_tokens=160, exit=exit, quality="exact" if exit is None else "balanced")
    def solve(question: str) -> str:
        fs.prompt("{{ question }}", system=SYSTEM)

    @fs.workflow()
    def sums(question: str) -> str:
        return solve(question)

    engine = Watched()
    runtime = Runtime([engine], certificates=Certified(threshold))
    await runtime.start()
    runs = []
    for problem in problems:
        run = await runtime.submit(sums.program, {"question": problem.question})
        await run.wait()
        runs.append(run)
    await runtime.aclose()
    return runs, engine


def spent(runs: list[Run]) -> tuple[int, int]:
    records = [record for run in runs for record in run.records.values()]
    return sum(record.tokens_out for record in records), sum(record.trial_tokens for record in records)


def drawn(count: int) -> list[Problem]:
    source = Random(7)
    return [draw_problem(source, 3, "eval") for _ in range(count)]


async def test_a_rule_that_never_fires_leaves_every_token_as_it_was() -> None:
    problems = drawn(4)
    plain, _ = await solved(problems, None)
    watched, engine = await solved(problems, EXIT)
    assert [run.outcome() for run in plain] == [run.outcome() for run in watched] == [p.answer for p in problems]
    main, trials = spent(watched)
    assert main == spent(plain)[0] and trials > 0
    assert 0 <= engine.written - main - trials <= len(problems)  # a trial that is left may have had a step more


async def test_checks_behind_a_sure_answer_are_not_written() -> None:
    problems = drawn(8)
    plain, _ = await solved(problems, None)
    watched, engine = await solved(problems, EXIT, threshold=0.999)
    assert [run.snapshot().exits[0]["did"] for run in watched] == ["stopped"] * 8
    assert [run.outcome().split()[-1] for run in watched] == [str(problem.result) for problem in problems]
    main, trials = spent(watched)
    assert 0 <= engine.written - main - trials <= 2 * len(problems)  # a call that is left may have had a step more
    assert main + trials < 0.8 * spent(plain)[0]
