"""What a run's readers are told: statuses become node records and events, in the order of the commands."""

from typing import Any

from flowserve.clock import Clock
from flowserve.core.commands import Degrade, Mark, Role, Spending, Status
from flowserve.core.degradation import describe as describe_degradation
from flowserve.core.events import Code
from flowserve.core.speculation.transaction import Commit, RollBack
from flowserve.runtime import local
from flowserve.runtime.labels import kind_of, label_of
from flowserve.runtime.records import NodeRecord, RunEvent, reuse_data
from flowserve.runtime.run import Run, TaskState, describe

READY, RUNNING, COMPLETED = Status.READY, Status.RUNNING, Status.COMPLETED
"""Asked of every task; an attribute of an Enum takes as long as five of a module (CPython 3.11)."""


class Reporter:
    """Writes the event logs of runs. Decides nothing and drives nothing."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    def mark(self, run: Run, command: Mark) -> None:
        """Note a status that changed, and tell the run's readers."""
        if command.task is None and command.node is None:
            self._run(run, command.status)
        elif command.task is None:
            assert command.node is not None and command.frame is not None
            node = run.program.plan.nodes[command.node]
            frame = run.frames.get(command.frame)
            label = label_of(run.program.plan, node, frame, Role.NODE, 0)
            self.emit(run, "node.skipped", node=label)
        else:
            self._task(run, command)

    def _run(self, run: Run, status: Status) -> None:
        run.status = status
        if status is Status.QUEUED:
            plan = run.program.plan
            self.emit(run, "run.created", data={"workflow": plan.name, "version": run.program.version})
            if not run.accepted.done():
                run.accepted.set_result(None)
        elif status is Status.RUNNING:
            run.started = self._clock.now()
            self.emit(run, "run.started")

    def _task(self, run: Run, mark: Mark) -> None:
        assert mark.task is not None
        task = run.tasks.get(mark.task) or self._new_task(run, mark)
        record, now = task.record, self._clock.now() - run.created
        record.status, record.attempt = mark.status, max(1, mark.attempt)
        data: dict[str, Any] = {}
        if mark.status is READY:
            record.ready_s = now if record.ready_s is None else record.ready_s
        elif mark.status is RUNNING:
            record.started_s = now
            data = {"attempt": record.attempt}
            if task.continues:
                data["continues"], task.continues = True, False
        elif mark.status is COMPLETED:
            record.ended_s = now
            data = local.completed_data(run, task)
        elif mark.status in (Status.FAILED, Status.RETRYING):
            record.ended_s = now if mark.status is Status.FAILED else None
            code = mark.code or Code.INTERNAL
            record.error = run.reason(task, code)
            data = {"code": code.value, "message": record.error, "attempt": record.attempt}
            if mark.status is Status.FAILED:
                run.note_error(task, record.error)
        elif mark.status is Status.CONTINUED:
            task.continues = True
            code = mark.code or Code.INTERNAL
            told = run.reason(task, code)
            data = {"code": code.value, "message": told, "attempt": record.attempt, "engine": record.engine}
            data["kept_tokens"] = task.collected.tokens_out
        elif mark.status is Status.CANCELLED:
            record.ended_s = now
        self.emit(run, _NODE_EVENTS[mark.status], node=record.label, task=mark.task, data=data)

    def _new_task(self, run: Run, mark: Mark) -> TaskState:
        assert mark.task is not None and mark.node is not None and mark.frame is not None
        node, frame = run.program.plan.nodes[mark.node], run.frames[mark.frame]
        record = NodeRecord(
            task=mark.task,
            node=node.name,
            label=label_of(run.program.plan, node, frame, mark.role, mark.index),
            kind=kind_of(node, mark.role),
            status=mark.status,
        )
        task = TaskState(mark.task, record, node, frame, mark.role, mark.index)
        run.tasks[mark.task] = task
        run.records[mark.task] = record
        return task

    def degraded(self, run: Run, command: Degrade) -> None:
        """Less of a node is done than declared."""
        task = run.tasks[command.task]
        task.record.degraded = describe_degradation(task.node, task.record.label, command.to)
        told = {key: value for key, value in task.record.degraded.items() if key != "node"}
        self.emit(run, "node.degraded", node=task.record.label, task=command.task, data=told)

    def exited(self, run: Run, task: TaskState, did: str, why: str) -> None:
        """A call that may end early does (`stopped`, `budget`), or cannot (`unavailable`)."""
        told = {"did": did, "why": why}
        task.record.exited = {"node": task.record.label, **told}
        self.emit(run, "node.exit", node=task.record.label, task=task.id, data=told)

    def speculated(self, run: Run, task: TaskState, did: Commit | RollBack) -> None:
        """A call that looks things up has written behind guessed passages, and they were right (`commit`) or not (`rollback`)."""
        if isinstance(did, Commit):
            told: dict[str, Any] = {"did": "commit", "steps": did.upto}
        else:
            told = {"did": "rollback", "step": did.step, "tokens": did.tokens}
        self.emit(run, "node.speculation", node=task.record.label, task=task.id, data=told)

    def ended(self, run: Run, shown: Any) -> None:
        """The terminal event: the result as JSON, or the error; tokens, what was degraded, seconds."""
        snapshot = run.snapshot()
        data: dict[str, Any] = {
            "usage": {
                "tokens_in": snapshot.tokens_in,
                "tokens_out": snapshot.tokens_out,
                "cached_tokens": snapshot.cached_tokens,
                "trial_tokens": snapshot.trial_tokens,
                "wasted_tokens": snapshot.wasted_tokens,
                **reuse_data(snapshot.provenance),
                **spending_data(snapshot.spent),
            },
            "degraded": list(snapshot.degraded),
            "exits": list(snapshot.exits),
            "seconds": round(self._clock.now() - run.created, 6),
        }
        if run.error is None:
            data["result"] = shown
        else:
            data["error"] = describe(run.error)
        self.emit(run, f"run.{run.status.value}", data=data)

    def emit(
        self, run: Run, kind: str, node: str | None = None, task: int | None = None, data: dict[str, Any] | None = None
    ) -> None:
        """Append the next event to the run's log."""
        log = run.log
        log.append(RunEvent(len(log.events) + 1, run.id, self._clock.wall(), kind, node, task, data or {}))


def spending_data(spent: Spending | None) -> dict[str, float | None]:
    """What engines have done for a run beyond what its answers show, as data."""
    if spent is None:
        return {"computed_tokens": None, "engine_seconds": None, "money": None}
    seconds = round(spent.seconds, 6)
    return {"computed_tokens": spent.prompt + spent.output, "engine_seconds": seconds, "money": spent.money}


_NODE_EVENTS = {
    Status.READY: "node.ready",
    Status.RUNNING: "node.started",
    Status.RETRYING: "node.retrying",
    Status.CONTINUED: "node.continued",
    Status.COMPLETED: "node.completed",
    Status.FAILED: "node.failed",
    Status.SKIPPED: "node.skipped",
    Status.CANCELLED: "node.cancelled",
}
