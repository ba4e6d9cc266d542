"""A program is a node like any other: in workflows, maps and specs, drawn, checked, served, and under the budget of the run."""

import json

import httpx2
import pytest

import flowserve as fs
from flowserve import errors, programs
from flowserve.core.stopping.programs import PUBLISHED
from flowserve.engines.fake import FakeEngine
from flowserve.graphs.codec import from_spec
from flowserve.graphs.plan import Kind
from flowserve.runtime.runner import Runtime
from flowserve.server.app import create_app
from flowserve.server.settings import ServerSettings


@fs.llm(temperature=0.8, seed=1)
def guess(question: str) -> str:
    fs.prompt("{{ question }}")


@fs.llm(temperature=0.8, seed=1)
def think(question: str, path: list[str]) -> str:
    fs.prompt("{{ question }}{% for step in path %} {{ step }}{% endfor %}")


@fs.llm()
def judge(path: list[str]) -> float:
    fs.prompt("{% for step in path %} {{ step }}{% endfor %}")


@fs.llm()
def grade(draft: str) -> float:
    fs.prompt("{{ draft }}")


consistent = programs.self_consistency(guess, n=8)
ALL = [
    consistent,
    programs.best_of_n(guess, grade, n=4),
    programs.tree_of_thoughts(think, judge, breadth=2, depth=2, keep=2),
    programs.rebase(think, judge, width=4, most=4, depth=2),
    programs.mcts(think, judge, iterations=4, depth=2),
]


@fs.workflow()
def each(questions: list[str]) -> list[programs.Consensus[str]]:
    return consistent.map(questions)


def test_a_program_is_mapped_and_each_has_its_own_votes() -> None:
    with fs.testing.engine({"guess": lambda call: "a" if "first" in call.prompt_text else "b"}) as session:
        results = each.run(["first", "second"])
    assert [(result.answer, result.votes) for result in results] == [("a", {"a": 5}), ("b", {"b": 5})]
    assert len(session.calls) == 10


@pytest.mark.parametrize("program", ALL, ids=lambda program: program.name)
def test_every_program_is_declared_drawn_checked_and_written_down(program: programs.Program[..., object]) -> None:
    workflow = program.alone
    (node,) = (node for node in workflow.program.plan.nodes if node.kind is Kind.DYNAMIC)
    assert node.name == program.name and node.limit == program.max_calls
    drawn = workflow.graph()
    assert program.name in drawn.text and program.calls[0].name in drawn.text
    assert "think" in drawn.mermaid or "guess" in drawn.mermaid
    assert {problem.expected for problem in workflow.check()} <= {"few model calls on the critical path"}
    read = from_spec(workflow.spec(), dynamics=[program])
    assert read.plan.digest == workflow.program.version


@pytest.mark.parametrize("program", ALL, ids=lambda program: program.name)
def test_every_program_runs_within_the_calls_that_it_declares(program: programs.Program[..., object]) -> None:
    """Answers that all differ and are worth little: nothing stops early."""
    count = iter(range(1000))
    replies = {"judge": lambda call: 0.1, "grade": lambda call: 0.1, "*": lambda call: f"w{next(count)}"}
    with fs.testing.engine(replies) as session:
        result = program.run(question="q")
    assert isinstance(result, programs.Result) and result.ended == "complete"
    assert result.calls == len(session.calls) <= program.max_calls
    assert result.tokens > 0 and not result.dropped


def test_two_programs_over_one_node_stand_in_one_workflow() -> None:
    @fs.workflow()
    def two(question: str) -> list[str]:
        return [consistent(question).answer, ALL[1](question=question).answer]  # type: ignore[attr-defined]

    with fs.testing.engine({"guess": lambda call: "a", "grade": lambda call: 0.5}) as session:
        assert two.run("q") == ["a", "a"]
    assert len(session.calls) == 5 + 8


def test_the_budget_of_the_run_stands_above_that_of_the_program() -> None:
    with (
        fs.testing.engine({"guess": lambda call: call.id}),
        pytest.raises(errors.BudgetExhausted),
    ):
        consistent.alone.options(budget=fs.Budget(tokens=20)).run("q")


def test_the_published_thresholds_are_those_of_the_table() -> None:
    table = {name: (c.first, c.certainty, c.mean_reward, c.max_reward, c.every) for name, c in PUBLISHED.items()}
    assert table == {
        "consistency": (5, 0.7, None, None, 0),
        "consistency-code": (5, 0.4, None, None, 0),
        "mcts": (3, 0.99, 0.4, None, 0),
        "mcts-reward": (3, None, 0.4, None, 0),
        "rebase": (16, 0.85, None, 0.99, 0),
        "rebase-certainty": (16, 0.75, None, None, 0),
    }


async def test_a_program_is_served_as_a_workflow_and_as_a_model() -> None:
    runtime = Runtime([FakeEngine({"guess": "a"})])
    runtime.register(consistent.alone.program)
    await runtime.start()
    app = create_app(runtime, ServerSettings(port=0))
    transport = httpx2.ASGITransport(app=app)
    try:
        async with httpx2.AsyncClient(transport=transport, base_url="http://127.0.0.1") as http:
            run = await http.post("/v1/workflows/guess_self_consistency/runs", json={"input": {"question": "q"}})
            body = {"model": "guess_self_consistency", "messages": [{"role": "user", "content": "q"}]}
            chat = await http.post("/v1/chat/completions", json=body)
    finally:
        await runtime.aclose()
    assert run.json()["result"]["votes"] == {"a": 5} and run.json()["result"]["why"] == "certaindex: 5 of 5 agree"
    assert json.loads(chat.json()["choices"][0]["message"]["content"])["answer"] == "a"
