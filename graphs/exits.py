"""`fs.early_exit`: what an author says of a model call that may end before its chain of thought does, and what is wrong with it."""

from collections.abc import Callable
from typing import Any

from flowserve.errors import Problem
from flowserve.graphs import settings
from flowserve.graphs.plan import TRIAL, ExitSpec

ANSWERS = ("boxed", "number", "choice", "line")
"""Forms of answers that can be read from a trial: LaTeX's `\\boxed{...}`, the first number, the first single capital letter, the
rest of the line."""
RULES = ("default", "certified")
DELIVERIES = ("answer_only", "readout")
MEANS = ("arithmetic", "geometric")

_RULES: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "answer": (f"one of {', '.join(ANSWERS)}", lambda v: v in ANSWERS),
    "rule": (f"one of {', '.join(RULES)}", lambda v: v in RULES),
    "deliver": (f"one of {', '.join(DELIVERIES)}", lambda v: v in DELIVERIES),
    "trial": ("a text of up to 2,000 characters", lambda v: _is_text(v, 2_000)),
    "at": ("a text of up to 100 characters", lambda v: _is_text(v, 100)),
    "think": (
        'two marks, e.g. ("<think>", "</think>"), or None',
        lambda v: v is None or (isinstance(v, tuple) and len(v) == 2 and all(_is_text(mark, 100) for mark in v)),
    ),
    "budget": ("a number of tokens or None", lambda v: v is None or settings.is_count(v, 1, 1_000_000)),
    "mean": (f"one of {', '.join(MEANS)}", lambda v: v in MEANS),
    "skip": ("a number from 0 to 100", lambda v: settings.is_count(v, 0, 100)),
    "must_close": ("True or False", lambda v: isinstance(v, bool)),
    "task": ("a text of up to 200 characters", lambda v: isinstance(v, str) and len(v) <= 200),
}


def early_exit(
    *,
    answer: str,
    rule: str = "default",
    deliver: str = "answer_only",
    trial: str = TRIAL,
    at: str = "\n\n",
    think: tuple[str, str] | None = None,
    budget: int | None = None,
    mean: str = "arithmetic",
    skip: int = 1,
    must_close: bool = False,
    task: str = "",
) -> ExitSpec:
    """For `@fs.llm(exit=...)`: end the call when a fork of it, told to answer at once, is sure enough of its answer.

    Approximate, so the node must say `quality="balanced"` or `"fast"`. Fields are those of `ExitSpec`; they are checked with the
    node that is given them.
    """
    return ExitSpec(answer, rule, deliver, trial, at, think, budget, mean, skip, must_close, task)


def from_data(data: dict[str, Any]) -> ExitSpec:
    """What a spec or a client has written; the keys have been checked."""
    given: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in data.items()}
    return ExitSpec(**given)


def check_exit(name: str, output: dict[str, Any] | None, sampling: dict[str, Any], problems: list[Problem]) -> None:
    """Only one text of free form has a chain that can be cut, and only who allows approximation gets it."""
    exit: ExitSpec | None = sampling.get("exit")
    if exit is None:
        return
    for field, (expected, fine) in _RULES.items():
        came = getattr(exit, field)
        if not fine(came):
            problems.append(Problem(name, f"exit= {field}: {expected}", repr(came), "Correct fs.early_exit(...)."))
    if exit.must_close and exit.think is None:
        remedy = "Give think=, or leave must_close out."
        problems.append(Problem(name, "exit= with marks of thinking to wait for", "must_close=True alone", remedy))
    forms = [key for key in ("regex", "grammar") if sampling.get(key) is not None]
    if output is not None or forms:
        form = "a typed result" if output is not None else f"{forms[0]}="
        remedy = "Return str, or leave exit out: a form does not leave room for thoughts that can be cut."
        problems.append(Problem(name, "exit= with text of free form", form, remedy))
    if sampling.get("quality", "exact") == "exact":
        remedy = "An early exit may change the answer: say quality='balanced', or leave exit out."
        problems.append(Problem(name, "exit= with a quality that allows approximation", "quality='exact'", remedy))
    if exit.budget is not None and sampling.get("thinking_budget") is not None:
        remedy = "Leave thinking_budget out: the budget of exit= is enforced on every engine."
        problems.append(Problem(name, "one thinking budget", "thinking_budget= and exit= with a budget", remedy))


def _is_text(value: object, most: int) -> bool:
    return isinstance(value, str) and 0 < len(value) <= most
