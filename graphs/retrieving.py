"""What an author says of a model call that looks passages up while it writes, and what is wrong with it.

`@fs.llm(retrieve_every=4, retrieve_from="docs")`. The modes are names here; `flowserve/core/speculation/` says what they do. All of
them give the same tokens.
"""

from typing import Any

from flowserve.errors import Problem

MODES = ("sequential", "speculative", "overlapped")
MOST_EVERY = 1_024


def check_retrieval(
    name: str, output: dict[str, Any] | None, sampling: dict[str, Any], problems: list[Problem]
) -> None:
    """An index and a stride go together; a roll-back can undo neither a drawn number nor half a form."""
    every, index = sampling.get("retrieve_every"), sampling.get("retrieve_from")
    if every is None and index is None:
        if sampling.get("retrieve_mode") is not None:
            remedy = "Give both, or leave retrieve_mode out."
            problems.append(Problem(name, "retrieve_mode= with retrieve_every= and retrieve_from=", "neither", remedy))
        return
    if every is None or index is None:
        came = "retrieve_from= alone" if every is None else "retrieve_every= alone"
        problems.append(Problem(name, "retrieve_every= and retrieve_from= together", came, "Give both, or neither."))
    if sampling.get("temperature", 0) > 0:
        came = f"temperature={sampling['temperature']:g}"
        problems.append(Problem(name, "a greedy answer where passages are looked up", came, "Use temperature=0."))
    form = next((f"{key}=" for key in ("regex", "grammar", "exit") if sampling.get(key) is not None), None)
    form = "a typed result" if output is not None else form
    if form is not None:
        remedy = "Return str, without regex, grammar and exit: the text is written in steps that may be written again."
        problems.append(Problem(name, "text of free form where passages are looked up", form, remedy))
