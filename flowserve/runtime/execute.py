"""How each kind of work is done: coroutines that the runner starts for a `Dispatch`.

Each returns the value of the execution or raises; the runner turns that into the event. Nothing here
chooses: where, when, how often and how long come with the command.
"""

import inspect
import json
import secrets
from collections.abc import Callable, Coroutine, Sequence
from contextlib import aclosing
from functools import partial
from typing import Any

from flowserve.cachestore.segments import Quality
from flowserve.core import events as e
from flowserve.core.commands import Dispatch, Role
from flowserve.core.speculation.transaction import Commit, RollBack
from flowserve.engines.base import Call, Engine, Finish, Output
from flowserve.engines.chat import PromptMessage
from flowserve.engines.detok import TextStream
from flowserve.engines.tools import AnswerStream, ToolFormat, calls_message, result_message
from flowserve.errors import EngineLost, FlowServeError, RetrievalError
from flowserve.graphs.context import listening
from flowserve.graphs.plan import ExitSpec, LLMSpec, ToolSpec
from flowserve.graphs.types import ToolCall
from flowserve.ids import EngineId
from flowserve.retrieval.protocols import RetrievalService
from flowserve.runtime import prompts
from flowserve.runtime.certified import CONSERVATIVE, Certificates, Rule, rule_of, watch_of
from flowserve.runtime.chains import Chain, Cut, readout_of
from flowserve.runtime.collected import Collected
from flowserve.runtime.failures import raised, told_of
from flowserve.runtime.looking import Looking, Lookups, looking_of, marked
from flowserve.runtime.orders import PromptOrders
from flowserve.runtime.pool import Pool
from flowserve.runtime.prompts import Conversation, Prompt, PromptFormats, RawCall
from flowserve.runtime.records import Choice, Generation
from flowserve.runtime.run import Run, TaskState
from flowserve.runtime.shadows import Shadows
from flowserve.runtime.threads import Threads

LONG_PROMPT_CHARS = 16_000
"""Longer prompts are tokenised in a thread, so that the loop does not stand still."""

Delta = Callable[[Run, TaskState, Dispatch, Collected, Output], None]
"""Called on the loop for every output of an engine; it belongs to the dispatched execution, and into the Collected."""
Speculated = Callable[[Run, TaskState, Dispatch, Commit | RollBack], None]
"""Called on the loop when text that was written behind a guessed passage is found right or wrong."""
Emit = Callable[[Run, TaskState, Any], None]
"""Called, from any thread, with what a tool or dynamic node passes to `fs.emit`."""


class Executor:
    """Does the work of dispatched tasks with the engines, tools and indexes it was given."""

    def __init__(
        self,
        pool: Pool,
        retrieval: RetrievalService | None,
        threads: Threads,
        formats: PromptFormats,
        on_delta: Delta,
        certificates: Certificates | None = None,
        shadows: Shadows | None = None,
        on_speculation: Speculated = lambda run, task, command, did: None,
    ) -> None:
        """`shadows` run on what was stopped under `certificates`."""
        self._pool = pool
        self._threads = threads
        self._retrieval = retrieval
        self._on_delta = on_delta
        self._certificates = certificates
        self._shadows = shadows
        self._formats = formats
        self._lookups = Lookups(retrieval)
        self._on_speculation = on_speculation
        self._orders = PromptOrders()

    # --- model calls ----------------------------------------------------------------------------------------

    def prompt(self, run: Run, task: TaskState, last: bool) -> Prompt:
        """The model call that a task makes: of an LLM node, of an agent's step, or of a client without a workflow.

        Raises FlowServeError for values that cannot be rendered.
        """
        if run.raw is not None:
            return _raw_prompt(run.raw)
        if task.role is Role.STEP:
            assert task.parent is not None
            talk = self._conversation(run, task.parent)
            _hear(talk, task.parent)
            format = talk.last_format if last else talk.format
            return self._node_prompt(run, task, talk.spec, talk.messages, format.schema)
        spec = run.program.plan.llms[task.node.target]
        messages = self._messages(run, task, spec)
        looking = looking_of(spec, run.program.plan.name)
        if looking is None:
            return self._node_prompt(run, task, spec, messages, spec.output)
        prompt = self._node_prompt(run, task, spec, marked(messages), spec.output)
        prompt.looking = looking
        return prompt

    def _messages(self, run: Run, task: TaskState, spec: LLMSpec, instructions: str = "") -> list[PromptMessage]:
        """What `task` first says to a model. Called once per prompt, on the loop: free pieces go by what was said before."""
        _, model = prompts.sampling_of(spec, run, task)
        arranged = partial(self._orders.arranged, run.tenant, (model, instructions))
        return prompts.template_messages(spec, task.frame.arguments(task.node), arranged, instructions)

    def _node_prompt(
        self, run: Run, task: TaskState, spec: LLMSpec, messages: list[PromptMessage], schema: dict[str, Any] | None
    ) -> Prompt:
        sampling, model = prompts.sampling_of(spec, run, task)
        reuse = prompts.reuse_of(spec, run, task.node)
        return Prompt(tuple(messages), None, sampling, model, schema, spec.regex, spec.grammar, spec.on_loss, reuse)

    def size(self, run: Run, task: TaskState, attempt: int) -> e.Measured:
        """How large `task.prompt` is, for the engines that serve its model. May be called in any thread."""
        prompt: Prompt = task.prompt
        limit = prompt.sampling.max_tokens * prompt.sampling.n
        tokenizer = self._pool.tokenizer(prompt.model)
        if tokenizer is None:  # no engine has been up yet: it is measured by the one that it goes to
            return e.Measured(run.id, task.id, attempt, 0, limit, prompt.sampling.n)
        segments = self._formats.segments(prompt, tokenizer)
        ids = [i for segment in segments for i in segment.ids]
        root = self._pool.numbers.root(run.tenant, self._pool.adapter(prompt.model))
        loss = prompt.loss(self._pool.interchangeable(prompt.model))
        prefix = self._pool.numbers.of(root, ids)
        rule = self._rule(run, task, prompt.model)
        passages = () if prompt.reuse is Quality.EXACT else self._pool.numbers.passages(root, segments)
        return e.Measured(run.id, task.id, attempt, len(ids), limit, prompt.sampling.n, loss, prefix, *rule, passages)

    def _rule(self, run: Run, task: TaskState, model: str) -> Rule:
        """What may end the call early, if its node allows that at all."""
        if task.role is not Role.NODE:
            return CONSERVATIVE
        exit = run.program.plan.llms[task.node.target].exit
        return rule_of(exit, self._pool.known_as(model), self._certificates)

    def held(self, run: Run, task: TaskState, engine: EngineId) -> tuple[int, ...]:
        """Prefixes that the cache of `engine` holds after it answered: of prompt and answer together."""
        prompt: Prompt = task.prompt
        ids = task.collected.ids
        if prompt.sampling.n > 1 or not ids or prompt.looking is not None:
            return ()
        segments = self._formats.segments(prompt, self._pool.engine(engine).tokenizer)
        whole = [*(i for segment in segments for i in segment.ids), *ids[:-1]]
        root = self._pool.numbers.root(run.tenant, self._pool.adapter(prompt.model))
        return self._pool.numbers.of(root, whole)

    async def llm(self, run: Run, task: TaskState, command: Dispatch) -> Any:
        """An LLM node: the parsed output."""
        collected = await self._collect(run, task, command)
        return run.program.parse_output(run.program.plan.llms[task.node.target].name, collected.text())

    async def step(self, run: Run, task: TaskState, command: Dispatch) -> tuple[list[ToolCall], Any]:
        """One model call of an agent: the tools it wants, or none and its answer."""
        assert task.parent is not None
        talk = self._conversation(run, task.parent)
        format = talk.last_format if command.last else talk.format
        collected = await self._collect(run, task, command)
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
            messages = self._messages(run, agent, spec.llm, format.instructions)
            agent.conversation = Conversation(spec.llm, tools, messages, format, last)
        talk: Conversation = agent.conversation
        return talk

    async def raw(self, run: Run, task: TaskState, command: Dispatch) -> Generation:
        """A model call from outside any workflow."""
        raw: prompts.RawCall = run.raw
        if not command.resume:
            raw.streams.clear()
        collected = await self._collect(run, task, command)
        return Generation(
            model=raw.model,
            choices=tuple(_choice(collected, i, raw.tools) for i in range(raw.sampling.n)),
            tokens_in=collected.tokens_in,
            tokens_out=collected.tokens_out,
            cached_tokens=collected.cached,
        )

    async def _collect(self, run: Run, task: TaskState, command: Dispatch) -> Collected:
        """Run the task's call to its end. Closing the iterator, also by cancellation, aborts it at the engine."""
        assert command.engine is not None
        engine = self._pool.engine(command.engine)
        prompt: Prompt = task.prompt
        if engine.tokenizer.fingerprint not in prompt.segments and prompt.chars > LONG_PROMPT_CHARS:
            await self._threads.call(self._formats.segments, prompt, engine.tokenizer)
        model = self._pool.own_name(command.engine, prompt.model)
        call = prompts.call_of(run, task, prompt, engine, self._formats, model, command)
        collected = task.streams[command.engine]
        chain = task.chain if engine.capabilities.tokens else None
        if chain is not None:
            call = chain.begin(call, engine)
        if len(call.resumed) >= call.sampling.max_tokens:  # its engine was lost between the last token and the end
            self._on_delta(run, task, command, collected, _last_words(call, engine, collected))
        elif prompt.looking is not None:
            await self._write_looking(run, task, command, call, prompt.looking)
        elif chain is None:
            await self._write(run, task, command, call)
        else:
            await self._write_chain(run, task, command, call, chain)
        if len(collected.finish) < call.sampling.n or Finish.ABORT in collected.finish.values():
            raise EngineLost(f"engine {engine.id} ended call {call.id} without finishing it")
        record = task.record
        record.tokens_in, record.tokens_out = collected.tokens_in, collected.tokens_out
        record.cached_tokens, record.provenance = collected.cached, collected.provenance
        run.took(task, collected.tokens_in + collected.tokens_out)
        return collected

    async def _write(
        self, run: Run, task: TaskState, command: Dispatch, call: Call, chain: Chain | None = None
    ) -> None:
        """Collect what `call` writes, to its end or until `chain` is cut."""
        assert command.engine is not None
        engine, collected = self._pool.engine(command.engine), task.streams[command.engine]
        async with aclosing(engine.generate(call)) as outputs:  # type: ignore[type-var]
            async for output in outputs:
                self._on_delta(run, task, command, collected, output)
                if chain is not None and chain.cut is not None:
                    break

    async def _write_looking(self, run: Run, task: TaskState, command: Dispatch, call: Call, looking: Looking) -> None:
        """Collect what is committed of a call that looks passages up while it is written."""
        assert command.engine is not None
        engine, collected = self._pool.engine(command.engine), task.streams[command.engine]
        told = partial(self._on_speculation, run, task, command)
        async with aclosing(self._lookups.outputs(call, engine, looking, told)) as outputs:
            async for output in outputs:
                self._on_delta(run, task, command, collected, output)

    async def _write_chain(self, run: Run, task: TaskState, command: Dispatch, call: Call, chain: Chain) -> None:
        """A call that may end early, and what follows the chain if it does."""
        assert command.engine is not None
        engine, collected = self._pool.engine(command.engine), task.streams[command.engine]
        try:
            await self._write(run, task, command, call, chain)
        finally:
            if chain.call is call:  # else it was cancelled, and the chain goes on elsewhere
                chain.end()
        if chain.cut is None:
            return
        collected.finish.clear()
        if chain.stopped is not None:
            self._shadow(task, call, engine, collected.ids, chain.exit, chain.stopped)
        readout = readout_of(call, engine, collected.ids, chain.cue()) if chain.cut is Cut.READOUT else None
        if chain.cut is Cut.ANSWER:
            last = Output(text=chain.answer(), finish=Finish.STOP)
            self._on_delta(run, task, command, collected, last)
        elif readout is None:
            self._on_delta(run, task, command, collected, Output(finish=Finish.LENGTH))
        else:
            self._on_delta(run, task, command, collected, Output(text=chain.cue()))
            collected.ids.extend(readout.segments[-1].ids)
            await self._write(run, task, command, readout)

    def _shadow(
        self, task: TaskState, call: Call, engine: Engine, written: Sequence[int], exit: ExitSpec, answer: str
    ) -> None:
        """The call was stopped with `answer`; it may be one of those that run on."""
        if self._shadows is None:
            return
        watch = watch_of(exit, call.id, self._pool.known_as(task.prompt.model), self._certificates)
        if watch is not None:
            self._shadows.begin(watch, call, engine, written, exit, answer)

    # --- everything else ------------------------------------------------------------------------------------

    def tool(self, run: Run, task: TaskState, emit: Emit) -> Coroutine[Any, Any, Any]:
        """A TOOL node: the checked result."""
        spec = run.program.plan.tools[task.node.target]
        return self._call_tool(run, task, spec, task.frame.arguments(task.node), emit)

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

    async def search(self, run: Run, task: TaskState, command: Dispatch) -> Any:
        """A SEARCH node: hits, best first; as many as it asks for, or fewer where the scheduler says so."""
        if self._retrieval is None:
            raise RetrievalError(
                f"node {task.node.name} searches an index but this runtime has no retrieval folder; "
                "start it with one (`flowserve serve --indexes DIR`)"
            )
        values = task.frame.arguments(task.node)
        spec = run.program.plan.searches[task.node.target]
        k = command.limit or values["k"]
        return await self._retrieval.search(spec.index, values["query"], k, dict(spec.where), run.tenant, spec.rerank)


def _raw_prompt(raw: RawCall) -> Prompt:
    schema = raw.tools.schema if raw.tools is not None else raw.schema
    if raw.prompt is not None:
        return Prompt(None, raw.prompt, raw.sampling, raw.model, schema)
    messages = [prompts.from_message(message) for message in raw.messages or ()]
    if raw.tools is not None:
        messages = prompts.instructed(messages, raw.tools.instructions)
    return Prompt(tuple(messages), None, raw.sampling, raw.model, schema)


def _last_words(call: Call, engine: Engine, collected: Collected) -> Output:
    """The end of a call that had written all it may: whatever text was still held back."""
    stream = TextStream(engine.tokenizer.decode, call.sampling.stop)
    text = stream.push(call.resumed) + stream.finish()
    return Output(text=text[len(collected.text()) :], finish=Finish.STOP if stream.stopped else Finish.LENGTH)


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
