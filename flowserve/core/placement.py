"""Which engine a model call goes to. Proposals only; `dispatching` acts on them."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from flowserve.core.state import Engine, SchedulerState


def place(state: "SchedulerState", model: str) -> "Engine | None":
    """The engine with the smallest share of its window in use that serves `model` and has room.

    Ties go to the engine that appeared first. None: no engine that serves it has room now.
    """
    best: Engine | None = None
    best_load = 1.0
    for engine in state.serving.get(model, ()):
        used = len(engine.running)
        if used < engine.limit and used / engine.limit < best_load:
            best, best_load = engine, used / engine.limit
    return best


def is_known(state: "SchedulerState", model: str) -> bool:
    """Has any engine, up or down, ever answered to `model`? Without any engine at all everything may still come."""
    return not state.engines or any(model in engine.models for engine in state.engines.values())
