"""Branches of a program at work side by side, and read in the order in which they were begun.

The order of reading is what makes a program repeat itself: equal answers give equal decisions, whichever came first. What it
costs is that a slow early branch holds back what later ones say.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from flowserve.core.stopping.rules import ExitRule, Spawn, Stop
from flowserve.core.stopping.signals import Signal
from flowserve.errors import FlowServeError, InternalError, ToolError
from flowserve.graphs.nodes import Node
from flowserve.programs.purse import Purse, Spent

T = TypeVar("T")


class Bill:
    """Calls that one branch makes, and what they take."""

    def __init__(self) -> None:
        self.spent = Spent()

    async def ask(self, node: Node[..., Any], arguments: dict[str, Any]) -> Any:
        """What `node` gives. Raises what it failed with."""
        answer = await node.ask(**arguments)
        self.spent = Spent(self.spent.calls + 1, self.spent.tokens + answer.tokens)
        if answer.error is not None:
            raise answer.error
        return answer.value


Work = Callable[[Bill], Awaitable[T]]
"""What a branch does."""


@dataclass(frozen=True, slots=True)
class Branch(Generic[T]):
    """A branch that has ended."""

    number: int
    value: T | None
    error: FlowServeError | None
    """Why it has no value."""


Told = Callable[[Branch[Any]], Sequence[Signal]]
"""What a rule is told of a branch that has ended."""


class Team:
    """The branches of one program. Made by `team`."""

    def __init__(self, purse: Purse) -> None:
        self._purse = purse
        self._waiting: deque[tuple[int, asyncio.Task[tuple[Any, FlowServeError | None, Spent]]]] = deque()
        self.begun = 0
        self.failed = 0
        self.error: FlowServeError | None = None
        """Of the branch that failed last."""

    def begin(self, works: Sequence[Work[Any]], calls_each: int) -> int:
        """Begin as many of `works`, in order, as the budget grants; returns how many."""
        granted = self._purse.grant(len(works), calls_each)
        for work in works[:granted]:
            self._waiting.append((calls_each, asyncio.ensure_future(_ended(work))))
        self.begun += granted
        return granted

    @property
    def waiting(self) -> int:
        """Begun and not read."""
        return len(self._waiting)

    async def read(self) -> Branch[Any]:
        """The end of the earliest branch that was not read yet."""
        calls_each, task = self._waiting[0]
        value, error, took = await task
        self._waiting.popleft()
        self._purse.settle(calls_each, took)
        if error is not None:
            self.failed += 1
            self.error = error
        return Branch(self.begun - len(self._waiting) - 1, value, error)

    async def drop(self) -> None:
        """Leave those that were not read."""
        for _, task in self._waiting:
            task.cancel()
        await asyncio.gather(*(task for _, task in self._waiting), return_exceptions=True)


@asynccontextmanager
async def team(purse: Purse) -> AsyncIterator[Team]:
    """A team whose unread branches are dropped at the end; when the program's function returns, so are their calls."""
    made = Team(purse)
    try:
        yield made
    finally:
        await made.drop()


async def _ended(work: Work[T]) -> tuple[T | None, FlowServeError | None, Spent]:
    bill = Bill()
    try:
        return await work(bill), None, bill.spent
    except InternalError:
        raise
    except FlowServeError as error:
        return None, error, bill.spent


async def draw(rule: ExitRule, crew: Team, work: Work[Any], calls_each: int, told: Told) -> Stop | None:
    """Draw branches that all do `work` until `rule` has enough (its Stop), or nothing more is drawn (None)."""
    decision = rule.begin()
    while not isinstance(decision, Stop):
        if isinstance(decision, Spawn):
            crew.begin([work] * decision.count, calls_each)
        if not crew.waiting:
            return None
        for signal in told(await crew.read()):
            decision = rule.observe(signal)
    return decision


def account(crew: Team, purse: Purse, stop: Stop | None) -> dict[str, Any]:
    """What every `Result` tells of how the program went."""
    if stop is not None:
        ended, why = "enough", stop.why
    elif purse.short:
        ended, why = "budget", str(purse)
    else:
        ended, why = "complete", f"all {crew.begun} branches were drawn"
    told = {"ended": ended, "why": why, "drawn": crew.begun, "dropped": crew.waiting, "failed": crew.failed}
    return told | {"calls": purse.spent.calls, "tokens": purse.spent.tokens}


def nothing(program: str, crew: Team) -> FlowServeError:
    """The error of a program none of whose branches gave anything: what befell the last one."""
    return ToolError(f"{program}: none of {crew.begun} branches gave an answer; the last failed with: {crew.error}")
