"""Tool calls by constrained decoding, the same for every engine and model.

`ToolFormat` turns tools and a choice into (1) instructions to put before the conversation, (2) the JSON Schema the
call's output must satisfy, (3) a parser of that output. The model writes either

    {"tool": "weather", "arguments": {"city": "Paris"}}      or, with parallel calls, a list of these, or
    {"answer": "It is 7 degrees."}

Pure: no engine, no asyncio. `AnswerStream` shows an answer while it is being written.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from jsonschema import Draft202012Validator

from flowserve.engines.base import Origin
from flowserve.engines.chat import Piece, PromptMessage
from flowserve.errors import InputError, OutputInvalid, UnknownName

MAX_PARALLEL = 8


@dataclass(frozen=True, slots=True)
class Tool:
    """What a model is told of a function."""

    name: str
    description: str
    parameters: Mapping[str, Any]
    """JSON Schema of the arguments (an object)."""


@dataclass(frozen=True, slots=True)
class Named:
    """The choice of exactly this tool."""

    name: str


Choice = Literal["auto", "none", "required"] | Named
"""auto: tools or an answer. none: an answer. required: at least one tool. Named: that tool."""


@dataclass(frozen=True, slots=True)
class ToolCall:
    """What the model wants called."""

    name: str
    arguments: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Turn:
    """One parsed output: calls, or an answer."""

    calls: tuple[ToolCall, ...] = ()
    answer: Any = None
    """Text, or a value of the output schema. None when there are calls."""


class ToolFormat:
    """See the module. Raises UnknownName or InputError for a choice that the tools do not allow.

    parallel: several calls in one turn, up to `max_parallel`.
    output: JSON Schema of the answer; None is text.
    """

    def __init__(
        self,
        tools: Sequence[Tool],
        choice: Choice = "auto",
        *,
        parallel: bool = False,
        max_parallel: int = MAX_PARALLEL,
        output: Mapping[str, Any] | None = None,
    ) -> None:
        self._tools = {tool.name: tool for tool in tools}
        if len(self._tools) != len(tools):
            raise InputError(f"tools have the same name: {', '.join(sorted(tool.name for tool in tools))}")
        if isinstance(choice, Named):
            if choice.name not in self._tools:
                raise UnknownName("tool", choice.name, tuple(self._tools))
            self._offered = [self._tools[choice.name]]
        else:
            self._offered = [] if choice == "none" else list(tools)
        if choice == "required" and not tools:
            raise InputError("tool choice 'required' needs at least one tool")
        self._may_answer = choice in ("auto", "none")
        self._max_calls = max_parallel if parallel else 1
        self._output = output
        self.schema: dict[str, Any] | None = self._schema()
        """For `Call.schema`; None when the answer is free text."""
        self.instructions: str = self._instructions()
        """For the system message; empty when no tool is offered."""

    def parse(self, text: str) -> Turn:
        """The turn that `text` is.

        Text without JSON is an answer where an answer in words is allowed (engines that cannot constrain their output).
        Raises OutputInvalid, saying what is wrong with it.
        """
        if self.schema is None:
            return Turn(answer=text)
        bare = _without_fence(text)
        try:
            value = json.loads(bare)
        except ValueError as error:
            if self._may_answer and self._output is None and not bare.startswith(("{", "[")):
                return Turn(answer=text)
            raise OutputInvalid(f"expected JSON; got {_short(bare)} ({error})") from error
        if not self._offered:
            return Turn(answer=_valid(value, self.schema, "answer"))
        if isinstance(value, dict) and "answer" in value and self._may_answer:
            return Turn(answer=_valid(value["answer"], self._output or {"type": "string"}, "answer"))
        rows = value if isinstance(value, list) else [value]
        if not 1 <= len(rows) <= self._max_calls:
            raise OutputInvalid(f"expected 1 to {self._max_calls} tool calls; got {len(rows)}")
        return Turn(calls=tuple(self._call(row) for row in rows))

    def _call(self, row: Any) -> ToolCall:
        offered = {tool.name: tool for tool in self._offered}
        name = row.get("tool") if isinstance(row, dict) else None
        if not isinstance(name, str) or name not in offered:
            raise OutputInvalid(f"expected a call of {', '.join(sorted(offered))}; got {_short(json.dumps(row))}")
        arguments = row.get("arguments", {})
        return ToolCall(name, _valid(arguments, _closed(offered[name].parameters), f"arguments of '{name}'"))

    def _schema(self) -> dict[str, Any] | None:
        if not self._offered:
            return None if self._output is None else dict(self._output)
        definitions: dict[str, Any] = {}

        def place(schema: Mapping[str, Any], key: str) -> dict[str, Any]:
            definitions[key] = _moved(schema, f"#/$defs/{key}")
            return {"$ref": f"#/$defs/{key}"}

        calls = [
            _object(tool={"const": tool.name}, arguments=place(_closed(tool.parameters), f"tool{i}"))
            for i, tool in enumerate(self._offered)
        ]
        options = calls
        if self._max_calls > 1:
            items = calls[0] if len(calls) == 1 else {"anyOf": calls}
            options = [{"type": "array", "items": items, "minItems": 1, "maxItems": self._max_calls}]
        if self._may_answer:
            answer = {"type": "string"} if self._output is None else place(self._output, "answer")
            options = [*options, _object(answer=answer)]
        body = options[0] if len(options) == 1 else {"anyOf": options}
        return {**body, "$defs": definitions}

    def _instructions(self) -> str:
        if not self._offered:
            return ""
        lines = ["You can use these tools:"]
        for tool in self._offered:
            parameters = json.dumps(tool.parameters, ensure_ascii=False)
            lines.append(f"- {tool.name}: {' '.join(tool.description.split())} Arguments (JSON Schema): {parameters}")
        form = '{"tool": <name>, "arguments": {<name>: <value>}}'
        if self._max_calls > 1:
            lines.append(f"To use tools, reply with JSON only, a list of one to {self._max_calls} calls: [{form}]")
        else:
            lines.append(f"To use a tool, reply with JSON only: {form}")
        if self._may_answer:
            value = "<text>" if self._output is None else f"<value of {json.dumps(self._output, ensure_ascii=False)}>"
            lines.append(f'When you know the answer, reply with JSON only: {{"answer": {value}}}')
        return "\n".join(lines)


def calls_message(calls: Sequence[ToolCall], parallel: bool = False) -> PromptMessage:
    """An earlier assistant turn that called tools, as the model wrote it."""
    rows = [{"tool": call.name, "arguments": call.arguments} for call in calls]
    text = json.dumps(rows if parallel or len(rows) != 1 else rows[0], ensure_ascii=False)
    return PromptMessage("assistant", (Piece(text, Origin.GENERATED),))


def result_message(name: str, text: str, call_id: str | None = None) -> PromptMessage:
    """What a tool returned."""
    return PromptMessage("tool", (Piece(text, Origin.VALUE),), tool_call_id=call_id, name=name)


class AnswerStream:
    """The answer's text out of a growing `{"answer": "..."}`; shows nothing of tool calls."""

    _START = re.compile(r'\s*\{\s*"answer"\s*:\s*"')
    _STEP = re.compile(r'[^"\\]+|\\u[dD][89abAB][0-9a-fA-F]{2}\\u[0-9a-fA-F]{4}|\\u[0-9a-fA-F]{4}|\\[^u]')
    _LONE_HIGH = re.compile(r"\\u[dD][89abAB][0-9a-fA-F]{2}$")

    def __init__(self) -> None:
        self._text = ""
        self._at = 0
        self._inside = False
        self._over = False

    def push(self, delta: str) -> str:
        """The part of the answer that `delta` completes."""
        if self._over:
            return ""
        self._text += delta
        if not self._inside:
            start = self._START.match(self._text)
            if start is None:
                return ""
            self._inside, self._at = True, start.end()
        shown: list[str] = []
        while step := self._STEP.match(self._text, self._at):
            if step.end() > len(self._text) - 6 and self._LONE_HIGH.match(step.group()):
                break  # the other half of a surrogate pair may come
            shown.append(json.loads(f'"{step.group()}"', strict=False) if "\\" in step.group() else step.group())
            self._at = step.end()
        self._over = self._text.startswith('"', self._at)
        return "".join(shown)


# --- schemas ------------------------------------------------------------------------------------------

_DATA_WORDS = frozenset(("const", "enum", "default", "examples"))


def _moved(schema: Any, to: str) -> Any:
    """`schema` with its references adjusted to standing at pointer `to` of a larger document."""
    if isinstance(schema, Mapping):
        return {
            key: to + value[1:]
            if key == "$ref" and isinstance(value, str) and value.startswith("#")
            else (value if key in _DATA_WORDS else _moved(value, to))
            for key, value in schema.items()
        }
    return [_moved(item, to) for item in schema] if isinstance(schema, list) else schema


def _closed(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """An object schema that allows what it names, unless it says otherwise."""
    return {"type": "object", "properties": {}, "additionalProperties": False, **parameters}


def _object(**properties: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def _valid(value: Any, schema: Mapping[str, Any], what: str) -> Any:
    wrong = next(iter(Draft202012Validator(dict(schema)).iter_errors(value)), None)
    if wrong is not None:
        raise OutputInvalid(f"{what}: {wrong.message} at '{wrong.json_path}'")
    return value


def _without_fence(text: str) -> str:
    """Without a Markdown fence around it."""
    fenced = re.fullmatch(r"\s*```(?:json)?\s*\n(.*?)\n?\s*```\s*", text, re.DOTALL)
    return (fenced.group(1) if fenced else text).strip()


def _short(text: str) -> str:
    return repr(text if len(text) <= 120 else f"{text[:100]}...")
