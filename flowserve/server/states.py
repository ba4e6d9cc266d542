"""What a run's state is called at each door: one table. How errors are told stands in `errors.py`."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Told:
    """One state of the native door, elsewhere."""

    responses: str
    """`status` of a response. One that was cut is `incomplete` instead of `completed`."""
    langgraph: str
    """`status` of a run."""
    code: str | None
    """Code of the error that chat, completions, MCP, and a wait at any door answer with; None: there is none."""


STATES: dict[str, Told] = {
    "queued": Told("queued", "pending", None),
    "running": Told("in_progress", "running", None),
    "cancelling": Told("in_progress", "running", None),
    "completed": Told("completed", "success", None),
    "failed": Told("failed", "error", "of the cause"),
    "cancelled": Told("cancelled", "interrupted", "run_cancelled"),
    "timed_out": Told("failed", "timeout", "run_timed_out"),
}
