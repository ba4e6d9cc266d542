"""What happened to one run, for people: the latest events and commands that speak of it."""

from flowserve.core.state import Run, SchedulerState
from flowserve.ids import RunId

SHOWN = 50
"""Live tasks listed at the end of a story."""


def story(state: SchedulerState, run: RunId) -> str:
    """What happened to a live run; of others nothing is known any more."""
    found = state.runs.get(run)
    return tell(found) if found is not None else f"run {run!r} is not live"


def tell(run: Run) -> str:
    """The latest events (`<-`) and commands (`->`) of `run`, oldest first, then where its tasks stand."""
    lines = [f"story of {run!r}, arrived as number {run.arrival}"]
    history = list(run.history)
    for at, item in zip(history[::2], history[1::2], strict=True):
        arrow = "<-" if type(item).__module__.endswith(".events") else "->"
        lines.append(f"  {at:>12.6f} {arrow} {item!r}")
    lines += [f"  stands: {task!r}" for task in list(run.tasks.values())[:SHOWN]]
    if len(run.tasks) > SHOWN:
        lines.append(f"  and {len(run.tasks) - SHOWN} more tasks")
    return "\n".join(lines)
