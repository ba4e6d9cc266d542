"""The stream of a run in LangGraph's modes.

Events are numbered over all modes, whichever are asked for, and made from the kept events of the run by a rule that looks at nothing
else; so `Last-Event-ID` means the same in every stream of a run.
"""

from collections.abc import AsyncGenerator, Iterator, Sequence
from typing import Any

from flowserve.runtime.records import RunEvent
from flowserve.runtime.run import Run
from flowserve.server.langgraph.convert import (
    Asked,
    answer_id,
    assistant_id,
    error_out,
    message,
    values_after,
)
from flowserve.server.sse import frame
from flowserve.server.states import STATES
from flowserve.server.wire import dumps

Event = tuple[str | None, str, Any]
"""(mode that asks for it, or None: always sent; name; data)."""


async def frames(run: Run, asked: Asked, modes: Sequence[str], after: int = -1) -> AsyncGenerator[bytes, None]:
    """Frames with a number > `after`, from 0, in these modes."""
    wanted = {None, *modes}
    number = -1
    async for mode, name, data in _events(run, asked):
        number += 1
        if number > after and mode in wanted:
            yield frame(dumps(data), name, number)


async def _events(run: Run, asked: Asked) -> AsyncGenerator[Event, None]:
    yield None, "metadata", {"run_id": run.id, "attempt": 1}
    yield "values", "values", asked.before
    told = _Told(run, asked)
    async for event in run.events():
        for shown in told.events(event):
            yield shown
    if run.error is not None:
        yield None, "error", error_out(run)
        return
    yield "values", "values", values_after(run, asked)
    yield None, "end", {"run_id": run.id, "status": STATES[run.snapshot().status].langgraph}


class _Told:
    """What one event of a run is in each mode."""

    def __init__(self, run: Run, asked: Asked) -> None:
        self._run, self._asked = run, asked
        self._texts: dict[int, str] = {}
        """Task -> what it has written in this attempt."""

    def events(self, event: RunEvent) -> Iterator[Event]:
        node, task = event.node or "", event.task or 0
        if event.type == "node.delta":
            yield from self._delta(node, task, event.data)
        elif event.type == "node.retrying":
            self._texts.pop(task, None)
        elif event.type == "node.progress":
            yield "custom", "custom", event.data.get("value")
        elif event.type == "node.completed":
            if task in self._texts:
                whole = message(self._id(task), self._texts[task])
                yield "messages", "messages/complete", [whole]
            if "output" in event.data and "/" not in node:
                output = event.data["output"]
                yield "updates", "updates", {node: output if isinstance(output, dict) else {"output": output}}

    def _delta(self, node: str, task: int, data: dict[str, Any]) -> Iterator[Event]:
        text = str(data.get("text", ""))
        if data.get("choice") or not text:
            return
        about = {
            "langgraph_node": node,
            "run_id": self._run.id,
            "thread_id": self._asked.thread,
            "assistant_id": assistant_id(self._asked.graph),
        }
        if data.get("result"):
            self._result = task
        id = self._id(task)
        if task not in self._texts:
            self._texts[task] = ""
            yield "messages", "messages/metadata", {id: {"metadata": about}}
        self._texts[task] += text
        yield "messages-tuple", "messages", [message(id, text, "AIMessageChunk"), about]
        yield "messages", "messages/partial", [message(id, self._texts[task])]

    _result: int | None = None
    """The task that writes what the run returns."""

    def _id(self, task: int) -> str:
        """What becomes the answer of a chat has its id from the start, so that a client has it once."""
        own = self._asked.chat and task == self._result
        return answer_id(self._run) if own else f"{answer_id(self._run)}_{task}"
