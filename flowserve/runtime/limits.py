"""Limits of tenants and budgets of runs, towards people: what is wrong with a budget, and what to tell who is over a bound."""

from collections.abc import Callable

from flowserve.core.commands import Bound, Over, Overspent
from flowserve.errors import BudgetExhausted, DeadlineHopeless, InputError, RunFailed, TenantLimited
from flowserve.graphs.plan import Budget, Kind, Plan
from flowserve.ids import RunId, Seconds

AT_ONCE_S: Seconds = 1.0
"""When to come again with a longer time-out."""
_TEXTS = {
    Bound.LIVE: "{limit:g} runs at work at once are what you may have, and they are",
    Bound.QUEUE: "{limit:g} runs that have not begun are what you may have, and they wait",
    Bound.RUNS: "{limit:g} runs per minute are what you may start, and these have come",
    Bound.TOKENS: "{limit:g} tokens per minute are what you may take; this run needs about {needed:.0f}, {left:.0f} are left",
    Bound.HOUR_TOKENS: "{limit:g} tokens are what you may take in an hour; this run needs about {needed:.0f}, {left:.0f} are left",
    Bound.DAY_TOKENS: "{limit:g} tokens are what you may take in a day; this run needs about {needed:.0f}, {left:.0f} are left",
    Bound.HOUR_MONEY: "{limit:g} of money are what you may spend in an hour; this run costs about {needed:.3g}, {left:.3g} are left",
    Bound.DAY_MONEY: "{limit:g} of money are what you may spend in a day; this run costs about {needed:.3g}, {left:.3g} are left",
}


def limited(over: Over, retry_after_s: Seconds) -> TenantLimited:
    """The error of a run that its tenant has no room for."""
    told = _TEXTS[over.bound].format(limit=over.limit, needed=over.needed, left=over.left)
    message = f"{told}; try again in {retry_after_s:.3g} s"
    return TenantLimited(message, retry_after_s, over.bound.value, over.limit, over.needed, over.left)


def exhausted(run: RunId, plan: Plan, label: str, over: Overspent) -> BudgetExhausted:
    """The error of a run that has spent what it may; `label` is the call that it ended by."""
    unit = "" if over.name == "money" else f" {'s at engines' if over.name == 'seconds' else over.name}"
    nodes = {
        plan.nodes[node].name: {
            "tokens": spent.prompt + spent.output,
            "seconds": round(spent.seconds, 6),
            "money": spent.money,
        }
        for node, spent in over.nodes
    }
    shares = ", ".join(f"{name} {amounts[over.name]:.6g}" for name, amounts in nodes.items())
    why = (
        f", and node {label} needs at least {over.needed:.6g} more"
        if over.needed
        else f" when node {label} was at work"
    )
    message = (
        f"the run's budget of {over.limit:.6g}{unit}{' of money' if over.name == 'money' else ''} is exhausted: "
        f"{over.spent:.6g} were spent{why} (by node: {shares or 'nothing yet'}). Give it a larger `budget`"
    )
    return BudgetExhausted(message, run, label, over.name, over.limit, over.spent, nodes)


def too_late(run: RunId, label: str, expected_s: Seconds) -> RunFailed:
    """The error of a run that ended before a call that would have been in vain."""
    message = (
        f"the run cannot end in time any more: from node {label} on it is expected to take {expected_s:.3g} s. "
        "Give it a longer `timeout`"
    )
    error = RunFailed(message, run, label)
    error.__cause__ = DeadlineHopeless(message, AT_ONCE_S, expected_s)
    return error


def checked_budget(asked: Budget | None, plan: Plan, priced: Callable[[str], bool]) -> Budget | None:
    """What a run of `plan` may spend; None: anything. Raises InputError for what makes no sense, and for money where a model
    that it calls has no price."""
    budget = asked.over(plan.budget) if asked is not None else plan.budget
    if wrong := budget.problems():
        raise InputError("; ".join(f"budget: expected {expected}; got {came}" for expected, came in wrong))
    if budget.money is not None and (free := [model for model in _called(plan) if not priced(model)]):
        names = ", ".join(f"'{model}'" if model else "the default model" for model in free)
        raise InputError(
            f"budget: expected no money, since there is no price for {names}; name it among the prices of the runtime "
            "(`[price.MODEL]` in the file of --pool), or give tokens or seconds"
        )
    return None if budget == Budget() else budget


def _called(plan: Plan) -> list[str]:
    """Models that nodes of `plan` call, each once; "": the default."""
    specs = {Kind.LLM: plan.llms, Kind.AGENT: [agent.llm for agent in plan.agents]}
    found = [specs[node.kind][node.target].model or "" for node in plan.nodes if node.kind in specs]
    return list(dict.fromkeys(found))
