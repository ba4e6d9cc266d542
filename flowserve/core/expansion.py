"""Nodes that have bodies: how MAP, SAMPLE, SWITCH, LOOP, RACE and DYNAMIC open frames, and when they join.

| kind    | number means   | frames at once         | frame done                   | frame failed  | Join takes        |
|---------|----------------|------------------------|------------------------------|---------------|-------------------|
| MAP     | items          | `concurrency`, 0 = all | open the next                | it fails [1]  | all, in order     |
| SAMPLE  | samples        | as MAP, and `sampling` | Label if a rule; the next    | dropped       | those done        |
| SWITCH  | the arm        | 1                      | join                         | it fails      | the one           |
| LOOP    | 1 stop, 0 more | 1                      | Evaluate, or join at `limit` | it fails      | the last, or none |
| RACE    | the arms       | all                    | Label; join at `limit`       | dropped       | the first `limit` |
| DYNAMIC | (none)         | as many as it calls    | Return the frame             | Return a code | (never)           |

Of a SAMPLE or LOOP fewer are opened where the run would be late and its author allows it (`degradation`): Degrade comes first.

[1] A map that began early, whose list is not whole, starts over: see `early`.
"""

from flowserve.core import degradation, estimates, failing, readiness, runs, sampling, tasks
from flowserve.core.commands import CloseFrame, Evaluate, Join, Label, Mark, Return, Status
from flowserve.core.events import Called, Code, SampleLabelled
from flowserve.core.state import Consequence, Expansion, Frame, Phase, SchedulerState, Task, Width
from flowserve.core.stopping.samples import RULES
from flowserve.graphs.plan import Kind
from flowserve.ids import BlockId, FrameId


def open_frame(state: SchedulerState, task: Task, block: BlockId, index: int) -> None:
    """Open a frame for `task`, and make tasks for the nodes that wait for nothing."""
    frame = readiness.enter(state, task.run, block, task, index)
    for position in frame.block.roots:
        tasks.create(state, frame, position)


def join(state: SchedulerState, task: Task, stopped_by: str | None = None) -> None:
    """All that counts is done: let the driver build the value."""
    assert task.expansion is not None
    tasks.move(task, Phase.JOINING)
    state.out.append(Join(task.run.id, task.id, task.attempt, tuple(task.expansion.closing()), stopped_by))


def refuse(state: SchedulerState, task: Task, code: Code) -> None:
    """What the driver found cannot be carried out."""
    tasks.stop(state, task)
    failing.failed(state, task, code)


# --- the number is known ------------------------------------------------------------------------------


def evaluated(state: SchedulerState, task: Task, choice: int) -> None:
    """The driver has found out how wide, which arm, or whether once more."""
    if choice < 0:
        refuse(state, task, Code.INTERNAL)
    elif task.kind is Kind.SWITCH:
        _take_arm(state, task, choice)
    elif task.kind is Kind.LOOP:
        _iterate(state, task, choice)
    elif task.kind is Kind.RACE and choice != len(task.node.bodies):
        refuse(state, task, Code.INTERNAL)
    else:
        _fan_out(state, task, choice)


def _fan_out(state: SchedulerState, task: Task, width: int) -> None:
    rule = sampling.spec_of(task).rule if task.kind is Kind.SAMPLE else None
    if width > task.node.limit and task.kind is not Kind.RACE:
        refuse(state, task, Code.LIMIT)
    elif rule is not None and rule not in RULES:
        refuse(state, task, Code.INTERNAL)
    else:
        task.expansion = Expansion(_samples(state, task, width) if task.kind is Kind.SAMPLE else width)
        tasks.move(task, Phase.OPEN)
        if rule is not None:
            sampling.expect(task)
        if width:
            open_more(state, task)
        else:
            join(state, task)


def _samples(state: SchedulerState, task: Task, width: int) -> int:
    """How many of `width` samples are drawn."""
    degrade = task.node.degrade
    if degrade is None or width <= degrade.least or not degradation.due(state, task):
        return width
    degradation.take(state, task, degrade.least)
    return degrade.least


def open_more(state: SchedulerState, task: Task) -> None:
    expansion = task.expansion
    assert expansion is not None
    room = min(task.node.concurrency or expansion.width, sampling.room(state, task))
    while expansion.opened < expansion.width and len(expansion.live) < room:
        expansion.opened += 1
        state.streamed += expansion.sure is not Width.KNOWN
        body = task.node.bodies[expansion.opened - 1 if task.kind is Kind.RACE else 0]
        open_frame(state, task, body, expansion.opened - 1)


def start_over(state: SchedulerState, task: Task, fresh: Expansion) -> Expansion:
    """Drop what a map that began early has at work and has kept; it goes on with `fresh`."""
    assert task.expansion is not None
    state.started_over += task.expansion.opened
    tasks.drop_parts(state, task)
    task.expansion = fresh
    return fresh


def _take_arm(state: SchedulerState, task: Task, arm: int) -> None:
    bodies = task.node.bodies
    if arm >= len(bodies):
        refuse(state, task, Code.INTERNAL)
        return
    estimates.chose(task, arm)
    task.expansion = Expansion(1)
    tasks.move(task, Phase.OPEN)
    for block in dict.fromkeys(bodies):
        if block != bodies[arm]:
            for node in task.run.shape.blocks[block].nodes:
                state.out.append(Mark(task.run.id, Status.SKIPPED, None, node.id, task.frame.id))
    task.expansion.opened = 1
    open_frame(state, task, bodies[arm], 0)


def _iterate(state: SchedulerState, task: Task, stop: int) -> None:
    if task.expansion is None:
        task.expansion = Expansion(task.node.limit)
    expansion, degrade = task.expansion, task.node.degrade
    tasks.move(task, Phase.OPEN)
    if stop or expansion.opened >= expansion.width:
        join(state, task)
    elif degrade is not None and expansion.opened >= degrade.least and degradation.due(state, task):
        degradation.take(state, task, expansion.opened)
        join(state, task)
    else:
        expansion.opened += 1
        open_frame(state, task, task.node.bodies[0], expansion.opened - 1)


# --- a frame is done ----------------------------------------------------------------------------------


def frame_done(state: SchedulerState, item: Consequence) -> None:
    """All nodes of a frame are done: keep it for the join, and see what its owner does next."""
    frame = item.subject
    assert isinstance(frame, Frame)
    if not failing.is_live(frame):
        return
    readiness.leave(frame)
    owner = frame.owner
    if owner is None:
        runs.completed(state, frame.run)
        return
    if owner.kind is Kind.DYNAMIC:
        state.out.append(Return(owner.run.id, owner.id, frame.index, frame.id))
        state.out.append(CloseFrame(owner.run.id, frame.id))
        return
    expansion = owner.expansion
    assert expansion is not None
    expansion.done[frame.index] = frame.id
    if owner.kind is Kind.LOOP:
        _iteration_done(state, owner, frame)
    elif owner.kind is Kind.RACE:
        expansion.unlabelled[frame.id] = None
        state.out.append(Label(owner.run.id, owner.id, frame.id))
    elif expansion.complete:
        join(state, owner)
    else:
        if owner.kind is Kind.SAMPLE and sampling.spec_of(owner).rule is not None:
            expansion.unlabelled[frame.id] = None
            state.out.append(Label(owner.run.id, owner.id, frame.id))
        open_more(state, owner)


def _iteration_done(state: SchedulerState, loop: Task, frame: Frame) -> None:
    """Evaluate again, or join at the bound. The iteration before was this one's input and is not needed now."""
    expansion = loop.expansion
    assert expansion is not None
    before = expansion.done.pop(frame.index - 1, None)
    if expansion.opened == expansion.width:
        join(state, loop)
    else:
        tasks.move(loop, Phase.RUNNING)
        state.out.append(Evaluate(loop.run.id, loop.id, loop.attempt, frame.id))
    if before is not None:
        state.out.append(CloseFrame(loop.run.id, before))


# --- a frame has failed -------------------------------------------------------------------------------


def frame_failed(state: SchedulerState, item: Consequence) -> None:
    """A node of a frame failed for good: the frame goes, and its owner bears it or fails too."""
    frame, code, origin = item.subject, item.code, item.origin
    assert isinstance(frame, Frame) and code is not None and origin is not None
    if not failing.is_live(frame):
        return
    owner = frame.owner
    assert owner is not None
    if owner.kind is Kind.DYNAMIC:
        tasks.kill_frame(state, frame)
        state.out.append(Return(owner.run.id, owner.id, frame.index, None, code))
    elif owner.kind is Kind.SAMPLE:
        tasks.kill_frame(state, frame)
        _sample_dropped(state, owner, code, origin)
    elif owner.kind is Kind.RACE:
        tasks.kill_frame(state, frame)
        _arm_out(state, owner, code, origin)
    elif owner.expansion is not None and owner.expansion.sure is not Width.KNOWN:
        asked = owner.expansion.sure is Width.ASKED
        start_over(state, owner, Expansion(0, Width.ASKED if asked else Width.HELD))
    else:
        failing.part_failed(state, owner, code, origin)


def _sample_dropped(state: SchedulerState, sample: Task, code: Code, origin: Task) -> None:
    expansion = sample.expansion
    assert expansion is not None
    expansion.failed += 1
    expansion.last_code = code
    if len(expansion.done) + expansion.failed < expansion.width:
        if sampling.spec_of(sample).rule is not None:
            sampling.expect(sample)
        open_more(state, sample)
    elif expansion.done:
        join(state, sample)
    else:
        failing.part_failed(state, sample, code, origin)


# --- races --------------------------------------------------------------------------------------------


def _arm_out(state: SchedulerState, race: Task, code: Code, origin: Task) -> None:
    """An arm cannot be among those that count."""
    expansion = race.expansion
    assert expansion is not None
    expansion.failed += 1
    expansion.last_code = code
    if expansion.width - expansion.failed < race.node.limit:
        failing.part_failed(state, race, code, origin)


def _arm_judged(state: SchedulerState, race: Task, frame: FrameId, label: int) -> None:
    """The result of an arm counts, or does not (-1). Those that ended later than the last that counts are dropped."""
    expansion = race.expansion
    assert expansion is not None
    if label < 0:
        _forget(state, race, frame)
        _arm_out(state, race, Code.OUTPUT_INVALID, race)
        return
    expansion.labels.add(0)
    if expansion.labels[0] == race.node.limit:
        for other in list(expansion.live.values()):
            tasks.kill_frame(state, other)
        for late in list(expansion.unlabelled):
            _forget(state, race, late)
        expansion.unlabelled.clear()
        join(state, race)


def _forget(state: SchedulerState, race: Task, frame: FrameId) -> None:
    expansion = race.expansion
    assert expansion is not None
    del expansion.done[next(index for index, kept in expansion.done.items() if kept == frame)]
    state.out.append(CloseFrame(race.run.id, frame))


# --- samples with a stopping rule ---------------------------------------------------------------------


def labelled(state: SchedulerState, event: SampleLabelled) -> None:
    """A sample has its answer class: if that is enough, cancel the rest and join those that are done, else begin those that are
    needed now. Of races: see above."""
    run = state.runs.get(event.run)
    task = run.tasks.get(event.task) if run is not None else None
    expansion = task.expansion if task is not None else None
    if task is None or expansion is None or event.frame not in expansion.unlabelled or task.phase is not Phase.OPEN:
        state.stale += 1
        return
    del expansion.unlabelled[event.frame]
    if task.kind is Kind.RACE:
        _arm_judged(state, task, event.frame, event.label)
        return
    expansion.labels.add(event.label)
    if sampling.enough(task):
        for frame in list(expansion.live.values()):
            tasks.kill_frame(state, frame)
        join(state, task, sampling.spec_of(task).rule)
    else:
        sampling.expect(task, expansion.needed - 1)
        sampling.tell_remaining(state, task)
        open_more(state, task)


# --- calls of a dynamic function ----------------------------------------------------------------------


def called(state: SchedulerState, task: Task, event: Called) -> None:
    """A dynamic function calls a node: open a frame for it, or tell it why not."""
    expansion = task.expansion
    assert expansion is not None
    if event.call != expansion.opened:
        state.stale += 1
        return
    expansion.opened += 1
    if expansion.opened > expansion.width:
        state.out.append(Return(task.run.id, task.id, event.call, None, Code.LIMIT))
    elif not 0 <= event.callee < len(task.node.bodies):
        state.out.append(Return(task.run.id, task.id, event.call, None, Code.INTERNAL))
    else:
        open_frame(state, task, task.node.bodies[event.callee], event.call)
