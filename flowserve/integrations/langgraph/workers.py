"""Where nodes begun early do their work: in threads beside `invoke`, in tasks beside `ainvoke`. The two say the same twice, once awaiting."""

import asyncio
import contextvars
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from langchain_core.runnables import RunnableConfig
from langchain_core.runnables.config import set_config_context

from flowserve.integrations.langgraph.frontier import Task
from flowserve.integrations.langgraph.invocation import Invocation


class Threads:
    """Early work of `invoke` and `stream`."""

    def __init__(self) -> None:
        self.pool = ThreadPoolExecutor(thread_name_prefix="flowserve-ahead")

    def begin(self, run: Invocation, task: Task) -> "Future[Any]":
        return self.pool.submit(contextvars.copy_context().run, self._work, run, task)

    def _work(self, run: Invocation, task: Task) -> Any:
        config = run.config_of(task)
        with set_config_context(config) as context:  # so that what the node calls knows whose call it is
            return context.run(self._node, run, task, config)

    def _node(self, run: Invocation, task: Task, config: RunnableConfig) -> Any:
        result = run.graph.nodes[task.node].bound.inner.invoke(run.input_of(task), config)
        run.ended(task, result)
        for branch in run.frontier.shape.branches.get(task.node, ()):
            given = run.early_route(task, branch, result)
            if given is not None:
                path = run.graph.builder.branches[task.node][branch].path
                decided = path.invoke(given, config)
                run.routes[id(task), branch] = (given, decided)
                run.routed(task, task.node, branch, decided)
        return result

    def close(self) -> None:
        self.pool.shutdown(wait=True, cancel_futures=True)


class Tasks:
    """Early work of `ainvoke` and `astream`."""

    def __init__(self) -> None:
        self.tasks: list[asyncio.Task[Any]] = []

    def begin(self, run: Invocation, task: Task) -> "asyncio.Task[Any]":
        self.tasks.append(asyncio.get_running_loop().create_task(self._work(run, task)))
        return self.tasks[-1]

    async def _work(self, run: Invocation, task: Task) -> Any:
        config = run.config_of(task)
        with set_config_context(config) as context:
            return await asyncio.create_task(self._node(run, task, config), context=context)

    async def _node(self, run: Invocation, task: Task, config: RunnableConfig) -> Any:
        result = await run.graph.nodes[task.node].bound.inner.ainvoke(run.input_of(task), config)
        run.ended(task, result)
        for branch in run.frontier.shape.branches.get(task.node, ()):
            given = run.early_route(task, branch, result)
            if given is not None:
                path = run.graph.builder.branches[task.node][branch].path
                decided = await path.ainvoke(given, config)
                run.routes[id(task), branch] = (given, decided)
                run.routed(task, task.node, branch, decided)
        return result

    def close(self) -> None:
        for task in self.tasks:
            task.cancel()

    async def ended(self) -> None:
        await asyncio.gather(*self.tasks, return_exceptions=True)
