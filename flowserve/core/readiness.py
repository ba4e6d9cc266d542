"""Dependency counting: what becomes ready when a node is done, and when a frame is done.

A frame counts, per node, the dependencies that are not done. Nobody ever searches for ready nodes; a count
that reaches zero *is* the discovery.
"""

from flowserve.core import heads
from flowserve.core.commands import OpenFrame, Reprioritise
from flowserve.core.engine_state import Engine
from flowserve.core.priority import engine_priority
from flowserve.core.state import Consequence, Frame, Run, SchedulerState, Task, Todo
from flowserve.ids import BlockId, FrameId, NodeId


def enter(state: SchedulerState, run: Run, block: BlockId, owner: Task | None, index: int) -> Frame:
    """Open a frame of `block` for `owner`. The caller makes tasks for its roots; see `expansion.open_frame`."""
    run.last_frame += 1
    frame = Frame(FrameId(run.last_frame), run, run.shape.blocks[block], owner, index)
    run.frames[frame.id] = frame
    if owner is None:
        frame.deadline = run.deadline
    else:
        assert owner.expansion is not None
        owner.expansion.live[frame.id] = frame
        frame.deadline = owner.deadline
    state.out.append(
        OpenFrame(
            run.id,
            frame.id,
            block,
            owner.id if owner is not None else None,
            owner.frame.id if owner is not None else None,
            index,
        )
    )
    if not frame.unfinished:
        state.agenda.append(Consequence(Todo.FRAME_DONE, frame))
    return frame


def node_done(state: SchedulerState, frame: Frame, node: NodeId) -> list[int]:
    """Count `node` as done in `frame`. Returns the positions that became ready, in order; they need tasks now.

    A map that began early has its task already: its list is whole now.
    """
    nodes = frame.nodes
    position = frame.run.shape.position[node]
    nodes[position] = None
    frame.unfinished -= 1
    if frame.owner is None:
        _advance(state, frame, node)
    if not frame.unfinished:
        state.agenda.append(Consequence(Todo.FRAME_DONE, frame))
        return []
    ready = []
    for dependent in frame.block.dependents[position]:
        waits = nodes[dependent]
        if isinstance(waits, Task):
            state.agenda.append(Consequence(Todo.LIST_WHOLE, waits))
            continue
        assert waits is not None
        nodes[dependent] = waits - 1
        if waits == 1:
            ready.append(dependent)
        elif waits == 2:
            heads.one_left(state, frame, dependent)
    return ready


def leave(frame: Frame) -> None:
    """The frame is no longer at work."""
    del frame.run.frames[frame.id]
    if frame.owner is not None:
        assert frame.owner.expansion is not None
        del frame.owner.expansion.live[frame.id]


def _advance(state: SchedulerState, frame: Frame, node: NodeId) -> None:
    """Less is left, and the run's pointer moves over finished nodes: amortised constant time per node of block 0.

    `by_tail` descends, so the first node that is not done carries the remaining critical path.
    """
    run, nodes = frame.run, frame.nodes
    by_tail, position = run.by_tail, run.shape.position
    while run.pointer < len(by_tail) and nodes[position[by_tail[run.pointer]]] is None:
        run.pointer += 1
    done = min(run.work, run.works[node])
    run.work -= done
    state.work -= done
    rerank(state, run)


def rerank(state: SchedulerState, run: Run) -> None:
    """Something that the rank rests on has changed: what waits moves, also inside engines."""
    rank = state.policy.rank(run, state.config)
    if rank != run.rank:
        run.rank = rank
        for lane in run.lanes.values():
            lane.queue.rerank(lane)
        if run.calls:
            _tell_engines(state, run)


def _tell_engines(state: SchedulerState, run: Run) -> None:
    """Calls that wait inside an engine are as urgent as their run is now."""
    for task in run.calls:
        engine, call = task.place, task.call
        if isinstance(engine, Engine) and engine.can_reprioritise and call is not None and call.last_at is None:
            state.out.append(
                Reprioritise(
                    run.id, task.id, task.attempt, engine.id, engine_priority(state.policy.rank_of(task, state.config))
                )
            )
