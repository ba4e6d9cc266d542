"""Runs of a recorded log as programs: the same plans at the same times, with the answers that their nodes gave then.

The log holds events only; the commands that they answer come from replaying it (`core/log.py`). An answer is remembered by its
place in the run's tree of frames, not by the task's number, so that it is found again when another policy changes the order.
What a run did not live to do is drawn from models; of a call that was cancelled its prompt is known.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from flowserve.core import commands as c
from flowserve.core import events as e
from flowserve.core.commands import Role
from flowserve.core.log import read
from flowserve.core.state import SchedulerState
from flowserve.core.step import step
from flowserve.core.stopping.signals import Label
from flowserve.graphs.plan import Kind, Node, Plan
from flowserve.ids import FrameId, RunId, Seconds, TaskId, Tokens
from flowserve.sim.chance import mix
from flowserve.sim.drive import Arrival
from flowserve.sim.programs import Asked, Modelled, Size

Place = tuple[int, int, Role, int]
"""(frame's key, node, role, index)."""


@dataclass(slots=True)
class Answers:
    """What the nodes of one run did."""

    sizes: dict[Place, Size] = field(default_factory=dict)
    begun: dict[Place, e.Measured] = field(default_factory=dict)
    """Calls whose prompt is known, whether they were lived to the end or not."""
    written: dict[Place, Tokens] = field(default_factory=dict)
    """Tokens of output that were seen of them."""
    choices: dict[tuple[int, int], list[int]] = field(default_factory=dict)
    tools: dict[Place, int] = field(default_factory=dict)
    calls: dict[tuple[int, int], list[int]] = field(default_factory=dict)
    """Callees in order."""
    labels: dict[tuple[int, int], int] = field(default_factory=dict)
    seconds: dict[Place, Seconds] = field(default_factory=dict)


@dataclass(slots=True)
class FromLog:
    """The program of one recorded run."""

    answers: Answers
    otherwise: Modelled

    def size(self, node: Node, key: int, role: Role, index: int, talk: int) -> Size:
        place = (key, node.id, role, index)
        found = self.answers.sizes.get(place)
        if found is not None:
            return found
        drawn = self.otherwise.size(node, key, role, index, talk)
        begun = self.answers.begun.get(place)
        if begun is None:
            return drawn
        output = max(drawn.output, self.answers.written.get(place, 0))
        limit = begun.limit or output
        return Size(begun.tokens, min(output, limit), limit, begun.prefix, begun.on_loss)

    def ended(self, node: Node, talk: int, size: Size) -> None:
        pass

    def trial(self, node: Node, key: int, position: Tokens) -> Asked | None:
        return self.otherwise.trial(node, key, position)

    def exited(self, node: Node, key: int, label: Label) -> None:
        pass

    def choice(self, node: Node, key: int, index: int) -> int:
        found = self.answers.choices.get((key, node.id), [])
        return found[index] if index < len(found) else self.otherwise.choice(node, key, index)

    def tools(self, node: Node, key: int, index: int) -> int:
        found = self.answers.tools.get((key, node.id, Role.STEP, index))
        return found if found is not None else self.otherwise.tools(node, key, index)

    def calls(self, node: Node, key: int) -> int:
        return len(self.answers.calls.get((key, node.id), ()))

    def callee(self, node: Node, key: int, index: int) -> int:
        return self.answers.calls[key, node.id][index]

    def label(self, node: Node, key: int, index: int) -> int:
        found = self.answers.labels.get((key, node.id))
        return found if found is not None else self.otherwise.label(node, key, index)

    def seconds(self, node: Node, key: int, index: int) -> Seconds | None:
        role = Role.TOOL if node.kind is Kind.AGENT else Role.NODE
        found = self.answers.seconds.get((key, node.id, role, index))
        return found if found is not None else self.otherwise.seconds(node, key, index)


@dataclass(slots=True)
class _Run:
    plan: Plan
    key: int
    answers: Answers = field(default_factory=Answers)
    frames: dict[FrameId, int] = field(default_factory=dict)
    places: dict[TaskId, Place] = field(default_factory=dict)
    began: dict[TaskId, Seconds] = field(default_factory=dict)
    measured: dict[TaskId, e.Measured] = field(default_factory=dict)


def read_log(lines: Iterable[str], name: str, speed: float, seed: int) -> Iterator[Arrival]:
    """The runs of a log in order of arrival. Raises StoreError for what is no log."""
    for _, arrival in recorded_runs(lines, seed):
        yield replace(arrival, at=arrival.at / speed, mix=name)


def recorded_runs(lines: Iterable[str], seed: int = 0) -> Iterator[tuple[RunId, Arrival]]:
    """The same with the names of the runs, which are those of the log, as their mixes."""
    config, events = read(lines)
    state = SchedulerState(config)
    runs: dict[RunId, _Run] = {}
    arrivals: list[tuple[Seconds, e.RunSubmitted]] = []
    for now, event in events:
        commands = step(state, event, now)
        if isinstance(event, e.RunSubmitted):
            runs[event.run] = _Run(event.plan, mix(seed, len(arrivals)))
            arrivals.append((now, event))
        elif (run := runs.get(getattr(event, "run", RunId("")))) is not None:
            _note_event(run, event, now)
        for command in commands:
            named: Any = getattr(command, "run", None)
            if named in runs:
                _note_command(runs[named], command, now)
    models: dict[str, Modelled] = {}
    begin = arrivals[0][0] if arrivals else 0.0
    for at, event in arrivals:
        run = runs[event.run]
        otherwise = models.setdefault(run.plan.digest, Modelled(run.plan, seed=seed))
        yield (
            event.run,
            Arrival(
                at - begin,
                FromLog(run.answers, otherwise),
                run.plan,
                run.key,
                event.run,
                event.deadline_s,
                event.tenant,
                event.tier,
                event.priority,
                event.session,
                degrade=event.degrade,
                budget=event.budget,
            ),
        )


def _note_command(run: _Run, command: c.Command, now: Seconds) -> None:
    if isinstance(command, c.OpenFrame):
        if command.task is None:
            run.frames[command.frame] = run.key
        else:
            assert command.parent is not None
            owner = run.places[command.task][1]
            run.frames[command.frame] = mix(run.frames[command.parent], owner, command.block, command.index)
    elif isinstance(command, c.Mark) and command.task is not None and command.node is not None:
        assert command.frame is not None
        run.places[command.task] = (run.frames[command.frame], command.node, command.role, command.index)
    elif isinstance(command, c.Dispatch):
        run.began[command.task] = now


def _note_event(run: _Run, event: e.Event, now: Seconds) -> None:
    answers = run.answers
    if isinstance(event, e.SampleLabelled):
        node = run.places[event.task][1]
        answers.labels[run.frames[event.frame], node] = event.label
        return
    task: Any = getattr(event, "task", None)
    place = run.places.get(task)
    if place is None:
        return
    if isinstance(event, e.Measured):
        run.measured[event.task] = event
        answers.begun.setdefault(place, event)
    elif isinstance(event, e.TokensProduced) and not event.trial:
        answers.written[place] = answers.written.get(place, 0) + event.count
    elif isinstance(event, e.Evaluated):
        answers.choices.setdefault(place[:2], []).append(event.choice)
    elif isinstance(event, e.Called):
        answers.calls.setdefault(place[:2], []).append(event.callee)
    elif isinstance(event, e.TaskFinished):
        _note_finished(run, place, event, now)


def _note_finished(run: _Run, place: Place, event: e.TaskFinished, now: Seconds) -> None:
    measured, answers = run.measured.get(event.task), run.answers
    if place[2] is Role.STEP:
        answers.tools.setdefault(place, len(event.tools))
    if measured is not None:
        size = Size(measured.tokens, max(1, event.tokens_out), measured.limit, event.prefix, measured.on_loss)
        answers.sizes.setdefault(place, size)
    elif event.task in run.began and (
        place[2] is Role.TOOL or run.plan.nodes[place[1]].kind in (Kind.TOOL, Kind.SEARCH)
    ):
        answers.seconds.setdefault(place, now - run.began[event.task])
