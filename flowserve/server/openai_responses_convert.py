"""Between the Responses dialect and the chat's, once in each direction. No I/O.

A response is a chat whose turns are called items: what is asked becomes a `ChatRequest` and goes the same way, so that both doors
answer alike; what comes back is told as items.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from flowserve.errors import FlowServeError
from flowserve.runtime.records import Choice, Generation
from flowserve.runtime.run import Run
from flowserve.server import openai_convert as c
from flowserve.server import openai_responses_schemas as r
from flowserve.server import openai_schemas as s
from flowserve.server.errors import BadRequest, fault_of, openai_body
from flowserve.server.states import STATES

PREFIX = "resp_"
_PARAMS = {"messages": "input", "max_completion_tokens": "max_output_tokens", "response_format": "text.format"}
"""Fields of a chat -> what they are called here."""


@dataclass(frozen=True, slots=True)
class Kept:
    """What is remembered of a response beside its run."""

    body: r.ResponseRequest
    turns: tuple[s.ChatMessage, ...]
    """All that went before its answer, instructions left out: they do not carry over."""


# --- in ---------------------------------------------------------------------------------------------------------------


def refuse_unsupported(body: r.ResponseRequest) -> None:
    """Refuse what would change the answer and is not had here."""
    effort = body.reasoning is not None and body.reasoning.effort not in (None, "none")
    asked: list[tuple[str, bool, str]] = [
        ("conversation", body.conversation is not None, "go on with 'previous_response_id'"),
        ("prompt", body.prompt is not None, "send the text as 'input'"),
        ("truncation", body.truncation == "auto", "shorten the input"),
        ("reasoning.effort", effort, "set a budget with flowserve.early_exit"),
        ("max_tool_calls", body.max_tool_calls is not None, "leave it out"),
        ("top_logprobs", bool(body.top_logprobs), "ask for them at /v1/chat/completions"),
    ]
    for name, given, instead in asked:
        if given:
            raise c.wrong(f"'{name}' is not supported here; {instead}", name, "unsupported_parameter")
    if body.background and body.store is False:
        raise c.wrong("a response in the background is stored: leave 'store' out, or 'background'", "store")


def chat_of(body: r.ResponseRequest, before: Sequence[s.ChatMessage]) -> tuple[s.ChatRequest, Kept]:
    """The chat that answers it, and what to keep. `before`: the turns of the response that it goes on from."""
    turns = (*before, *_turns(body.input))
    if body.instructions is not None:
        shown = (s.ChatMessage(role="system", content=body.instructions), *turns)
    else:
        shown = turns
    chat = s.ChatRequest(
        model=body.model,
        messages=list(shown),
        max_completion_tokens=body.max_output_tokens,
        temperature=body.temperature,
        top_p=body.top_p,
        tools=[_tool(tool) for tool in body.tools] if body.tools else None,
        tool_choice=_choice(body.tool_choice),
        parallel_tool_calls=body.parallel_tool_calls,
        response_format=_format(body.text),
        stream=body.stream,
        seed=body.seed,
        service_tier=body.service_tier,
        session_id=body.session_id,
        metadata=body.metadata,
        flowserve=body.flowserve,
    )
    return chat, Kept(body, turns)


def renamed(error: BadRequest) -> BadRequest:
    """An error about a field of the chat, about that of the response."""
    head, dot, rest = (error.param or "").partition(".")
    if head in _PARAMS:
        error.param = _PARAMS[head] + ("" if head == "response_format" else dot + rest)
    return error


def _turns(given: str | list[r.Item]) -> Iterator[s.ChatMessage]:
    """Calls that stand one after the other are of one turn."""
    if isinstance(given, str):
        yield s.ChatMessage(role="user", content=given)
        return
    calls: list[s.CalledTool] = []
    for item in given:
        if isinstance(item, r.FunctionCallItem):
            function = s.CalledFunction(name=item.name, arguments=item.arguments)
            calls.append(s.CalledTool(id=item.call_id, function=function))
            continue
        if calls:
            yield s.ChatMessage(role="assistant", tool_calls=calls)
            calls = []
        if isinstance(item, r.FunctionOutputItem):
            yield s.ChatMessage(role="tool", content=_text(item.output), tool_call_id=item.call_id)
        else:
            yield s.ChatMessage(role=item.role, content=_text(item.content))
    if calls:
        yield s.ChatMessage(role="assistant", tool_calls=calls)


def _text(content: str | list[r.InputText]) -> str:
    return content if isinstance(content, str) else "".join(part.text for part in content)


def _choice(
    choice: Literal["none", "auto", "required"] | r.FunctionChoice | None,
) -> Literal["none", "auto", "required"] | s.NamedTool | None:
    if isinstance(choice, r.FunctionChoice):
        return s.NamedTool(type="function", function=s.NamedFunction(name=choice.name))
    return choice


def _tool(tool: r.FunctionTool) -> s.ToolIn:
    function = s.FunctionSpec(name=tool.name, description=tool.description, parameters=tool.parameters)
    return s.ToolIn(type="function", function=function)


def _format(text: r.TextIn | None) -> s.TextFormat | s.JSONObjectFormat | s.JSONSchemaFormat | None:
    given = text.format if text is not None else None
    if isinstance(given, r.SchemaFormat):
        named = s.NamedSchema(name=given.name, schema=given.json_schema)
        return s.JSONSchemaFormat(type="json_schema", json_schema=named)
    return given


# --- out --------------------------------------------------------------------------------------------------------------


def response_id(run: Run) -> str:
    return f"{PREFIX}{run.id}"


def answered(run: Run) -> Choice | None:
    """The choice of a run that ended well; None: it has not, or not well."""
    if not run.settled or run.error is not None:
        return None
    value = run.outcome()
    if isinstance(value, Generation):
        return value.choices[0]
    return Choice(c.result_text(run.snapshot().result), "stop")


def turns_after(run: Run, kept: Kept) -> tuple[s.ChatMessage, ...]:
    """The conversation with its answer, for what goes on from there."""
    choice = answered(run)
    if choice is None:
        raise BadRequest(
            400,
            "previous_response_not_completed",
            f"the response '{response_id(run)}' has no answer to go on from: it is {status_of(run)}",
            param="previous_response_id",
        )
    calls = [s.CalledTool.model_validate(call) for call in c.tool_calls(choice)]
    said = s.ChatMessage(role="assistant", content=None if calls else choice.text, tool_calls=calls or None)
    return (*kept.turns, said)


def status_of(run: Run) -> str:
    """In OpenAI's words. A run that took too long has failed."""
    status = run.snapshot().status
    if status == "completed":
        choice = answered(run)
        if choice is None:
            return "in_progress"  # its last event is on its way
        return "incomplete" if choice.finish == "length" else "completed"
    return STATES[status].responses


def response(run: Run, kept: Kept, status: str | None = None) -> dict[str, Any]:
    """The response as it stands, or as it stood when it was `in_progress`."""
    body, begun = kept.body, status == "in_progress"
    shown = run.snapshot()
    status = status or status_of(run)
    choice = None if begun else answered(run)
    told = c.usage([shown]) if choice is not None else None
    return {
        "id": response_id(run),
        "object": "response",
        "created_at": int(run.created_wall),
        "completed_at": int(shown.ended) if status == "completed" and shown.ended is not None else None,
        "status": status,
        "background": bool(body.background),
        "error": _error(run.error) if status == "failed" and run.error is not None else None,
        "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
        "instructions": body.instructions,
        "max_output_tokens": body.max_output_tokens,
        "model": body.model,
        "output": [] if choice is None else items(run, choice),
        "parallel_tool_calls": body.parallel_tool_calls is not False,
        "previous_response_id": body.previous_response_id,
        "service_tier": body.service_tier,
        "store": body.store is not False,
        "temperature": 1.0 if body.temperature is None else body.temperature,
        "text": _echo(body.text) if body.text is not None else {"format": {"type": "text"}},
        "tool_choice": _echo(body.tool_choice) if body.tool_choice is not None else "auto",
        "tools": [_echo(tool) for tool in body.tools or ()],
        "top_p": 1.0 if body.top_p is None else body.top_p,
        "truncation": "disabled",
        "usage": None
        if told is None
        else {
            "input_tokens": told["prompt_tokens"],
            "input_tokens_details": told["prompt_tokens_details"],
            "output_tokens": told["completion_tokens"],
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": told["total_tokens"],
        },
        "metadata": body.metadata or {},
        **({} if choice is None else c.ours([shown])),
    }


def items(run: Run, choice: Choice) -> list[dict[str, Any]]:
    """The answer as items: its calls, or its text."""
    calls = [call_item(run, i, call) for i, call in enumerate(c.tool_calls(choice))]
    return calls or [message_item(run, choice)]


def message_item(run: Run, choice: Choice | None) -> dict[str, Any]:
    """`choice` None: it has begun."""
    status = "in_progress" if choice is None else "incomplete" if choice.finish == "length" else "completed"
    content = [] if choice is None else [text_part(choice.text)]
    return {"type": "message", "id": f"msg_{run.id}", "status": status, "role": "assistant", "content": content}


def text_part(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def call_item(run: Run, number: int, call: dict[str, Any]) -> dict[str, Any]:
    """`call` as `openai_convert.tool_calls` tells it."""
    return {
        "type": "function_call",
        "id": f"fc_{run.id}_{number}",
        "call_id": call["id"],
        **call["function"],
        "status": "completed",
    }


def input_items(run: Run, kept: Kept) -> list[dict[str, Any]]:
    """What the response was asked with, in its own order, each with an id. Turns of earlier responses are theirs."""
    given = kept.body.input
    if isinstance(given, str):
        given = [r.MessageItem(role="user", content=[r.InputText(type="input_text", text=given)])]
    return [{"id": f"in_{run.id}_{i}", **_echo(item)} for i, item in enumerate(given)]


def _error(error: FlowServeError) -> dict[str, Any]:
    told = openai_body(fault_of(error))["error"]
    return {"code": told["code"], "message": told["message"]}


def _echo(value: Any) -> Any:
    """What a client sent, as it sent it."""
    return value if isinstance(value, str) else value.model_dump(by_alias=True, exclude_none=True)
