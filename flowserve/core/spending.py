"""What runs spend on model calls, and what each node's share of it is (`commands.Spending`): counted where calls go to engines,
write, are answered and leave, for runs with a budget and without.

A call is charged with the prompt that its engine has to compute when it goes there (`ModelCall.prefill`), with output as it is
written, and with its time as far as news of it tells; its answer says how much it was. So what is spent is known at every
event, also of calls under way.
"""

from typing import TYPE_CHECKING

from flowserve.core import budgets, quotas
from flowserve.core.commands import Spending
from flowserve.ids import Seconds, Tokens

if TYPE_CHECKING:
    from flowserve.core.engine_state import Engine
    from flowserve.core.state import SchedulerState, Task


class Spent:
    """What has been spent so far; fields as in `Spending`."""

    __slots__ = ("cached", "money", "output", "priced", "prompt", "seconds")

    def __init__(self) -> None:
        self.prompt: Tokens = 0
        self.cached: Tokens = 0
        self.output: Tokens = 0
        self.seconds: Seconds = 0.0
        self.money = 0.0
        self.priced = True
        """Every engine that was called has a price."""

    def told(self) -> Spending:
        """As it stands."""
        money = self.money if self.priced else None
        return Spending(self.prompt, self.cached, self.output, self.seconds, money)

    def __repr__(self) -> str:
        return f"Spent({self.prompt}+{self.cached} in, {self.output} out, {self.seconds:.3f} s, {self.money:.6f})"


def taken(state: "SchedulerState", task: "Task", engine: "Engine") -> None:
    """A call goes to `engine`."""
    call, run = task.call, task.run
    assert call is not None
    call.price = budgets.price_of(state, run.shape.models[task.node.id], engine)
    call.paid_at = state.now
    if call.written:
        call.paid_prompt = None
    else:
        call.paid_prompt = call.prefill if call.measured else 0
    if task.node.id not in run.by_node:
        run.by_node[task.node.id] = Spent()
    if call.price is None:
        run.spent.priced = run.by_node[task.node.id].priced = False
    _add(state, task, prompt=call.paid_prompt or 0)


def progressed(state: "SchedulerState", task: "Task", count: Tokens) -> None:
    """`count` more tokens were written."""
    _add(state, task, output=count, seconds=_since(state, task))


def answered(state: "SchedulerState", task: "Task", tokens_in: Tokens, cached: Tokens, tokens_out: Tokens) -> None:
    """The call has ended well; the engine says what it took."""
    call = task.call
    assert call is not None
    more = max(0, tokens_out - call.written)
    if call.paid_prompt is None or not tokens_in:
        _add(state, task, output=more)
        return
    cached = min(cached, tokens_in)
    correction = tokens_in - cached - call.paid_prompt
    call.paid_prompt = None
    _add(state, task, prompt=correction, cached=cached, output=more)


def left(state: "SchedulerState", task: "Task") -> None:
    """The call is no longer at its engine. One that has no token yet has not had its prompt computed, as far as anybody knows."""
    call = task.call
    assert call is not None
    begun = call.paid_prompt is None or call.last_at is not None
    _add(state, task, prompt=0 if begun else -(call.paid_prompt or 0), seconds=_since(state, task))
    call.paid_prompt = None


def _since(state: "SchedulerState", task: "Task") -> Seconds:
    """Seconds at the engine that were not counted yet; they are now."""
    call = task.call
    assert call is not None
    seconds = state.now - call.paid_at
    call.paid_at = state.now
    return seconds


def _add(
    state: "SchedulerState",
    task: "Task",
    prompt: Tokens = 0,
    cached: Tokens = 0,
    output: Tokens = 0,
    seconds: Seconds = 0.0,
) -> None:
    run, call = task.run, task.call
    assert call is not None
    money = call.price.of(prompt, cached, output) if call.price is not None else 0.0
    for spent in (run.spent, run.by_node[task.node.id]):
        spent.prompt += prompt
        spent.cached += cached
        spent.output += output
        spent.seconds += seconds
        spent.money += money
    if run.share.quota is not None:
        quotas.used(state, run, prompt + output, money)
    if run.budget is not None:
        budgets.watch(state, task, run.budget)
