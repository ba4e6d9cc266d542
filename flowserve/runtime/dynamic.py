"""Dynamic nodes: an async function whose calls of other nodes join the schedule as they are made."""

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

from flowserve.core import events as e
from flowserve.errors import FlowServeError
from flowserve.graphs.context import Answer, calling, listening
from flowserve.runtime.failures import told_of
from flowserve.runtime.run import Run, TaskState

Post = Callable[[e.Event], None]


class Calls:
    """What `node.acall(...)` talks to while the function runs (`graphs.context.Caller`)."""

    def __init__(self, run: Run, task: TaskState, attempt: int, post: Post) -> None:
        self._run = run
        self._task = task
        self._attempt = attempt
        self._post = post
        self._count = 0
        self._names = run.program.plan.dynamics[task.node.target].callees

    async def call(self, callee_name: str, kwargs: Mapping[str, Any]) -> Any:
        """The result of a declared callee. Raises what its failure amounts to, which the function may catch."""
        answer = await self.ask(callee_name, kwargs)
        if answer.error is not None:
            raise answer.error
        return answer.value

    async def ask(self, callee_name: str, kwargs: Mapping[str, Any]) -> Answer[Any]:
        """As `call`; a failure is told and not raised."""
        number, future = self._begin(callee_name, kwargs)
        value, failure = None, None
        try:
            value = await future
        except FlowServeError as error:
            failure = error
        return Answer(value, failure, self._task.call_tokens.pop(number, 0))

    def _begin(self, callee_name: str, kwargs: Mapping[str, Any]) -> tuple[int, "asyncio.Future[Any]"]:
        callee = self._names.index(callee_name)
        block = self._run.program.plan.blocks[self._task.node.bodies[callee]]
        number, self._count = self._count, self._count + 1
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._task.calls[number] = future
        self._task.call_params[number] = tuple(kwargs[param] for param in block.params)
        self._post(e.Called(self._run.id, self._task.id, self._attempt, callee, number))
        return number, future


async def execute(
    run: Run, task: TaskState, attempt: int, post: Post, emit: Callable[[Run, TaskState, Any], None]
) -> Any:
    """Run the function of a DYNAMIC node to its end and check its result."""
    name = run.program.plan.dynamics[task.node.target].name
    arguments = run.program.arguments(name, task.frame.arguments(task.node))
    calls = Calls(run, task, attempt, post)
    with told_of(f"dynamic node {name}"), calling(calls), listening(lambda value: emit(run, task, value)):
        value = await run.program.dynamics[name](**arguments)
    return run.program.checked(name, value)
