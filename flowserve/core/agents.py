"""Agents: model calls (steps) and tool calls in turn.

    step 0 --tools--> tool calls, some at once --all over--> step 1 --tools--> ... --no tools--> Join

Steps wait for an engine and tool calls for the tool window, as tasks of their own whose `parent` is the agent's
task. A step is retried as the node says. A tool call is not: its failure is told to the model, which may call
again. The last allowed step is dispatched as such; if it asks for tools all the same, the agent fails with LIMIT.
"""

from flowserve.core import expansion, failing, tasks
from flowserve.core.commands import Role
from flowserve.core.events import Code
from flowserve.core.state import Consequence, Expansion, Phase, SchedulerState, Task


def start(state: SchedulerState, item: Consequence) -> None:
    """The agent's inputs exist: make its first step. The agent itself is RUNNING when that is dispatched."""
    agent = item.subject
    assert isinstance(agent, Task)
    if agent.phase is Phase.READY and not agent.run.over:
        agent.expansion = Expansion(agent.node.limit)
        _next_step(state, agent)


def step_finished(state: SchedulerState, step: Task, num_tools: int) -> None:
    """The model has answered, or asks for `num_tools` tool calls."""
    agent = step.parent
    assert agent is not None and agent.expansion is not None
    tasks.retire(state, step, Phase.COMPLETED)
    if not num_tools:
        expansion.join(state, agent)
    elif step.last:
        failing.part_failed(state, agent, Code.LIMIT, agent)
    else:
        agent.expansion.tools = num_tools
        agent.expansion.tools_started = 0
        _start_tools(state, agent)


def tool_over(state: SchedulerState, item: Consequence) -> None:
    """A tool call has ended, well or badly: start another, or the next step after the last."""
    agent = item.subject
    assert isinstance(agent, Task)
    parts = agent.expansion
    if parts is None or agent.run.over:
        return
    if parts.tools_started < parts.tools:
        _start_tools(state, agent)
    elif not parts.parts:
        _next_step(state, agent)


def _start_tools(state: SchedulerState, agent: Task) -> None:
    parts = agent.expansion
    assert parts is not None
    room = max(1, agent.run.plan.agents[agent.node.target].max_parallel_tools)
    position = agent.run.shape.position[agent.node.id]
    while parts.tools_started < parts.tools and len(parts.parts) < room:
        parts.tools_started += 1
        tasks.create(state, agent.frame, position, Role.TOOL, agent, parts.tools_started - 1)


def _next_step(state: SchedulerState, agent: Task) -> None:
    parts = agent.expansion
    assert parts is not None
    parts.opened += 1
    position = agent.run.shape.position[agent.node.id]
    last = parts.opened >= parts.width
    tasks.create(state, agent.frame, position, Role.STEP, agent, parts.opened - 1, last)
