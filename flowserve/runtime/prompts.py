"""From a node and its values to a `Call`: templates are rendered to pieces, pieces become segments.

Boundaries that the template knows (constants, values, one chunk per retrieved passage) survive the
model's chat format, because each piece is tokenised alone.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from flowserve.cachestore.segments import Quality
from flowserve.core.commands import Dispatch
from flowserve.core.events import Loss
from flowserve.engines.base import Call, Engine, Origin, Output, Sampling, Segment, Tokenizer
from flowserve.engines.chat import ChatFormat, MessageCall, Piece, PromptMessage
from flowserve.engines.tools import AnswerStream, Tool, ToolFormat
from flowserve.errors import InputError
from flowserve.graphs.plan import LLMSpec, Node, ToolSpec
from flowserve.graphs.template import Piece as RenderedPiece
from flowserve.graphs.template import RenderedPrompt, render_prompt
from flowserve.graphs.types import Message
from flowserve.runtime.looking import Looking
from flowserve.runtime.run import Run, TaskState

OVERRIDABLE = frozenset({"max_tokens", "temperature", "top_p", "top_k", "seed", "stop", "reuse"})
"""What a run may override on an LLM node."""
CLASSES = tuple(Quality)
"""From the strictest to the loosest."""


@dataclass(frozen=True, slots=True)
class RawCall:
    """A model call that came from outside any workflow: the OpenAI door's chat or completion."""

    model: str
    sampling: Sampling
    messages: tuple[Message, ...] | None = None
    prompt: str | None = None
    """Instead of messages: text that goes to the model as it is."""
    tools: ToolFormat | None = None
    schema: dict[str, Any] | None = None
    streams: dict[int, AnswerStream] = field(default_factory=dict)
    """With tools: what of each choice can be shown while it is written."""

    def shown(self, output: Output) -> str:
        """The text of `output` that a client may see now; tool calls are told when they are whole."""
        if self.tools is None:
            return output.text
        return self.streams.setdefault(output.index, AnswerStream()).push(output.text)


@dataclass(slots=True)
class Prompt:
    """A model call that has no engine yet."""

    messages: tuple[PromptMessage, ...] | None
    text: str | None
    """Instead of messages: goes to the model as it is."""
    sampling: Sampling
    model: str
    """As the node or the client named it: a model, a role, or "" for the default."""
    schema: dict[str, Any] | None = None
    regex: str | None = None
    grammar: str | None = None
    on_loss: str | None = None
    """As the author said; None: nothing."""
    reuse: Quality = Quality.EXACT
    """How KV of its chunks may be reused."""
    looking: Looking | None = None
    """What it looks up while it is answered; then a mark stands where passages go. None: nothing."""
    segments: dict[str, tuple[Segment, ...]] = field(default_factory=dict)
    """By fingerprint of the tokenizer that made them."""

    @property
    def chars(self) -> int:
        """Length of the text to be tokenised, without the chat format."""
        if self.text is not None:
            return len(self.text)
        return sum(len(piece.text) for message in self.messages or () for piece in message.pieces)

    @property
    def resumable(self) -> bool:
        """Can it be begun in the middle at all?"""
        return self.sampling.n == 1 and self.schema is None and self.regex is None and self.grammar is None

    def loss(self, interchangeable: bool) -> Loss:
        """What becomes of it when an engine is lost in it. `interchangeable`: others can go on with an engine's tokens.

        Where nobody said: it goes on, unless its draws have a seed, which only a call from the start can honour.
        """
        if self.on_loss in (Loss.RESTART, Loss.FAIL):
            return Loss(self.on_loss)
        if not interchangeable or not self.resumable:
            return Loss.RESTART
        seeded = self.sampling.temperature > 0 and self.sampling.seed is not None
        return Loss.RESTART if seeded and self.on_loss is None else Loss.CONTINUE


@dataclass(slots=True)
class Conversation:
    """What an agent and its tools have said so far."""

    spec: LLMSpec
    tools: tuple[ToolSpec, ...]
    messages: list[PromptMessage]
    format: ToolFormat
    last_format: ToolFormat
    """As `format`, but the model must answer."""
    calls: int = 0
    """Tool calls so far; makes their ids."""

    def index(self, name: str) -> int:
        """Place of a tool in `AgentSpec.tools`."""
        return next(i for i, tool in enumerate(self.tools) if tool.name == name)


def template_messages(
    spec: LLMSpec, values: dict[str, Any], arranged: Callable[[RenderedPrompt], RenderedPrompt], instructions: str = ""
) -> list[PromptMessage]:
    """The messages that a node's template makes of its arguments: system, history, user. `arranged` orders free pieces."""
    messages = []
    prompt = arranged(render_prompt(spec.template, values, spec.any_order))
    system = [_piece(piece) for piece in prompt.system]
    if instructions:
        system.append(Piece(("\n\n" if system else "") + instructions, Origin.TEMPLATE))
    if system:
        messages.append(PromptMessage("system", tuple(system)))
    messages += [from_message(turn) for turn in prompt.history]
    user = tuple(_piece(piece) for piece in prompt.user)
    if user:
        messages.append(PromptMessage("user", user))
    return messages


def _piece(piece: RenderedPiece) -> Piece:
    return Piece(piece.text, Origin(piece.origin), piece.document, piece.version, piece.free)


def instructed(messages: list[PromptMessage], instructions: str) -> list[PromptMessage]:
    """The conversation with `instructions` in its system message, which is made where there is none."""
    if not instructions:
        return messages
    if messages and messages[0].role == "system":
        first = replace(messages[0], pieces=(*messages[0].pieces, Piece("\n\n" + instructions, Origin.TEMPLATE)))
        return [first, *messages[1:]]
    return [PromptMessage("system", (Piece(instructions, Origin.TEMPLATE),)), *messages]


def from_message(turn: Message) -> PromptMessage:
    """A turn of a conversation as one piece."""
    origin = Origin.GENERATED if turn.role == "assistant" else Origin.VALUE
    return PromptMessage(
        turn.role,
        (Piece(turn.content, origin),),
        tool_calls=tuple(MessageCall(call.name, call.arguments, call.id) for call in turn.tool_calls),
        tool_call_id=turn.tool_call_id or None,
        name=turn.name or None,
    )


def sampling_of(spec: LLMSpec, run: Run, task: TaskState) -> tuple[Sampling, str]:
    """Sampling and model of one execution: the node's, then the run's overrides, then the run's seed."""
    changes = _overrides(run, task.node)
    changes.pop("reuse", None)
    model = str(changes.pop("model", spec.model or ""))
    if "stop" in changes:
        changes["stop"] = (changes["stop"],) if isinstance(changes["stop"], str) else tuple(changes["stop"])
    sampling = Sampling(
        max_tokens=spec.max_tokens,
        temperature=spec.temperature,
        top_p=spec.top_p,
        top_k=spec.top_k,
        seed=spec.seed,
        stop=spec.stop,
        thinking_budget=spec.thinking_budget,
    )
    sampling = replace(sampling, **changes)
    base = sampling.seed if sampling.seed is not None else run.options.seed
    if base is None:
        return sampling, model
    return replace(sampling, seed=_mixed_seed(base, task)), model


def reuse_of(spec: LLMSpec, run: Run, node: Node) -> Quality:
    """How KV of the chunks of a node's prompts may be reused in this run: as its author allows, or as the run asks, if that is less."""
    allowed = Quality(spec.reuse or spec.quality)
    asked = Quality(_overrides(run, node).get("reuse", allowed))
    return min(allowed, asked, key=CLASSES.index)


def model_of(spec: LLMSpec, run: Run, node: Node) -> str:
    """The model of a node in this run, as the node or the client named it."""
    return str(_overrides(run, node).get("model", spec.model or ""))


def _overrides(run: Run, node: Node) -> dict[str, Any]:
    changes: dict[str, Any] = {}
    for name in ("*", node.name):
        changes |= run.options.overrides.get(name, {})
    return changes


def _mixed_seed(base: int, task: TaskState) -> int:
    """A seed for this place in the run, the same in every run: siblings of a sample must not draw alike."""
    place = (*task.frame.path(), task.index)
    if not any(place):
        return base
    text = f"{base}:{task.node.name}:{place}".encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=6).digest(), "big")


def check_overrides(overrides: dict[str, dict[str, Any]], names: Sequence[str]) -> None:
    """Raise InputError for an override of a node or field that does not exist."""
    problems = []
    for name, changes in overrides.items():
        if name != "*" and name not in names:
            problems.append(
                (f"/overrides/{name}", f"no LLM node of that name; there are: {', '.join(names) or 'none'}")
            )
        for key in changes:
            if key not in OVERRIDABLE:
                problems.append((f"/overrides/{name}/{key}", f"cannot be set; can: {', '.join(sorted(OVERRIDABLE))}"))
            elif key == "reuse" and changes[key] not in CLASSES:
                expected = f"expected one of {', '.join(CLASSES)}; got {changes[key]!r}"
                problems.append((f"/overrides/{name}/reuse", expected))
    if problems:
        raise InputError("the overrides do not fit the workflow", problems)


def offered(tools: Sequence[ToolSpec]) -> tuple[Tool, ...]:
    """Registered functions as a model is told of them."""
    return tuple(Tool(tool.name, tool.description, tool.params) for tool in tools)


class PromptFormats:
    """Chat formats by tokenizer; each is compiled once. Thread-safe after the first use of a tokenizer."""

    def __init__(self) -> None:
        self._formats: dict[str, ChatFormat] = {}

    def of(self, tokenizer: Tokenizer) -> ChatFormat:
        key = tokenizer.fingerprint
        if key not in self._formats:
            self._formats[key] = ChatFormat(tokenizer)
        return self._formats[key]

    def segments(self, prompt: Prompt, tokenizer: Tokenizer) -> tuple[Segment, ...]:
        """The prompt as `tokenizer` reads it; made once per tokenizer."""
        key = tokenizer.fingerprint
        found = prompt.segments.get(key)
        if found is None:
            if prompt.text is not None:
                found = plain_segments(tokenizer, prompt.text)
            else:
                found = self.of(tokenizer).segments(prompt.messages or ())
            prompt.segments[key] = found
        return found

    def stopped(self, prompt: Prompt, tokenizer: Tokenizer) -> Sampling:
        """Sampling that also ends where a model without a chat template would begin the next turn."""
        stop = self.of(tokenizer).stop if prompt.text is None else ()
        return replace(prompt.sampling, stop=(*prompt.sampling.stop, *stop)) if stop else prompt.sampling


def plain_segments(tokenizer: Tokenizer, text: str) -> tuple[Segment, ...]:
    """A completion prompt: the text as it is, behind the model's begin-of-sequence token where it has one."""
    segments = []
    bos = tokenizer.special_tokens.get("bos_token", "")
    if bos and not text.startswith(bos):
        segments.append(Segment(tuple(tokenizer.encode_template(bos)), Origin.TEMPLATE, bos))
    segments.append(Segment(tuple(tokenizer.encode(text)), Origin.VALUE, text))
    return tuple(segments)


def call_of(
    run: Run, task: TaskState, prompt: Prompt, engine: Engine, formats: PromptFormats, model: str, dispatch: Dispatch
) -> Call:
    """The request for one execution of a model call at `engine`, which calls its model `model`."""
    tokenizer = engine.tokenizer
    return Call(
        id=f"{run.id}/{task.record.task}/{dispatch.attempt}",
        segments=formats.segments(prompt, tokenizer),
        sampling=formats.stopped(prompt, tokenizer),
        model=model,
        priority=dispatch.priority,
        schema=prompt.schema,
        regex=prompt.regex,
        grammar=prompt.grammar,
        timeout_s=dispatch.timeout_s,
        session=run.options.session or run.id,
        keep_s=dispatch.keep_s,
        tenant=run.tenant,
        resumed=tuple(task.collected.ids) if dispatch.resume else (),
        stream=run.options.stream and task.node.id in run.streamed,
        messages=prompt.messages,
        reuse=prompt.reuse,
        meta={"workflow": run.program.plan.name, "run": run.id, "node": task.node.name, "label": task.record.label},
    )
