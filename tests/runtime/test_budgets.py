"""Budgets from Python: of a workflow, and of one run."""

import pytest

import flowserve as fs
from flowserve.config import Price, RuntimeConfig
from flowserve.errors import BudgetExhausted, GraphError, InputError
from flowserve.graphs.codec import from_spec, to_spec


@fs.llm(max_tokens=64)
def say(text: str) -> str:
    fs.prompt("Say: {{ text }}")


@fs.llm(model="large", max_tokens=64)
def think(text: str) -> str:
    fs.prompt("Think: {{ text }}")


@fs.workflow(budget=fs.Budget(tokens=3))
def bounded(text: str) -> str:
    return say(text)


@fs.workflow()
def free(text: str) -> str:
    return say(text)


@fs.workflow()
def both(text: str) -> str:
    return think(say(text))


def test_a_workflow_has_a_budget_and_a_run_another() -> None:
    with fs.testing.engine(replies={"say": "one two three"}):
        with pytest.raises(BudgetExhausted) as raised:
            bounded.run("hello")
        assert (raised.value.budget, raised.value.limit, raised.value.node) == ("tokens", 3, "say")
        assert bounded.options(budget=fs.Budget(tokens=10_000)).run("hello") == "one two three"


def test_a_run_ends_where_its_budget_does_and_says_which_node_spent_it() -> None:
    with fs.testing.engine(replies={"say": "one two three"}) as session:
        handle = free.submit("hello")
        handle.result()
        spent = handle.snapshot().spent
        assert spent is not None and spent.money is None
        enough = spent.prompt + spent.output
        assert free.options(budget=fs.Budget(tokens=enough)).run("hello") == "one two three"
        with pytest.raises(BudgetExhausted) as raised:
            free.options(budget=fs.Budget(tokens=enough - 1)).run("hello")
        assert raised.value.nodes["say"]["tokens"] == enough == raised.value.spent
        assert len(session.calls) == 3


def test_money_needs_a_price_of_every_model_that_is_called() -> None:
    money = both.options(budget=fs.Budget(money=1.0))
    with fs.testing.engine(models=("small", "large"), config=RuntimeConfig(prices=(("large", Price(1, 2)),))):
        assert money.run("hello"), "both are served by the one engine, which has a price by one of its names"
    with (
        fs.testing.engine(config=RuntimeConfig(prices=(("large", Price(1, 2)),))),
        pytest.raises(InputError, match="there is no price for the default model"),
    ):
        money.run("hello")


def test_a_budget_that_makes_no_sense_is_a_problem_of_the_workflow() -> None:
    @fs.workflow(budget=fs.Budget(tokens=1.5, seconds=-1))  # type: ignore[arg-type]
    def wrong(text: str) -> str:
        return say(text)

    with pytest.raises(GraphError) as raised:
        _ = wrong.program
    assert [problem.expected for problem in raised.value.problems] == [
        "tokens= a whole number above 0",
        "seconds= a number above 0",
    ]


def test_a_budget_of_a_run_that_makes_no_sense_is_refused() -> None:
    with (
        fs.testing.engine(),
        pytest.raises(InputError, match=r"budget: expected tokens= a whole number above 0; got 0"),
    ):
        free.options(budget=fs.Budget(tokens=0)).run("hello")


def test_a_spec_carries_the_budget_and_one_without_is_as_before() -> None:
    spec = to_spec(bounded.program)
    assert spec["budget"] == {"tokens": 3} and from_spec(spec).plan == bounded.program.plan
    assert "budget" not in to_spec(free.program)
    assert bounded.program.rewritten.plan.budget == fs.Budget(tokens=3)
    with pytest.raises(GraphError, match="/budget/tokens: expected minimum 1"):
        from_spec({**to_spec(free.program), "budget": {"tokens": 0}})
