"""How each kind of work is done: coroutines that the runner starts for a `Dispatch`.

Each returns the value of the execution or raises; the runner turns that into the event. Nothing here
chooses: where, when, how often and how long come with the command.
"""

import inspect
import json
import secrets
from collections.abc import Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from flowserve.core.commands import Dispatch
from flowserve.engines.base import Call, Engine, Finish, Logprob, Output
from flowserve.engines.chat import PromptMessage
from flowserve.engines.tools import AnswerStream, ToolFormat, calls_message, result_message
from flowserve.errors import EngineError, FlowServeError, RetrievalError
from flowserve.graphs.context import listening
from flowserve.graphs.plan import LLMSpec, ToolSpec
from flowserve.graphs.types import ToolCall
from flowserve.ids import EngineId
from flowserve.retrieval.protocols import RetrievalService
from flowserve.runtime import prompts
from flowserve.runtime.failures import raised, told_of
from flowserve.runtime.prompts import Conversation, PromptFormats
from flowserve.runtime.records import Choice, Generation
from flowserve.runtime.run import Run, TaskState
from flowserve.runtime.threads import Threads

LONG_PROMPT_CHARS = 16_000
"""Longer prompts are tokenised in a thread, so that the loop does not stand still."""

Delta = Callable[[Run, TaskState, int, Output], None]
"""Called on the loop with the attempt for every output of an engine."""
Emit = Callable[[Run, TaskState, Any], None]
"""Called, from any thread, with what a tool or dynamic node passes to `fs.emit`."""


@dataclass(slots=True)
class Collected:
    """What a call produced, choice by choice."""

    texts: dict[int, list[str]] = field(default_factory=dict)
    logprobs: dict[int, list[Logprob]] = field(default_factory=dict)
    finish: dict[int, Finish] = field(default_factory=dict)
    tokens_in: int = 0
    tokens_out: int = 0
    cached: int = 0

    def add(self, output: Output) -> None:
        self.texts.setdefault(output.index, []).append(output.text)
        self.logprobs.setdefault(output.index, []).extend(output.logprobs)
        self.tokens_in = max(self.tokens_in, output.prompt_tokens)
        self.cached = max(self.cached, output.cached_tokens)
        self.tokens_out += len(output.token_ids)
        if output.finish is not None:
            self.finish[output.index] = output.finish

    def text(self, index: int = 0) -> str:
        return "".join(self.texts.get(index, ()))


class Executor:
    """Does the work of dispatched tasks with the engines, tools and indexes it was given."""

    def __init__(
        self, engines: Mapping[EngineId, Engine], retrieval: RetrievalService | None, threads: Threads, on_delta: Delta
    ) -> None:
        self._engines = engines
        self._threads = threads
        self._retrieval = retrieval
        self._on_delta = on_delta
        self._formats = PromptFormats()

    async def llm(self, run: Run, task: TaskState, command: Dispatch) -> Any:
        """An LLM node: the parsed output."""
        spec = run.program.plan.llms[task.node.target]
        messages = prompts.template_messages(spec, task.frame.arguments(task.node))
        collected = await self._generate(run, task, command, spec, messages, spec.output)
        return run.program.parse_output(spec.name, collected.text())

    async def step(self, run: Run, task: TaskState, command: Dispatch) -> tuple[list[ToolCall], Any]:
        """One model call of an agent: the tools it wants, or none and its answer."""
        assert task.parent is not None
        talk = self._conversation(run, task.parent)
        _hear(talk, task.parent)
        format = talk.last_format if command.last else talk.format
        collected = await self._generate(run, task, command, talk.spec, talk.messages, format.schema)
        turn = format.parse(collected.text())
        if turn.calls:
            talk.messages.append(calls_message(turn.calls, parallel=True))
            first = talk.calls
            talk.calls += len(turn.calls)
            return [ToolCall(f"call_{first + i}", c.name, c.arguments) for i, c in enumerate(turn.calls)], None
        answer = turn.answer if talk.spec.output is None else json.dumps(turn.answer)
        return [], run.program.parse_output(talk.spec.name, answer)

    def _conversation(self, run: Run, agent: TaskState) -> Conversation:
        """Begun at the agent's first step, then kept with its task."""
        if agent.conversation is None:
            plan = run.program.plan
            spec = plan.agents[agent.node.target]
            tools = tuple(plan.tools[i] for i in spec.tools)
            most, output = spec.max_parallel_tools, spec.llm.output
            format = ToolFormat(prompts.offered(tools), parallel=True, max_parallel=most, output=output)
            last = ToolFormat((), "none", output=output)
            messages = prompts.template_messages(spec.llm, agent.frame.arguments(agent.node), format.instructions)
            agent.conversation = Conversation(spec.llm, tools, messages, format, last)
        talk: Conversation = agent.conversation
        return talk

    async def raw(self, run: Run, task: TaskState, command: Dispatch) -> Generation:
        """A model call from outside any workflow."""
        raw: prompts.RawCall = run.raw
        raw.streams.clear()
        sampling = raw.sampling
        engine = self._engine(command)
        if raw.prompt is not None:
            segments = prompts.plain_segments(engine, raw.prompt)
        else:
            messages = [prompts.from_message(message) for message in raw.messages or ()]
            if raw.tools is not None:
                messages = prompts.instructed(messages, raw.tools.instructions)
            segments = self._formats.segments(engine, messages)
            sampling = self._formats.stopped(engine, sampling)
        schema = raw.tools.schema if raw.tools is not None else raw.schema
        call = prompts.call_for(
            run, task, engine, segments, sampling, raw.model, schema, command.priority, command.timeout_s
        )
        collected = await self._collect(run, task, engine, call)
        return Generation(
            model=raw.model,
            choices=tuple(_choice(collected, i, raw.tools) for i in range(raw.sampling.n)),
            tokens_in=collected.tokens_in,
            tokens_out=collected.tokens_out,
            cached_tokens=collected.cached,
        )

    async def _generate(
        self,
        run: Run,
        task: TaskState,
        command: Dispatch,
        spec: LLMSpec,
        messages: list[PromptMessage],
        schema: dict[str, Any] | None,
    ) -> Collected:
        engine = self._engine(command)
        if sum(len(piece.text) for message in messages for piece in message.pieces) > LONG_PROMPT_CHARS:
            segments = await self._threads.call(self._formats.segments, engine, messages)
        else:
            segments = self._formats.segments(engine, messages)
        sampling, model = prompts.sampling_of(spec, run, task)
        sampling = self._formats.stopped(engine, sampling)
        call = prompts.call_for(
            run, task, engine, segments, sampling, model, schema, command.priority, command.timeout_s
        )
        return await self._collect(run, task, engine, call)

    async def _collect(self, run: Run, task: TaskState, engine: Engine, call: Call) -> Collected:
        """Run `call` to its end. Closing the iterator, also by cancellation, aborts it at the engine."""
        collected, attempt = Collected(), task.attempt
        async with aclosing(engine.generate(call)) as outputs:  # type: ignore[type-var]
            async for output in outputs:
                collected.add(output)
                self._on_delta(run, task, attempt, output)
        if len(collected.finish) < call.sampling.n or Finish.ABORT in collected.finish.values():
            raise EngineError(f"engine {engine.id} ended call {call.id} without finishing it")
        record = task.record
        record.tokens_in, record.tokens_out = collected.tokens_in, collected.tokens_out
        record.cached_tokens = collected.cached
        return collected

    def _engine(self, command: Dispatch) -> Engine:
        assert command.engine is not None
        return self._engines[command.engine]

    async def tool(self, run: Run, task: TaskState, emit: Emit) -> Any:
        """A TOOL node: the checked result."""
        spec = run.program.plan.tools[task.node.target]
        return await self._call_tool(run, task, spec, task.frame.arguments(task.node), emit)

    async def agent_tool(self, run: Run, task: TaskState, emit: Emit) -> None:
        """A tool call that a model asked for; its arguments are checked like any input from outside.

        What it answers, or why it failed, is what the model reads in its next step.
        """
        agent = task.parent
        assert agent is not None
        call = agent.pending[task.index]
        spec = agent.conversation.tools[agent.conversation.index(call.name)]
        try:
            value = await self._call_tool(run, task, spec, call.arguments, emit)
        except FlowServeError as error:
            agent.replies[task.index] = f"error: {error}"
            raise
        shown = run.program.dump(value)
        agent.replies[task.index] = shown if isinstance(shown, str) else json.dumps(shown, ensure_ascii=False)

    async def _call_tool(self, run: Run, task: TaskState, spec: ToolSpec, arguments: dict[str, Any], emit: Emit) -> Any:
        """Call a registered function, sync ones in a thread. Whatever it raises becomes a ToolError that names it."""
        function, what = run.program.functions[spec.name], f"tool {spec.name}"
        bound = run.program.arguments(spec.name, arguments)
        with told_of(what), listening(lambda value: emit(run, task, value)):
            if run.program.is_async(spec.name):
                value = await function(**bound)
            else:
                value = await self._threads.call(_in_thread, what, function, bound)
                if inspect.isawaitable(value):  # an async function behind somebody's plain decorator
                    value = await value
        return run.program.checked(spec.name, value)

    async def search(self, run: Run, task: TaskState) -> Any:
        """A SEARCH node: hits, best first."""
        if self._retrieval is None:
            raise RetrievalError(
                f"node {task.node.name} searches an index but this runtime has no retrieval folder; "
                "start it with one (`flowserve serve --indexes DIR`)"
            )
        values = task.frame.arguments(task.node)
        index = run.program.plan.searches[task.node.target].index
        return await self._retrieval.search(index, values["query"], values["k"])


def _in_thread(what: str, function: Callable[..., Any], arguments: dict[str, Any]) -> Any:
    """Call a plain function. What it raises is translated here already: not everything can cross into a future."""
    try:
        return function(**arguments)
    except FlowServeError:
        raise
    except BaseException as error:
        raise raised(what, error) from error


def _hear(talk: Conversation, agent: TaskState) -> None:
    """Append what the tools of the last step answered, in the order in which they were asked."""
    for place, call in enumerate(agent.pending):
        reply = agent.replies.get(place, "error: the call did not complete")
        talk.messages.append(result_message(call.name, reply, call.id))
    agent.pending, agent.replies = [], {}


def _choice(collected: Collected, index: int, tools: ToolFormat | None) -> Choice:
    text = collected.text(index)
    finish = collected.finish[index]
    logprobs = tuple(collected.logprobs.get(index, ()))
    if tools is None:
        return Choice(text, finish.value, (), logprobs)
    if finish is Finish.LENGTH:  # cut off inside the JSON around it: what can be shown is the answer so far
        return Choice(AnswerStream().push(text), finish.value, (), logprobs)
    turn = tools.parse(text)
    if turn.calls:
        calls = tuple(ToolCall(f"call_{secrets.token_hex(8)}", c.name, c.arguments) for c in turn.calls)
        return Choice("", "tool_calls", calls, logprobs)
    answer = turn.answer if isinstance(turn.answer, str) else json.dumps(turn.answer, ensure_ascii=False)
    return Choice(answer, finish.value, (), logprobs)
