"""Where the time of a run went: its critical path, shares by kind of work, and how much later each task could have ended.

The critical path is walked backwards from the run's end by recorded causes, so its pieces sum to the run's latency. Slack is
total float (Kelley and Walker 1959) in the schedule that was: how much later a task could have ended without the run
ending later, everything else taking as long as it took.
"""

from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from typing import Any

from flowserve.core.commands import Role, Status
from flowserve.core.degradation import describe
from flowserve.graphs.plan import Kind
from flowserve.ids import FrameId, Seconds, TaskId
from flowserve.sim.timeline import Span, Timeline

WAIT, AGAIN, PREFILL, DECODE, TOOL, SEARCH, OWN = (
    "waiting for the scheduler",
    "attempts before the last",
    "to the first token",
    "writing",
    "tool",
    "search",
    "expressions and code",
)
WHAT: tuple[str, ...] = (WAIT, AGAIN, PREFILL, DECODE, TOOL, SEARCH, OWN)
"""What a piece of time was spent on. To the first token: the engine's own queue and the prompt."""


@dataclass(frozen=True, slots=True)
class Piece:
    """A stretch of time of one task. Seconds since the run was submitted."""

    span: Span
    what: str
    begin: Seconds
    end: Seconds

    @property
    def seconds(self) -> Seconds:
        return self.end - self.begin


@dataclass(frozen=True)
class Explanation:
    """What a run's timeline says."""

    timeline: Timeline
    path: tuple[Piece, ...] = field(init=False)
    """The critical path in order of time, without gaps, from the submission to the end."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "path", tuple(reversed(list(self._backwards()))))

    @cached_property
    def shares(self) -> dict[str, Seconds]:
        """Seconds of the critical path by what they were spent on; they sum to the run's latency."""
        return _sums(self.path)

    @cached_property
    def totals(self) -> dict[str, Seconds]:
        """Seconds of all tasks together, likewise; side by side they exceed the latency."""
        return _sums([piece for span in self.work for piece in pieces(span, self._end(span))])

    @cached_property
    def work(self) -> tuple[Span, ...]:
        """Tasks that are one piece of work, in order of time."""
        owners = {task for _, task, _, _ in self.timeline.frames.values()}
        owners |= {span.parent for span in self.timeline.spans.values() if span.role is not Role.NODE}
        found = [span for span in self.timeline.spans.values() if span.task not in owners]
        return tuple(sorted(found, key=lambda span: (span.ready, span.task)))

    @property
    def degraded(self) -> list[dict[str, Any]]:
        """What was done less of than declared, in order of task."""
        spans = self.timeline.spans.values()
        return [describe(span.node, span.label, span.reduced) for span in spans if span.reduced is not None]

    @cached_property
    def slack(self) -> dict[TaskId, Seconds]:
        """Of every task that ended well. 0: on a critical path."""
        return _Float(self.timeline).all()

    def as_json(self) -> dict[str, Any]:
        line, critical = self.timeline, {piece.span.task for piece in self.path}
        return {
            "run": line.run,
            "workflow": line.plan.name,
            "status": line.status,
            "seconds": line.ended,
            "policy": line.policy,
            "degraded": self.degraded,
            "critical_path": [
                {"node": piece.span.label, "what": piece.what, "begin_s": piece.begin, "end_s": piece.end}
                for piece in self.path
            ],
            "critical_path_s": self.shares,
            "all_tasks_s": self.totals,
            "nodes": [
                {
                    "node": span.label,
                    "kind": span.node.kind.name.lower() if span.role is Role.NODE else span.role.value,
                    "status": span.status.value,
                    "ready_s": span.ready,
                    "started_s": span.begun,
                    "first_token_s": span.first,
                    "ended_s": span.ended,
                    "tokens_in": span.tokens_in,
                    "tokens_out": span.tokens_out,
                    "engine": span.engine,
                    "slack_s": self.slack.get(span.task),
                    "critical": span.task in critical,
                }
                for span in self.work
            ],
        }

    def _end(self, span: Span) -> Seconds:
        return self.timeline.ended if span.ended is None else span.ended

    def _backwards(self) -> "list[Piece]":
        line = self.timeline
        found: list[Piece] = []
        until, order = line.ended, 1 << 62
        task = line.last if line.last is not None else self._unfinished()
        while task is not None:
            span = line.spans[task]
            turn = next((turn for turn in reversed(span.turns) if turn.order < order), None)
            if turn is not None:
                found += [Piece(span, OWN, turn.at, until)] if until > turn.at else []
                task, until, order = turn.cause, turn.at, turn.order
            else:
                found += reversed(pieces(span, until))
                task, until, order = span.cause, span.ready, span.order
        if until > 0 and found:
            found.append(Piece(found[-1].span, WAIT, 0.0, until))
        return found

    def _unfinished(self) -> TaskId | None:
        """The run was ended from outside: what it waited for then."""
        open_ = [s for s in self.work if s.ended is None or s.ended >= self.timeline.ended]
        return open_[0].task if open_ else None


def pieces(span: Span, until: Seconds) -> list[Piece]:
    """A task from when it could begin, by what the time went to. `until`: when it ended, or gave way."""
    first = OWN
    if span.is_call:
        first = DECODE if span.first is not None else PREFILL
    elif span.role is Role.TOOL or span.node.kind is Kind.TOOL:
        first = TOOL
    elif span.node.kind is Kind.SEARCH:
        first = SEARCH
    marks: list[tuple[Seconds | None, str]] = [(span.begun, WAIT), (span.sent, AGAIN)]
    if span.is_call:
        marks.append((span.first, PREFILL))
    at, found = span.ready, []
    for mark, what in [*marks, (until, first)]:
        if mark is not None and at < mark:
            found.append(Piece(span, what, at, min(mark, until)))
            at = min(mark, until)
    return found


def _sums(parts: "tuple[Piece, ...] | list[Piece]") -> dict[str, Seconds]:
    found = dict.fromkeys(WHAT, 0.0)
    for piece in parts:
        found[piece.what] += piece.seconds
    return {what: seconds for what, seconds in found.items() if seconds > 0}


class _Float:
    """Total float by recursion over what follows a task."""

    def __init__(self, line: Timeline) -> None:
        self.line = line
        self._known: dict[TaskId, Seconds] = {}
        self._let: dict[TaskId, list[Span]] = {}
        """By task, what became ready by its end or by a turn of it."""
        self._readers: dict[tuple[FrameId, int], list[Span]] = {}
        self._parts: dict[TaskId, list[Span]] = {}
        """Of an agent."""
        for span in line.spans.values():
            if span.parent is not None:
                self._parts.setdefault(span.parent, []).append(span)
            if span.cause is not None:
                self._let.setdefault(span.cause, []).append(span)
            if span.role is Role.NODE:
                for need in span.node.deps:
                    self._readers.setdefault((span.frame, need), []).append(span)

    def all(self) -> dict[TaskId, Seconds]:
        """Of tasks that ended well. Latest first, so that what follows a task is known before it."""
        done = [s for s in self.line.spans.values() if s.status is Status.COMPLETED]
        return {s.task: self.of(s.task) for s in sorted(done, key=lambda s: -s.end_order)}

    def of(self, task: TaskId) -> Seconds:
        if task not in self._known:
            self._known[task] = self._of(self.line.spans[task])
        return self._known[task]

    def _of(self, span: Span) -> Seconds:
        end = self._end(span)
        if span.parent is not None and span.role is not Role.NODE:
            return self._in_agent(span, self.line.spans[span.parent], end)
        readers = self._readers.get((span.frame, span.node.id), [])
        # And what began in its place, where only so many may work at once.
        after = [s for s in self._let.get(span.task, ()) if s.frame != span.frame and s.order >= span.end_order]
        if readers or after:
            return self._before(readers + after, end)
        owner = self.line.frames[span.frame][1]
        if owner is None:
            return max(0.0, self.line.ended - end)
        return self._in_frames(span, self.line.spans[owner], end)

    def _before(self, following: list[Span], end: Seconds) -> Seconds:
        return min(self.of(s.task) + max(0.0, s.ready - end) for s in following)

    def _in_agent(self, span: Span, agent: Span, end: Seconds) -> Seconds:
        """A step holds up the tools that it calls, a tool the step after it, the last step the agent."""
        following = [s for s in self._let.get(span.task, ()) if s.parent == agent.task]
        if not following and span.role is Role.TOOL:
            steps = [s for s in self._parts.get(agent.task, ()) if s.role is Role.STEP and s.order >= span.end_order]
            following = sorted(steps, key=lambda s: s.order)[:1]
        return self._before(following, end) if following else self._until(agent, end)

    def _in_frames(self, span: Span, owner: Span, end: Seconds) -> Seconds:
        """The end of a frame holds up what its owner lets begin next, or else the owner's end."""
        if owner.node.kind in (Kind.LOOP, Kind.DYNAMIC):
            turns = [turn for turn in owner.turns if turn.order >= span.end_order]
            bounds = [*(turn.order for turn in turns), owner.end_order]
            for turn, (begin, until) in zip(turns, pairwise(bounds), strict=True):
                following = [s for s in self._let.get(owner.task, ()) if begin <= s.order < until]
                if following:
                    return min(self.of(s.task) for s in following) + turn.at - end
        return self._until(owner, end)

    def _until(self, owner: Span, end: Seconds) -> Seconds:
        """The last turn is what the end of `owner` waited for; what comes after is its own work."""
        at = max(end, owner.turns[-1].at) if owner.turns else max(end, self._end(owner))
        return self.of(owner.task) + at - end

    def _end(self, span: Span) -> Seconds:
        return self.line.ended if span.ended is None else span.ended
