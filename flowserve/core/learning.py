"""From one scheduler to the next: what a recorded log teaches, as events that any scheduler takes before its first run.

The log of the next one holds these events like all others, so it replays alone, and can itself be learned from.
"""

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field

from flowserve.core import estimates
from flowserve.core.events import Learned
from flowserve.core.log import read
from flowserve.core.predict.base import Call, Prediction, Predictor
from flowserve.core.state import SchedulerState
from flowserve.core.step import step
from flowserve.ids import Tokens

MOST_ANSWERS = 4096
"""The latest answers that are handed on, over all plans."""


@dataclass(frozen=True, slots=True)
class Answered:
    """A call has ended after so many tokens."""

    call: Call
    tokens: Tokens


@dataclass(slots=True)
class Overheard:
    """A predictor that notes what passes through it."""

    inner: Predictor
    told: deque[Call | Answered] = field(default_factory=deque)

    def predict(self, call: Call) -> Prediction | None:
        self.told.append(call)
        return self.inner.predict(call)

    def observe(self, call: Call, tokens: Tokens) -> None:
        self.told.append(Answered(call, tokens))
        self.inner.observe(call, tokens)


def lessons(lines: Iterable[str]) -> list[Learned]:
    """What the scheduler of this log knew in the end, a plan each. Raises StoreError for what is no log."""
    config, events = read(lines)
    state = SchedulerState(config)
    state.lengths.predictor = overheard = Overheard(state.lengths.predictor)
    answers: deque[Answered] = deque(maxlen=MOST_ANSWERS)
    for now, event in events:
        step(state, event, now)
        answers += [item for item in overheard.told if isinstance(item, Answered)]
        overheard.told.clear()
    by_plan: dict[str, list[tuple[Call, Tokens]]] = {}
    for answer in answers:
        by_plan.setdefault(answer.call.plan, []).append((answer.call, answer.tokens))
    return [
        estimates.lesson(state.estimates, known, tuple(by_plan.get(digest, ())))
        for digest, known in state.estimates.plans.items()
    ]
