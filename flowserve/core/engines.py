"""Engines come, change and go."""

from flowserve.core import failing, placement
from flowserve.core.events import EngineChanged
from flowserve.core.state import Consequence, Engine, SchedulerState, Todo


def changed(state: SchedulerState, event: EngineChanged) -> None:
    """Take over what an engine says of itself; calls on one that went down go back to the queue.

    A window that shrank below what runs there takes nothing new until enough has ended. An engine that is down
    stays known, so that calls for its models wait for its return.
    """
    engine = state.engines.get(event.engine)
    if engine is None:
        engine = state.engines[event.engine] = Engine(event.engine, len(state.engines) + 1)
    engine.up = event.up
    engine.limit = event.window if event.up else 0
    if event.up or event.models:
        engine.models = event.models
    state.serving = _serving(state)
    if not event.up:
        for task in list(engine.running):
            if task.place is engine and not task.run.over:
                failing.engine_gone(state, task)
    for model, queue in state.models.items():
        if queue.size and not placement.is_known(state, model):
            for task in queue.waiting():
                state.agenda.append(Consequence(Todo.UNSERVED, task))


def _serving(state: SchedulerState) -> dict[str, list[Engine]]:
    serving: dict[str, list[Engine]] = {}
    for engine in state.engines.values():
        if engine.up:
            for model in engine.models:
                known = serving.setdefault(model, [])
                if engine not in known:
                    known.append(engine)
    return serving
