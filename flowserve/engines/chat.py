"""Messages to segments: the boundaries of a prompt's pieces survive the model's chat template.

    ChatFormat(tokenizer).segments([PromptMessage("user", (Piece("Answer: ", Origin.TEMPLATE), Piece(question)))])

The template is rendered with a marker in place of each message's text. What stands between the markers is the
template's own text: it is tokenised with its special tokens. Pieces are tokenised alone and without special tokens, so
data cannot close a turn or open another. Templates may trim, repeat, drop or look into a message's text; therefore the
joined texts are always compared with the template rendered with the real text, and when they differ, the messages
that the template looks into lose their boundaries (one VALUE segment with what surrounds them), never their text.
"""

import json
import re
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from threading import Lock
from typing import Any

import jinja2

from flowserve.engines.base import Origin, Segment, Tokenizer
from flowserve.engines.chat_marks import CLOSE, MARK_CHARACTERS, OPEN, Guard, Part, marker, matched, split
from flowserve.engines.chat_template import FALLBACK_STOP, FALLBACK_TEMPLATE, ChatTemplate
from flowserve.errors import InputError

CACHED_SHAPES = 256


@dataclass(frozen=True, slots=True)
class Piece:
    """A stretch of a message that stays a segment of its own."""

    text: str
    origin: Origin = Origin.VALUE
    document: str = ""
    """As `Segment.document`; so the next two."""
    version: str = ""
    free: bool = False


@dataclass(frozen=True, slots=True)
class MessageCall:
    """A tool call that an earlier assistant message made."""

    name: str
    arguments: Mapping[str, Any]
    id: str = ""


@dataclass(frozen=True, slots=True)
class PromptMessage:
    """One message of a conversation."""

    role: str
    """system, user, assistant or tool."""
    pieces: tuple[Piece, ...] = ()
    tool_calls: tuple[MessageCall, ...] = ()
    """Of an assistant message."""
    tool_call_id: str | None = None
    """Of a tool message: which call it answers."""
    name: str | None = None
    """Of a tool message: the tool."""

    @property
    def text(self) -> str:
        return "".join(piece.text for piece in self.pieces)


class ChatFormat:
    """A tokenizer's chat template, compiled once. Thread-safe.

    Templates that refuse a system role, tool messages or two turns of one role in a row get the conversation in plain
    form: system text in front of the first user message, tool results as user messages, neighbours merged.
    """

    def __init__(self, tokenizer: Tokenizer, template: str | None = None) -> None:
        """`template` overrides the tokenizer's own. Raises InputError when it does not parse."""
        self._tokenizer = tokenizer
        source = template or tokenizer.chat_template
        self.stop: tuple[str, ...] = () if source else FALLBACK_STOP
        """Stop strings a call should add; only for models without a template."""
        self._template = ChatTemplate(source or FALLBACK_TEMPLATE)
        added = getattr(tokenizer, "added_tokens", None)
        special = tokenizer.special_tokens.values() if added is None else added
        self._special = [token for token in sorted(special, key=len, reverse=True) if token]
        self._guarded = re.compile("|".join(map(re.escape, [*self._special, OPEN, CLOSE])))
        self._special_pattern = re.compile("|".join(map(re.escape, self._special)) or "(?!)")
        self._shapes: OrderedDict[str, list[Part]] = OrderedDict()
        self._constants: OrderedDict[str, tuple[int, ...]] = OrderedDict()
        self._lock = Lock()

    def segments(
        self,
        messages: Sequence[PromptMessage],
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        continue_final: bool = False,
    ) -> tuple[Segment, ...]:
        """The prompt as segments whose joined texts are the rendered template.

        tools: JSON Schemas of functions, handed to the template (None when tools are described in a message).
        continue_final: end inside the last message, right after its text, so that the model writes on.
        Raises InputError when the template refuses the conversation.
        """
        request = _Request(tuple(messages), tools, add_generation_prompt and not continue_final, continue_final)
        try:
            return self._segments(request)
        except jinja2.TemplateError as refused:
            plain = _Request(_plain(messages), None, request.generate, continue_final)
            if plain.messages == request.messages:
                raise InputError(f"the model's chat template refuses the conversation: {refused}") from refused
            try:
                return self._segments(plain)
            except jinja2.TemplateError as error:
                raise InputError(f"the model's chat template refuses the conversation: {error}") from error

    def render(
        self,
        messages: Sequence[PromptMessage],
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
    ) -> str:
        """The template with the real texts, as text. Raises jinja2.TemplateError."""
        request = _Request(tuple(messages), tools, add_generation_prompt, False)
        return self._render(request, request.texts, lambda text: text)

    def _segments(self, request: "_Request") -> tuple[Segment, ...]:
        plain = self._render(request, request.texts, lambda text: text)
        parts = self._aligned(request, plain)
        if request.continue_final:
            parts = _until_last_message(parts, len(request.messages) - 1)
        return tuple(self._tokenised(request, parts))

    def _aligned(self, request: "_Request", plain: str) -> list[Part]:
        """Parts whose texts join to `plain`."""
        everyone = request.filled
        parts = self._attempt(request, plain, everyone)
        if parts is not None:
            return parts
        traced = frozenset(
            i for i in everyone if self._attempt(request, plain, frozenset((i,)), strict=False) is not None
        )
        for marked, strict in ((traced, True), (traced, False), (frozenset[int](), True)):
            parts = self._attempt(request, plain, marked, strict)
            if parts is not None:
                return parts
        return self._without_smuggled(request, [Part("own", plain, Origin.VALUE)], frozenset())

    def _attempt(
        self, request: "_Request", plain: str, marked: frozenset[int], strict: bool = True
    ) -> list[Part] | None:
        """Render with markers for the messages `marked`; None when the result differs from `plain`.

        The other messages' texts are in the rendering. strict: with their special tokens hidden from the template.
        """
        key = request.shape(marked) if marked == request.filled else None
        if key is not None:
            with self._lock:
                known = self._shapes.get(key)
            if known is not None:
                parts = matched(known, request.texts, plain)
                if parts is not None:
                    return parts  # else the template depends on more than the shape (the date): render again
        guard = Guard(self._guarded)
        visible = guard if strict else Guard(MARK_CHARACTERS, guard.strings)
        texts = [marker(i) if i in marked else visible(text) for i, text in enumerate(request.texts)]
        try:
            rendered = self._render(request, texts, guard)
        except jinja2.TemplateError:
            return None  # it looked into a text, and did not like the marker
        shape = split(rendered, guard, rewritten=marked != request.filled)
        parts = matched(shape, request.texts, plain)
        if parts is None:
            return None
        if not strict:
            return self._without_smuggled(request, parts, marked)
        if key is not None:
            with self._lock:
                self._shapes[key] = shape
                while len(self._shapes) > CACHED_SHAPES:
                    self._shapes.popitem(last=False)
        return parts

    def _without_smuggled(self, request: "_Request", parts: Sequence[Part], marked: frozenset[int]) -> list[Part]:
        """Special tokens that unmarked data also contains become plain text: nobody can tell whose they are."""
        rows = [(i in marked, message) for i, message in enumerate(request.messages)]
        data = [message.text for is_marked, message in rows if not is_marked]
        if not marked:
            data += [*_strings(request.tools), *(text for _, message in rows for text in _call_strings(message))]
        smuggled = {token for text in data for token in self._special_pattern.findall(text)}
        found: list[Part] = []
        for part in parts:
            at = 0
            for match in self._special_pattern.finditer(part.text) if part.kind == "own" else ():
                if match.group() in smuggled:
                    found += [replace(part, text=part.text[at : match.start()]), Part("data", match.group())]
                    at = match.end()
            found.append(replace(part, text=part.text[at:], start=part.start + at))
        return found

    def _render(self, request: "_Request", texts: Sequence[str], guard: Any) -> str:
        """`guard` is applied to every string that comes from the caller and is no message text."""
        messages = [_as_dict(message, text, guard) for message, text in zip(request.messages, texts, strict=True)]
        tools = None if request.tools is None else _guarded(list(request.tools), guard)
        return self._template.render(
            {
                "bos_token": "",
                "eos_token": "",
                **self._tokenizer.special_tokens,
                "messages": messages,
                "tools": tools,
                "add_generation_prompt": request.generate,
            }
        )

    def _tokenised(self, request: "_Request", parts: Sequence[Part]) -> Iterator[Segment]:
        for part in parts:
            if not part.text:
                continue
            if part.kind == "message":
                for text, piece in _cut(request.messages[part.message], part.start, len(part.text)):
                    ids = tuple(self._tokenizer.encode(text))
                    yield Segment(ids, piece.origin, text, piece.document, piece.version, piece.free)
            elif part.kind == "data":
                yield Segment(tuple(self._tokenizer.encode(part.text)), Origin.VALUE, part.text)
            elif part.origin is Origin.TEMPLATE:
                yield Segment(self._constant(part.text), Origin.TEMPLATE, part.text)
            else:
                yield Segment(tuple(self._tokenizer.encode_template(part.text)), part.origin, part.text)

    def _constant(self, text: str) -> tuple[int, ...]:
        with self._lock:
            ids = self._constants.get(text)
        if ids is None:
            ids = tuple(self._tokenizer.encode_template(text))
            with self._lock:
                self._constants[text] = ids
                while len(self._constants) > CACHED_SHAPES:
                    self._constants.popitem(last=False)
        return ids


@dataclass(frozen=True, slots=True)
class _Request:
    messages: tuple[PromptMessage, ...]
    tools: Sequence[Mapping[str, Any]] | None
    generate: bool
    continue_final: bool
    texts: tuple[str, ...] = field(init=False)
    """Of each message."""
    filled: frozenset[int] = field(init=False)
    """Messages with text."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "texts", tuple(message.text for message in self.messages))
        object.__setattr__(self, "filled", frozenset(i for i, text in enumerate(self.texts) if text))

    def shape(self, marked: frozenset[int]) -> str:
        """All that the rendering with markers depends on."""
        rows = [(m.role, i in marked, m.name, m.tool_call_id, _calls(m, str)) for i, m in enumerate(self.messages)]
        return json.dumps([rows, self.tools, self.generate], default=str)


def _cut(message: PromptMessage, start: int, length: int) -> Iterator[tuple[str, Piece]]:
    """What of each piece is in a message's text from `start` on, `length` characters in all."""
    at = 0
    for piece in message.pieces:
        low, high = max(start, at), min(start + length, at + len(piece.text))
        if low < high:
            yield piece.text[low - at : high - at], piece
        at += len(piece.text)


def _until_last_message(parts: list[Part], last: int) -> list[Part]:
    """Without what the template writes after the last message's text."""
    ends = [i for i, part in enumerate(parts) if part.kind == "message" and part.message == last]
    if not ends:
        raise InputError("this chat template does not let the last message be continued")
    return parts[: ends[-1] + 1]


# --- conversations --------------------------------------------------------------------------------------


def _as_dict(message: PromptMessage, text: str, guard: Any) -> dict[str, Any]:
    """As chat templates expect messages. Names and arguments may hold data, so they are guarded."""
    row: dict[str, Any] = {"role": message.role, "content": text}
    if message.tool_calls:
        row["tool_calls"] = _calls(message, guard)
    if message.tool_call_id is not None:
        row["tool_call_id"] = guard(message.tool_call_id)
    if message.name is not None:
        row["name"] = guard(message.name)
    return row


def _calls(message: PromptMessage, guard: Any) -> list[dict[str, Any]]:
    return [
        {
            "id": guard(call.id),
            "type": "function",
            "function": {"name": guard(call.name), "arguments": _guarded(dict(call.arguments), guard)},
        }
        for call in message.tool_calls
    ]


def _call_strings(message: PromptMessage) -> Iterator[str]:
    for call in message.tool_calls:
        yield from (call.name, call.id)
        yield from _strings(call.arguments)
    yield from (part for part in (message.name, message.tool_call_id) if part)


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield str(key)
            yield from _strings(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _strings(item)


def _guarded(value: Any, guard: Any) -> Any:
    """Plain JSON with every string guarded."""
    if isinstance(value, str):
        return guard(value)
    if isinstance(value, Mapping):
        return {guard(str(key)): _guarded(item, guard) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_guarded(item, guard) for item in value]
    return value if value is None or isinstance(value, bool | int | float) else guard(str(value))


def _plain(messages: Iterable[PromptMessage]) -> tuple[PromptMessage, ...]:
    """Only user and assistant, in turn."""
    turns: list[PromptMessage] = []
    system: list[Piece] = []
    for message in messages:
        role, pieces = message.role, list(message.pieces)
        if role == "system":
            system += [*pieces, Piece("\n\n", Origin.TEMPLATE)]
            continue
        if role == "tool":
            role, pieces = "user", [Piece(f"Result of {message.name or 'the tool'}:\n", Origin.TEMPLATE), *pieces]
        for call in message.tool_calls:
            text = json.dumps({"tool": call.name, "arguments": dict(call.arguments)}, ensure_ascii=False)
            pieces.append(Piece(text, Origin.GENERATED))
        if role == "user":
            pieces, system = [*system, *pieces], []
        if turns and turns[-1].role == role:
            previous = turns.pop()
            pieces = [*previous.pieces, Piece("\n\n", Origin.TEMPLATE), *pieces]
        turns.append(PromptMessage(role, tuple(pieces)))
    if system:
        turns.insert(0, PromptMessage("user", tuple(system[:-1])))
    return tuple(turns)
