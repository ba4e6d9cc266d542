"""Prompt templates in the run: spans and values become pieces of text with known boundaries.

Every iteration of an `each` span is one piece. The pieces joined are the text of rendering the whole template at
once. How templates become spans is told in split.py, what they may do in sandbox.py.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jinja2

from flowserve.errors import ValueInvalid
from flowserve.graphs.plan import Span, Template
from flowserve.graphs.sandbox import MAX_OUTPUT_CHARS, compiled, start_budget
from flowserve.graphs.types import Doc, Message, ToolCall

TEMPLATE, VALUE, CHUNK = "template", "value", "chunk"
"""Origins; equal to the values of `engines.base.Origin`."""

_MARK = "__fs_mark"


@dataclass(frozen=True, slots=True)
class Piece:
    """A stretch of a rendered prompt. `origin` is `template`, `value` or `chunk`."""

    text: str
    origin: str
    free: bool = False
    """It may change places with the other free pieces, which stand beside it."""
    document: str = ""
    """Of a chunk that writes a `Doc`: the document that it was cut from."""
    version: str = ""
    """And its version, where the document's metadata has one under `version`."""


@dataclass(frozen=True, slots=True)
class RenderedPrompt:
    """A prompt with its values filled in, ready for a chat template."""

    system: tuple[Piece, ...]
    history: tuple[Message, ...]
    user: tuple[Piece, ...]


def render(spans: Sequence[Span], values: Mapping[str, Any], any_order: str | None = None) -> list[Piece]:
    """The pieces of a template for some values; empty ones are left out, those of the loop over `any_order` are free.

    Raises ValueInvalid.
    """
    pieces: list[Piece] = []
    size = 0
    start_budget()
    for span in spans:
        if span.kind == "const":
            found = [Piece(span.text, TEMPLATE)]
        elif span.kind == "var":
            found = [Piece(text, VALUE) for text, _ in _render(span.text, values, size)]
        else:
            free = span.over == any_order
            found = [Piece(text, CHUNK, free, *_cut_from(item)) for text, item in _render(_loop(span), values, size)]
        pieces += [piece for piece in found if piece.text]
        size += sum(len(piece.text) for piece in found)
        _check_size(size)
    return pieces


def render_prompt(template: Template, values: Mapping[str, Any], any_order: str | None = None) -> RenderedPrompt:
    """System text, history and user text of a prompt; see `render`. Raises ValueInvalid."""
    history: tuple[Message, ...] = ()
    if template.history is not None:
        turns = values.get(template.history)
        if not isinstance(turns, list | tuple):
            raise ValueInvalid(f"expected '{template.history}' to be a list of messages; got {type(turns).__name__}")
        history = tuple(map(message, turns))
    system, user = (tuple(render(spans, values, any_order)) for spans in (template.system, template.user))
    return RenderedPrompt(system, history, user)


def message(value: Any) -> Message:
    """A Message from a Message or its JSON form. Raises ValueInvalid."""
    if isinstance(value, Message):
        return value
    if not isinstance(value, Mapping) or not isinstance(value.get("role"), str):
        raise ValueInvalid(f"expected a message with role and content; got {type(value).__name__}")
    try:
        calls = tuple(c if isinstance(c, ToolCall) else ToolCall(**c) for c in value.get("tool_calls") or ())
    except TypeError:
        raise ValueInvalid("expected tool_calls with id, name and arguments; got something else") from None
    content = value.get("content")
    return Message(
        role=value["role"],
        content=content if isinstance(content, str) else "",
        tool_calls=calls,
        tool_call_id=str(value.get("tool_call_id") or ""),
        name=str(value.get("name") or ""),
    )


def _loop(span: Span) -> str:
    """The loop of an `each` span as a template that marks the end of every iteration."""
    return f"{{% for {span.item} in {span.over} %}}{span.text}{{{{ {_MARK}({span.item}) }}}}{{% endfor %}}"


def _cut_from(item: object) -> tuple[str, str]:
    """Id and version of the document that an item of a loop is a passage of; "" where there is none."""
    return (item.document, item.metadata.get("version", "")) if isinstance(item, Doc) else ("", "")


class _Mark:
    """Called by the template at the end of an iteration, when all text before it has been yielded."""

    is_prompt_mark = True
    """What lets the sandbox call it."""

    def __init__(self, chunks: list[str]) -> None:
        self.chunks = chunks
        self.ends: list[int] = []
        self.items: list[object] = []

    def __call__(self, item: object) -> str:
        self.ends.append(len(self.chunks))
        self.items.append(item)
        return ""


def _render(source: str, values: Mapping[str, Any], size: int) -> list[tuple[str, object]]:
    """The text of a template, cut at its marks, each part with what was given to its mark; the last one, which has none, with None."""
    chunks: list[str] = []
    mark = _Mark(chunks)
    try:
        template = compiled(source)
        context = template.new_context({**values, _MARK: mark})
        for chunk in template.root_render_func(context):
            chunks.append(chunk)
            size += len(chunk)
            _check_size(size)
    except jinja2.TemplateError as error:
        raise ValueInvalid(f"the template cannot be rendered: {error.message}") from None
    except ValueInvalid:
        raise
    except (TypeError, ValueError, ArithmeticError, LookupError, AttributeError, RecursionError) as error:
        raise ValueInvalid(f"the template cannot be rendered: {type(error).__name__}: {error}") from None
    starts = [0, *mark.ends]
    ends = [*mark.ends, len(chunks)]
    texts = ("".join(chunks[a:b]) for a, b in zip(starts, ends, strict=True))
    return list(zip(texts, [*mark.items, None], strict=True))


def _check_size(size: int) -> None:
    if size > MAX_OUTPUT_CHARS:
        raise ValueInvalid(f"the rendered prompt has more than {MAX_OUTPUT_CHARS} characters")


def joined(pieces: Iterable[Piece]) -> str:
    """The text of some pieces."""
    return "".join(piece.text for piece in pieces)
