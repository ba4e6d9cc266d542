"""Heads: the known beginning of a prompt is computed while the last thing that the prompt reads is still being made.

A node waits for one result more, and what gives that result is at work: a tool, a search, a call at another engine. What of
its prompt comes before that result is known. An engine that has no calls computes it meanwhile; the call then finds it in the
cache, where it goes to that engine, as placement would have it. (Teola, ASPLOS 2025, partial prefilling; Dynamo's
`speculative_prefill`.)

Nothing waits for a head: it goes to an engine without calls only, one at a time, and is dropped as soon as that engine gets a
call; what was computed until then stays in its cache, but is not counted on. It is asked for once, when the last result begins to be made; if no
engine is free then, the prompt is computed as a whole. Off unless `PoolConfig.ahead_tokens` is set.
"""

from flowserve.core import placement
from flowserve.core.commands import ComputeHead, DropHead, MeasureHead, Role
from flowserve.core.engine_state import Engine, Head, Health
from flowserve.core.events import HeadComputed, HeadMeasured
from flowserve.core.state import Frame, Phase, Run, SchedulerState, Task
from flowserve.graphs.plan import Kind, Node
from flowserve.ids import NodeId, Tokens


def begun(state: SchedulerState, task: Task) -> None:
    """`task` has been dispatched: see what waits for nothing else."""
    if _on(state) and task.role is Role.NODE and task.attempt == 1:
        frame = task.frame
        position = frame.run.shape.position[task.node.id]
        for dependent in frame.block.dependents[position]:
            if frame.nodes[dependent] == 1:
                _consider(state, frame, frame.block.nodes[dependent])


def one_left(state: SchedulerState, frame: Frame, position: int) -> None:
    """A node waits for one result only: see whether that is being made."""
    if not _on(state):
        return
    node, place = frame.block.nodes[position], frame.run.shape.position
    for dep in node.deps:
        last = frame.nodes[place[dep]]
        if isinstance(last, Task) and last.phase in (Phase.RUNNING, Phase.OPEN):
            _consider(state, frame, node)


def _on(state: SchedulerState) -> bool:
    return state.config.pool.ahead_tokens > 0 and state.config.measure


def _consider(state: SchedulerState, frame: Frame, node: Node) -> None:
    key = frame.run.id, frame.id, node.id
    if node.kind is Kind.LLM and frame.run.plan.llms[node.target].retrieve_every is not None:
        return  # its prompt begins with a passage that nobody knows yet
    if node.kind is Kind.LLM and key not in state.heads and _idle(state, frame.run, node):
        state.heads[key] = Head(frame, node.id)
        state.out.append(MeasureHead(*key))


def measured(state: SchedulerState, event: HeadMeasured) -> None:
    """How long the head is, and who holds some of it: let an idle engine compute the rest if that is enough."""
    key = event.run, event.frame, event.node
    head = state.heads.get(key)
    if head is None or head.engine is not None:
        state.stale += 1
        return
    frame = head.frame
    node = frame.run.plan.nodes[event.node]
    waits = type(frame.nodes[frame.run.shape.position[node.id]]) is int
    idle = _idle(state, frame.run, node) if waits else []
    engine = max(idle, key=lambda engine: _held(state, engine, event), default=None)
    if engine is None or event.tokens - _held(state, engine, event) < state.config.pool.ahead_tokens:
        drop(state, head)
        return
    head.engine, engine.head = engine, head
    head.added = event.prefix[engine.resident.longest(event.prefix) :]
    engine.resident.add(event.prefix)
    state.out.append(ComputeHead(*key, engine.id))


def _idle(state: SchedulerState, run: Run, node: Node) -> list[Engine]:
    """Engines that could take the node's call and have nothing to do."""
    return [
        engine
        for engine in state.serving.get(run.shape.models[node.id], ())
        if engine.health is Health.UP
        and placement.takes_calls(engine)
        and engine.limit
        and not engine.running
        and not engine.rivals
        and engine.head is None
    ]


def _held(state: SchedulerState, engine: Engine, event: HeadMeasured) -> Tokens:
    return engine.resident.longest(event.prefix) * state.config.pool.prefix_tokens


def computed(state: SchedulerState, event: HeadComputed) -> None:
    """The engine is free again."""
    key = event.run, event.frame, event.node
    head = state.heads.get(key)
    if head is None or head.engine is None:
        state.stale += 1
    else:
        head.engine.head = None
        del state.heads[key]


def call_at(state: SchedulerState, task: Task, engine: Engine) -> None:
    """A call goes to `engine`: what that computes ahead makes way, and the call's own head is of no use elsewhere."""
    if state.heads:
        if engine.head is not None:
            drop(state, engine.head)
        if task.role is Role.NODE:
            drop_of(state, task.run, task.frame, task.node.id)


def drop(state: SchedulerState, head: Head) -> None:
    """Nobody needs it any more, or its engine has something else to do."""
    key = head.frame.run.id, head.frame.id, head.node
    del state.heads[key]
    if head.engine is not None:
        head.engine.head = None
        head.engine.resident.remove(head.added)  # nobody knows how much of it was computed
    state.out.append(DropHead(*key, head.engine.id if head.engine is not None else None))


def drop_of(state: SchedulerState, run: Run, frame: Frame | None = None, node: NodeId | None = None) -> None:
    """Of a run, of one of its frames, or of one node there."""
    for head in list(state.heads.values()) if state.heads else ():
        if head.frame.run is run and frame in (None, head.frame) and node in (None, head.node):
            drop(state, head)
