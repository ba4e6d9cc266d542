"""What a run may spend (`plan.Budget`): asked before each of its model calls, and whenever it has spent something.

A run that has passed its budget, or whose next call would with its prompt alone, ends with BUDGET; its calls are cancelled at
their engines. Nothing is made shorter to fit: an answer is what was asked for, or there is none.
"""

from typing import TYPE_CHECKING, NamedTuple

from flowserve.core.commands import Overspent, Spending
from flowserve.core.events import Code
from flowserve.graphs.plan import Budget
from flowserve.ids import NodeId, Seconds, Tokens

if TYPE_CHECKING:
    from flowserve.config import Price
    from flowserve.core.engine_state import Engine
    from flowserve.core.spending import Spent
    from flowserve.core.state import Run, SchedulerState, Task

OTHERS = "*"
"""Stands for all models without a price of their own."""


class Doom(NamedTuple):
    """Why a run ends in this step, though none of its tasks has failed."""

    task: "Task"
    """The call that it ends by."""
    code: Code
    over: Overspent | None = None
    expected_s: Seconds | None = None
    """HOPELESS: what the run is still expected to take."""


class Passed(NamedTuple):
    """Fields as in `Overspent`."""

    name: str
    limit: float
    spent: float
    needed: float


def price_of(state: "SchedulerState", model: str, engine: "Engine") -> "Price | None":
    """Of tokens of a call for `model` at `engine`: by the name that was asked for, else by one that the engine answers to."""
    prices = state.prices
    return next((prices[name] for name in (model, *engine.models, OTHERS) if name in prices), None)


def passed(budget: Budget, spent: "Spent", tokens: Tokens = 0, money: float = 0.0) -> Passed | None:
    """The first bound of `budget` that is passed when so much comes on top of what was spent; None: none is."""
    for name, limit, had, more in (
        ("tokens", budget.tokens, spent.prompt + spent.output, tokens),
        ("seconds", budget.seconds, spent.seconds, 0.0),
        ("money", budget.money, spent.money, money),
    ):
        if limit is not None and had + more > limit:
            return Passed(name, limit, had, more)
    return None


def before(state: "SchedulerState", task: "Task", budget: Budget, engine: "Engine", resident: Tokens) -> Doom | None:
    """Why the run of `task`, which has this budget, must end instead of sending it to `engine`, which is thought to hold
    `resident` tokens of its prompt; None: it may go."""
    run, call = task.run, task.call
    assert call is not None
    price = price_of(state, run.shape.models[task.node.id], engine)
    if price is None and budget.money is not None:
        return Doom(task, Code.UNPRICED)
    prompt = max(0, call.tokens - resident) if call.measured and not call.written else 0
    found = passed(budget, run.spent, prompt, price.of(prompt, 0, 0) if price is not None else 0.0)
    return None if found is None else _doom(task, found)


def watch(state: "SchedulerState", task: "Task", budget: Budget) -> None:
    """`task` has spent something: its run, which has this budget, ends if that was too much."""
    run = task.run
    if run not in state.doomed:
        found = passed(budget, run.spent)
        if found is not None:
            state.doomed[run] = _doom(task, found)
            state.stirred = True


def _doom(task: "Task", found: Passed) -> Doom:
    return Doom(task, Code.BUDGET, Overspent(*found, nodes=_by_node(task.run)))


def _by_node(run: "Run") -> tuple[tuple[NodeId, Spending], ...]:
    return tuple((node, run.by_node[node].told()) for node in sorted(run.by_node))
